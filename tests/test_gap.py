"""The modality gap between videos and texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from amex.train.gap import centroid_distance, concatenate_levels, mixed_positions, probe


def pairs(shift: float, count: int = 150, dim: int = 12) -> tuple[Tensor, Tensor]:
    """Unit vectors of videos and texts, close to each other except for a shift of all texts along one axis."""
    torch.manual_seed(0)
    videos = torch.randn(count, dim)
    texts = videos + 0.3 * torch.randn(count, dim)
    texts[:, 0] += shift
    return normalize(videos, dim=-1), normalize(texts, dim=-1)


def test_the_probe_separates_shifted_modalities_and_not_equal_ones() -> None:
    alone = np.arange(150)
    assert probe(*pairs(0.0), alone).mean() == pytest.approx(0.5, abs=0.12)
    assert probe(*pairs(9.0), alone).mean() > 0.97
    assert centroid_distance(*pairs(0.0)) < 0.15 < 0.5 < centroid_distance(*pairs(9.0))


def test_items_of_a_group_are_never_in_both_training_and_test_folds() -> None:
    """Ten points, each fifteen times: a probe knows repeated points by heart, but not new ones."""
    torch.manual_seed(1)
    points = normalize(torch.randn(20, 30), dim=-1)
    number = np.arange(150) % 10
    videos, texts = points[:10][number], points[10:][number]
    assert probe(videos, texts, np.arange(150)).mean() == 1
    assert probe(videos, texts, number).mean() < 0.9


def test_clustered_texts_rank_before_the_video() -> None:
    alone = np.arange(150)
    near, apart = (mixed_positions(*pairs(shift), alone) for shift in (0.0, 9.0))
    assert np.median(near) <= 2
    assert np.median(apart) > 50


@settings(max_examples=20)
@given(st.integers(2, 6), st.integers(0, 99))
def test_mixed_positions_equal_those_of_sorting(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    videos, texts = (normalize(torch.from_numpy(rng.normal(size=(count, 3))), dim=-1) for _ in range(2))
    caption = rng.integers(0, count, size=count)
    actual = mixed_positions(videos, texts, caption)
    for i in range(count):
        others = [j for j in range(count) if caption[j] != caption[i]]
        own = float(texts[i] @ videos[i])
        ahead = sum(float(texts[i] @ x[j]) > own for x in (videos, texts) for j in others)
        assert actual[i] == 1 + ahead


def test_the_dot_product_of_concatenated_levels_is_the_score() -> None:
    torch.manual_seed(0)
    a, b = ({"x": torch.randn(4, 3), "y": torch.randn(4, 5)} for _ in range(2))
    weights = {"x": 0.25, "y": 0.75}
    cosines = {level: normalize(a[level], dim=-1) @ normalize(b[level], dim=-1).T for level in weights}
    wanted = 0.25 * cosines["x"] + 0.75 * cosines["y"]
    torch.testing.assert_close(concatenate_levels(a, weights) @ concatenate_levels(b, weights).T, wanted)
