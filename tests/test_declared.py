"""The spec of an empty stream can be replaced, and a stream never has rows of two specs."""

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


# The interrupt may happen while asyncio creates a loop, which then warns when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_empty_stream_accepts_new_settings(clips: Path, tmp_path: Path, cluster: str) -> None:
    store = tmp_path / "s.zarr"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (store / TINY / "spec.json").exists():
            time.sleep(0.002)
        if time.monotonic() < until:
            os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    arguments = ("--dataset", "folder", "--videos", clips, "--store", store, "--cluster", cluster, "--device", "cpu")
    assert amex("extract", *arguments, *OPTIONS).exit_code != 0
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
def test_a_committed_part_fixes_the_settings(holds: str, tmp_path: Path) -> None:
    failed = [Failure(clip_id="a", video="a", stage="decode", reason="x")]
    parts = {"p": [rows_of("a", 2)] if holds == "rows" else []}
    store = make(tmp_path / "s.zarr", parts, {"p": failed} if holds == "failures" else {})
    with pytest.raises(SpecMismatch, match="network: 'test' in the store, 'other' now"):
        declare_stream(store, "s", OTHER, {})


def test_a_run_commits_nothing_after_its_spec_was_replaced(tmp_path: Path) -> None:
    store = make(tmp_path / "s.zarr", {})
    declare_stream(store, "s", OTHER, {})
    with pytest.raises(SpecMismatch, match="another run has declared stream 's'"):
        write_part(store, "s", "p", spec=SPEC, clips=[rows_of("a", 2)], failures=[], run={})
    assert not list((store / "s" / "commits").iterdir())
    assert verified(open_store(store)["s"])


def test_a_part_committed_just_before_a_new_declaration_keeps_its_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "s.zarr", {})
    original = writer.write_text

    def later(path: Path, text: str, **options: object) -> None:
        monkeypatch.setattr(writer, "write_text", original)
        make(store, {"p": [rows_of("a", 2)]})  # after the check for commits
        original(path, text, **options)

    monkeypatch.setattr(writer, "write_text", later)
    monkeypatch.setattr(writer, "_declaration_lock", lambda *stream: contextlib.nullcontext())  # S3 has no locks
    with pytest.raises(SpecMismatch):
        declare_stream(store, "s", OTHER, {})
    stream = open_store(store)["s"]
    assert stream.fingerprint == fingerprint(SPEC)
    assert list(stream) == ["a"]
    assert verified(stream)


def test_a_commit_is_reverted_if_the_spec_was_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "s.zarr", {})
    original = writer.write_text

    def slower(path: Path, text: str, **options: object) -> None:
        monkeypatch.setattr(writer, "write_text", original)
        declare_stream(store, "s", OTHER, {})
        original(path, text, **options)

    monkeypatch.setattr(writer, "write_text", slower)
    monkeypatch.setattr(writer, "_declaration_lock", lambda *stream: contextlib.nullcontext())  # S3 has no locks
    with pytest.raises(SpecMismatch, match="another run has declared"):
        write_part(store, "s", "p", spec=SPEC, clips=[rows_of("a", 2)], failures=[], run={})
    assert not list((store / "s" / "commits").iterdir())
    assert verified(open_store(store)["s"])
