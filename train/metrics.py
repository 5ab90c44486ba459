"""Retrieval metrics, both directions, computed in blocks; docs/metrics.md says how each is defined.

A query's *position* in the gallery is 1 + the items placed before it. Items with equal scores are tied; three rules:

- ``mean``: the position expected if ties were broken at random. A model that gives every pair one score is at chance.
- ``argsort``: ties by index, as HGR and hybrid_space count. Depends on the order of the files.
- ``c4c``: a query has one entry for every position among those tied with it, as CLIP4Clip and HowTo100M count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import AmexError

Ties = Literal["mean", "argsort", "c4c"]
RECALLS = (1, 5, 10, 50)
# Scores a block: 16 MB of float32, some copies of which are in use at a time.
BLOCK = 1 << 22


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
    """Scores of captions x videos, made a block at a time, so that the whole matrix need not fit in memory.

    Attributes:
        block: ``block(captions, videos)`` is (len(captions), len(videos)) float32 for two slices.
        shape: captions, videos.
    """

    block: Callable[[slice, slice], Tensor]
    shape: tuple[int, int]

    @classmethod
    def of(cls, matrix: Any) -> Scores:
        """A matrix (captions, videos), NumPy's or torch's, as it is."""
        whole = torch.as_tensor(np.asarray(matrix))
        if whole.ndim != 2:
            raise MetricsError(f"scores are captions x videos, got an array of shape {tuple(whole.shape)}")
        return cls(block=lambda captions, videos: whole[captions, videos], shape=(whole.shape[0], whole.shape[1]))

    def rows(self, text_to_video: bool, size: int = BLOCK) -> Any:
        """Yields (first query, (queries, gallery)) for all queries; raises MetricsError for NaN and infinity."""
        queries, gallery = self.shape if text_to_video else self.shape[::-1]
        step = max(1, size // max(1, gallery))
        for begin in range(0, queries, step):
            some = slice(begin, min(queries, begin + step))
            block = self.block(some, slice(None)) if text_to_video else self.block(slice(None), some).T
            if not torch.isfinite(block).all():
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
    total: Tensor | None = None
    for _, block in scores.rows(text_to_video):
        part = (block.double() / temperature).logsumexp(0)
        total = part if total is None else torch.logaddexp(total, part)
    assert total is not None

    def block(captions: slice, videos: slice) -> Tensor:
        norm = total[videos] if text_to_video else total[captions].unsqueeze(1)
        return scores.block(captions, videos).double() / temperature - norm

    return Scores(block=block, shape=scores.shape)


def positions(scores: Scores, truth: Sequence[Sequence[int]], ties: Ties, *, text_to_video: bool) -> list[np.ndarray]:
    """For every query that has a positive: the positions (from 1, ascending) of its positives in the gallery.

    With ``c4c`` instead: an entry for each position that the best positive shares with items that are no positives.
    """
    found: list[np.ndarray] = []
    for begin, block in scores.rows(text_to_video):
        kept = [row for row in range(len(block)) if truth[begin + row]]
        if not kept:
            continue
        own = [truth[begin + row] for row in kept]
        found += _positions(block[kept], own, ties)
    return found


def _positions(block: Tensor, own: list[Sequence[int]], ties: Ties) -> list[np.ndarray]:
    most = max(len(positives) for positives in own)
    # Rows have unequally many positives: the first is repeated, and cut off again below.
    index = torch.tensor([[*positives, *[positives[0]] * (most - len(positives))] for positives in own])
    if ties == "argsort":
        order = block.argsort(dim=1, descending=True, stable=True)
        places = torch.empty_like(order).scatter_(1, order, torch.arange(block.shape[1]).expand_as(order))
        at = places.gather(1, index).numpy() + 1.0
        return [np.sort(row[: len(positives)]) for row, positives in zip(at, own, strict=True)]
    wanted = block.gather(1, index).contiguous()
    ordered = block.sort(dim=1).values
    above = block.shape[1] - torch.searchsorted(ordered, wanted, right=True)
    equal = block.shape[1] - torch.searchsorted(ordered, wanted) - above
    found = []
    for ahead, tied, positives in zip(above.numpy(), equal.numpy(), own, strict=True):
        ahead, tied = ahead[: len(positives)], tied[: len(positives)]
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
        captioned = [own for own in truth.captions if own]
        found = positions(_grouped(scores, truth), [[g] for g in range(len(captioned))], ties, text_to_video=False)
        result["video_to_text_groups"] = {"queries": len(found), "gallery": len(captioned)} | summary(found, ties)
    result["rsum"] = sum(result[way][f"R@{k}"] for way in ("text_to_video", "video_to_text") for k in (1, 5, 10))
    return result


def _grouped(scores: Scores, truth: Truth) -> Scores:
    """(groups, videos) scores of the videos that have captions, from the highest of each group's captions."""
    videos = [video for video, own in enumerate(truth.captions) if own]
    flat = torch.tensor([caption for video in videos for caption in truth.captions[video]])
    group = torch.repeat_interleave(torch.tensor([len(truth.captions[video]) for video in videos])).unsqueeze(1)

    def block(groups: slice, some: slice) -> Tensor:
        parts, chosen = [], videos[some]
        step = max(1, BLOCK // scores.shape[0])  # a few videos at a time: there are many more captions than groups
        for begin in range(0, len(chosen), step):
            own = _columns(scores, chosen[begin : begin + step])
            best = torch.full((len(videos), own.shape[1]), -torch.inf, dtype=own.dtype)
            parts.append(best.scatter_reduce_(0, group.expand(-1, own.shape[1]), own[flat], "amax")[groups])
        return torch.cat(parts, dim=1)

    return Scores(block=block, shape=(len(videos), len(videos)))


def _columns(scores: Scores, videos: list[int]) -> Tensor:
    """Scores of all captions with some videos, which mostly lie side by side."""
    first, last = min(videos), max(videos) + 1
    whole = scores.block(slice(None), slice(first, last))
    return whole[:, [video - first for video in videos]]
