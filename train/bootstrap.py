"""Compare two models on the same queries, with a 95 percent confidence interval."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .metrics import MetricsError

BLOCK = 1 << 22  # group weights to draw at a time: 32 MB


class Interval(NamedTuple):
    """A difference with its 95 percent confidence interval."""

    difference: float
    low: float
    high: float


def paired_bootstrap(
    hits_a: Any, hits_b: Any, groups: Any = None, seed: int = 0, *, parts: Any = None, draws: int = 2000
) -> Interval:
    """Return the mean of ``hits_a`` minus the mean of ``hits_b``, with a 95 percent interval from resampled queries.

    Groups of queries are drawn with replacement, the same for both models (Efron and Tibshirani, 1993, chapter 8).
    With several runs of each model, the interval includes the effect of the training seed. Its variance is that of the
    runs' differences minus the part explained by queries (two-way analysis of variance). It enters as Student's t
    with one degree of freedom less than the number of runs. With one run, the interval covers only the queries.

    Args:
        hits_a, hits_b: (queries,), or (runs, queries) with paired runs; the result has the same unit.
        groups: (queries,) labels; the queries of a group, such as the captions of a clip, are drawn together.
        seed: seed of the draws.
        parts: (queries,) labels; the result is then the sum of the parts' means, as rsum sums two directions.
        draws: number of draws; the bounds vary by some percent of the interval's width.

    Raises:
        MetricsError: if shapes do not match, a number is not finite, or there are fewer than two groups.
    """
    a, b = (np.atleast_2d(np.asarray(hits, dtype=np.float64)) for hits in (hits_a, hits_b))
    if a.shape != b.shape or a.ndim != 2 or 0 in a.shape:
        raise MetricsError(f"both models need the same queries and runs, got {a.shape} and {b.shape} hits")
    difference = a - b
    if not np.isfinite(difference).all():
        raise MetricsError("hits hold NaN or infinity: they cannot be compared")
    runs, queries = difference.shape
    group, part = (_numbers(labels, queries) for labels in (np.arange(queries) if groups is None else groups, parts))
    if (count := group.max() + 1) < 2:
        raise MetricsError("all queries are in one group: their variance is unknown")
    # For each group and part: the number of queries, and the sums of their differences in each run.
    sizes, sums = np.zeros((count, part.max() + 1)), np.zeros((count, part.max() + 1, runs))
    np.add.at(sizes, (group, part), 1)
    np.add.at(sums, (group, part), difference.T)
    estimate = _sum_of_means(np.ones((1, count)), sizes, sums)[0]

    random = np.random.default_rng(seed)
    blocks = []
    for begin in range(0, draws, step := max(1, BLOCK // count)):
        chosen = random.integers(count, size=(min(step, draws - begin), count))
        rows = np.arange(len(chosen))[:, None] * count
        weights = np.bincount((chosen + rows).ravel(), minlength=chosen.size).reshape(chosen.shape)
        blocks.append(_sum_of_means(weights.astype(np.float64), sizes, sums))
    resampled = np.concatenate(blocks)
    resampled = resampled[np.isfinite(resampled).all(1)]  # a draw may contain no query of a small part
    means = resampled.mean(1)
    if runs > 1:
        by_queries = (resampled.var(0).mean() - means.var()) / (runs - 1)
        of_runs = max(0.0, estimate.var(ddof=1) / runs - max(0.0, by_queries))
        noise = np.sqrt(of_runs) * random.standard_t(runs - 1, size=len(means))
        means = np.concatenate([means + noise, means - noise])  # both signs: exchanged models give mirror images
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(estimate.mean()), float(low), float(high))


def _numbers(labels: Any, queries: int) -> np.ndarray:
    """Convert labels to numbers from 0; without labels, all are 0."""
    if labels is None:
        return np.zeros(queries, dtype=np.int64)
    labels = np.asarray(labels)
    if labels.shape != (queries,):
        raise MetricsError(f"labels has shape {labels.shape}, and not one label per query, ({queries},)")
    return np.unique(labels, return_inverse=True)[1]


def _sum_of_means(weights: np.ndarray, sizes: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Turn (draws, groups) weights into (draws, runs) sums; NaN if a draw contains no query of a part."""
    totals = np.einsum("dg,gpr->dpr", weights, sums, optimize=True)
    with np.errstate(invalid="ignore"):
        return (totals / (weights @ sizes)[:, :, None]).sum(1)
