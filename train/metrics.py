"""Retrieval metrics in both directions, computed in blocks; docs/concepts/metrics.md defines them.

The *position* of an item in a query's ranking is 1 + the number of items before it. Items with equal scores are tied:

- ``mean``: the expected position if ties are broken at random. A model with constant scores is at chance.
- ``argsort``: ties are broken by index, as in HGR and hybrid_space. The result depends on the order of the files.
- ``c4c``: a query counts once for every position tied with it, as in CLIP4Clip and HowTo100M.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import AmexError, plural

Ties = Literal["mean", "argsort", "c4c"]
RECALLS = (1, 5, 10, 50)
# Scores in a block: 32 MB of float32. Several copies exist at a time. The C library may not free smaller blocks.
BLOCK = 1 << 23


class MetricsError(AmexError):
    """Scores or ground truth cannot be evaluated."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Ground truth: which captions belong to which videos.

    Attributes:
        captions: the caption numbers of each video. A video without captions is no query but stays in the gallery.
        queries: number of captions.
    """

    captions: Sequence[Sequence[int]]
    queries: int

    def __post_init__(self) -> None:
        flat = [number for own in self.captions for number in own]
        if flat and not 0 <= min(flat) <= max(flat) < self.queries:
            raise MetricsError(f"captions are numbered 0 to {self.queries - 1}, got {min(flat)} to {max(flat)}")
        if not flat:
            raise MetricsError("no video has a caption: there is nothing to evaluate")

    @property
    def videos(self) -> list[list[int]]:
        """The video numbers of each caption, usually one."""
        videos: list[list[int]] = [[] for _ in range(self.queries)]
        for video, own in enumerate(self.captions):
            for caption in own:
                videos[caption].append(video)
        return videos


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of captions x videos, read a block at a time.

    Attributes:
        block: indexes the matrix as ``[captions, videos]``: slices give a block, two lists of numbers a score a pair.
        shape: captions, videos.
    """

    block: Callable[[Any, Any], Tensor]
    shape: tuple[int, int]

    @classmethod
    def of(cls, matrix: Any) -> Scores:
        """Wrap a NumPy or torch matrix (captions, videos) without copying it."""
        scores = torch.as_tensor(np.asarray(matrix))
        if scores.ndim != 2:
            raise MetricsError(f"scores are captions x videos, got an array of shape {tuple(scores.shape)}")
        return cls(block=lambda captions, videos: scores[captions, videos], shape=(scores.shape[0], scores.shape[1]))

    def of_captions(self, numbers: Sequence[int]) -> Scores:
        """Select captions in this order, possibly repeated."""
        chosen = torch.tensor(numbers, dtype=torch.long)
        return Scores(
            block=lambda captions, videos: self.block(chosen[captions], videos), shape=(len(chosen), self.shape[1])
        )

    def rows(self, size: int = BLOCK) -> Iterator[tuple[int, Tensor]]:
        """Yield (first caption, (captions, videos)) for all captions; raise a MetricsError for NaN and infinity."""
        count, gallery = self.shape
        step = max(1, size // max(1, gallery))
        for begin in range(0, count, step):
            block = self.block(slice(begin, min(count, begin + step)), slice(None))
            if block.numel() and not all(map(math.isfinite, block.aminmax())):
                raise MetricsError("scores hold NaN or infinity: such a model cannot be ranked")
            yield begin, block


def dual_softmax(scores: Scores, text_to_video: bool, temperature: float = 0.01) -> Scores:
    """Apply the logarithm of a softmax over all queries of each gallery item.

    ``s / temperature - logsumexp(s / temperature over the queries)``: the inverted softmax of Smith et al. (ICLR 2017).
    CAMoE's dual softmax (Cheng et al., 2021) multiplies this softmax by ``s``. For positive scores, the logarithm of
    that product differs by ``log(s)``, which is small beside the other terms. For negative scores, the product
    reverses the order.

    The ranking of one query depends on all other queries, so the figures are not those of plain retrieval.

    Args:
        temperature: divides the scores before the softmax. Cosines need about 0.01.
    """
    parts = []
    for _, block in scores.rows():
        part = (block.double() / temperature).logsumexp(0 if text_to_video else 1, keepdim=True)
        parts = [torch.logaddexp(*parts, part)] if text_to_video and parts else [*parts, part]
    norm = torch.cat(parts).expand(scores.shape)
    return Scores(
        block=lambda captions, videos: scores.block(captions, videos).double() / temperature - norm[captions, videos],
        shape=scores.shape,
    )


def positions(scores: Scores, truth: Sequence[Sequence[int]], ties: Ties, *, text_to_video: bool) -> list[np.ndarray]:
    """Return, for every query with positives, their ascending positions in the gallery, from 1.

    With ``c4c``, return instead each position that the best positive shares with negatives.
    """
    if not text_to_video:
        queries = torch.tensor([video for video, own in enumerate(truth) if own])
        index = _padded([own for own in truth if own])
        positive_scores = scores.block(index, queries.unsqueeze(1).expand_as(index))
        blocks = ((begin, block[:, queries]) for begin, block in scores.rows())
        return _ranked(blocks, positive_scores, index, [len(own) for own in truth if own], ties)
    ranks: list[np.ndarray] = []
    for begin, block in scores.rows():
        rows = [row for row in range(len(block)) if truth[begin + row]]
        if not rows:
            continue
        own = [truth[begin + row] for row in rows]
        table, index = block[rows], _padded(own)
        ranks += _ranked([(0, table.T)], table.gather(1, index), index, [len(positives) for positives in own], ties)
    return ranks


def _padded(own: Sequence[Sequence[int]]) -> Tensor:
    """Turn lists of unequal length, none empty, into one table; short rows repeat their first number."""
    most = max(map(len, own))
    return torch.tensor([[*numbers, *[numbers[0]] * (most - len(numbers))] for numbers in own])


def _ranked(
    blocks: Iterable[tuple[int, Tensor]], positive_scores: Tensor, index: Tensor, counts: Sequence[int], ties: Ties
) -> list[np.ndarray]:
    """Compute the positions of every query's positives from the counts of higher and equal scores in the gallery.

    Args:
        blocks: the gallery in blocks: the number of the first item, and scores (items, queries).
        positive_scores, index: (queries, most) scores and numbers of the positives.
        counts: number of positives of each query; further columns are repetitions.
    """
    above, equal, before = (torch.zeros_like(index) for _ in range(3))
    positive_scores = positive_scores.contiguous()
    for begin, block in blocks:
        # NumPy sorts several numbers at a time (SIMD), torch does not.
        ordered = torch.from_numpy(np.sort(np.ascontiguousarray(block.numpy().T), axis=1))
        below, up_to = (torch.searchsorted(ordered, positive_scores, right=right) for right in (False, True))
        above += len(block) - up_to
        equal += up_to - below
        if ties == "argsort":
            number = torch.arange(begin, begin + len(block)).unsqueeze(1)
            others = up_to - below > ((index >= begin) & (index < begin + len(block)))
            for place in range(index.shape[1]):
                tied = others[:, place].nonzero().squeeze(1)
                score, own = positive_scores[tied, place], index[tied, place]
                before[tied, place] += ((block[:, tied] == score) & (number < own)).sum(0)
    ranks = []
    for ahead, tied, sooner, count in zip(above.numpy(), equal.numpy(), before.numpy(), counts, strict=True):
        ahead, tied = ahead[:count], tied[:count]
        if ties == "argsort":
            ranks.append(np.sort(ahead + sooner[:count] + 1.0))
            continue
        if ties == "c4c":
            best = ahead.argmin()
            # Positives tied with the best one, such as a repeated caption, do not compete with it.
            others = tied[best] - np.count_nonzero(ahead == ahead[best])
            ranks.append(ahead[best] + 1.0 + np.arange(others + 1))
            continue
        # The j-th of p positives among e tied items has the expected place j * (e + 1) / (p + 1) among them.
        order = np.argsort(ahead, kind="stable")
        ahead, tied = ahead[order], tied[order]
        starts = np.searchsorted(ahead, ahead, side="left")
        among = np.searchsorted(ahead, ahead, side="right") - starts
        ranks.append(ahead + (np.arange(len(ahead)) - starts + 1) * (tied + 1) / (among + 1))
    return ranks


def summary(ranks: Sequence[np.ndarray], ties: Ties = "mean") -> dict[str, float]:
    """Compute R@K and mAP in percent, MedR (plain median) and MeanR from the result of ``positions``.

    A query counts for R@K if its position is at most K. A query tied for places 1 and 2 is at 1.5, so not in R@1.
    """
    best = np.concatenate(ranks) if ties == "c4c" else np.array([places[0] for places in ranks])
    figures = {f"R@{k}": 100 * float((best <= k).mean()) for k in RECALLS}
    figures |= {"MedR": float(np.median(best)), "MeanR": float(best.mean())}
    if ties != "c4c":  # CLIP4Clip does not define mAP
        precision = [float(np.mean(np.arange(1, len(places) + 1) / places)) for places in ranks]
        figures["mAP"] = 100 * float(np.mean(precision))
    return figures


def chance(truth: Sequence[Sequence[int]], gallery: int) -> dict[str, float]:
    """Return the R@K in percent that a random ranking is expected to reach, over queries with positives."""
    counts = Counter(len(positives) for positives in truth if positives)
    figures = {}
    for k in RECALLS:
        # A query with p positives misses if the first k items are all drawn from the other items.
        missed = {p: math.prod(max(0, gallery - p - i) / (gallery - i) for i in range(min(k, gallery))) for p in counts}
        hits = sum(count * (1 - missed[p]) for p, count in counts.items())
        figures[f"R@{k}"] = 100 * hits / counts.total()
    return figures


def evaluate(scores: Scores, truth: Truth, *, ties: Ties = "mean", groups: bool = True) -> dict[str, Any]:
    """Compute all figures of a score matrix.

    Args:
        groups: if videos have several captions, also rank videos against groups of captions. The score of a group is
            that of its best caption, as in CLIP4Clip.

    Returns:
        ``text_to_video`` and ``video_to_text`` (the best own caption among all captions), each with the entries of
        ``summary``, ``queries`` and ``gallery``; ``video_to_text_groups``; ``rsum``, the sum of R@1, R@5 and R@10 of
        the first two.
    """
    if scores.shape != (truth.queries, len(truth.captions)):
        raise MetricsError(
            f"{scores.shape} scores for {plural(truth.queries, 'caption')} and {plural(len(truth.captions), 'video')}"
        )
    result: dict[str, Any] = {}
    for name, own, text_to_video in (
        ("text_to_video", truth.videos, True),
        ("video_to_text", truth.captions, False),
    ):
        ranks = positions(scores, own, ties, text_to_video=text_to_video)
        gallery = scores.shape[1] if text_to_video else scores.shape[0]
        result[name] = {"queries": len(ranks), "gallery": gallery} | summary(ranks, ties)
    if groups and max(len(own) for own in truth.captions) > 1:
        ranks = group_positions(scores, truth, ties)
        result["video_to_text_groups"] = {"queries": len(ranks), "gallery": len(ranks)} | summary(ranks, ties)
    result["rsum"] = sum(result[name][f"R@{k}"] for name in ("text_to_video", "video_to_text") for k in (1, 5, 10))
    return result


def group_positions(scores: Scores, truth: Truth, ties: Ties) -> list[np.ndarray]:
    """Return the positions of videos with captions among the groups of captions; see ``positions``."""
    videos = torch.tensor([video for video, own in enumerate(truth.captions) if own])
    groups = [own for own in truth.captions if own]
    size = torch.tensor([len(own) for own in groups])
    flat, group = torch.tensor([caption for own in groups for caption in own]), torch.arange(len(groups))
    own = scores.block(flat, videos.repeat_interleave(size))
    positive_scores = own.new_empty(len(groups)).scatter_reduce_(
        0, group.repeat_interleave(size), own, "amax", include_self=False
    )

    def blocks() -> Iterator[tuple[int, Tensor]]:
        step = max(1, BLOCK // (int(size.max()) * len(videos)))
        for begin in range(0, len(groups), step):
            sizes = size[begin : begin + step]
            first = int(size[:begin].sum())
            block = scores.block(flat[first : first + int(sizes.sum())], slice(None))[:, videos]
            places = torch.arange(len(sizes)).repeat_interleave(sizes).unsqueeze(1).expand_as(block)
            best = block.new_empty(len(sizes), len(videos))
            yield begin, best.scatter_reduce_(0, places, block, "amax", include_self=False)

    return _ranked(blocks(), positive_scores.unsqueeze(1), group.unsqueeze(1), [1] * len(groups), ties)
