"""Manifests are counted, split and merged."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from conftest import amex
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from amex.manifests import Clip, read_manifest, write_manifest
from amex.manifests.choosing import merge_clips, split_clips
from amex.manifests.statistics import statistics

names = st.text("abcdef.", min_size=1, max_size=4).filter(lambda name: name.strip("."))
sets = st.lists(names, min_size=3, max_size=60, unique=True)
shares = st.floats(0.01, 0.45)


def clips_of(videos: list[str]) -> list[Clip]:
    return [Clip(clip_id=f"{video}_{n}", video=video, start=n, end=n + 1) for video in videos for n in range(2)]


@settings(max_examples=40)
@given(sets, shares, shares, st.integers(0, 9), st.randoms())
def test_a_split_depends_only_on_seed_and_video(
    videos: list[str], val: float, test: float, seed: int, order: random.Random
) -> None:
    clips = clips_of(videos)
    first = {clip.clip_id: clip.split for clip in split_clips(clips, val=val, test=test, seed=seed)}
    assert set(first.values()) == {"train", "val", "test"}
    order.shuffle(clips)
    assert {clip.clip_id: clip.split for clip in split_clips(clips, val=val, test=test, seed=seed)} == first
    assert all(first[f"{video}_0"] == first[f"{video}_1"] for video in videos)
    many = [*clips, *clips_of([f"another{number}" for number in range(300)])]
    among = {clip.clip_id: clip.split for clip in split_clips(many, val=val, test=test, seed=seed)}
    chosen = {split: [clip_id for clip_id, own in first.items() if own == split] for split in ("test", "val")}
    # Splits do not change, except for the one video that keeps a split from being empty.
    for split, clip_ids in chosen.items():
        assert all(among[clip_id] == split for clip_id in clip_ids) or len(clip_ids) == 2
    other = split_clips(clips, val=val / 2, test=test, seed=seed)
    if len(chosen["test"]) > 2:
        assert [clip.clip_id for clip in other if clip.split == "test"] == [
            clip.clip_id for clip in clips if first[clip.clip_id] == "test"
        ]


def test_splits_have_the_requested_size_and_depend_on_the_seed() -> None:
    clips = clips_of([f"v{number}" for number in range(2000)])
    written = split_clips(clips, val=0.1, test=0.2)
    counts = statistics(written).splits
    assert counts["val"] == pytest.approx(400, rel=0.2)
    assert counts["test"] == pytest.approx(800, rel=0.2)
    assert split_clips(clips, val=0.1, test=0.2, seed=1) != written
    assert not statistics(written).video_leaks


def test_existing_splits_are_replaced_only_on_request(tmp_path: Path) -> None:
    clips = [Clip(clip_id=v, video=v, split="train", extras={"protocol": "x:y", "n": 1}) for v in "abcd"]
    write_manifest(clips, tmp_path / "m.jsonl")
    command = ("manifest", "split", tmp_path / "m.jsonl", "--out", tmp_path / "s.jsonl")
    assert "already have splits (train); --again replaces them" in amex(*command).stderr
    assert not (tmp_path / "s.jsonl").exists()
    assert "4 clips of 4 videos" in amex(*command, "--again").output
    written = read_manifest(tmp_path / "s.jsonl")
    assert all(clip.extras == {"n": 1} for clip in written)
    assert amex(*command[:3], "--again").exit_code == 0  # in place
    assert read_manifest(tmp_path / "m.jsonl") == written
    for wrong in (("--val", ".5", "--test", ".5"), ("--val", "nan"), ("--val", "-1")):
        assert amex(*command, "--again", *wrong).exit_code == 2
    write_manifest(clips[:2], tmp_path / "m.jsonl")
    assert "3 splits need as many videos; there are 2" in amex(*command, "--again").stderr


def test_statistics_report_leaks_between_splits(tmp_path: Path) -> None:
    clips = [
        Clip(clip_id="1", video="a.mp4", start=0, end=3600, split="train", captions=("A dog  runs", "other")),
        Clip(clip_id="2", video="a", start=0, end=1800, split="test", captions=("a dog runs",)),
        Clip(clip_id="3", video="b", split="val", captions=("a dog runs",)),
        Clip(clip_id="4", video="c", split="val"),
    ]
    write_manifest(clips, tmp_path / "m.jsonl")
    result = amex("manifest", "stats", tmp_path / "m.jsonl", "--out", tmp_path / "s.png")
    assert "4 clips of 4 videos (1 train, 1 test, 2 val), 4 captions" in result.output
    assert "1.50 hours; 2 clips to the end of the video, of unknown length" in result.output
    assert "leak: 1 video in test and train: 'a'" in result.output
    assert "leak: 1 caption in test and train and val: 'A dog  runs'" in result.output
    assert "words a caption: mean 2.5, min 1" in result.output
    assert Image.open(tmp_path / "s.png").size == (1320, 408)
    record = json.loads(amex("manifest", "stats", tmp_path / "m.jsonl", "--json", "--out", tmp_path / "s.html").stdout)
    assert record["hours"] == 1.5
    assert record["seconds_a_clip"]["median"] == 2700
    assert record["video_leaks"] == [{"splits": ["test", "train"], "names": ["a"], "count": 1}]
    assert "<svg" in (tmp_path / "s.html").read_text()
    assert (
        "the extension of a picture must be one of .png"
        in amex("manifest", "stats", tmp_path / "m.jsonl", "--out", "s.doc").stderr
    )
    (tmp_path / "m.jsonl").write_text("")
    assert "0 clips of 0 videos" in amex("manifest", "stats", tmp_path / "m.jsonl", "--out", tmp_path / "e.svg").output


def test_manifests_with_conflicting_ids_are_not_merged(tmp_path: Path) -> None:
    a, b = Clip(clip_id="a", video="v"), Clip(clip_id="b", video="v", split="test")
    assert merge_clips([("x", [a, b]), ("y", [b]), ("z", [b])]) == ([a, b], 2)
    for name, clips in (("x", [a, b]), ("y", [b]), ("z", [Clip(clip_id="b", video="v", split="train")])):
        write_manifest(clips, tmp_path / f"{name}.jsonl")
    merged = amex("manifest", "merge", tmp_path / "x.jsonl", tmp_path / "y.jsonl", "--out", tmp_path / "m.jsonl")
    assert "2 clips of 1 video (1 no split, 1 test)" in merged.output
    refused = amex("manifest", "merge", tmp_path / "x.jsonl", tmp_path / "z.jsonl", "--out", tmp_path / "n.jsonl")
    assert refused.exit_code == 1
    assert "different clips have the same id: 'b' (split differs in" in refused.stderr
    assert not (tmp_path / "n.jsonl").exists()
