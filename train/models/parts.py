"""Score parts of captions against parts of videos, in blocks that fit a processor's cache (HGR, MCSAN, HCMI).

A block holds the cosines of some parts of captions with some parts of videos. Videos are its first axis and captions
its last, so that sums, maxima and softmaxes over a video's parts run over contiguous memory. Padding is removed before
the products: absent phrases and rows cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from ..options import RoleGraphs

# Parts of captions and of videos in a block: 2 MB of float32. GPUs need larger blocks.
TEXTS, VIDEOS = 512, 1024
GPU_TEXTS, GPU_VIDEOS = 4096, 8192


def phrase_scores(
    frames: Tensor, row_mask: Tensor, phrases: Tensor, phrase_mask: Tensor, options: RoleGraphs
) -> Tensor:
    """Score how well phrases match the rows of a video that they attend to, averaged over the phrases of a caption.

    Args:
        frames, row_mask: (V, T, dim) rows and their mask (V, T).
        phrases, phrase_mask: (C, P, dim) phrases and their mask (C, P).

    Returns:
        (C, V).
    """
    caption = phrase_mask.nonzero()[:, 0]
    if not len(caption):
        # Zeros with a gradient.
        return phrases.new_zeros(len(phrases), len(frames)) + 0 * phrases.sum()
    most_texts, most_videos = _most(frames)
    texts = [_ready(part) for part in normalize(phrases[phrase_mask], dim=-1).split(most_texts)]
    order, sums = [], []
    for videos, places, present in _groups(row_mask, most_videos):
        rows = frames[videos.unsqueeze(1), places] * present.unsqueeze(-1)
        fits = torch.cat(_fits(rows, present.to(rows.dtype), texts, options), dim=1)
        sums.append(fits.new_zeros(len(phrases), len(videos)).index_add(0, caption, fits.T))
        order.append(videos)
    scores = torch.cat(sums, dim=1)[:, torch.cat(order).argsort()]
    return scores / phrase_mask.sum(1, keepdim=True).clamp(min=1)


def _fits(rows: Tensor, present: Tensor, texts: list[Tensor], options: RoleGraphs) -> list[Tensor]:
    """Return (V, N) scores for each block of N phrases. Absent rows of (V, T, dim) are 0."""
    lengths = rows.norm(dim=-1, keepdim=True)
    units = normalize(rows, dim=-1)
    between = units @ units.transpose(1, 2)
    ready = _ready(units.flatten(0, 1))
    results = []
    for block in texts:
        cosines = _product(ready, block).unflatten(0, rows.shape[:2])
        # Negative cosines count as 0, and the cosines of a phrase with all rows are scaled to norm 1. Absent rows have
        # cosine 0.
        positive = cosines.clamp(min=0)
        norm = (positive * positive).sum(1, keepdim=True).clamp(min=1e-20).sqrt()
        weights = (positive * (options.sharpness / norm)).softmax(1)
        if options.fusion == "sim":
            fits = (weights * cosines).sum(1) / (present.unsqueeze(1) @ weights).squeeze(1).clamp(min=1e-20)
        else:
            # The cosine of a phrase with the weighted mean of rows, without computing that mean for every phrase and
            # video: the product with the phrase is the mean of products, and the norm follows from the products
            # between rows. Absent rows have norm 0. The scale of the weights cancels in a cosine.
            weights = weights * lengths
            squared = (weights * (between @ weights)).sum(1)
            fits = (weights * cosines).sum(1) / squared.clamp(min=1e-18).sqrt()
        results.append(fits)
    return results


def token_scores(a: Tensor, a_weight: Tensor, b: Tensor, b_weight: Tensor) -> Tensor:
    """Weighted token-wise interaction (Wang et al., DRL, 2022): each token is matched with its best counterpart.

    Args:
        a, a_weight: unit vectors (C, L, D), and weights (C, L) that sum to 1 and are 0 for padding.
        b, b_weight: (V, T, D) and (V, T), likewise.

    Returns:
        (C, V).
    """
    most_texts, most_videos = _most(a)
    texts = []
    for captions, places, present in _groups(a_weight > 0, most_texts):
        words, weights = _fill_with_first(a, a_weight, captions, places, present)
        texts.append((captions, _ready(words.transpose(0, 1).flatten(0, 1)), weights.T))
    order, results = [], []
    for videos, places, present in _groups(b_weight > 0, most_videos):
        frames, frame_weights = _fill_with_first(b, b_weight, videos, places, present)
        ready = _ready(frames.flatten(0, 1))
        fits = []
        for _, words, weights in texts:
            cosines = _product(ready, words)
            by_word = cosines.unflatten(0, places.shape).amax(1).unflatten(1, weights.shape)
            by_frame = cosines.unflatten(1, weights.shape).amax(1).unflatten(0, places.shape)
            fits.append((by_word * weights).sum(1) + (by_frame * frame_weights.unsqueeze(-1)).sum(1))
        results.append(torch.cat(fits, dim=1))
        order.append(videos)
    scores = torch.cat(results)[torch.cat(order).argsort()].T[torch.cat([captions for captions, *_ in texts]).argsort()]
    # Without tokens on a side, the score is 0.
    both = (a_weight > 0).any(1)[:, None] & (b_weight > 0).any(1)[None]
    return (scores / 2).masked_fill(~both, 0.0)


def _fill_with_first(
    tokens: Tensor, weights: Tensor, items: Tensor, places: Tensor, present: Tensor
) -> tuple[Tensor, Tensor]:
    """Return tokens (K, N, D) of items and their weights. Padding repeats the first token, so no maximum changes."""
    places = torch.where(present, places, places[:, :1])
    items = items.unsqueeze(1)
    return tokens[items, places], weights[items, places] * present


def _groups(mask: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Group items with a similar number of parts, so that a group has at most ``most`` parts.

    Args:
        mask: (B, N) bool, True for present parts.

    Yields:
        The numbers of the items (K,), the positions of their parts (K, n), present ones first, and their mask (K, n).
    """
    counts = mask.sum(1)
    order = counts.argsort(descending=True, stable=True)
    sizes = counts[order].tolist()
    begin = 0
    while begin < len(sizes):
        longest = max(1, sizes[begin])
        items = order[begin : begin + max(1, most // longest)]
        present, places = mask[items].sort(dim=1, descending=True, stable=True)
        yield items, places[:, :longest], present[:, :longest]
        begin += len(items)


def _most(x: Tensor) -> tuple[int, int]:
    return (TEXTS, VIDEOS) if x.device.type == "cpu" else (GPU_TEXTS, GPU_VIDEOS)


def _ready(x: Tensor) -> Tensor:
    """Prepare a factor of ``_product``. On a CPU without gradients, use oneDNN: on AMD, MKL takes twice as long."""
    if x.device.type == "cpu" and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available():
        return x.to_mkldnn()
    return x


def _product(a: Tensor, b: Tensor) -> Tensor:
    product = linear(a, b)
    return product.to_dense() if product.is_mkldnn else product
