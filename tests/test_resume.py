"""A run that is killed at any moment and repeated writes the store of an undisturbed run, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import QUICK, amex, extract
from test_extract import R2, tree
from videos import one_empty

from amex.extract.run import job
from amex.extract.run.cluster import local
from amex.extract.run.display import NoDisplay
from amex.extract.run.part import PartTask
from amex.features import open_store

VIDEOS = 10


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos, one of them an empty file; one part per video."""
    return one_empty(tmp_path_factory.mktemp("many"), VIDEOS, frames=90)


def start(videos: Path, store: Path, *more: str) -> subprocess.Popen[str]:
    """Start a run in its own process, with its own worker unless ``more`` sets the workers."""
    command = [sys.executable, "-m", "amex.cli", "extract", "--dataset", "folder", "--videos", str(videos)]
    options = ["--store", str(store), "--device", "cpu", "--part-clips", "1", "--json", *QUICK]
    more = more or ("--workers", "1")
    # Dask's default timeout of 15 s after a worker's death is too short if the new worker starts slowly.
    env = os.environ | {"DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "50ms"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *options, *more], env=env, start_new_session=True, **pipes)


def finish(videos: Path, store: Path, cluster: str) -> dict[str, Any]:
    """Complete the run in this process. The session's worker has as many threads as a single worker."""
    return extract(videos, store, cluster, "--part-clips", 1, code=3)


@pytest.fixture(scope="module")
def undisturbed(many: Path, tmp_path_factory: pytest.TempPathFactory, cluster: str) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    outcome = finish(many, store, cluster)
    assert outcome["streams"][R2] == {"done": VIDEOS - 1, "empty": 0, "failed": 1, "absent": 0}
    return tree(store)


def committed(store: Path) -> set[str]:
    return {path.name for path in (store / R2 / "commits").glob("*.json")} if store.exists() else set()


def wait_for_parts(store: Path, count: int, run: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while len(committed(store)) < count and run.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)


def workers_of(run: subprocess.Popen[str]) -> list[psutil.Process]:
    processes = []
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            if "spawn_main" in " ".join(process.cmdline()):
                processes.append(process)
        except psutil.NoSuchProcess:
            continue
    return processes


def end(run: subprocess.Popen[str]) -> None:
    """Kill a run; its workers and decoders must end by themselves."""
    children = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
    run.kill()
    run.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "workers and decoders end with the run"


def test_a_killed_worker_or_run_loses_only_the_parts_in_flight(
    many: Path, tmp_path: Path, undisturbed: dict[str, bytes], cluster: str
) -> None:
    """Kills one worker and one run; slow tests kill many."""
    store = tmp_path / "s.zarr"
    run = start(many, store)
    wait_for_parts(store, 1, run)
    (worker,) = workers_of(run)
    worker.kill()
    wait_for_parts(store, len(committed(store)) + 2, run)
    assert worker.pid not in {other.pid for other in workers_of(run)}
    before = committed(store)
    end(run)
    assert before <= committed(store) < {Path(name).name for name in undisturbed if "/commits/" in name}
    finish(many, store, cluster)
    assert tree(store) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_repeatedly_killed_run_ends_in_the_same_store(
    many: Path, tmp_path: Path, undisturbed: dict[str, bytes], cluster: str
) -> None:
    chance = random.Random(0)
    store = tmp_path / "s.zarr"
    kills = 0
    while True:
        before = committed(store)
        if len(before) >= VIDEOS:
            break
        run = start(many, store)
        wait_for_parts(store, len(before) + chance.randint(1, 3), run)
        time.sleep(chance.random() * 0.3)
        end(run)
        kills += 1
        # Committed files are not touched again.
        assert before <= committed(store)
        assert all((store / R2 / "commits" / name).stat().st_size for name in before)
    assert kills >= 3
    assert finish(many, store, cluster)["report"]["clips"] == 0
    assert tree(store) == undisturbed
    assert not [path for path in store.rglob("*") if "partial" in path.name or path.name.startswith(".")]
    assert amex("features", "verify", store).output.endswith("is intact\n")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_workers_lose_only_the_parts_in_flight(
    many: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    chance = random.Random(1)
    store = tmp_path / "s.zarr"
    run = start(many, store)
    kills = 0
    for target in (1, 3, 5, 7):
        wait_for_parts(store, target, run)
        time.sleep(chance.random() * 0.2)
        before = {name: (store / R2 / "commits" / name).stat().st_mtime_ns for name in committed(store)}
        for worker in workers_of(run):
            worker.send_signal(signal.SIGKILL)
            kills += 1
        assert before.items() <= {n: (store / R2 / "commits" / n).stat().st_mtime_ns for n in committed(store)}.items()
    output, errors = run.communicate(timeout=300)
    assert run.returncode == 3, errors
    assert kills >= 4
    assert json.loads(output)["streams"][R2]["done"] == VIDEOS - 1
    assert tree(store) == undisturbed


@pytest.mark.parametrize("own", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["cluster", "own worker"])
def test_sigterm_stops_a_run_that_continues_later(
    own: bool, many: Path, tmp_path: Path, undisturbed: dict[str, bytes], cluster: str
) -> None:
    store = tmp_path / "s.zarr"
    run = start(many, store, *(() if own else ("--cluster", cluster)))
    wait_for_parts(store, 2, run)
    run.terminate()
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "the same command goes on from there" in errors
    assert len(open_store(store)[R2]) >= 2
    finish(many, store, cluster)
    assert tree(store) == undisturbed


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_prints_one_line(many: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    run = start(many, store)
    wait_for_parts(store, 1, run)
    os.killpg(run.pid, signal.SIGINT)  # like a terminal: workers and feeders get the signal too
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert errors == "stopped; written results are kept, and the same command goes on from there\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_make_the_same_parts_as_one(many: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    store = tmp_path / "s.zarr"
    run = start(many, store, "--workers", "2")
    _, errors = run.communicate(timeout=200)
    assert run.returncode == 3, errors
    expected_commits = {name: record for name, record in undisturbed.items() if "/commits/" in name}
    assert {f"{R2}/commits/{name}" for name in committed(store)} == expected_commits.keys()
    for name, record in expected_commits.items():  # values differ in the last bits with the number of threads
        actual, expected = json.loads((store / name).read_text()), json.loads(record)
        assert (actual["clips"], actual["failures"]) == (expected["clips"], expected["failures"])


def test_a_run_without_workers_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "WITHOUT_WORKERS", 1.0)
    with local(0) as workers:
        with pytest.raises(job.NoWorkers, match="run the same command to continue"):
            job.run_tasks(workers, [PartTask(index=0, videos=())], None, "cpu", NoDisplay())
