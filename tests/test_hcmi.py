"""HCMI: properties of grouping and of token matching that its outline requires."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_all_models import make
from torch.nn.functional import normalize

from amex.train.models.hcmi import Aggregation, density_peaks
from amex.train.models.parts import token_scores
from amex.train.options import HCMI as Options

READINGS = ["assign", "queries", "clusters"]


def aggregation(count: int, reading: str) -> Aggregation:
    torch.manual_seed(0)
    layer = Aggregation(count, Options(dim=8, aggregation=reading)).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return layer


@pytest.mark.parametrize("reading", READINGS)
def test_one_token_is_its_own_group(reading: str) -> None:
    layer = aggregation(1, reading)
    assert torch.allclose(layer.assign(torch.randn(3, 1, 8), torch.ones(3, 1).bool()), torch.ones(3, 1, 1))


@pytest.mark.parametrize("reading", READINGS)
def test_the_order_of_frames_changes_no_group(reading: str) -> None:
    layer, order = aggregation(3, reading), torch.tensor([4, 0, 3, 1, 2])
    x, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    groups, _ = layer(x, mask)
    again, _ = layer(x[:, order], mask[:, order])
    assert torch.allclose(groups.sum(1), again.sum(1), atol=1e-5)  # clusters have no fixed order
    if reading != "clusters":
        assert torch.allclose(groups, again, atol=1e-5)


@pytest.mark.parametrize("reading", READINGS)
def test_groups_are_averages_of_the_tokens_there_are(reading: str) -> None:
    layer = aggregation(4, reading)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    weights = layer.assign(torch.randn(3, 6, 8), mask)
    assert (weights[~mask] == 0).all()
    present = (weights > 0).any(1)
    assert torch.allclose(weights.sum(1)[present], torch.ones(int(present.sum())))
    assert present.sum(1).tolist() == ([4, 2, 0] if reading == "clusters" else [4, 4, 0])


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 5))
def test_every_token_is_in_one_cluster(seed: int, tokens: int, count: int) -> None:
    x = torch.randn(2, tokens, 4, generator=torch.Generator().manual_seed(seed))
    actual = density_peaks(x, torch.ones(2, tokens).bool(), count)
    assert (actual.sum(-1) == 1).all()
    assert (actual.any(1).sum(-1) == min(count, tokens)).all()


def test_clusters_group_close_tokens() -> None:
    middles = torch.eye(3, 8) * 10
    x = (middles.repeat_interleave(4, 0) + 0.1 * torch.randn(12, 8, generator=torch.Generator().manual_seed(0)))[None]
    actual = density_peaks(x, torch.ones(1, 12).bool(), 3)[0]
    assert sorted(tuple(group.nonzero().flatten().tolist()) for group in actual.T) == [
        (0, 1, 2, 3),
        (4, 5, 6, 7),
        (8, 9, 10, 11),
    ]


def test_before_training_videos_are_means_of_frames() -> None:
    batch = make("hcmi")
    # Unit features, as from CLIP's towers.
    batch["video"] = {"clips": {"values": torch.randn(4, 6, 8), "mask": torch.ones(4, 6).bool()}}
    from amex.train.models import build_model
    from amex.train.options import Inputs

    model = build_model(
        Options(dim=8, project=False, streams=["clips"], text="text", clips=3),
        Inputs(widths={"clips": 8, "text": 8}, sentence=8),
    ).eval()
    videos = model.encode_videos(batch["video"])
    mean = normalize(batch["video"]["clips"]["values"].mean(1), dim=-1)
    assert ((videos["video"] * mean).sum(-1) > 0.999).all()


def vectors(*rows: list[float]) -> torch.Tensor:
    return normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def test_each_token_is_matched_with_its_best_counterpart() -> None:
    words, frames = vectors([1, 0], [0, 1])[None], vectors([1, 0], [1, 1])[None]
    even = torch.full((1, 2), 0.5)
    best = (1 + 0.5**0.5) / 2
    assert token_scores(words, even, frames, even).item() == pytest.approx(best)
    # With all weight on one word, only its best frame counts on that side.
    assert token_scores(words, torch.tensor([[1.0, 0.0]]), frames, even).item() == pytest.approx(
        (1 + best) / 2, abs=0.2
    )


def test_two_draws_of_a_clip_are_different_rows_and_the_same_in_every_run() -> None:
    import numpy as np

    from amex.train.data import spread_rows

    counts = np.array([24, 3, 1, 0])
    (first, kept), (second, _) = (spread_rows(counts, 6, np.random.default_rng(seed)) for seed in (0, 1))
    assert (first[0] // 4 == np.arange(6)).all()  # one of each segment
    assert (first[0] != second[0]).any()
    assert (spread_rows(counts, 6, np.random.default_rng(0))[0] == first).all()
    assert kept.tolist() == [6, 1, 1, 0]
