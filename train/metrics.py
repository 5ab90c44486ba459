"""Retrieval metrics, both directions, computed in blocks; docs/metrics.md says how each is defined.

A query's *position* in the gallery is 1 + the items placed before it. Items with equal scores are tied; three rules:

- ``mean``: the position expected if ties were broken at random. A model that gives every pair one score is at chance.
- ``argsort``: ties by index, as HGR and hybrid_space count. Depends on the order of the files.
- ``c4c``: a query has one entry for every position among those tied with it, as CLIP4Clip and HowTo100M count.
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

from ..errors import AmexError

Ties = Literal["mean", "argsort", "c4c"]
RECALLS = (1, 5, 10, 50)
# Scores a block: 32 MB of float32, some copies of which are in use at a time. What is smaller, the C library may keep.
BLOCK = 1 << 23


class MetricsError(AmexError):
    """Scores, or what belongs together, cannot be evaluated."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Which captions belong to which videos.

    Attributes:
        captions: for each video the numbers of its captions; none for a video that has no caption, which is then no
            query but stays in the gallery.
        queries: how many captions there are.
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
        """For each caption the numbers of the videos it belongs to: usually one."""
        found: list[list[int]] = [[] for _ in range(self.queries)]
        for video, own in enumerate(self.captions):
            for caption in own:
                found[caption].append(video)
        return found


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of captions x videos, read a block at a time.

    Attributes:
        block: what a matrix has at ``[captions, videos]``: for slices a block, for two lists of numbers a score a pair.
        shape: captions, videos.
    """

    block: Callable[[Any, Any], Tensor]
    shape: tuple[int, int]

    @classmethod
    def of(cls, matrix: Any) -> Scores:
        """A matrix (captions, videos), NumPy's or torch's, as it is."""
        whole = torch.as_tensor(np.asarray(matrix))
        if whole.ndim != 2:
            raise MetricsError(f"scores are captions x videos, got an array of shape {tuple(whole.shape)}")
        return cls(block=lambda captions, videos: whole[captions, videos], shape=(whole.shape[0], whole.shape[1]))

    def of_captions(self, numbers: Sequence[int]) -> Scores:
        """Those of some captions in this order; a caption may come again."""
        chosen = torch.tensor(numbers, dtype=torch.long)
        return Scores(
            block=lambda captions, videos: self.block(chosen[captions], videos), shape=(len(chosen), self.shape[1])
        )

    def rows(self, size: int = BLOCK) -> Iterator[tuple[int, Tensor]]:
        """Yields (first caption, (captions, videos)) for all captions; raises MetricsError for NaN and infinity."""
        count, gallery = self.shape
        step = max(1, size // max(1, gallery))
        for begin in range(0, count, step):
            block = self.block(slice(begin, min(count, begin + step)), slice(None))
            if block.numel() and not all(map(math.isfinite, block.aminmax())):
                raise MetricsError("scores hold NaN or infinity: such a model cannot be ranked")
            yield begin, block


def dual_softmax(scores: Scores, text_to_video: bool, temperature: float = 0.01) -> Scores:
    """The logarithm of the softmax of scores over all queries of each gallery item.

    ``s / temperature - logsumexp(s / temperature over the queries)``: the inverted softmax of Smith et al. (ICLR 2017).
    CAMoE's dual softmax (Cheng et al., 2021) multiplies this softmax with ``s``. For positive scores the logarithm of
    that product differs by ``log(s)``, which the temperature makes small; for negative scores the product turns the
    order round.

    The order of one query's gallery depends on all other queries: a figure made so is no plain retrieval figure.

    Args:
        temperature: what scores are divided by before the softmax. Cosines need one near 0.01.
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
    """For every query that has a positive: the positions (from 1, ascending) of its positives in the gallery.

    With ``c4c`` instead: an entry for each position that the best positive shares with items that are no positives.
    """
    if not text_to_video:
        queries = torch.tensor([video for video, own in enumerate(truth) if own])
        index = _padded([own for own in truth if own])
        wanted = scores.block(index, queries.unsqueeze(1).expand_as(index))
        blocks = ((begin, block[:, queries]) for begin, block in scores.rows())
        return _ranked(blocks, wanted, index, [len(own) for own in truth if own], ties)
    found: list[np.ndarray] = []
    for begin, block in scores.rows():
        kept = [row for row in range(len(block)) if truth[begin + row]]
        if not kept:
            continue
        own = [truth[begin + row] for row in kept]
        table, index = block[kept], _padded(own)
        found += _ranked([(0, table.T)], table.gather(1, index), index, [len(some) for some in own], ties)
    return found


def _padded(own: Sequence[Sequence[int]]) -> Tensor:
    """Lists of unequal length, none of them empty, as one table: what lacks is the first of the list again."""
    most = max(map(len, own))
    return torch.tensor([[*some, *[some[0]] * (most - len(some))] for some in own])


def _ranked(
    blocks: Iterable[tuple[int, Tensor]], wanted: Tensor, index: Tensor, counts: Sequence[int], ties: Ties
) -> list[np.ndarray]:
    """Positions of every query's positives, from what of the gallery is above each of them, or equal.

    Args:
        blocks: the gallery piece by piece: the number of the first item, and the scores (items, queries).
        wanted, index: (queries, most), the scores and the numbers of the positives.
        counts: how many positives each query has; behind them the table repeats one.
    """
    above, equal, before = (torch.zeros_like(index) for _ in range(3))
    wanted = wanted.contiguous()
    for begin, block in blocks:
        # NumPy sorts many numbers at a time, which torch does not.
        ordered = torch.from_numpy(np.sort(np.ascontiguousarray(block.numpy().T), axis=1))
        below, up_to = (torch.searchsorted(ordered, wanted, right=right) for right in (False, True))
        above += len(block) - up_to
        equal += up_to - below
        if ties == "argsort":
            number = torch.arange(begin, begin + len(block)).unsqueeze(1)
            others = up_to - below > ((index >= begin) & (index < begin + len(block)))
            for place in range(index.shape[1]):
                tied = others[:, place].nonzero().squeeze(1)
                score, own = wanted[tied, place], index[tied, place]
                before[tied, place] += ((block[:, tied] == score) & (number < own)).sum(0)
    found = []
    for ahead, tied, sooner, count in zip(above.numpy(), equal.numpy(), before.numpy(), counts, strict=True):
        ahead, tied = ahead[:count], tied[:count]
        if ties == "argsort":
            found.append(np.sort(ahead + sooner[:count] + 1.0))
            continue
        if ties == "c4c":
            best = ahead.argmin()
            # Positives tied with the best one, such as a caption that is repeated, are no competitors of it.
            others = tied[best] - np.count_nonzero(ahead == ahead[best])
            found.append(ahead[best] + 1.0 + np.arange(others + 1))
            continue
        # The j-th of p positives among e tied items is expected at place j * (e + 1) / (p + 1) of them.
        order = np.argsort(ahead, kind="stable")
        ahead, tied = ahead[order], tied[order]
        starts = np.searchsorted(ahead, ahead, side="left")
        among = np.searchsorted(ahead, ahead, side="right") - starts
        found.append(ahead + (np.arange(len(ahead)) - starts + 1) * (tied + 1) / (among + 1))
    return found


def summary(found: Sequence[np.ndarray], ties: Ties = "mean") -> dict[str, float]:
    """R@K and mAP in percent, MedR (the plain median), MeanR, from what ``positions`` returns.

    A query counts for R@K if its position is at most K: one tied for the places 1 and 2 is at 1.5, and not in R@1.
    """
    best = np.concatenate(found) if ties == "c4c" else np.array([places[0] for places in found])
    figures = {f"R@{k}": 100 * float((best <= k).mean()) for k in RECALLS}
    figures |= {"MedR": float(np.median(best)), "MeanR": float(best.mean())}
    if ties != "c4c":  # CLIP4Clip defines none
        precision = [float(np.mean(np.arange(1, len(places) + 1) / places)) for places in found]
        figures["mAP"] = 100 * float(np.mean(precision))
    return figures


def chance(truth: Sequence[Sequence[int]], gallery: int) -> dict[str, float]:
    """R@K in percent that an order drawn at random is expected to reach, over the queries that have positives."""
    counts = Counter(len(positives) for positives in truth if positives)
    figures = {}
    for k in RECALLS:
        # None of p positives is among the first k if all of these are drawn from the other items.
        missed = {p: math.prod(max(0, gallery - p - i) / (gallery - i) for i in range(min(k, gallery))) for p in counts}
        found = sum(count * (1 - missed[p]) for p, count in counts.items())
        figures[f"R@{k}"] = 100 * found / counts.total()
    return figures


def evaluate(scores: Scores, truth: Truth, *, ties: Ties = "mean", groups: bool = True) -> dict[str, Any]:
    """All figures of one ranking.

    Args:
        groups: where videos have several captions, also rank videos against groups of captions, a group's score being
            the highest of its captions, as CLIP4Clip does.

    Returns:
        ``text_to_video`` and ``video_to_text`` (best own caption among all captions), each as of ``summary`` with
        ``queries`` and ``gallery``; ``video_to_text_groups``; ``rsum``, the sum of R@1, R@5 and R@10 of the first two.
    """
    if scores.shape != (truth.queries, len(truth.captions)):
        raise MetricsError(f"{scores.shape} scores for {truth.queries} captions and {len(truth.captions)} videos")
    result: dict[str, Any] = {}
    for name, own, forwards in (
        ("text_to_video", truth.videos, True),
        ("video_to_text", truth.captions, False),
    ):
        found = positions(scores, own, ties, text_to_video=forwards)
        gallery = scores.shape[1] if forwards else scores.shape[0]
        result[name] = {"queries": len(found), "gallery": gallery} | summary(found, ties)
    if groups and max(len(own) for own in truth.captions) > 1:
        found = group_positions(scores, truth, ties)
        result["video_to_text_groups"] = {"queries": len(found), "gallery": len(found)} | summary(found, ties)
    result["rsum"] = sum(result[way][f"R@{k}"] for way in ("text_to_video", "video_to_text") for k in (1, 5, 10))
    return result


def group_positions(scores: Scores, truth: Truth, ties: Ties) -> list[np.ndarray]:
    """As ``positions``, of the videos that have captions among as many groups of captions."""
    videos = torch.tensor([video for video, own in enumerate(truth.captions) if own])
    groups = [own for own in truth.captions if own]
    size = torch.tensor([len(own) for own in groups])
    flat, group = torch.tensor([caption for own in groups for caption in own]), torch.arange(len(groups))
    own = scores.block(flat, videos.repeat_interleave(size))
    wanted = own.new_empty(len(groups)).scatter_reduce_(
        0, group.repeat_interleave(size), own, "amax", include_self=False
    )

    def blocks() -> Iterator[tuple[int, Tensor]]:
        step = max(1, BLOCK // (int(size.max()) * len(videos)))
        for begin in range(0, len(groups), step):
            some = size[begin : begin + step]
            first = int(size[:begin].sum())
            block = scores.block(flat[first : first + int(some.sum())], slice(None))[:, videos]
            places = torch.arange(len(some)).repeat_interleave(some).unsqueeze(1).expand_as(block)
            best = block.new_empty(len(some), len(videos))
            yield begin, best.scatter_reduce_(0, places, block, "amax", include_self=False)

    return _ranked(blocks(), wanted.unsqueeze(1), group.unsqueeze(1), [1] * len(groups), ties)
