"""Metrics follow docs/concepts/metrics.md for every matrix and every block size."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn.functional import log_softmax, softmax

from amex.train.metrics import MetricsError, Scores, Truth, dual_softmax, evaluate, group_positions, positions

DIAGONAL = Truth(captions=[[i] for i in range(20)], queries=20)


def figures(matrix: np.ndarray, ties: str) -> tuple[float, ...]:
    actual = evaluate(Scores.of(matrix), DIAGONAL, ties=ties)["text_to_video"]
    return tuple(round(actual[name], 2) for name in ("R@1", "R@5", "MedR", "MeanR"))


@pytest.mark.parametrize(
    ("ties", "expected"),
    [("mean", (0, 0, 10.5, 10.5)), ("argsort", (5, 25, 10.5, 10.5)), ("c4c", (5, 25, 10.5, 10.5))],
)
def test_a_collapsed_model_scores_as_the_programs_of_each_rule_say(ties: str, expected: tuple[float, ...]) -> None:
    """Values measured with CLIP4Clip's, CE's and HGR's own functions."""
    assert figures(np.ones((20, 20)), ties) == expected


@pytest.mark.parametrize(("ties", "r1", "mean"), [("mean", 90, 1.05), ("argsort", 100, 1.0), ("c4c", 90.91, 1.09)])
def test_two_queries_tied_with_a_distractor_score_as_the_programs_of_each_rule_say(
    ties: str, r1: float, mean: float
) -> None:
    matrix = np.eye(20)
    matrix[0, 5] = matrix[1, 6] = 1
    assert figures(matrix, ties)[0] == r1
    assert figures(matrix, ties)[3] == mean


def test_an_even_number_of_queries_has_the_plain_median() -> None:
    matrix = np.array([[4, 0, 0, 0], [4, 3, 0, 0], [4, 3, 2, 0], [4, 3, 2, 1.0]])
    result = evaluate(Scores.of(matrix), Truth(captions=[[0], [1], [2], [3]], queries=4))
    assert result["text_to_video"]["MedR"] == 2.5
    assert result["text_to_video"]["MeanR"] == 2.5
    assert result["text_to_video"]["mAP"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]]]:
    """Scores with many ties, and captions a video: none for some, several for others."""
    own = draw(st.lists(st.integers(0, 3), min_size=1, max_size=7).filter(any))
    starts = np.cumsum([0, *own])
    captions = [list(range(a, b)) for a, b in itertools.pairwise(starts)]
    shape = (int(starts[-1]), len(own))
    matrix = draw(hnp.arrays(np.float32, shape, elements=st.integers(-2, 2).map(float)))
    return matrix, captions


@given(problems(), st.integers(0, 2**32 - 1))
def test_mean_positions_are_the_mean_over_all_ways_to_break_ties(
    problem: tuple[np.ndarray, list[list[int]]], seed: int
) -> None:
    matrix, captions = problem
    truth = Truth(captions=captions, queries=len(matrix))
    rng = np.random.default_rng(seed)
    for forwards, own in ((True, truth.videos), (False, captions)):
        expected = positions(Scores.of(matrix), own, "mean", text_to_video=forwards)
        table = matrix if forwards else matrix.T
        queries = [q for q in range(len(table)) if own[q]]
        draws = np.zeros(len(queries))
        rounds = 300
        for _ in range(rounds):
            for place, query in enumerate(queries):
                order = np.lexsort((rng.random(table.shape[1]), -table[query]))
                draws[place] += 1 + min(int(np.flatnonzero(order == positive)[0]) for positive in own[query])
        spread = table.shape[1] / np.sqrt(rounds)
        assert np.abs(draws / rounds - [found[0] for found in expected]).max() <= 2.5 * spread


@given(problems())
def test_without_ties_all_rules_agree_and_are_the_textbooks(problem: tuple[np.ndarray, list[list[int]]]) -> None:
    matrix, captions = problem
    matrix = matrix + np.random.default_rng(0).permutation(matrix.size).reshape(matrix.shape) / (4 * matrix.size)
    truth = Truth(captions=captions, queries=len(matrix))
    results = {ties: evaluate(Scores.of(matrix), truth, ties=ties) for ties in ("mean", "argsort", "c4c")}
    ranks, precisions = [], []
    for video, own in enumerate(captions):
        if not own:
            continue
        order = list(np.argsort(-matrix[:, video]))
        at = sorted(order.index(caption) + 1 for caption in own)
        ranks.append(at[0])
        precisions.append(np.mean([(i + 1) / place for i, place in enumerate(at)]))
    for result in results.values():
        actual = result["video_to_text"]
        assert actual["queries"] == len(ranks)
        assert actual["MeanR"] == pytest.approx(np.mean(ranks))
        assert actual["R@1"] == pytest.approx(100 * np.mean(np.array(ranks) == 1))
        assert result["text_to_video"]["gallery"] == len(captions)
    assert results["mean"]["video_to_text"]["mAP"] == pytest.approx(100 * np.mean(precisions))
    assert "mAP" not in results["c4c"]["text_to_video"]


@given(problems())
def test_ranking_groups_is_never_worse_than_ranking_captions(problem: tuple[np.ndarray, list[list[int]]]) -> None:
    matrix, captions = problem
    matrix = matrix + np.random.default_rng(1).permutation(matrix.size).reshape(matrix.shape) / (4 * matrix.size)
    result = evaluate(Scores.of(matrix), Truth(captions=captions, queries=len(matrix)))
    if "video_to_text_groups" not in result:
        return
    by_caption, by_group = result["video_to_text"], result["video_to_text_groups"]
    assert by_group["R@1"] == pytest.approx(by_caption["R@1"])
    assert by_group["MeanR"] <= by_caption["MeanR"] + 1e-9
    assert by_group["R@5"] >= by_caption["R@5"] - 1e-9


def test_a_caption_of_several_videos_is_found_at_the_best_of_them() -> None:
    matrix = np.array([[0.9, 0.1, 0.5]])
    actual = positions(Scores.of(matrix), [[1, 2]], "mean", text_to_video=True)
    assert actual[0].tolist() == [2, 3]


def ranked_one_by_one(table: np.ndarray, own: list[list[int]], ties: str) -> list[list[float]]:
    """The result of ``positions`` from its definition, for one query's scores at a time."""
    actual = []
    for row, positives in zip(table, own, strict=True):
        order = sorted(range(len(row)), key=lambda item: (-row[item], item))
        places = {}  # by score, the places from 1 that its items share
        for place, item in enumerate(order, start=1):
            places.setdefault(row[item], []).append(place)
        if not positives:
            continue
        if ties == "argsort":
            actual.append(sorted(order.index(item) + 1.0 for item in positives))
        elif ties == "c4c":
            best = max(row[item] for item in positives)
            rivals = len(places[best]) - sum(row[item] == best for item in positives)
            actual.append([places[best][0] + float(place) for place in range(rivals + 1)])
        else:
            by_score = Counter(row[item] for item in positives)
            spread = (
                places[score][0] - 1 + j * (len(places[score]) + 1) / (count + 1)
                for score, count in by_score.items()
                for j in range(1, count + 1)
            )
            actual.append(sorted(spread))
    return actual


@given(problems(), st.sampled_from(["mean", "argsort", "c4c"]), st.integers(1, 40), st.booleans())
def test_positions_from_blocks_are_those_of_one_query_at_a_time(
    problem: tuple[np.ndarray, list[list[int]]], ties: Any, size: int, softmax: bool
) -> None:
    matrix, captions = problem
    truth = Truth(captions=captions, queries=len(matrix))
    groups = [own for own in captions if own]
    best = np.stack([matrix[own].max(0) for own in groups])[:, [bool(own) for own in captions]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scores.rows, "__defaults__", (size,))
        patch.setattr("amex.train.metrics.BLOCK", size)
        for forwards, own in ((True, truth.videos), (False, captions)):
            scores, table = Scores.of(matrix), matrix
            if softmax:
                scores = dual_softmax(scores, forwards, 0.5)
                table = scores.block(slice(None), slice(None)).numpy()
            actual = positions(scores, own, ties, text_to_video=forwards)
            assert [places.tolist() for places in actual] == [
                pytest.approx(places) for places in ranked_one_by_one(table if forwards else table.T, own, ties)
            ]
        actual = group_positions(Scores.of(matrix), truth, ties)
    expected = ranked_one_by_one(best.T, [[group] for group in range(len(groups))], ties)
    assert [places.tolist() for places in actual] == [pytest.approx(places) for places in expected]


def test_repeated_captions_have_the_same_scores() -> None:
    matrix = np.random.default_rng(0).standard_normal((3, 2))
    scores = Scores.of(matrix).of_captions([2, 0, 2])
    assert scores.shape == (3, 2)
    assert np.array_equal(scores.block(slice(None), slice(None)), matrix[[2, 0, 2]])
    assert np.array_equal(scores.block(torch.tensor([0, 1]), torch.tensor([1, 0])), [matrix[2, 1], matrix[0, 0]])


@pytest.mark.parametrize("text_to_video", [True, False])
def test_dual_softmax_is_the_log_softmax_over_the_queries(text_to_video: bool) -> None:
    plain = np.random.default_rng(0).uniform(-1, 1, (6, 4))
    expected = log_softmax(torch.tensor(plain / 0.1), dim=0 if text_to_video else 1)
    scores = dual_softmax(Scores.of(plain), text_to_video, 0.1)
    assert np.allclose(scores.block(slice(None), slice(None)), expected)
    assert np.allclose(scores.block(slice(2, 5), slice(1, 3)), expected[2:5, 1:3])


@pytest.mark.parametrize("text_to_video", [True, False])
def test_dual_softmax_keeps_the_order_of_negative_scores(text_to_video: bool) -> None:
    plain = np.array([[-0.1, -0.4], [-0.4, -0.1]])
    way = "text_to_video" if text_to_video else "video_to_text"
    truth = Truth(captions=[[0], [1]], queries=2)
    assert evaluate(dual_softmax(Scores.of(plain), text_to_video), truth)[way]["R@1"] == 100


@given(hnp.arrays(np.float64, (4, 4), elements=st.floats(-1, 1)), st.floats(-3, 3))
def test_a_constant_added_to_all_scores_changes_no_dual_softmax(plain: np.ndarray, constant: float) -> None:
    actual, moved = (
        dual_softmax(Scores.of(x), True).block(slice(None), slice(None)) for x in (plain, plain + constant)
    )
    assert np.allclose(actual, moved, atol=1e-6)


def test_dual_softmax_repairs_a_hub() -> None:
    plain = np.eye(20) * 0.3
    plain[:, 2] += 0.5  # a video that is close to every caption
    before = evaluate(Scores.of(plain), DIAGONAL)["text_to_video"]
    after = evaluate(dual_softmax(Scores.of(plain), True), DIAGONAL)["text_to_video"]
    assert (before["R@1"], after["R@1"]) == (5, 100)


@pytest.mark.parametrize("text_to_video", [True, False])
def test_dual_softmax_ranks_positive_scores_almost_as_the_product_of_scores_and_softmax(text_to_video: bool) -> None:
    """CAMoE's own formula for positive scores: published figures use it."""
    rng = np.random.default_rng(0)
    videos = rng.standard_normal((300, 16)) + 0.8 * rng.standard_normal(16)
    texts = videos + rng.standard_normal((300, 16))
    hubs = 0.05 * rng.standard_normal((1, 300) if text_to_video else (300, 1))
    plain = (1 + _unit(texts) @ _unit(videos).T) / 2 + hubs
    assert plain.min() > 0
    product = plain * softmax(torch.tensor(plain / 0.01), dim=0 if text_to_video else 1).numpy()
    truth = Truth(captions=[[i] for i in range(300)], queries=300)
    way = "text_to_video" if text_to_video else "video_to_text"
    ours, theirs, without = (
        evaluate(scores, truth)[way]["R@1"]
        for scores in (dual_softmax(Scores.of(plain), text_to_video), Scores.of(product), Scores.of(plain))
    )
    assert theirs > without + 20
    assert abs(ours - theirs) < 5


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    matrix = np.eye(20)
    matrix[3, 4] = bad
    with pytest.raises(MetricsError, match="NaN or infinity"):
        evaluate(Scores.of(matrix), DIAGONAL)


@pytest.mark.parametrize(
    ("captions", "queries", "words"),
    [([[0], [3]], 2, "numbered 0 to 1"), ([[], []], 0, "no video has a caption")],
)
def test_invalid_ground_truth_is_refused(captions: list[list[int]], queries: int, words: str) -> None:
    with pytest.raises(MetricsError, match=words):
        Truth(captions=captions, queries=queries)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.slow
def test_ranking_sixty_thousand_captions_and_three_thousand_videos_takes_no_more_memory_than_their_scores() -> None:
    code = """
import torch
from amex.train.metrics import Scores, Truth, dual_softmax, evaluate
def most():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
generator = torch.Generator().manual_seed(0)
videos = torch.nn.functional.normalize(torch.randn(3000, 64, generator=generator))
texts = torch.nn.functional.normalize(videos.repeat_interleave(20, 0) + torch.randn(60000, 64, generator=generator) / 4)
scores = Scores.of(texts @ videos.T)
before = most()
truth = Truth(captions=[list(range(20 * i, 20 * i + 20)) for i in range(3000)], queries=60000)
result = evaluate(scores, truth)
assert result["video_to_text"]["queries"] == 3000 and result["text_to_video"]["queries"] == 60000
evaluate(dual_softmax(scores, True), truth, groups=False)
print(most() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 7.2e5  # kilobytes


def test_torch_matrices_are_accepted() -> None:
    assert evaluate(Scores.of(torch.eye(20)), DIAGONAL)["rsum"] == 600
