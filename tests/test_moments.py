"""Moments: figures agree with examples computed by hand, and any model can score windows of whole videos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from conftest import amex, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY

from amex.features import Batch, ClipRows, Failure, create_store, declare_stream, open_store, write_part
from amex.manifests import Clip, ManifestError, write_manifest
from amex.manifests.moments import queries_of
from amex.train.captions import make_text
from amex.train.config import load_config
from amex.train.data import Split, inputs
from amex.train.metrics import MetricsError
from amex.train.models import RetrievalModel, build_model
from amex.train.moments import average_precision, highlight_figures, iou, moment_figures, saliency_precision
from amex.train.selection import DataError
from amex.train.windows import MOST_WINDOWS, Windows, cut, evaluate_moments, with_moments

WORDS = ("run", "jump", "swim")


def test_figures_of_moments_agree_with_an_example_by_hand() -> None:
    truths = [np.array([[0.0, 10], [20, 30]]), np.array([[0.0, 4]])]
    ranked = [np.array([[2.0, 10], [0, 10], [21, 30]]), np.array([[8.0, 12], [2, 4]])]
    figures = moment_figures(ranked, truths)
    # First windows have IoUs of 0.8 and 0; the other window of the second query has 0.5.
    assert {name: figures[name] for name in ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")} == pytest.approx(
        {"R1@0.3": 50, "R1@0.5": 50, "R1@0.7": 50, "mIoU": 40}
    )
    assert {name: figures[name] for name in ("R5@0.3", "R5@0.5", "R5@0.7")} == {
        "R5@0.3": 100,
        "R5@0.5": 100,
        "R5@0.7": 50,
    }
    # Query 1 up to 0.8: right, wrong (its window is taken), right. At 0.85 and 0.9: wrong, right, right, so that 2/3 is
    # the highest precision at either recall. At 0.95 the second window alone is right, with precision 1/2.
    # Query 2: at 0.5 its second window is right, above none.
    first = [5 / 6] * 7 + [2 / 3] * 2 + [1 / 4]
    second = [1 / 2] + [0] * 9
    assert figures["mAP@0.5"] == pytest.approx(100 * (first[0] + second[0]) / 2)
    assert figures["mAP@0.75"] == pytest.approx(100 * (first[5] + second[5]) / 2)
    assert figures["mAP"] == pytest.approx(100 * (np.mean(first) + np.mean(second)) / 2)


def test_figures_of_highlights_agree_with_an_example_by_hand() -> None:
    saliency = np.array([[4, 2, 0], [1, 4, 0], [4, 4, 0], [0, 0, 0]])
    scores = np.array([0.9, 0.2, 0.9, 0.1])
    # Annotator 1: both very good segments are tied for first place: precision 1. Annotator 2: one of the first 2,
    # then two of three: 2/3 is the highest precision at both recalls. Annotator 3 has no very good segment: 0.
    assert highlight_figures([scores], [saliency]) == pytest.approx({"HIT@1": 100, "HL-mAP": 100 * (1 + 2 / 3 + 0) / 3})
    assert highlight_figures([-scores], [saliency])["HIT@1"] == 0
    assert saliency_precision(scores, np.ones(4, bool)) == 1


spans = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=6).map(
    lambda pairs: np.array([[start, start + length] for start, length in pairs], float)
)


@given(spans, spans)
def test_iou_is_symmetric_within_bounds_and_1_for_itself_alone(some: np.ndarray, others: np.ndarray) -> None:
    met = iou(some, others)
    assert np.array_equal(met, iou(others, some).T)
    assert ((met >= 0) & (met <= 1)).all()
    assert np.array_equal(met == 1, (some[:, None] == others[None]).all(axis=2))
    seconds = np.arange(60) + 0.5
    inside = [(seconds[:, None] > w[:, 0]) & (seconds[:, None] < w[:, 1]) for w in (some, others)]
    both = (inside[0][:, :, None] & inside[1][:, None]).sum(axis=0)
    assert np.allclose(met, both / (inside[0][:, :, None] | inside[1][:, None]).sum(axis=0))


@settings(max_examples=40)
@given(spans, spans)
def test_figures_never_grow_with_the_threshold_and_the_truth_itself_is_perfect(
    some: np.ndarray, truth: np.ndarray
) -> None:
    figures = moment_figures([some], [truth])
    assert figures["R1@0.3"] >= figures["R1@0.5"] >= figures["R1@0.7"]
    assert figures["mAP@0.5"] >= figures["mAP@0.75"]
    assert figures["mAP@0.5"] >= figures["mAP"] - 1e-9
    assert all(figures[f"R5@{t}"] >= figures[f"R1@{t}"] for t in (0.3, 0.5, 0.7))
    assert list(moment_figures([truth], [truth]).values()) == pytest.approx([100] * len(figures))


@given(spans, spans)
def test_a_wrong_window_at_the_end_changes_no_precision(some: np.ndarray, truth: np.ndarray) -> None:
    met = iou(some, truth)
    assert average_precision(np.vstack([met, np.zeros(len(truth))]), 0.5) == pytest.approx(average_precision(met, 0.5))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12), st.randoms())
def test_the_precision_of_saliency_depends_on_no_order_of_ties(entries: list[tuple[int, bool]], random: Any) -> None:
    shuffled = random.sample(entries, len(entries))
    one, other = (saliency_precision(*map(np.array, zip(*each, strict=True))) for each in (entries, shuffled))
    assert one == pytest.approx(other)
    assert 0 <= one <= 1


def test_an_empty_set_is_refused_and_a_query_without_windows_is_a_miss() -> None:
    with pytest.raises(ValueError, match="there are no queries"):
        moment_figures([], [])
    with pytest.raises(ValueError, match="there are no queries"):
        highlight_figures([], [])
    assert set(moment_figures([np.zeros((0, 2))], [np.array([[0.0, 1]])]).values()) == {0.0}


@given(st.floats(0, 50), st.floats(0.1, 80), st.lists(st.floats(0.5, 100), min_size=1, max_size=4), st.floats(0.05, 1))
def test_windows_cover_the_video_and_never_leave_it(
    begin: float, duration: float, lengths: list[float], step: float
) -> None:
    end = begin + duration
    made = Windows(lengths=lengths, step=step).of(begin, end)
    assert (made[:, 0] >= begin - 1e-6).all()
    assert (made[:, 1] <= end + 1e-6).all()
    assert (made[:, 1] > made[:, 0]).all()
    for length in {min(length, end - begin) for length in lengths}:
        own = made[np.isclose(made[:, 1] - made[:, 0], length)]
        assert own[:, 0].min() == pytest.approx(begin)
        assert own[:, 1].max() == pytest.approx(end)
        assert (np.diff(np.sort(own[:, 0])) <= step * length + 1e-6).all()


def test_a_video_that_would_have_too_many_windows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1,000,000,000 s would have .* choose longer ones"):
        Windows().of(0, 1e9)
    assert len(Windows(lengths=[1.0], step=1.0).of(0, MOST_WINDOWS - 10)) == MOST_WINDOWS - 10


@settings(max_examples=50)
@given(spans, st.integers(0, 99), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_suppression_equals_a_loop_over_sorted_windows(windows: np.ndarray, seed: int, overlap: float) -> None:
    scores = np.random.default_rng(seed).random((2, len(windows)))
    kept = Windows(overlap=overlap).keep(windows, scores, 4)
    for row, own in zip(scores, kept, strict=True):
        expected: list[int] = []
        for number in np.argsort(-row):
            if all(iou(windows[[number]], windows[[other]])[0, 0] <= overlap for other in expected):
                expected.append(int(number))
        assert np.array_equal(own, windows[expected[:4]])


def test_a_window_has_the_rows_with_centres_in_it_or_the_nearest_row() -> None:
    times = np.array([[4.0, 6], [0, 2], [2, 4]])  # rows may have any order
    arrays = {"values": np.array([[9.0], [2], [0], [1]]), "size": np.array([[7], [8]])}
    batch = Batch(arrays, np.array([0, 1, 4]), ("x", "y"), frozenset({"size"}))
    made = cut(batch, 1, times, np.array([[0.0, 6], [1, 3.5], [1.1, 2.9], [3.9, 4.8], [70, 80]]))
    assert [rows.values[:, 0].tolist() for rows in made] == [[0, 1, 2], [0, 1], [0], [2], [2]]
    assert made["size"].tolist() == [[8]] * 5


class Counting(RetrievalModel):
    """A window gains for every row that shows the query's word, and loses for every other row."""

    def encode_videos(self, video: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {
            "sum": torch.stack([((x["values"] - 0.5) * x["mask"][..., None]).sum(1) for x in video.values()]).sum(0)
        }

    def encode_texts(self, text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sum": (text["values"] * text["mask"][..., None]).sum(1)}

    def score(self, videos: dict[str, torch.Tensor], texts: dict[str, torch.Tensor]) -> torch.Tensor:
        return texts["sum"] @ videos["sum"].T


def add(store: Path, name: str, clips: dict[str, dict[str, Any]], failed: Sequence[str] = (), **output: Any) -> None:
    """A stream with these arrays for each clip or caption, and failed clips."""
    spec = {"network": name, "output": {"shape": [len(WORDS)], "dtype": "float32"} | output}
    declare_stream(create_store(store), name, spec, {})
    failures = [Failure(clip_id=key, video=key, stage="decode", reason="it is damaged") for key in failed]
    rows = [ClipRows(clip_id=key, arrays=value) for key, value in clips.items()]
    write_part(store, name, "0", spec=spec, clips=rows, failures=failures, run={"host": ""})


def shows(plan: Sequence[int], rate: float = 1.0) -> dict[str, Any]:
    """Rows of a video that shows one word after another, each for some seconds."""
    seconds = np.repeat(np.arange(len(WORDS)), plan)
    times = np.arange(0, len(seconds), 1 / rate)
    return {"values": np.eye(len(WORDS))[seconds[times.astype(int)]], "times": np.stack([times, times + 1 / rate], 1)}


PLANS = {"a": (8, 4, 8), "b": (4, 8, 4), "c": (2, 2, 2), "lost": (4, 4, 4)}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A store with two streams of different rates, and videos that show three words, one after the other."""
    store = tmp_path / "s.zarr"
    add(store, "fast", {name: shows(plan, 2) for name, plan in PLANS.items() if name != "lost"}, ["lost"])
    add(store, "slow", {name: shows(plan, 0.5) for name, plan in PLANS.items()})
    tokens = {word: {"values": row[None], "sentence": row} for word, row in zip(WORDS, np.eye(3), strict=True)}
    add(store, "said", tokens, of="captions", clip_arrays={"sentence": {"shape": [3], "dtype": "float32"}})
    return tmp_path


def videos(**more: Any) -> list[Clip]:
    made = []
    for name, plan in PLANS.items():
        ends = np.cumsum(plan).tolist()
        moments = [[[end - length, end]] for end, length in zip(ends, plan, strict=True)]
        extras = {"moments": moments, "duration": float(ends[-1])} | more
        made.append(Clip(clip_id=name, video=f"{name}.mp4", split="test", captions=WORDS, extras=extras))
    return made


def split_of(world: Path, clips: Sequence[Clip], streams: str = "fast,slow") -> Split:
    store = open_store(world / "s.zarr")
    config = load_config("global", [f"model.streams=[{streams}]", "model.text=said"])
    return Split(store, clips, config.model, config.data, make_text(store, config, clips, world / "m.jsonl"))


WINDOWS = Windows(lengths=(2, 4, 8, 12), step=0.25, overlap=0.5)


def test_a_perfect_model_finds_every_moment(world: Path) -> None:
    observed: list[tuple[int, int]] = []
    clips = videos()
    result = evaluate_moments(Counting(), split_of(world, clips), clips, WINDOWS, lambda *count: observed.append(count))
    assert (result["queries"], result["videos"]) == (9, 3)
    assert result["coverage"]["clips_left_out"] == {"failed in fast": 1}
    assert result["figures"]["model"]["R1@0.7"] == 100
    assert result["figures"]["random order"]["R1@0.7"] < 100
    # The moments of a video together cover all of it.
    assert result["figures"]["whole video"]["mIoU"] == pytest.approx(100 * (1 + 1 + 1) / 9)
    assert result["warnings"] == []
    assert "highlights" not in result
    assert observed[-1][0] == observed[-1][1] == len(WORDS) + result["windows"]["scored"]
    json.dumps(result)


def test_segments_of_2_s_are_scored_for_queries_with_saliency(world: Path) -> None:
    truth = [{"clips": [0, 1], "scores": [[4, 4, 4], [4, 0, 4]]}, None, None]
    clips = [replace(clip, extras=clip.extras | {"saliency": truth}) for clip in videos() if clip.clip_id in ("a", "b")]
    result = evaluate_moments(Counting(), split_of(world, clips), clips, WINDOWS)
    assert result["highlights"]["queries"] == 2
    assert result["highlights"]["model"]["HIT@1"] == 100
    # "b" is true only in its first 4 s. "a" lasts 8 s: four segments are tied.
    of_a, of_b = (2 / 4 + 1 / 4 + 2 / 4) / 3, (1 + 1 / 2 + 1) / 3
    assert result["highlights"]["model"]["HL-mAP"] == pytest.approx(100 * (of_a + of_b) / 2)


def test_a_caption_without_features_leaves_the_moments_of_the_others_where_they_are(world: Path) -> None:
    clips = [replace(clip, captions=("nobody said this", *WORDS[1:])) for clip in videos()]
    split = split_of(world, [replace(clip, captions=WORDS[1:]) for clip in clips])
    result = evaluate_moments(Counting(), split, clips, WINDOWS)
    assert result["queries"] == 6
    assert result["figures"]["model"]["R1@0.7"] == 100


def test_a_video_that_is_shorter_than_every_window_is_one_window(world: Path) -> None:
    clips = [clip for clip in videos() if clip.clip_id == "c"]
    result = evaluate_moments(Counting(), split_of(world, clips), clips, Windows(lengths=(60, 90)))
    assert result["windows"]["scored"] == 1
    assert result["figures"]["model"] == result["figures"]["whole video"] == result["figures"]["random order"]


def test_moments_after_the_last_row_are_a_warning(world: Path) -> None:
    late = videos(moments=[[[50.0, 60.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    clips = [replace(clip, extras={"moments": clip.extras["moments"]}) for clip in late if clip.clip_id == "a"]
    result = evaluate_moments(Counting(), split_of(world, clips), clips, WINDOWS)
    assert result["warnings"] == [
        "the moments of 1 query begin after the last row of their video: is it a different cut?"
    ]


def test_videos_that_cannot_be_scored_are_an_error_that_says_why(world: Path) -> None:
    clips = videos()
    with pytest.raises(DataError, match="no clip of split 'val' has moments"):
        with_moments([replace(clip, extras={}) for clip in clips], "val")
    with pytest.raises(DataError, match="no clip of split 'val' has moments"):
        with_moments([replace(clip, extras={"moments": [[], [], []]}) for clip in clips], "val")
    add(world / "s.zarr", "timeless", {name: {"values": np.eye(3)} for name in PLANS}, times=False)
    with pytest.raises(DataError, match="stream 'timeless' was imported without times"):
        evaluate_moments(Counting(), split_of(world, clips, "timeless"), clips, WINDOWS)

    class Broken(Counting):
        def score(self, *given: Any) -> torch.Tensor:
            return super().score(*given) * float("nan")

    with pytest.raises(MetricsError, match="hold NaN or infinity"):
        evaluate_moments(Broken(), split_of(world, clips), clips, WINDOWS)
    salient = videos(saliency=[{"clips": [0], "scores": [[4, 4, 4]]}] * 3)
    outside = [{"clips": [place], "scores": [[4, 4, 4]]} for place in (99, -1)]
    for wrong in (*outside, {"clips": [0]}, {"clips": "x", "scores": [[1]]}, "x"):
        clips = [replace(clip, extras=clip.extras | {"saliency": [wrong] * 3}) for clip in salient]
        with pytest.raises(DataError, match="the saliency of query 'run' does not fit its video"):
            evaluate_moments(Counting(), split_of(world, clips), clips, WINDOWS)
    clips = [replace(clip, extras=clip.extras | {"duration": 1e9}) for clip in videos()]
    with pytest.raises(DataError, match="clip 'a': 1,000,000,000 s would have"):
        evaluate_moments(Counting(), split_of(world, clips), clips, WINDOWS)
    clips = [replace(clip, extras=clip.extras | {"duration": "long"}) for clip in salient]
    with pytest.raises(DataError, match="its duration 'long' is no number of seconds"):
        evaluate_moments(Counting(), split_of(world, clips), clips, WINDOWS)


BOXES = {
    "boxes": {"shape": [2, 4], "dtype": "float32"},
    "scores": {"shape": [2], "dtype": "float32"},
    "labels": {"shape": [2], "dtype": "int32"},
    "counts": {"shape": [], "dtype": "int32"},
    "frame_size": {"shape": [2], "dtype": "int32"},
}
SMALL = ("model.dim=8", "data.max_rows=4")
GRAPH = ("model.graph_dim=8", "model.graphs=2", "model.key_dim=4")


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("amenet", ("model.objects=things", "model.streams=[fast]", "model.text=said", *GRAPH)),
        ("hgr", ("model.streams=[fast,things]", *GRAPH)),
        ("mcsan", ("model.streams=[fast,things]", *GRAPH)),
        ("hcmi", ("model.streams=[fast,things]", "model.text=said", "model.clips=2", "model.phrases=2", *GRAPH)),
        ("dual_encoding", ("model.streams=[fast,slow]", "model.text=said", "model.rnn_dim=4", "model.filters=3")),
        ("clip_mean", ("model.streams=[fast]", "model.text=said")),
    ],
)
def test_any_model_scores_windows(name: str, own: tuple[str, ...], world: Path) -> None:
    things = {}
    for clip, plan in PLANS.items():
        rows, rng = shows(plan), np.random.default_rng(0)
        boxes = {
            "boxes": np.sort(rng.random((sum(plan), 2, 4)) * 90, axis=2),
            "scores": rng.random((sum(plan), 2)),
            "labels": np.zeros((sum(plan), 2), int),
            "counts": np.full(sum(plan), 2),
            "frame_size": np.full((sum(plan), 2), 100),
        }
        things[clip] = {"values": rng.random((sum(plan), 2, 3)), "times": rows["times"], **boxes}
    add(world / "s.zarr", "things", things, shape=[2, 3], arrays=BOXES)
    clips = videos()
    manifest = world / "m.jsonl"
    write_manifest(clips, manifest)
    if name in ("hgr", "mcsan"):
        assert amex("manifest", "parse", manifest).exit_code == 0
    store = open_store(world / "s.zarr")
    config = load_config(name, [*SMALL, *own])
    split = Split(store, clips, config.model, config.data, make_text(store, config, clips, manifest))
    torch.manual_seed(0)
    result = evaluate_moments(build_model(config.model, inputs(store, config, split.text)), split, clips, WINDOWS)
    assert result["queries"] == 9
    assert all(0 <= value <= 100 for value in result["figures"]["model"].values())


@pytest.mark.parametrize(
    "moments", ["x", [], [[[0, 1]]], [[[0, 1]], 5, []], [[[0, 1]], [[2, 1]], []], [[["a", 1]], [], []]]
)
def test_extras_that_do_not_fit_the_captions_are_refused(moments: Any) -> None:
    with pytest.raises(ManifestError, match="clip 'a'"):
        queries_of(replace(videos()[0], extras={"moments": moments}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny training, with a store and a manifest of moments."""
    folder = tmp_path_factory.mktemp("run")
    add(
        folder / "s.zarr",
        "fast",
        {f"{split}{name}": shows(plan) for split in ("", "train", "val") for name, plan in PLANS.items()},
    )
    made = [
        replace(clip, clip_id=f"{prefix}{clip.clip_id}", video=f"{prefix}{clip.clip_id}.mp4", split=split)
        for prefix, split in (("", "test"), ("train", "train"), ("val", "val"))
        for clip in videos()
    ]
    write_manifest(made, folder / "m.jsonl")
    arguments = ("--store", folder / "s.zarr", "--manifest", folder / "m.jsonl", "--work-dir", folder / "run")
    done = amex(
        "train", "global", *arguments, *(word for setting in (*TINY, "train.epochs=1") for word in ("--set", setting))
    )
    assert done.exit_code == 0, done.output
    return folder


def of_moments(run: Path, *more: Any) -> Result:
    return amex("moments", run / "run", *more)


def test_the_command_prints_figures_beside_baselines_and_writes_json(run: Path) -> None:
    shown = of_moments(run, "--length", 4, "--length", 8)
    assert shown.exit_code == 0, shown.output
    assert "moments of 4 videos" in shown.output
    assert "12 queries with moments; 12 of 12 captions" in shown.output
    for row in ("model", "random order", "whole video", "R1@0.5", "mAP@0.75"):
        assert row in shown.output
    told = of_moments(run, "--length", 4, "--length", 8, "--json", "--out", run / "own.json")
    record = json.loads(told.stdout)
    assert (
        record == json.loads((run / "own.json").read_text()) == json.loads((run / "run/moments-test.json").read_text())
    )
    assert (record["queries"], record["videos"], record["windows"]["lengths"]) == (12, 4, [4, 8])


def test_the_command_refuses_what_is_no_length_and_a_manifest_without_moments(run: Path) -> None:
    for wrong in (("--length", "0"), ("--length", "nan"), ("--step", "0"), ("--step", "nan"), ("--nms", "2")):
        assert of_moments(run, *wrong).exit_code == 2
    assert of_moments(run, "--out", run).output.startswith(f"Error: cannot write {run}: ")
    lines = [{"clip_id": name, "video": name, "split": "test", "captions": list(WORDS)} for name in PLANS]
    refused = of_moments(run, "--manifest", write_lines(run / "plain.jsonl", *lines))
    assert refused.exit_code == 1
    assert "no clip of split 'test' has moments" in refused.output
    assert refused.output.count("\n") == 1
