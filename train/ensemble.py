"""Combine several models, and choose the temperature of a dual softmax on validation clips."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..errors import AmexError
from .data import Split
from .evaluate import evaluate_dual_softmax, truth_of
from .metrics import Scores

# Candidates, in standard deviations of the scores.
TEMPERATURES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


def combine(scores: Sequence[Scores]) -> Scores:
    """Average the standardised scores of several models for the same captions and clips."""
    if len(scores) == 1:
        return scores[0]
    scales = [_scale(each) for each in scores]

    def block(captions: object, videos: object) -> torch.Tensor:
        parts = [
            (each.block(captions, videos).double() - mean) / deviation
            for each, (mean, deviation) in zip(scores, scales, strict=True)
        ]
        return torch.stack(parts).mean(0)

    return Scores(block=block, shape=scores[0].shape)


def _scale(scores: Scores) -> tuple[float, float]:
    """Return the mean and the standard deviation of all scores."""
    count, total, squares = 0, 0.0, 0.0
    for _, block in scores.rows():
        count, total = count + block.numel(), total + block.double().sum().item()
    mean = total / max(1, count)
    for _, block in scores.rows():
        squares += (block.double() - mean).square().sum().item()
    return mean, math.sqrt(squares / max(1, count)) or 1.0


def check_same_gallery(splits: Sequence[Split], names: Sequence[str]) -> None:
    """Raise an AmexError if models would score different captions or clips."""
    first = splits[0]
    for split, name in zip(splits[1:], names[1:], strict=True):
        for what, own, other in (
            ("clips", [clip.clip_id for clip in split.clips], [clip.clip_id for clip in first.clips]),
            ("captions", split.captions, first.captions),
        ):
            if own != other:
                raise AmexError(
                    f"{name} has features of {len(own):,} {what} of this split, {names[0]} of {len(other):,}, and they "
                    "differ: an ensemble needs runs with features of the same clips and captions"
                )


def choose_temperature(scores: Scores, split: Split, *, merged: bool = False) -> float:
    """Choose the dual softmax temperature with the best rsum on a split, from several candidates.

    Args:
        scores: scores of the split's different captions with its clips.
    """
    truth, query_captions = truth_of(split, merged=merged)
    _, deviation = _scale(scores)
    scores = scores.of_captions(query_captions)

    def rsum(temperature: float) -> float:
        return evaluate_dual_softmax(scores, truth, temperature)["dsl_rsum"]

    return max((deviation * share for share in TEMPERATURES), key=rsum)
