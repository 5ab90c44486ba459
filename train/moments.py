"""Figures of moment retrieval and of highlight detection: how well ranked windows and scores meet the true ones.

The definitions are those of QVHighlights' evaluation program (Lei et al., NeurIPS 2021, ``standalone_eval`` of
moment_detr); nothing is rounded here. Times are seconds, figures are percent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECALL_AT = (1, 5)
RECALL_IOUS = (0.3, 0.5, 0.7)
MAP_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
MAP_WINDOWS = 10  # the first so many windows of a query count for its average precision
GRID = 2.0  # seconds: what has a saliency score of its own
VERY_GOOD = 4


def iou(windows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(W, T): how much windows (W, 2) and true ones (T, 2) have in common, over what they cover together."""
    common = np.minimum(windows[:, None, 1], truth[None, :, 1]) - np.maximum(windows[:, None, 0], truth[None, :, 0])
    common = common.clip(min=0)
    covered = np.ptp(windows, axis=1)[:, None] + np.ptp(truth, axis=1)[None] - common
    return np.divide(common, covered, out=np.zeros_like(common), where=covered > 0)


def moment_figures(ranked: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, float]:
    """Figures over all queries.

    ``R1@0.5`` is the share of queries whose first window has an IoU of 0.5 or more with a true one, ``R5@0.5`` of those
    with such a window among the first five; ``mIoU`` is the mean IoU of first windows with the true one they meet best;
    ``mAP@0.5`` is the mean of ``average_precision``, and ``mAP`` its mean over the IoUs 0.5, 0.55, ..., 0.95.

    Args:
        ranked: by query its windows (W, 2), the best first; perhaps none.
        truths: by query its true windows (T, 2), one or more.
    """
    if not len(truths):
        raise ValueError("there is no query")
    figures: dict[str, float] = {}
    met = [iou(windows, truth) for windows, truth in zip(ranked, truths, strict=True)]
    best = [matrix[: max(RECALL_AT)].max(axis=1) for matrix in met]
    for count in RECALL_AT:
        reached = np.array([windows[:count].max(initial=0) for windows in best])
        figures |= {f"R{count}@{threshold}": 100 * float(np.mean(reached >= threshold)) for threshold in RECALL_IOUS}
        if count == 1:
            figures["mIoU"] = 100 * float(np.mean(reached))
    precisions = np.array(
        [[average_precision(matrix[:MAP_WINDOWS], threshold) for threshold in MAP_IOUS] for matrix in met]
    )
    figures |= {
        f"mAP@{threshold}": 100 * float(precisions[:, MAP_IOUS.index(threshold)].mean()) for threshold in (0.5, 0.75)
    }
    return {**figures, "mAP": 100 * float(precisions.mean())}


def average_precision(met: np.ndarray, threshold: float) -> float:
    """The area below the interpolated curve of precision over recall, in [0, 1], of the windows of one query.

    In their order windows take the true one that they meet best of those with an IoU of ``threshold`` or more that no
    window before has taken; one that finds none is wrong. Precision at a recall is the highest at this recall or above.

    Args:
        met: (W, T) IoUs of windows, the best first, with the true ones.
    """
    right, free = np.zeros(len(met), bool), np.ones(met.shape[1], bool)
    for number, row in enumerate(met):
        # Of true windows that are met equally well the program takes the last.
        chosen = next((t for t in np.argsort(row, kind="stable")[::-1] if free[t] and row[t] >= threshold), None)
        if chosen is not None:
            right[number], free[chosen] = True, False
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return float(_highest_from_here_on(precision)[right].sum() / met.shape[1])


def highlight_figures(scores: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, float]:
    """``HIT@1``: how often the best scored stretch is very good to one annotator at least; ``HL-mAP``: the mean over
    queries and annotators of ``saliency_precision`` for what is very good.

    Args:
        scores: by query (C,) one of each 2 s of its video, from the beginning.
        truths: by query (C, annotators) saliency from 0 to 4, 0 for what lies in no moment.
    """
    if not len(truths):
        raise ValueError("there is no query")
    good = [truth >= VERY_GOOD for truth in truths]
    hits = [of_query[np.argmax(own)].any() for own, of_query in zip(scores, good, strict=True)]
    precisions = [
        saliency_precision(own, of_query[:, annotator])
        for own, of_query in zip(scores, good, strict=True)
        for annotator in range(of_query.shape[1])
    ]
    return {"HIT@1": 100 * float(np.mean(hits)), "HL-mAP": 100 * float(np.mean(precisions))}


def saliency_precision(scores: np.ndarray, good: np.ndarray) -> float:
    """The mean of the interpolated precision over the places where recall rises, in [0, 1]; 0 where nothing is good.

    Stretches of one score are ranked together: they are one place, whose precision counts all of them.

    Args:
        scores: (C,) of stretches.
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
