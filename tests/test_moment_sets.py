"""Moment data sets: official files become full videos with queries and windows; unusable queries are reported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import amex, write_lines
from hypothesis import given
from hypothesis import strategies as st

from amex.manifests import Clip, ManifestError, Problem, dataset, read_manifest
from amex.manifests.moments import Query, clips_of_queries

TVR = {"vid_name": "friends_1", "duration": 60.5, "ts": [16.4, 33.8], "desc": "Phoebe laughs.", "type": "v"}
HIGHLIGHT = {
    "qid": 8737,
    "query": "A family plays basketball.",
    "duration": 12,
    "vid": "bP5_660.0_672.0",
    "relevant_windows": [[0, 4], [8, 10]],
    "relevant_clip_ids": [0, 1, 4],
    "saliency_scores": [[4, 1, 1], [4, 3, 2], [0, 4, 4]],
}
COOKING = {
    "s17.avi": {
        "fps": 25.0,
        "num_frames": 1000,
        "timestamps": [[50, 100], [900, 1010]],
        "sentences": ["He peels it.", "He leaves."],
    }
}


def charades(folder: Path, *train: str) -> Path:
    (folder / "charades_sta_train.txt").write_text("\n".join(train) + "\n")
    (folder / "charades_sta_test.txt").write_text("3MSZA 24.3 30.4##person turn a light on.\r\n")
    return folder


def tvr(folder: Path, *train: Any) -> Path:
    write_lines(folder / "tvr_train_release.jsonl", *train)
    write_lines(folder / "tvr_val_release.jsonl", TVR | {"vid_name": "friends_2", "desc_id": 7})
    return folder


def highlights(folder: Path, *train: Any) -> Path:
    write_lines(folder / "highlight_train_release.jsonl", *train)
    for name, video in (("val_release", "v"), ("test_with_gt", "t")):
        write_lines(folder / f"highlight_{name}.jsonl", HIGHLIGHT | {"vid": video})
    return folder


def tacos(folder: Path, train: Any) -> Path:
    (folder / "train.json").write_text(train if isinstance(train, str) else json.dumps(train))
    for name in ("val", "test"):
        (folder / f"{name}.json").write_text(json.dumps({f"{name}.avi": COOKING["s17.avi"]}))
    return folder


def parts(items: list[Clip | Problem]) -> tuple[list[Clip], list[str]]:
    return [item for item in items if isinstance(item, Clip)], [
        str(item) for item in items if isinstance(item, Problem)
    ]


def test_charades_sta_lines_become_queries_of_whole_videos(tmp_path: Path) -> None:
    lines = ("A 0.0 6.9##a person reads.", "B 1 2##one.", "", "A 7 9.5##he ## leaves.")
    clips, problems = parts(dataset("charades_sta").scan(charades(tmp_path, *lines), val=0))
    assert problems == []
    assert [(clip.clip_id, clip.split, clip.start, clip.end) for clip in clips] == [
        ("A", "train", None, None),
        ("B", "train", None, None),
        ("3MSZA", "test", None, None),
    ]
    assert clips[0].captions == ("a person reads.", "he ## leaves.")
    assert clips[0].extras == {"moments": [[[0.0, 6.9]], [[7.0, 9.5]]], "protocol": "charades_sta:official"}
    assert clips[2].captions == ("person turn a light on.",)


def test_tvr_keeps_query_ids_and_tests_on_val(tmp_path: Path) -> None:
    clips, _ = parts(dataset("tvr").scan(tvr(tmp_path, TVR | {"desc_id": 3}, TVR | {"desc_id": 4}), val=0))
    by_id = {clip.clip_id: clip for clip in clips}
    assert by_id["friends_2"].split == "test"
    assert by_id["friends_1"].extras == {
        "moments": [[[16.4, 33.8]], [[16.4, 33.8]]],
        "query_ids": [3, 4],
        "duration": 60.5,
        "protocol": "tvr:official",
    }


def test_qvhighlights_keeps_every_window_and_the_saliency_of_each_2_s(tmp_path: Path) -> None:
    clips, _ = parts(dataset("qvhighlights").scan(highlights(tmp_path, HIGHLIGHT)))
    assert [clip.split for clip in clips] == ["train", "val", "test"]
    assert clips[0].extras == {
        "moments": [[[0.0, 4.0], [8.0, 10.0]]],
        "query_ids": [8737],
        "saliency": [{"clips": [0, 1, 4], "scores": [[4, 1, 1], [4, 3, 2], [0, 4, 4]]}],
        "duration": 12.0,
        "protocol": "qvhighlights:official",
    }


def test_qvhighlights_without_published_moments_has_queries(tmp_path: Path) -> None:
    (highlights(tmp_path, HIGHLIGHT) / "highlight_test_with_gt.jsonl").unlink()
    with pytest.raises(
        ManifestError, match=r"highlight_test_with_gt\.jsonl is missing; it is published at https://raw"
    ):
        dataset("qvhighlights").scan(tmp_path)
    question = {name: HIGHLIGHT[name] for name in ("qid", "query", "duration", "vid")}
    write_lines(tmp_path / "highlight_test_release.jsonl", question)
    clips, _ = parts(dataset("qvhighlights").scan(tmp_path))
    assert clips[2].captions == ("A family plays basketball.",)
    assert (clips[2].extras["moments"], clips[2].extras["saliency"]) == ([[]], [None])


def test_tacos_frames_become_seconds_clipped_to_the_video(tmp_path: Path) -> None:
    clips, _ = parts(dataset("tacos").scan(tacos(tmp_path, COOKING)))
    assert [(clip.clip_id, clip.split) for clip in clips] == [("s17", "train"), ("val", "val"), ("test", "test")]
    assert clips[0].extras == {"moments": [[[2.0, 4.0]], [[36.0, 40.0]]], "duration": 40.0, "protocol": "tacos:2d-tan"}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"ts": [8.0, 7.0]}, r"'Phoebe laughs\.' of video 'friends_1' does not end after it begins: \[8\.0, 7\.0\]"),
        ({"ts": [7, 7]}, "does not end after it begins"),
        ({"ts": [61, 62]}, r"is outside of its video, which is 60\.50 s long"),
        ({"ts": [-3, -1]}, "is outside of its video"),
        ({"ts": [math.nan, 7]}, "does not end after it begins"),
        ({"ts": [1, math.inf]}, "does not end after it begins"),
        ({"ts": [1]}, "needs a start and an end"),
        ({"ts": ["a", 2]}, "needs a start and an end"),
        ({"ts": 5}, "needs a start and an end"),
        ({"duration": 0}, "is of a video that is 0.0 s long"),
        ({"duration": math.nan}, "is of a video that is nan s long"),
        ({"desc": " \t"}, "has no words"),
        ({"desc": 5}, "has no words"),
    ],
)
def test_a_query_with_invalid_moments_is_a_problem(wrong: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = tvr(tmp_path, TVR | {"desc_id": 1}, TVR | wrong | {"desc_id": 2}, TVR | {"desc_id": 3})
    clips, problems = parts(dataset("tvr").scan(folder, val=0))
    assert [clip.extras["query_ids"] for clip in clips] == [[7], [1, 3]]
    assert len(problems) == 1
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(problems[0])
    assert problems[0].startswith("tvr_train_release.jsonl:2: query ")


@pytest.mark.parametrize(
    ("name", "make", "match"),
    [
        ("charades_sta", lambda folder: charades(folder, "A 0 1##x", "A 0##y"), r"train\.txt:2 is not VIDEO START END"),
        ("charades_sta", lambda folder: charades(folder, "A zero 1##x"), r"train\.txt:1 is not VIDEO START END"),
        (
            "tvr",
            lambda folder: tvr(folder, TVR | {"desc_id": 1}, '{"vid_name'),
            r"release\.jsonl:2 is not a JSON object",
        ),
        ("tvr", lambda folder: tvr(folder, TVR), r"release\.jsonl:1 is not a query of TVR: 'desc_id' is missing"),
        ("tvr", lambda folder: tvr(folder, TVR | {"desc_id": 1, "vid_name": []}), "not laid out as expected"),
        ("qvhighlights", lambda folder: highlights(folder, "[]"), r"release\.jsonl:1 is not a JSON object"),
        (
            "qvhighlights",
            lambda folder: highlights(folder, HIGHLIGHT | {"relevant_clip_ids": [0, 1, 6]}),
            r":1 is not a query of QVHighlights: clip 6 has saliency scores, but the last clip of the video is 5",
        ),
        (
            "qvhighlights",
            lambda folder: highlights(folder, HIGHLIGHT | {"saliency_scores": [[4, 1, 1]]}),
            "3 clips for 1 saliency scores",
        ),
        (
            "qvhighlights",
            lambda folder: highlights(folder, HIGHLIGHT | {"saliency_scores": [[4, 1, 1], [5, 0, 0], [0, 0, 0]]}),
            r"saliency scores must be 3 of 0 to 4, got \[5, 0, 0\]",
        ),
        ("tacos", lambda folder: tacos(folder, "{"), r"train\.json is not JSON"),
        (
            "tacos",
            lambda folder: tacos(folder, {"a.avi": COOKING["s17.avi"] | {"sentences": ["one"]}}),
            r"train\.json has an invalid entry for video 'a\.avi'",
        ),
        (
            "tacos",
            lambda folder: tacos(folder, {"a.avi": COOKING["s17.avi"] | {"fps": 0}}),
            r"train\.json has an invalid entry for video 'a\.avi'",
        ),
        ("tacos", lambda folder: tacos(folder, []), "not laid out as expected"),
    ],
)
def test_a_damaged_file_is_a_one_line_error_that_names_it(
    name: str, make: Callable[[Path], Path], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=match) as refused:
        dataset(name).scan(make(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["charades_sta", "tvr", "qvhighlights", "tacos"])
def test_a_missing_file_is_an_error_with_its_address(name: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"is missing; it is published at https://raw\.githubusercontent\.com/"):
        dataset(name).scan(tmp_path)
    first = next(iter(dataset(name).protocols.values())).files[0].name
    (tmp_path / first).write_text("{}" if name == "tacos" else "")
    with pytest.raises(ManifestError, match="is missing; it is published at"):
        dataset(name).scan(tmp_path / first)


seconds = st.floats(-10, 100) | st.sampled_from([math.nan, math.inf])


@given(st.lists(st.tuples(seconds, seconds), max_size=3), st.none() | st.floats(1, 50))
def test_valid_moments_are_inside_the_video(windows: list[Any], duration: float | None) -> None:
    query = Query(video="v", text="t", windows=windows, file="f", duration=duration)
    (item,) = clips_of_queries([query], "test")
    if isinstance(item, Problem):
        return
    assert len(item.extras["moments"][0]) == len(windows)
    for start, end in item.extras["moments"][0]:
        assert 0 <= start < end <= (duration or math.inf)


def test_a_manifest_of_moments_is_built_and_read_again(tmp_path: Path) -> None:
    folder = charades(tmp_path, "A 0 6.9##a person reads.", "B 3 2##no.")
    result = amex("manifest", "build", "charades_sta", "--annotations", folder, "--out", tmp_path / "m.jsonl")
    assert result.exit_code == 3, result.output
    assert "left out: charades_sta_train.txt:2: query 'no.' of video 'B' does not end" in result.output
    assert read_manifest(tmp_path / "m.jsonl")[0].extras["moments"] == [[[0.0, 6.9]]]


@pytest.mark.parametrize("name", ["charades_sta", "tvr", "qvhighlights", "tacos"])
def test_real_annotations_of_moments_give_the_published_counts(name: str, real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "annotations" / name
    protocol = next(iter(dataset(name).protocols.values()))
    present = {file.name for file in protocol.files if (folder / file.name).exists()}
    if not present:
        pytest.skip(f"no annotations in {folder}")
    for file in protocol.files:  # missing files are empty, and their split is not compared
        target = tmp_path / file.name
        target.write_bytes(
            (folder / file.name).read_bytes() if file.name in present else b"{}" if name == "tacos" else b""
        )
    clips, problems = parts(dataset(name).scan(tmp_path, val=0))
    assert problems == []
    splits = {clip.split for clip in clips}
    assert splits
    for split in splits:
        of_split = [clip for clip in clips if clip.split == split]
        assert len(of_split) == protocol.clips[split]
        assert sum(len(clip.captions) for clip in of_split) == protocol.captions[split]
        assert all(len(clip.extras["moments"]) == len(clip.captions) for clip in of_split)
