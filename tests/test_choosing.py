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
def test_a_draw_depends_on_seed_and_video_alone(
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
    # What is drawn stays drawn, but for the one video that a split has so as not to be empty.
    for split, clip_ids in chosen.items():
        assert all(among[clip_id] == split for clip_id in clip_ids) or len(clip_ids) == 2
    other = split_clips(clips, val=val / 2, test=test, seed=seed)
    if len(chosen["test"]) > 2:
        assert [clip.clip_id for clip in other if clip.split == "test"] == [
            clip.clip_id for clip in clips if first[clip.clip_id] == "test"
        ]


def test_splits_are_about_as_large_as_was_asked_and_another_seed_draws_others() -> None:
    clips = clips_of([f"v{number}" for number in range(2000)])
    made = split_clips(clips, val=0.1, test=0.2)
    counts = statistics(made).splits
    assert counts["val"] == pytest.approx(400, rel=0.2)
    assert counts["test"] == pytest.approx(800, rel=0.2)
    assert split_clips(clips, val=0.1, test=0.2, seed=1) != made
    assert not statistics(made).video_leaks


def test_splits_that_are_there_are_kept_unless_others_are_asked_for(tmp_path: Path) -> None:
    clips = [Clip(clip_id=v, video=v, split="train", extras={"protocol": "x:y", "n": 1}) for v in "abcd"]
    write_manifest(clips, tmp_path / "m.jsonl")
    command = ("manifest", "split", tmp_path / "m.jsonl", "--out", tmp_path / "s.jsonl")
    assert "in splits already (train); --again draws others" in amex(*command).stderr
    assert not (tmp_path / "s.jsonl").exists()
    assert "4 clips of 4 videos" in amex(*command, "--again").output
    made = read_manifest(tmp_path / "s.jsonl")
    assert all(clip.extras == {"n": 1} for clip in made)
    assert amex(*command[:3], "--again").exit_code == 0  # in place
    assert read_manifest(tmp_path / "m.jsonl") == made
    for wrong in (("--val", ".5", "--test", ".5"), ("--val", "nan"), ("--val", "-1")):
        assert amex(*command, "--again", *wrong).exit_code == 2
    write_manifest(clips[:2], tmp_path / "m.jsonl")
    assert "3 splits need as many videos; there are 2" in amex(*command, "--again").stderr


def test_statistics_name_what_is_in_two_splits(tmp_path: Path) -> None:
    clips = [
        Clip(clip_id="1", video="a.mp4", start=0, end=3600, split="train", captions=("A dog  runs", "other")),
        Clip(clip_id="2", video="a", start=0, end=1800, split="test", captions=("a dog runs",)),
        Clip(clip_id="3", video="b", split="val", captions=("a dog runs",)),
        Clip(clip_id="4", video="c", split="val"),
    ]
    write_manifest(clips, tmp_path / "m.jsonl")
    told = amex("manifest", "stats", tmp_path / "m.jsonl", "--out", tmp_path / "s.png")
    assert "4 clips of 4 videos (1 train, 1 test, 2 val), 4 captions" in told.output
    assert "1.50 hours; 2 clips to the end of the video, of unknown length" in told.output
    assert "leak: 1 video in test and train: 'a'" in told.output
    assert "leak: 1 caption in test and train and val: 'A dog  runs'" in told.output
    assert "words a caption: mean 2.5, min 1" in told.output
    assert Image.open(tmp_path / "s.png").size == (1320, 408)
    record = json.loads(amex("manifest", "stats", tmp_path / "m.jsonl", "--json", "--out", tmp_path / "s.html").stdout)
    assert record["hours"] == 1.5
    assert record["seconds_a_clip"]["median"] == 2700
    assert record["video_leaks"] == [{"splits": ["test", "train"], "names": ["a"], "count": 1}]
    assert "<svg" in (tmp_path / "s.html").read_text()
    assert "a picture is one of .png" in amex("manifest", "stats", tmp_path / "m.jsonl", "--out", "s.doc").stderr
    (tmp_path / "m.jsonl").write_text("")
    assert "0 clips of 0 videos" in amex("manifest", "stats", tmp_path / "m.jsonl", "--out", tmp_path / "e.svg").output


def test_manifests_merge_unless_one_id_is_of_two_clips(tmp_path: Path) -> None:
    a, b = Clip(clip_id="a", video="v"), Clip(clip_id="b", video="v", split="test")
    assert merge_clips([("x", [a, b]), ("y", [b]), ("z", [b])]) == ([a, b], 2)
    for name, clips in (("x", [a, b]), ("y", [b]), ("z", [Clip(clip_id="b", video="v", split="train")])):
        write_manifest(clips, tmp_path / f"{name}.jsonl")
    merged = amex("manifest", "merge", tmp_path / "x.jsonl", tmp_path / "y.jsonl", "--out", tmp_path / "m.jsonl")
    assert "2 clips of 1 video (1 no split, 1 test)" in merged.output
    refused = amex("manifest", "merge", tmp_path / "x.jsonl", tmp_path / "z.jsonl", "--out", tmp_path / "n.jsonl")
    assert refused.exit_code == 1
    assert "clips with one id are not the same: 'b' (split differs in" in refused.stderr
    assert not (tmp_path / "n.jsonl").exists()
