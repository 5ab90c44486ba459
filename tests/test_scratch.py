"""The next run deletes the leftovers of killed processes in TMPDIR and shared memory; live processes keep theirs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import QUICK
from videos import encode

from amex.storage import scratch

HOLD = """
import multiprocessing, time
from amex.storage.scratch import semaphores, temporary_folder
with temporary_folder() as folder, semaphores():
    (folder / "video.mp4").write_bytes(bytes(10))
    context = multiprocessing.get_context("spawn")
    lock = context.Lock()
    child = context.Process(target=time.sleep, args=(60,))
    child.start()
    print(lock._semlock.name, flush=True)
    time.sleep(60)
"""


def hold(tmp: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process with a file in ``tmp`` and a semaphore as Dask makes it. Return the process and the semaphore."""
    (tmp / "hold.py").write_text(f"if __name__ == '__main__':\n    {HOLD.strip().replace(chr(10), chr(10) + '    ')}\n")
    process = subprocess.Popen(
        [sys.executable, tmp / "hold.py"],
        env=os.environ | {"TMPDIR": str(tmp)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process, scratch.SHARED_MEMORY / f"sem.{process.stdout.readline().strip().removeprefix('/')}"


@pytest.mark.skipif(not scratch.SHARED_MEMORY.is_dir(), reason="semaphores are no files here")
def test_leftovers_of_killed_processes_are_deleted_and_live_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    (killed, its_semaphore), (live, other_semaphore) = hold(tmp_path), hold(tmp_path)
    try:
        assert its_semaphore.exists()
        assert len(list(tmp_path.rglob("video.mp4"))) == 2
        os.killpg(killed.pid, signal.SIGKILL)  # including its resource tracker
        killed.wait()
        assert its_semaphore.exists()
        until = time.monotonic() + 20
        while its_semaphore.exists() and time.monotonic() < until:  # its child ends a little later
            with scratch.temporary_folder() as mine, scratch.semaphores():
                assert list(tmp_path.rglob("video.mp4")) != []
                assert mine.is_dir()
        assert not its_semaphore.exists()
        assert not mine.exists()
        assert other_semaphore.exists()
        assert len(list(tmp_path.rglob("video.mp4"))) == 1
        assert len(list(tmp_path.glob("amex-*"))) == 2
    finally:
        os.killpg(live.pid, signal.SIGKILL)
        live.wait()
    with scratch.temporary_folder(), scratch.semaphores():
        pass
    assert not list(tmp_path.glob("amex-*"))
    assert not other_semaphore.exists()


def test_files_of_other_users_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "amex-mine.txt").touch()
    (tmp_path / "other").touch()
    (tmp_path / "amex-00000000000a.lock").symlink_to(tmp_path / "other")
    (tmp_path / "amex-00000000000b.lock").touch()
    (tmp_path / "amex-00000000000b").mkdir()
    monkeypatch.setattr(scratch.os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    before = sorted(tmp_path.iterdir())
    scratch.remove_stale_files(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_similar_names_are_not_deleted(tmp_path: Path) -> None:
    """A user may run `flock amex-yc2.lock amex extract --store amex-yc2.zarr` in the folder of temporary files."""
    ours = "amex-0123456789ab"
    (tmp_path / "amex-yc2.lock").touch()
    (tmp_path / f"{ours}.lock").touch()
    (tmp_path / ours).mkdir()
    (tmp_path / f"sem.{ours}-x1").touch()
    stores = ["amex-yc2.zarr", "amex-yc2", f"{ours}.zarr", f"copy-{ours}", f"{ours}-2"]
    for name in stores:
        (tmp_path / name).mkdir()
    scratch.remove_stale_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"amex-yc2.lock", *stores}


def is_held(lock: Path) -> bool:
    """Return whether a live process holds the lock."""
    with contextlib.suppress(FileNotFoundError), lock.open("r+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_next_run_deletes_the_leftovers_of_a_killed_run(tmp_path: Path) -> None:
    videos, tmp = tmp_path / "videos", tmp_path / "tmp"
    videos.mkdir()
    tmp.mkdir()
    for number in range(3):
        encode(videos / f"v{number}.mp4", frames=40)
    command = [sys.executable, "-m", "amex.cli", "extract", "--dataset", "folder", "--videos", videos]
    options = ["--store", tmp_path / "s.zarr", "--device", "cpu", "--part-clips", "1", *QUICK]

    def start() -> subprocess.Popen[bytes]:
        words = [str(word) for word in (*command, *options)]
        return subprocess.Popen(words, env=os.environ | {"TMPDIR": str(tmp)}, start_new_session=True)

    def left() -> set[str]:
        """Return the leftovers. Files of live runs on this machine are excluded."""
        live = [lock.stem for lock in scratch.SHARED_MEMORY.glob("amex-*.lock") if is_held(lock)]
        semaphores = [path.name for path in scratch.SHARED_MEMORY.glob("*amex-*")]
        workers = [path.name for path in tmp.glob("dask-scratch-space/*-*")]  # and their lock files
        return {name for name in (*semaphores, *workers) if not any(stem in name for stem in live)} - before

    before: set[str] = set()
    before = left()
    run = start()
    until = time.monotonic() + 120
    while not list((tmp_path / "s.zarr").glob("*/commits/*.json")):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert left()
    assert start().wait(timeout=200) == 0
    until = time.monotonic() + 20
    while left() and time.monotonic() < until:  # another run may just be ending
        time.sleep(0.1)
    assert not left()
