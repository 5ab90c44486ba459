"""After a change of the manifest or a video, the affected clips are extracted again and their old features ignored."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import amex, extract, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import make, rows_of
from videos import encode

from amex.extract.run.plan import VideoFiles
from amex.features import ClipSource, Failure, MissingClip, open_store, schema, verify, writer
from amex.manifests import Clip, VideoFinder

TINY = "r2plus1d_tiny"
OPTIONS = ("--stream", TINY, "--weights", f"{TINY}=random:0", "--set", f"{TINY}.frames=1", "--set", f"{TINY}.stride=8")


def compute(videos: Path, store: Path, cluster: str, manifest: Path, *more: Any, code: int = 0) -> dict[str, Any]:
    return extract(videos, store, cluster, "--manifest", manifest, *OPTIONS, *more, code=code)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Path:
    """A folder with two short videos, a manifest of three of their clips, and the store."""
    folder = tmp_path_factory.mktemp("computed")
    (folder / "videos").mkdir()
    for name in ("a", "b"):
        encode(folder / "videos" / f"{name}.mp4", frames=32)
    write_lines(
        folder / "m.jsonl",
        {"clip_id": "early", "video": "a", "start": 0, "end": 0.5},
        {"clip_id": "whole", "video": "b"},
        {"clip_id": "gone", "video": "c"},
    )
    compute(folder / "videos", folder / "s.zarr", cluster, folder / "m.jsonl", "--digest", code=3)
    return folder


@pytest.fixture
def copied(computed: Path, tmp_path: Path) -> Path:
    """A writable copy with equal modification times."""
    return Path(shutil.copytree(computed, tmp_path / "copied"))


def test_a_commit_records_the_source_of_each_clip(computed: Path) -> None:
    stream = open_store(computed / "s.zarr")[TINY]
    status = (computed / "videos/a.mp4").stat()
    source = stream.source("early")
    assert (source.video, source.start, source.end, source.revision) == ("a.mp4", 0, 0.5, 0)
    assert (source.bytes, source.modified) == (status.st_size, status.st_mtime_ns)
    assert source.sha256 is not None
    assert stream.source("whole").start is stream.source("whole").end is None
    assert stream.source("gone") == ClipSource(video=None)
    assert stream.source("early").has_times(0, 0.5)
    assert not stream.source("early").has_times(0, 0.6)
    assert not stream.source("gone").has_times(0, 0.6)
    with pytest.raises(MissingClip):
        stream.source("never")


def test_a_clip_whose_times_are_corrected_is_computed_again(copied: Path, cluster: str) -> None:
    videos, store, manifest = copied / "videos", copied / "s.zarr", copied / "m.jsonl"
    lines = manifest.read_text().splitlines()
    write_lines(manifest, lines[0].replace('"start": 0, "end": 0.5', '"start": 0.5, "end": 1.0'), *lines[1:])
    options = ("--manifest", manifest, "--videos", videos, "--store", store, "--device", "cpu", *OPTIONS)
    planned = amex("extract", *options, "--dry-run")
    assert "would compute 1 of 3" in planned.output
    assert "1 clip is computed again: 1 has other times in the manifest" in planned.output
    kept_run = amex("extract", *options, "--changed", "keep", "--cluster", cluster)
    assert "1 clip is kept as computed: 1 has other times in the manifest" in kept_run.output
    assert "computed 0 clips" in kept_run.output
    assert "2 done" in kept_run.output
    assert len(open_store(store)[TINY].commits) == 1
    result = compute(videos, store, cluster, manifest, code=3)
    assert result["changed"] == {"times": 1}
    assert result["report"]["clips"] == 1
    assert result["streams"][TINY] == {"done": 2, "empty": 0, "failed": 1, "absent": 0}
    stream = open_store(store)[TINY]
    assert stream.source("early").revision == 1
    assert stream["early"].times[0, 0] >= 0.5
    assert (
        stream.rows == len(stream.read(list(stream))) == len(stream.to_dask("values")) == len(stream.to_dask("times"))
    )
    assert not [damage for damage in verify(stream) if damage]
    assert compute(videos, store, cluster, manifest, code=3)["report"]["clips"] == 0
    # Times outside the video: the old rows do not reappear.
    write_lines(manifest, lines[0].replace('"start": 0, "end": 0.5', '"start": 50, "end": 51'), *lines[1:])
    assert compute(videos, store, cluster, manifest, code=3)["streams"][TINY]["failed"] == 2
    stream = open_store(store)[TINY]
    assert stream.state("early") == "failed"
    assert stream.source("early").revision == 2
    assert stream.rows == len(stream.to_dask())


def test_a_replaced_or_new_video_is_computed_again(copied: Path, cluster: str) -> None:
    videos, store, manifest = copied / "videos", copied / "s.zarr", copied / "m.jsonl"
    before = open_store(store)[TINY]["whole"].values
    for name in ("b", "c"):
        encode(videos / f"{name}.mp4", frames=32, first=2000)
    result = compute(videos, store, cluster, manifest)
    assert result["changed"] == {"video": 2}
    stream = open_store(store)[TINY]
    assert not np.array_equal(stream["whole"].values, before)
    assert stream.source("whole").revision == stream.source("gone").revision == 1
    assert compute(videos, store, cluster, manifest)["report"]["clips"] == 0


def test_a_moved_touched_or_deleted_video_is_not_computed_again(copied: Path, cluster: str) -> None:
    videos, store, manifest = copied / "videos", copied / "s.zarr", copied / "m.jsonl"
    (videos / "deep").mkdir()
    (videos / "a.mp4").rename(videos / "deep" / "a.mp4")
    os.utime(videos / "b.mp4", (1e9, 1e9))  # its sha256 was recorded
    assert compute(videos, store, cluster, manifest, code=3)["changed"] == {}
    (videos / "deep" / "a.mp4").unlink()
    assert compute(videos, store, cluster, manifest, code=3)["streams"][TINY]["done"] == 2
    # Without a recorded sha256, another modification time counts as another file.
    path = next((store / TINY / "commits").iterdir())
    commit = schema.read_commit(path)
    for clip in commit["clips"]:
        clip.pop("sha256")
    path.write_text(schema.sealed(commit))
    assert compute(videos, store, cluster, manifest, code=3)["changed"] == {"video": 1}


def test_stores_without_recorded_sources_match_except_for_another_file(copied: Path, cluster: str) -> None:
    videos, store, manifest = copied / "videos", copied / "s.zarr", copied / "m.jsonl"
    path = next((store / TINY / "commits").iterdir())
    commit = schema.read_commit(path)
    commit["clips"] = [
        {name: clip[name] for name in ("clip_id", "rows", "decoder", "video")} for clip in commit["clips"]
    ]
    for failure in commit["failures"]:
        failure.pop("source")
    path.write_text(schema.sealed(commit))
    stream = open_store(store)[TINY]
    assert stream.source("early") == ClipSource(recorded=False, video="a.mp4")
    assert stream.source("early").has_times(7, 8)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    write_lines(manifest, lines[0] | {"end": 0.7}, lines[1] | {"video": "a"}, lines[2])
    assert compute(videos, store, cluster, manifest, code=3)["changed"] == {"video": 1}


entries = st.tuples(st.integers(0, 2), st.booleans(), st.integers(1, 3))


@settings(max_examples=8)
@given(st.lists(entries, min_size=1, max_size=5, unique=True))
def test_of_several_entries_the_highest_revision_counts_then_rows_then_the_last_attempt(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int, bool, int]]
) -> None:
    parts, failures = {}, {}
    for number, (revision, success, attempt) in enumerate(entries):
        source = ClipSource(video="v", start=float(revision), end=9.0, revision=revision)
        parts[str(number)] = [rows_of("other", 1)] if number == 0 else []
        if success:
            rows = rows_of("x", 3, seed=revision)
            parts[str(number)].append(writer.ClipRows(clip_id="x", arrays=rows.arrays, source=source))
        else:
            failure = {"clip_id": "x", "video": "v", "stage": "decode", "reason": "r", "attempts": attempt}
            failures[str(number)] = [Failure(**failure, source=source.entry)]
    stream = open_store(make(tmp_path_factory.mktemp("store") / "s.zarr", parts, failures))["s"]
    revision, success, attempt = max(entries)
    assert stream.source("x").revision == revision
    assert stream.source("x").start == revision
    assert stream.state("x") == ("done" if success else "failed")
    if success:
        np.testing.assert_array_equal(stream["x"].values, rows_of("x", 3, seed=revision).arrays["values"])
    else:
        assert stream.failures["x"].attempts == attempt
    assert stream.rows == len(stream.to_dask()) == len(stream.to_dask("times")) == 1 + 3 * success


def difference_of(recorded: dict[str, Any], video: str, root: Path) -> str:
    """Return the difference between a clip of ``video`` in a folder and its recorded source."""
    files = VideoFiles(VideoFinder(root))
    return files.difference(Clip(clip_id="x", video=video), ClipSource(start=None, end=None, **recorded))


def test_a_clip_that_names_another_video_is_computed_again_even_if_that_is_missing(tmp_path: Path) -> None:
    old = {"video": "sub/a.mp4", "bytes": 1, "modified": 1}
    for same in ("a", "a.mp4", "sub/a", "a.webm"):  # extracted, then deleted
        assert difference_of(old, same, tmp_path) == ""
    assert difference_of(old, "b", tmp_path) == difference_of(old, "b.mp4", tmp_path) == "video"


def test_if_only_paths_are_known_another_path_is_another_video() -> None:
    class Web:
        """Replaces a finder behind a web server."""

        def find(self, video: str) -> Path:
            return Path(video)

        def size_and_time(self, path: Path) -> tuple[None, None]:
            return None, None

    source = ClipSource(video="one/v.mp4", start=None, end=None)
    same, other = (Clip(clip_id="x", video=path) for path in ("one/v.mp4", "two/v.mp4"))
    assert VideoFiles(Web()).difference(same, source) == ""
    assert VideoFiles(Web()).difference(other, source) == "video"
