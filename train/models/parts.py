"""Scores of captions' parts with videos' parts, in blocks that fit a processor's cache: HGR's, MCSAN's and HCMI's.

A block holds the cosines of some parts of captions with some parts of videos. Videos are the first axis of a block and
captions are the last, so that sums, maxima and softmaxes over a video's parts run along whole rows of numbers. Padding
is left out before the products: nothing is computed for a phrase or a row that is not there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from ..options import RoleGraphs

# Parts of captions by parts of videos in a block: 2 MB of float32. A GPU wants more work at once.
TEXTS, VIDEOS = 512, 1024
GPU_TEXTS, GPU_VIDEOS = 4096, 8192


def phrase_scores(frames: Tensor, shown: Tensor, phrases: Tensor, said: Tensor, options: RoleGraphs) -> Tensor:
    """The mean over a caption's phrases of how well each fits the rows of a video that it attends to.

    Args:
        frames, shown: (V, T, dim) and (V, T).
        phrases, said: (C, P, dim) and (C, P).

    Returns:
        (C, V).
    """
    caption = said.nonzero()[:, 0]
    if not len(caption):
        # Zeros of which a loss may still ask the gradient.
        return phrases.new_zeros(len(phrases), len(frames)) + 0 * phrases.sum()
    most_texts, most_videos = _most(frames)
    texts = [_ready(part) for part in normalize(phrases[said], dim=-1).split(most_texts)]
    order, found = [], []
    for videos, places, there in _groups(shown, most_videos):
        rows = frames[videos.unsqueeze(1), places] * there.unsqueeze(-1)
        fits = torch.cat(_fits(rows, there.to(rows.dtype), texts, options), dim=1)
        found.append(fits.new_zeros(len(phrases), len(videos)).index_add(0, caption, fits.T))
        order.append(videos)
    scores = torch.cat(found, dim=1)[:, torch.cat(order).argsort()]
    return scores / said.sum(1, keepdim=True).clamp(min=1)


def _fits(rows: Tensor, there: Tensor, texts: list[Tensor], options: RoleGraphs) -> list[Tensor]:
    """(V, N) of each block of N phrases; rows (V, T, dim) that are not there are 0."""
    lengths = rows.norm(dim=-1, keepdim=True)
    units = normalize(rows, dim=-1)
    between = units @ units.transpose(1, 2)
    ready = _ready(units.flatten(0, 1))
    found = []
    for block in texts:
        cosines = _product(ready, block).unflatten(0, rows.shape[:2])
        # Cosines below 0 count as 0, and those of a phrase with all rows have length 1. Absent rows have the cosine 0.
        kept = cosines.clamp(min=0)
        norm = (kept * kept).sum(1, keepdim=True).clamp(min=1e-20).sqrt()
        weights = (kept * (options.sharpness / norm)).softmax(1)
        if options.fusion == "sim":
            fits = (weights * cosines).sum(1) / (there.unsqueeze(1) @ weights).squeeze(1).clamp(min=1e-20)
        else:
            # The cosine of a phrase with the weighted mean of rows, without making that mean for every phrase and
            # video: its product with the phrase is the mean of products, its length comes from those between rows.
            # Absent rows have the length 0, and the scale of the weights does not change a cosine.
            weights = weights * lengths
            squared = (weights * (between @ weights)).sum(1)
            fits = (weights * cosines).sum(1) / squared.clamp(min=1e-18).sqrt()
        found.append(fits)
    return found


def token_scores(a: Tensor, a_weight: Tensor, b: Tensor, b_weight: Tensor) -> Tensor:
    """Weighted token-wise interaction (Wang et al., DRL, 2022): each token meets its best among the other side's.

    Args:
        a, a_weight: (C, L, D) of length 1, and (C, L), summing to 1, 0 where there is no token.
        b, b_weight: (V, T, D) and (V, T).

    Returns:
        (C, V).
    """
    most_texts, most_videos = _most(a)
    texts = []
    for captions, places, there in _groups(a_weight > 0, most_texts):
        words, weights = _repeated(a, a_weight, captions, places, there)
        texts.append((captions, _ready(words.transpose(0, 1).flatten(0, 1)), weights.T))
    order, found = [], []
    for videos, places, there in _groups(b_weight > 0, most_videos):
        frames, frame_weights = _repeated(b, b_weight, videos, places, there)
        ready = _ready(frames.flatten(0, 1))
        fits = []
        for _, words, weights in texts:
            cosines = _product(ready, words)
            by_word = cosines.unflatten(0, places.shape).amax(1).unflatten(1, weights.shape)
            by_frame = cosines.unflatten(1, weights.shape).amax(1).unflatten(0, places.shape)
            fits.append((by_word * weights).sum(1) + (by_frame * frame_weights.unsqueeze(-1)).sum(1))
        found.append(torch.cat(fits, dim=1))
        order.append(videos)
    scores = torch.cat(found)[torch.cat(order).argsort()].T[torch.cat([captions for captions, *_ in texts]).argsort()]
    # A side without tokens fits nothing.
    some = (a_weight > 0).any(1)[:, None] & (b_weight > 0).any(1)[None]
    return (scores / 2).masked_fill(~some, 0.0)


def _repeated(tokens: Tensor, weights: Tensor, items: Tensor, places: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (K, N, D) of some items and their weights; a place without one repeats the first: no maximum changes."""
    places = torch.where(there, places, places[:, :1])
    items = items.unsqueeze(1)
    return tokens[items, places], weights[items, places] * there


def _groups(mask: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Items of about equally many parts, as many at a time as have ``most`` parts together.

    Args:
        mask: (B, N) bool, which parts there are.

    Yields:
        The items' numbers (K,), and (K, n) the places of their parts, those that are there first, and whether they are.
    """
    counts = mask.sum(1)
    order = counts.argsort(descending=True, stable=True)
    sizes = counts[order].tolist()
    begin = 0
    while begin < len(sizes):
        longest = max(1, sizes[begin])
        items = order[begin : begin + max(1, most // longest)]
        there, places = mask[items].sort(dim=1, descending=True, stable=True)
        yield items, places[:, :longest], there[:, :longest]
        begin += len(items)


def _most(x: Tensor) -> tuple[int, int]:
    return (TEXTS, VIDEOS) if x.device.type == "cpu" else (GPU_TEXTS, GPU_VIDEOS)


def _ready(x: Tensor) -> Tensor:
    """A factor of ``_product``. Where nothing learns, oneDNN multiplies on a CPU: MKL is half as fast on AMD's."""
    if x.device.type == "cpu" and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available():
        return x.to_mkldnn()
    return x


def _product(a: Tensor, b: Tensor) -> Tensor:
    found = linear(a, b)
    return found.to_dense() if found.is_mkldnn else found
