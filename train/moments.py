"""Figures of moment retrieval and highlight detection, from ranked windows and scores.

Definitions follow QVHighlights' evaluation program (Lei et al., NeurIPS 2021, ``standalone_eval`` of moment_detr),
without its rounding. Times are in seconds, figures in percent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECALL_AT = (1, 5)
RECALL_IOUS = (0.3, 0.5, 0.7)
MAP_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
MAP_WINDOWS = 10  # number of a query's first windows that count for its average precision
GRID = 2.0  # seconds, length of the segments with saliency scores
VERY_GOOD = 4


def iou(windows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return (W, T) intersection over union of windows (W, 2) and true windows (T, 2)."""
    common = np.minimum(windows[:, None, 1], truth[None, :, 1]) - np.maximum(windows[:, None, 0], truth[None, :, 0])
    common = common.clip(min=0)
    covered = np.ptp(windows, axis=1)[:, None] + np.ptp(truth, axis=1)[None] - common
    return np.divide(common, covered, out=np.zeros_like(common), where=covered > 0)


def moment_figures(ranked: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, float]:
    """Compute figures over all queries.

    ``R1@0.5`` is the share of queries whose first window has an IoU of at least 0.5 with a true window, ``R5@0.5`` of
    queries with such a window among the first five. ``mIoU`` is the mean IoU of first windows with their best true
    window. ``mAP@0.5`` is the mean of ``average_precision``, ``mAP`` its mean over the IoUs 0.5, 0.55, ..., 0.95.

    Args:
        ranked: the windows (W, 2) of each query, best first; may be empty.
        truths: the true windows (T, 2) of each query, at least one.
    """
    if not len(truths):
        raise ValueError("there are no queries")
    figures: dict[str, float] = {}
    overlaps = [iou(windows, truth) for windows, truth in zip(ranked, truths, strict=True)]
    best = [matrix[: max(RECALL_AT)].max(axis=1) for matrix in overlaps]
    for count in RECALL_AT:
        reached = np.array([windows[:count].max(initial=0) for windows in best])
        figures |= {f"R{count}@{threshold}": 100 * float(np.mean(reached >= threshold)) for threshold in RECALL_IOUS}
        if count == 1:
            figures["mIoU"] = 100 * float(np.mean(reached))
    precisions = np.array(
        [[average_precision(matrix[:MAP_WINDOWS], threshold) for threshold in MAP_IOUS] for matrix in overlaps]
    )
    figures |= {
        f"mAP@{threshold}": 100 * float(precisions[:, MAP_IOUS.index(threshold)].mean()) for threshold in (0.5, 0.75)
    }
    return {**figures, "mAP": 100 * float(precisions.mean())}


def average_precision(overlaps: np.ndarray, threshold: float) -> float:
    """Return the area below the interpolated precision-recall curve of one query, in [0, 1].

    In order, each window takes the true window with the highest IoU among those with an IoU of at least ``threshold``
    that no earlier window has taken. A window without such a match is wrong. The interpolated precision at a recall is
    the maximum at this or a higher recall.

    Args:
        overlaps: (W, T) IoUs of windows, best first, with the true windows.
    """
    right, free = np.zeros(len(overlaps), bool), np.ones(overlaps.shape[1], bool)
    for number, row in enumerate(overlaps):
        # The official program takes the last of several true windows with equal IoU.
        chosen = next((t for t in np.argsort(row, kind="stable")[::-1] if free[t] and row[t] >= threshold), None)
        if chosen is not None:
            right[number], free[chosen] = True, False
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return float(_highest_from_here_on(precision)[right].sum() / overlaps.shape[1])


def highlight_figures(scores: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, float]:
    """Compute highlight detection figures.

    ``HIT@1`` is the share of queries whose highest-scored segment is very good for at least one annotator. ``HL-mAP``
    is the mean of ``saliency_precision`` for very good segments, over queries and annotators.

    Args:
        scores: (C,) scores of each query, one for each 2 s of its video from the beginning.
        truths: (C, annotators) saliency of each query, 0 to 4, 0 outside of moments.
    """
    if not len(truths):
        raise ValueError("there are no queries")
    good = [truth >= VERY_GOOD for truth in truths]
    hits = [of_query[np.argmax(own)].any() for own, of_query in zip(scores, good, strict=True)]
    precisions = [
        saliency_precision(own, of_query[:, annotator])
        for own, of_query in zip(scores, good, strict=True)
        for annotator in range(of_query.shape[1])
    ]
    return {"HIT@1": 100 * float(np.mean(hits)), "HL-mAP": 100 * float(np.mean(precisions))}


def saliency_precision(scores: np.ndarray, good: np.ndarray) -> float:
    """Return the mean interpolated precision at the ranks where recall rises, in [0, 1]; 0 if nothing is good.

    Segments with equal scores share a rank; its precision counts all of them.

    Args:
        scores: (C,) scores of segments.
        good: (C,) bool.
    """
    if good.all() or not good.any():
        return float(good.any())
    order = np.argsort(-scores, kind="stable")
    lasts = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    right = np.cumsum(good[order])[lasts]
    precision = _highest_from_here_on(right / (lasts + 1))
    return float(precision[np.diff(right, prepend=0) > 0].mean())


def _highest_from_here_on(values: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(values[::-1])[::-1]
