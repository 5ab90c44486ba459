"""Real faults around a run: the store stays readable, and the same command completes it.

docs/concepts/reliability.md lists them. Faults of disk and network need root: ``pytest -m system``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, write_lines
from test_extract import R2
from test_resume import committed
from videos import one_empty

from amex.features import open_store, verify

VIDEOS = 8
SETTINGS = os.environ | {
    "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "50ms",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "15s",
}
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos, one of them an empty file; one part per video."""
    return one_empty(tmp_path_factory.mktemp("many"), VIDEOS, frames=90)


def command(videos: Path, store: Path, *more: Any) -> list[str]:
    own = ["--dataset", "folder", "--videos", videos, "--store", store, "--device", "cpu", "--part-clips", 1, "--json"]
    return [str(word) for word in (sys.executable, "-m", "amex.cli", "extract", *own, *QUICK, *more)]


def wait_until(condition: Any, seconds: float = 150.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def assert_complete(store: Path, count: int = VIDEOS) -> None:
    """Assert that every clip is done or in the ledger, and that no committed byte has changed."""
    stream = open_store(store)[R2]
    assert len(stream) + len(stream.failures) == count
    assert not [damage for damage in verify(stream) if damage]


def assert_repetition_completes(videos: Path, store: Path, *more: Any) -> None:
    """Assert that the same command completes an interrupted run."""
    run = subprocess.run(command(videos, store, *more), env=SETTINGS, timeout=200, check=False, **PIPES)
    assert run.returncode == 3, run.stderr
    assert_complete(store)


@contextmanager
def scheduler(*more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a Dask scheduler in its own process; return it with its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--port", str(port), *more]
    process = subprocess.Popen(words, env=SETTINGS, stderr=subprocess.DEVNULL)
    try:
        yield f"tcp://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


@contextmanager
def worker(address: str, *before: str) -> Iterator[subprocess.Popen[str]]:
    words = [*before, sys.executable, "-m", "amex.cli", "worker", address, "--device", "cpu", "--cpus", "1"]
    process = subprocess.Popen(words, env=SETTINGS, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(90)


def test_a_pre_empted_worker_loses_only_its_current_part(many: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    with scheduler() as (address, _), worker(address) as first, worker(address):
        run = subprocess.Popen(command(many, store, "--cluster", address), env=SETTINGS, **PIPES)
        wait_until(lambda: len(committed(store)) >= 2)
        first.send_signal(signal.SIGTERM)
        assert first.wait(90) == 0
        _, errors = run.communicate(timeout=200)
    assert run.returncode == 3, errors
    assert_complete(store)


def test_a_lost_scheduler_ends_the_run_and_its_workers(many: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    with scheduler() as (address, process), worker(address) as at_work:
        run = subprocess.Popen(command(many, store, "--cluster", address), env=SETTINGS, **PIPES)
        wait_until(lambda: len(committed(store)) >= 2)
        process.kill()
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 1
        assert "lost the scheduler" in errors.splitlines()[-1]
        assert at_work.wait(90) == 0
    assert_repetition_completes(many, store)


def test_two_simultaneous_runs_write_one_complete_store(many: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    runs = [subprocess.Popen(command(many, store), env=SETTINGS, **PIPES) for _ in range(2)]
    for run in runs:
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 3, errors
    assert_complete(store)


def test_a_run_ends_if_its_store_is_deleted(many: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    run = subprocess.Popen(command(many, store), env=SETTINGS, **PIPES)
    wait_until(lambda: len(committed(store)) >= 2)
    shutil.rmtree(store)
    _, errors = run.communicate(timeout=200)
    assert run.returncode == 1
    assert "Traceback" not in errors
    assert "is gone" in errors.splitlines()[-1]
    assert_repetition_completes(many, store if store.exists() else tmp_path / "t.zarr")


# Not by an hour: Dask's own messages that are in flight when the clock jumps wait for that time.
BACKWARDS = """
import time
_time, _begin = time.time, time.monotonic()
time.time = lambda: _time() - 20 * ((time.monotonic() - _begin) // 3)
"""


def test_a_clock_that_runs_backwards_changes_nothing(many: Path, tmp_path: Path) -> None:
    """The clock of the run, its workers and decoders jumps back by 20 s every 3 s."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(BACKWARDS)
    store = tmp_path / "s.zarr"
    env = SETTINGS | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run(command(many, store), env=env, timeout=200, check=False, **PIPES)
    assert run.returncode == 3, run.stderr
    assert_complete(store)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Truncate a file, change some bytes, overwrite a piece of its start or middle, or remove a piece."""
    kind = chance.choice(["cut", "flip", "flips", "head", "middle", "hole"])
    mutant = bytearray(data)
    if kind == "cut":
        return data[: chance.randrange(len(data))]
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 200):
            mutant[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return bytes(mutant)
    begin = chance.randrange(min(4096, len(data))) if kind == "head" else chance.randrange(len(data))
    length = chance.choice([4, 64, 4096])
    mutant[begin : begin + length] = b"" if kind == "hole" else chance.randbytes(length)
    return bytes(mutant)


@pytest.mark.timeout(900)
def test_mutated_real_videos_are_all_reported_and_none_stops_the_run(real_data: Path, tmp_path: Path) -> None:
    """200 mutations of the smaller half of the real clips: no crash, no hang, each is done or in the ledger."""
    originals = sorted((real_data / "videos").iterdir(), key=lambda path: path.stat().st_size)
    originals = originals[: len(originals) // 2]
    chance = random.Random(0)
    folder = tmp_path / "videos"
    folder.mkdir()
    records = []
    for number in range(200):
        original = chance.choice(originals)
        name = f"{number:03d}{original.suffix}"
        (folder / name).write_bytes(mutated(original.read_bytes(), chance))
        records.append({"clip_id": name, "video": name})
    store, manifest = tmp_path / "s.zarr", write_lines(tmp_path / "m.jsonl", *records)
    few = ("--set", f"{R2}.count=4", "--part-clips", 16, "--deadline", 10, "--workers", 2)
    words = command(folder, store, "--manifest", manifest, *few)
    at = words.index("--dataset")
    del words[at : at + 2]
    run = subprocess.run(words, env=SETTINGS, timeout=800, check=False, **PIPES)
    assert run.returncode == 3, run.stderr
    result = json.loads(run.stdout)
    assert result["broken"] == {}
    states = result["streams"][R2]
    assert states["done"] + states["empty"] + states["failed"] == 200
    assert states["absent"] == 0
    assert min(states["done"], states["failed"]) > 20  # the mutations are neither all harmless nor all fatal
    assert_complete(store, 200)
