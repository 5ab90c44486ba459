"""A stream without rows and failures locks nobody out, and rows of two settings never come together."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import amex, extract
from test_changed import OPTIONS, TINY
from test_store import SPEC, make, rows_of, verified

from amex.features import Failure, SpecMismatch, declare_stream, fingerprint, open_store, write_part, writer

OTHER = {**SPEC, "network": "other"}


# The interrupt may come while asyncio makes a loop, which then complains when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_settings_of_a_run_that_was_interrupted_before_its_first_part_bind_nobody(
    clips: Path, tmp_path: Path, cluster: str
) -> None:
    store = tmp_path / "s.zarr"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (store / TINY / "spec.json").exists():
            time.sleep(0.002)
        if time.monotonic() < until:
            os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    given = ("--dataset", "folder", "--videos", clips, "--store", store, "--cluster", cluster, "--device", "cpu")
    assert amex("extract", *given, *OPTIONS).exit_code != 0
    watcher.join()
    before = open_store(store)[TINY]
    assert not before.commits
    slower = (*OPTIONS[:-1], f"{TINY}.stride=20")
    assert extract(clips, store, cluster, *slower)["streams"][TINY]["done"] == 4
    after = open_store(store)[TINY]
    assert (before.spec["sampling"]["stride"], after.spec["sampling"]["stride"]) == (8, 20)
    assert len(after["a.mp4"]) == 1
    assert verified(after)
    assert "sampling.stride: 20 in the store, 8 now" in extract(clips, store, cluster, *OPTIONS, code=1)["output"]


@pytest.mark.parametrize("holds", ["rows", "failures"])
def test_one_part_fixes_the_settings(holds: str, tmp_path: Path) -> None:
    failed = [Failure(clip_id="a", video="a", stage="decode", reason="x")]
    parts = {"p": [rows_of("a", 2)] if holds == "rows" else []}
    store = make(tmp_path / "s.zarr", parts, {"p": failed} if holds == "failures" else {})
    with pytest.raises(SpecMismatch, match="network: 'test' in the store, 'other' now"):
        declare_stream(store, "s", OTHER, {})


def test_a_run_whose_empty_stream_was_declared_anew_commits_nothing(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {})
    declare_stream(store, "s", OTHER, {})
    with pytest.raises(SpecMismatch, match="another run has declared stream 's'"):
        write_part(store, "s", "p", spec=SPEC, clips=[rows_of("a", 2)], failures=[], run={})
    assert not list((store / "s" / "commits").iterdir())
    assert verified(open_store(store)["s"])


def test_a_part_that_is_committed_just_before_its_stream_is_declared_anew_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "s.zarr", {})
    kept = writer.write_text

    def later(path: Path, text: str, **options: object) -> None:
        monkeypatch.setattr(writer, "write_text", kept)
        make(store, {"p": [rows_of("a", 2)]})  # after the look for commits
        kept(path, text, **options)

    monkeypatch.setattr(writer, "write_text", later)
    monkeypatch.setattr(writer, "_undisturbed", lambda *stream: contextlib.nullcontext())  # in S3 nothing is locked
    with pytest.raises(SpecMismatch):
        declare_stream(store, "s", OTHER, {})
    stream = open_store(store)["s"]
    assert stream.fingerprint == fingerprint(SPEC)
    assert list(stream) == ["a"]
    assert verified(stream)


def test_a_commit_is_taken_back_if_its_stream_was_declared_anew_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "s.zarr", {})
    kept = writer.write_text

    def slower(path: Path, text: str, **options: object) -> None:
        monkeypatch.setattr(writer, "write_text", kept)
        declare_stream(store, "s", OTHER, {})
        kept(path, text, **options)

    monkeypatch.setattr(writer, "write_text", slower)
    monkeypatch.setattr(writer, "_undisturbed", lambda *stream: contextlib.nullcontext())  # in S3 nothing is locked
    with pytest.raises(SpecMismatch, match="another run has declared"):
        write_part(store, "s", "p", spec=SPEC, clips=[rows_of("a", 2)], failures=[], run={})
    assert not list((store / "s" / "commits").iterdir())
    assert verified(open_store(store)["s"])
