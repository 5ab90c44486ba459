"""Two models compared query by query: the interval has its nominal coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amex.train.bootstrap import paired_bootstrap
from amex.train.metrics import MetricsError

HITS = st.integers(1, 3).flatmap(
    lambda runs: st.integers(2, 30).flatmap(
        lambda queries: st.tuples(*2 * [arrays(float, (runs, queries), elements=st.sampled_from([0.0, 1.0]))])
    )
)


def covered(rng: np.random.Generator, runs: int, of_runs: float, of_groups: float, trials: int = 250) -> float:
    """Share of intervals that contain the true difference, 0, for 40 groups of one to three queries."""
    held = 0
    for trial in range(trials):
        groups = np.repeat(np.arange(40), rng.integers(1, 4, size=40))
        hits = rng.normal(size=(runs, len(groups))) + of_runs * rng.normal(size=(runs, 1))
        hits += of_groups * rng.normal(size=40)[groups]
        _, low, high = paired_bootstrap(hits, np.zeros_like(hits), groups, seed=trial, draws=300)
        held += low <= 0 <= high
    return held / trials


@pytest.mark.parametrize(
    ("runs", "of_runs", "of_groups"), [(1, 0.0, 1.0), (3, 0.0, 0.0), (3, 0.0, 1.0), (3, 1.0, 0.5), (8, 0.3, 1.0)]
)
def test_the_interval_covers_the_true_difference_at_its_nominal_rate(
    runs: int, of_runs: float, of_groups: float
) -> None:
    assert covered(np.random.default_rng(5), runs, of_runs, of_groups) == pytest.approx(0.95, abs=0.035)


def test_captions_of_a_clip_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    clips = rng.normal(size=100)
    hits, none = np.repeat(clips, 10), np.zeros(1000)
    _, low, high = paired_bootstrap(hits, none, np.repeat(np.arange(100), 10))
    _, once_low, once_high = paired_bootstrap(clips, none[:100])
    assert high - low == pytest.approx(once_high - once_low, rel=0.1)
    _, alone_low, alone_high = paired_bootstrap(hits, none)
    assert high - low > 2.5 * (alone_high - alone_low)


def test_the_width_is_that_of_the_standard_error() -> None:
    hits = np.random.default_rng(0).normal(size=400)
    _, low, high = paired_bootstrap(hits, np.zeros(400))
    assert high - low == pytest.approx(2 * 1.96 * hits.std() / 20, rel=0.05)


@settings(max_examples=40)
@given(HITS, st.integers(0, 9))
def test_exchanged_models_mirror_the_interval_and_equal_models_differ_by_zero(
    hits: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    a, b = hits
    difference, low, high = paired_bootstrap(a, b, seed=seed, draws=50)
    assert difference == pytest.approx(a.mean() - b.mean())
    assert (-difference, -high, -low) == pytest.approx(paired_bootstrap(b, a, seed=seed, draws=50))
    assert (difference, low, high) == paired_bootstrap(a, b, seed=seed, draws=50)
    assert paired_bootstrap(a, a, seed=seed, draws=50) == (0, 0, 0)


@settings(max_examples=40)
@given(HITS, st.floats(0.1, 9), st.floats(-5, 5))
def test_units_scale_the_interval_and_group_names_do_not_matter(
    hits: tuple[np.ndarray, np.ndarray], unit: float, shift: float
) -> None:
    a, b = hits
    plain = paired_bootstrap(a, b, draws=50)
    assert paired_bootstrap(unit * a, unit * b, draws=50) == pytest.approx([unit * x for x in plain])
    assert paired_bootstrap(a + shift, b, draws=50) == pytest.approx([shift + x for x in plain])
    names = [f"clip {number:02}" for number in range(a.shape[1])]
    assert paired_bootstrap(a, b, names, draws=50) == pytest.approx(plain)


def test_the_result_is_the_sum_of_the_means_of_parts() -> None:
    a, b = np.array([1.0, 1, 1, 0, 1, 0]), np.array([0.0, 0, 1, 0, 0, 1])
    parts = ["t2v"] * 4 + ["v2t"] * 2
    assert paired_bootstrap(a, b, parts=parts)[0] == pytest.approx(2 / 4 + 0 / 2)


@pytest.mark.parametrize(
    ("a", "b", "given", "words"),
    [
        ([1, 0], [1, 0, 1], {}, r"got \(1, 2\) and \(1, 3\) hits"),
        ([], [], {}, "the same queries and runs"),
        (np.ones((1, 2, 2)), np.ones((1, 2, 2)), {}, "the same queries and runs"),
        ([1, np.nan], [1, 0], {}, "NaN"),
        ([1, 0], [1, 0], {"groups": ["x", "x"]}, "in one group"),
        ([1, 0], [1, 0], {"groups": ["x"]}, "not one label per query"),
        ([1], [0], {}, "in one group"),
    ],
)
def test_incomparable_hits_are_refused(a: object, b: object, given: dict[str, object], words: str) -> None:
    with pytest.raises(MetricsError, match=words):
        paired_bootstrap(a, b, **given)
