"""Manifests are read back unchanged, report bad lines, and match the published counts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import amex, write_lines
from hypothesis import given
from hypothesis import strategies as st

from amex.manifests import (
    DATASETS,
    Clip,
    ManifestError,
    Problem,
    VideoError,
    VideoFinder,
    dataset,
    read_manifest,
    scan_manifest,
    write_manifest,
)
from amex.manifests.datasets.base import carve_val
from amex.manifests.videos import video_id

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
seconds = st.floats(0, 1e5, allow_nan=False)
clips = st.builds(
    lambda clip_id, video, start, length, split, captions, extras: Clip(
        clip_id=clip_id,
        video=video,
        start=start,
        end=(start or 0) + length,
        split=split,
        captions=captions,
        extras=extras,
    ),
    words,
    words,
    st.none() | seconds,
    st.floats(0.001, 1e4),
    st.sampled_from(["", "train", "val", "test"]),
    st.lists(words, max_size=3).map(tuple),
    st.dictionaries(words, st.none() | words | st.lists(st.integers())),
)


@given(st.lists(clips, unique_by=lambda clip: clip.clip_id))
def test_a_manifest_reads_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, clips: list[Clip]) -> None:
    path = tmp_path_factory.mktemp("m") / "m.jsonl"
    assert write_manifest(clips, path) == len(clips)
    assert read_manifest(path) == clips
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a clip"),
        ("[]", "expected a JSON object"),
        ('{"clip_id": "x"}', "'video' is missing"),
        ('{"clip_id": "", "video": "v"}', "clip_id must be a non-empty string"),
        ('{"clip_id": "x", "video": "v", "start": "0"}', "start must be a finite number"),
        ('{"clip_id": "x", "video": "v", "start": NaN}', "start must be a finite number"),
        ('{"clip_id": "x", "video": "v", "end": 1e308}', "end must be a finite number"),
        ('{"clip_id": "x", "video": "v", "start": 3, "end": 2}', "must end after it starts"),
        ('{"clip_id": "x", "video": "v", "captions": "one"}', "captions must be a list"),
        ('{"clip_id": "x", "video": "v", "extras": [1]}', "extras must be a JSON object"),
        ('{"clip_id": "x", "video": "v", "ends": 2}', "unknown field 'ends'"),
        ('{"clip_id": "a", "video": "v"}', "duplicate clip_id 'a', first on line 1"),
        ("\udcff\udcfe", "not a clip"),
        (r'{"clip_id": "x\udce9", "video": "v"}', "clip_id is not valid Unicode (a lone surrogate at 1)"),
        (r'{"clip_id": "x", "video": "\ud800"}', "video is not valid Unicode"),
        (r'{"clip_id": "x", "video": "v", "split": "\ud800"}', "split is not valid Unicode"),
        (r'{"clip_id": "x", "video": "v", "captions": ["fine", "\ud800"]}', "a caption is not valid Unicode"),
        (r'{"clip_id": "x", "video": "v", "extras": {"a": ["\ud800"]}}', "extras is not valid Unicode"),
        (r'{"clip_id": "x\u0000y", "video": "v"}', "clip_id contains a NUL character: 'x\\x00y'"),
        (r'{"clip_id": "x", "video": "v\u0000"}', "video contains a NUL character"),
        (r'{"clip_id": "x", "video": "v", "captions": ["\u0000"]}', "a caption contains a NUL character"),
        (r'{"clip_id": "x", "video": "v", "\u001b\udce9": 0}', r"unknown field '\x1b\udce9'"),
    ],
)
def test_a_bad_line_is_reported_and_skipped(tmp_path: Path, line: str, reason: str) -> None:
    good = [json.dumps({"clip_id": name, "video": name}) for name in "ab"]
    path = tmp_path / "m.jsonl"
    path.write_bytes("\n".join([good[0], line, "", good[1]]).encode(errors="surrogateescape"))
    first, problem, last = scan_manifest(path)
    assert (first.clip_id, last.clip_id) == ("a", "b")
    assert isinstance(problem, Problem)
    assert str(problem).startswith("m.jsonl:2: ")
    assert reason in problem.reason
    assert str(problem).isprintable()
    with pytest.raises(ManifestError, match=r"m\.jsonl:2"):
        read_manifest(path)


def test_too_large_times_are_refused() -> None:
    for end in (10**400, float("inf"), 1.1e9):
        with pytest.raises(ValueError, match="end must be a finite number of seconds"):
            Clip(clip_id="x", video="v", end=end)


def test_a_missing_manifest_is_an_error_with_the_command_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="amex manifest build"):
        read_manifest(tmp_path / "m.jsonl")


def test_videos_are_found_by_path_and_by_id_in_any_layout(tmp_path: Path) -> None:
    for name in ("flat.mp4", "train/226/xHr8X2Wpmno.mkv", "b/-dash_.mp4.webm", "v1.5 final.mov", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    finder = VideoFinder(tmp_path)
    assert finder.find("flat") == Path("flat.mp4")
    assert finder.find("flat.mp4") == Path("flat.mp4")
    assert finder.find("xHr8X2Wpmno") == Path("train/226/xHr8X2Wpmno.mkv")
    assert finder.find("226/xHr8X2Wpmno") == Path("train/226/xHr8X2Wpmno.mkv")
    assert finder.find("-dash_") == Path("b/-dash_.mp4.webm")
    assert finder.find("v1.5 final") == Path("v1.5 final.mov")
    for absent in ("notes", "227/xHr8X2Wpmno", "xHr8"):
        with pytest.raises(VideoError, match="no video"):
            finder.find(absent)


def test_an_id_is_a_name_without_the_extensions_of_videos(tmp_path: Path) -> None:
    names = {"abc.mp4": "abc", "x/abc.mp4.webm": "x/abc", "v1.5.MP4.mkv": "v1.5", "v1.5": "v1.5", ".mp4": ".mp4"}
    assert {name: video_id(name) for name in names} == names
    assert video_id("a.mp4/") == "a.mp4/"
    (tmp_path / "v1.5.MP4.mkv").touch()
    assert VideoFinder(tmp_path).find("v1.5") == Path("v1.5.MP4.mkv")


def test_folders_of_a_path_are_compared_part_by_part(tmp_path: Path) -> None:
    for name in ("1226/abc.mkv", "x/226/b.mkv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    finder = VideoFinder(tmp_path)
    with pytest.raises(VideoError, match="no video '226/abc'"):
        finder.find("226/abc")
    assert finder.find("226/b") == finder.find("x/226/b") == Path("x/226/b.mkv")
    with pytest.raises(VideoError, match="no video"):
        finder.find("y/x/226/b")


def test_a_video_with_another_extension_is_found_if_it_is_unique(tmp_path: Path) -> None:
    for name in ("abc.webm", "sub/def.MKV", "sub/d.mp4", "d.mov", "two.mkv", "two.webm", "v1.5.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    finder = VideoFinder(tmp_path)
    assert finder.find("sub/d.mp4") == finder.find("d.mp4") == Path("sub/d.mp4")
    assert finder.notes() == []
    assert finder.find("abc.mp4") == Path("abc.webm")
    assert finder.notes() == ["1 video was found with another extension, abc.mp4 as abc.webm"]
    assert finder.find("sub/def.mp4") == Path("sub/def.MKV")
    assert finder.find("abc.mp4") == Path("abc.webm")
    assert finder.notes() == ["2 videos were found with another extension, the first abc.mp4 as abc.webm"]
    for name, words in (("two.mp4", "two.mkv, two.webm"), ("other/def.mp4", "no video"), ("v1.6", "no video")):
        with pytest.raises(VideoError, match=words):
            finder.find(name)


def test_a_folder_with_a_link_to_itself_lists_each_file_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for path in (root / "sub" / "a.mp4", elsewhere / "deep" / "b.mp4"):
        path.parent.mkdir(parents=True)
        path.touch()
    (root / "0loop").symlink_to(".")
    (root / "0sub").symlink_to("sub")
    (root / "sub" / "up").symlink_to(root)
    (root / "outside").symlink_to(elsewhere)
    (root / "also").symlink_to(elsewhere)
    (root / "broken").symlink_to("nowhere")
    (root / "c.mp4").symlink_to("c.mp4")
    (root / "d.mp4").symlink_to("sub/a.mp4")  # a link to a file is a file
    finder = VideoFinder(root)
    assert [path.as_posix() for path in finder.list_videos()] == ["also/deep/b.mp4", "c.mp4", "d.mp4", "sub/a.mp4"]
    assert finder.find("a") == finder.find("sub/a") == Path("sub/a.mp4")
    assert finder.find("b") == Path("also/deep/b.mp4")
    assert finder.find("0sub/a.mp4") == Path("0sub/a.mp4")  # a path is used unchanged


@pytest.mark.parametrize("path", ["../secret.mp4", "a/../../secret.mp4", "/etc/passwd", "..", "a\\..\\..\\b", "a\0b"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.mp4").touch()
    (tmp_path / "videos").mkdir()
    with pytest.raises(VideoError, match="leaves the videos folder"):
        VideoFinder(tmp_path / "videos").find(path)


def test_two_files_with_one_id_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("a/x.mp4", "b/x.webm"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(VideoError, match=r"a/x\.mp4, b/x\.webm"):
        VideoFinder(tmp_path).find("x")


def test_every_data_set_module_is_registered_with_help() -> None:
    assert {"youcook2", "msrvtt", "folder"} <= set(DATASETS)
    listed = amex("manifest", "build", "--help").output
    for name, entry in DATASETS.items():
        assert entry.title
        assert entry.takes
        assert f"{name}:" in listed


def test_youcook2_steps_become_clips(tmp_path: Path) -> None:
    step = {"segment": [47, 60], "id": 3, "sentence": "pick the ends off"}
    database = {"abc": {"subset": "validation", "annotations": [step]}, "t": {"subset": "testing"}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"database": database}))
    clip = Clip(clip_id="abc_3", video="abc", start=47.0, end=60.0, split="test", captions=("pick the ends off",))
    assert dataset("youcook2").scan(path) == [replace(clip, extras={"protocol": "youcook2:official"})]
    path.write_text("[]")
    with pytest.raises(ManifestError, match="not laid out as expected"):
        dataset("youcook2").scan(path)
    path.write_text("{")
    with pytest.raises(ManifestError, match="is not JSON"):
        dataset("youcook2").scan(path)


def test_a_folder_takes_captions_from_csv_or_json_lines(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.webm", "sub/c.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [clip.clip_id for clip in dataset("folder").scan(tmp_path)] == ["a.mp4", "b.webm", "sub/c.mov"]
    (tmp_path / "captions.csv").write_text("video,caption,start,end\na,one,,\na.mp4,two,,\nc,cut,1,2.5\n")
    by_id = {clip.clip_id: clip for clip in dataset("folder").scan(tmp_path)}
    assert by_id["a.mp4"].captions == ("one", "two")
    assert by_id["b.webm"].captions == ()
    assert (by_id["sub/c.mov_1.0_2.5"].start, by_id["sub/c.mov_1.0_2.5"].end) == (1.0, 2.5)
    assert "sub/c.mov" not in by_id
    (tmp_path / "captions.csv").unlink()
    write_lines(tmp_path / "captions.jsonl", {"video": "b", "caption": "three"})
    assert {c.clip_id: c.captions for c in dataset("folder").scan(tmp_path)}["b.webm"] == ("three",)
    write_lines(tmp_path / "captions.jsonl", {"video": "b", "caption": "x"}, {"video": "zz", "caption": "y"})
    *by_id, problem = dataset("folder").scan(tmp_path)
    assert str(problem).startswith("captions.jsonl:2: no video 'zz'")
    assert {clip.clip_id: clip.captions for clip in by_id}["b.webm"] == ("x",)


def test_captions_can_name_a_file_by_a_link_or_an_unusual_extension(tmp_path: Path) -> None:
    (tmp_path / "v1.mp4").touch()
    (tmp_path / "v2.m1v").touch()
    (tmp_path / "loop").symlink_to(".")
    lines = [{"video": "loop/v1.mp4", "caption": "one"}, {"video": "v1", "caption": "two"}]
    write_lines(tmp_path / "captions.jsonl", *lines, {"video": "v2.m1v", "caption": "three"})
    by_id = {clip.clip_id: clip.captions for clip in dataset("folder").scan(tmp_path)}
    assert by_id == {"v1.mp4": ("one", "two"), "v2.m1v": ("three",)}
    write_lines(tmp_path / "captions.jsonl", {"video": "v1"})
    with pytest.raises(ManifestError, match="no column caption or start or split: its columns are video"):
        dataset("folder").scan(tmp_path)
    write_lines(tmp_path / "captions.jsonl", {"video": "v1"}, {"video": "v1", "caption": "x"})
    assert "it has no caption, no start and end, and no split" in str(dataset("folder").scan(tmp_path)[-1])


def test_unusable_file_names_and_captions_are_reported_and_skipped(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "caf\udce9.mp4", "\udcff/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    lines = ({"video": "b", "caption": "torn \ud83d"}, {"video": "a", "caption": "fine"})
    write_lines(tmp_path / "captions.jsonl", *lines)
    good, without, *problems = dataset("folder").scan(tmp_path)
    assert good == Clip(clip_id="a.mp4", video="a.mp4", captions=("fine",))
    assert without == Clip(clip_id="b.mp4", video="b.mp4")
    rename = "its path is not UTF-8: rename it"
    assert [str(problem) for problem in problems] == [
        "captions.jsonl:1: a caption is not valid Unicode (a lone surrogate at 5): 'torn \\ud83d'",
        rf"caf\xe9.mp4: {rename}",
        rf"\xff/c.mp4: {rename}",
    ]
    built = amex("manifest", "build", "folder", "--annotations", tmp_path, "--out", tmp_path / "m.jsonl")
    assert built.exit_code == 3
    assert rf"left out: caf\xe9.mp4: {rename}" in built.output
    assert read_manifest(tmp_path / "m.jsonl") == [good, without]
    write_lines(tmp_path / "captions.jsonl", {"video": "caf\udce9.mp4", "caption": "x"})
    row = next(item for item in dataset("folder").scan(tmp_path) if isinstance(item, Problem))
    assert str(row).startswith("captions.jsonl:1: video 'caf")
    assert "a path that is not UTF-8: rename it" in row.reason
    with pytest.raises(VideoError, match=r"video 'c' is .*c\.mp4, a path that is not UTF-8: rename it"):
        VideoFinder(tmp_path).find("c")
    with pytest.raises(VideoError, match=r"the path of the videos folder .*xff is not UTF-8: pass a link to it"):
        VideoFinder(tmp_path / "\udcff")
    (tmp_path / "link").symlink_to("\udcff")
    assert VideoFinder(tmp_path / "link").find("c") == Path("c.mp4")


def test_msrvtt_protocols_come_from_their_lists(tmp_path: Path) -> None:
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo1\n")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person is connecting something\n"
    )
    sentences = [{"video_id": "video0", "caption": f"caption {k}"} for k in range(3)]
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"sentences": sentences}))
    clips = dataset("msrvtt").scan(tmp_path, val=0)
    assert [(clip.clip_id, clip.split, len(clip.captions)) for clip in clips] == [
        ("video0", "train", 3),
        ("video1", "train", 0),
        ("video9770", "test", 1),
    ]
    with pytest.raises(ManifestError, match=r"train_list_miech\.txt is missing"):
        dataset("msrvtt").scan(tmp_path, "1k-B")
    with pytest.raises(ManifestError, match="choose from 1k-A, 7k, full, 1k-B"):
        dataset("msrvtt").scan(tmp_path, "9k")


def splits(clips: list[Clip]) -> dict[str, int]:
    return dict(Counter(clip.split for clip in clips))


@given(st.lists(st.tuples(words, st.sampled_from(["train", "test"])), min_size=1), st.floats(0.001, 0.5))
def test_val_is_drawn_by_video_and_independent_of_other_videos(named: list[tuple[str, str]], share: float) -> None:
    splits_of = dict(named)  # a video has one split
    clips = [Clip(clip_id=str(i), video=video, split=splits_of[video]) for i, (video, _) in enumerate(named)]
    carved = carve_val(clips, share)
    assert [clip.clip_id for clip in carved] == [clip.clip_id for clip in clips]
    assert [clip for clip in carved if clip.split == "test"] == [clip for clip in clips if clip.split == "test"]
    val, train = ({clip.video for clip in carved if clip.split == split} for split in ("val", "train"))
    assert not val & train
    assert bool(val) is (len(val | train) > 1)
    fewer = carve_val([clip for clip in clips if clip.video not in sorted(train)[:1]], share)
    assert len(val | train) < 3 or {clip.video for clip in fewer if clip.split == "val"} == val


def test_names_with_and_without_extension_are_one_video_for_val() -> None:
    names = [f"v{number}{extension}" for number in range(20) for extension in ("", ".mp4", ".mkv")]
    carved = carve_val([Clip(clip_id=name, video=name, split="train") for name in names], 0.3)
    val, train = ({video_id(clip.video) for clip in carved if clip.split == split} for split in ("val", "train"))
    assert val
    assert not val & train
    assert sum(clip.split == "val" for clip in carved) == 3 * len(val)


def test_a_published_val_is_not_changed(tmp_path: Path) -> None:
    clips = [
        Clip(clip_id=f"{split}{i}", video=f"{split}{i}", split=split) for split in ("train", "val") for i in (0, 1)
    ]
    assert carve_val(clips, 0.5) == clips
    assert carve_val(clips[:2], 0) == clips[:2]
    chosen = [clip for clip in carve_val([replace(clips[0], extras={"x": 1}), clips[1]], 0.05) if clip.split == "val"]
    assert [clip.extras["carved"] for clip in chosen] == ["1 of 2 videos of train, seed 0"]


def test_commands_report_how_val_was_drawn(tmp_path: Path) -> None:
    step = {"segment": [1, 2], "id": 0, "sentence": "stir"}
    videos = {f"v{i}": {"subset": "training", "annotations": [step, step | {"id": 1}]} for i in range(60)}
    (tmp_path / "a.json").write_text(json.dumps({"database": videos | {"t": {"subset": "validation"}}}))
    arguments = ("manifest", "build", "youcook2", "--annotations", tmp_path / "a.json", "--out", tmp_path / "m.jsonl")
    assert "val is carved from train: 5 of 60 videos of train, seed 0" in amex(*arguments, "--val", ".1").output
    assert "val is carved from train: 1 of 60 videos of train, seed 0" in amex(*arguments, "--val", ".0005").output
    assert "val is carved from train: 2 of 60 videos of train, seed 0" in amex(*arguments).output
    shown = amex("manifest", "show", tmp_path / "m.jsonl").output
    assert "val is carved from train: 2 of 60 videos of train, seed 0" in shown
    kept = [clip for clip in read_manifest(tmp_path / "m.jsonl") if clip.split == "val"]
    assert len({clip.video for clip in kept}) == 2
    assert all(clip.extras["carved"] == "2 of 60 videos of train, seed 0" for clip in kept)
    assert "carved" not in amex(*arguments, "--val", "0").output
    assert splits(read_manifest(tmp_path / "m.jsonl")) == {"train": 120}


@pytest.mark.parametrize("share", ["nan", "-1", "inf", "5"])
def test_an_invalid_share_for_val_is_a_usage_error(share: str, tmp_path: Path) -> None:
    arguments = ("manifest", "build", "folder", "--annotations", tmp_path, "--out", tmp_path / "m.jsonl")
    refused = amex(*arguments, "--val", share)
    assert refused.exit_code == 2
    assert "--val" in refused.output
    assert not (tmp_path / "m.jsonl").exists()


def test_real_annotations_give_the_published_counts(real_data: Path) -> None:
    cooking = real_data / "annotations" / "youcook2"
    official = dataset("youcook2").scan(cooking / "youcookii_annotations_trainval.json")
    assert splits(official) == {"train": 9_796, "val": 541, "test": 3_492}
    assert 9_796 + 541 == 10_337
    assert len({clip.clip_id for clip in official}) == 13_829
    videos = {split: {clip.video for clip in official if clip.split == split} for split in ("train", "val", "test")}
    assert {split: len(named) for split, named in videos.items()} == {"train": 1_261, "val": 72, "test": 457}
    msrvtt = real_data / "annotations" / "msrvtt"
    counts = {name: splits(dataset("msrvtt").scan(msrvtt, name)) for name in ("1k-A", "7k", "full", "1k-B")}
    assert counts == {
        "1k-A": {"train": 9_000 - 472, "val": 472, "test": 1_000},
        "7k": {"train": 7_010 - 366, "val": 366, "test": 1_000},
        "full": {"train": 6_513, "val": 497, "test": 2_990},
        "1k-B": {"train": 6_656 - 346, "val": 346, "test": 1_000},
    }
