"""Ensembles: models have equal weights, and validation chooses the temperature of the dual softmax."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amex.errors import AmexError
from amex.train.ensemble import TEMPERATURES, check_same_gallery, choose_temperature, combine
from amex.train.metrics import Scores, Truth, dual_softmax, evaluate


@given(st.integers(0, 99), st.floats(0.01, 50), st.floats(-100, 100))
def test_the_scale_of_a_models_scores_does_not_change_its_weight(seed: int, factor: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((2, 7, 5))
    plain = combine([Scores.of(first), Scores.of(second)]).block(slice(None), slice(None))
    scaled = combine([Scores.of(first), Scores.of(factor * second + shift)]).block(slice(None), slice(None))
    assert torch.allclose(plain, scaled, atol=1e-9)
    pairs = combine([Scores.of(first), Scores.of(second)]).block(torch.tensor([1, 6]), torch.tensor([0, 4]))
    assert torch.allclose(pairs, plain[[1, 6], [0, 4]])


def test_one_model_is_unchanged_and_constant_scores_stay_finite() -> None:
    one = Scores.of(np.eye(3))
    assert combine([one]) is one
    assert combine([Scores.of(np.ones((2, 2)))] * 2).block(slice(None), slice(None)).isfinite().all()


def test_the_temperature_is_the_best_of_those_tried() -> None:
    rng = np.random.default_rng(3)
    matrix = 3 * np.eye(40) + 2 * rng.standard_normal((40, 40)) + 3 * rng.standard_normal(40)
    scores, truth = Scores.of(matrix), Truth(captions=[[i] for i in range(40)], queries=40)
    split = SimpleNamespace(queries=[[i] for i in range(40)])
    rsums = {}
    for share in TEMPERATURES:
        made = [evaluate(dual_softmax(scores, way, matrix.std() * share), truth, groups=False) for way in (True, False)]
        rows = made[0]["text_to_video"], made[1]["video_to_text"]
        rsums[matrix.std() * share] = sum(row[f"R@{k}"] for row in rows for k in (1, 5, 10))
    chosen = choose_temperature(scores, split)
    assert rsums[min(rsums, key=lambda t: abs(t - chosen))] == max(rsums.values())
    assert max(rsums.values()) > evaluate(scores, truth)["rsum"] + 20


def test_runs_with_different_clips_or_captions_are_refused() -> None:
    clips = [SimpleNamespace(clip_id=name) for name in "abc"]
    whole, less = (SimpleNamespace(clips=some, captions=["x"]) for some in (clips, clips[:2]))
    check_same_gallery([whole, whole], ["one", "two"])
    with pytest.raises(AmexError, match=r"two has features of 2 clips of this split, one of 3"):
        check_same_gallery([whole, less], ["one", "two"])
