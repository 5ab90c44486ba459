"""Batch jobs of a real SLURM: ``pytest -m system``, if SLURM is installed and its daemons may be started."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm
from conftest import QUICK, amex
from test_extract import R2
from videos import one_empty

VIDEOS = 8
pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if reason := slurm.missing():
        pytest.skip(reason)
    with slurm.slurm(tmp_path_factory.mktemp("slurm")) as env:
        yield env


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_empty(tmp_path_factory.mktemp("videos"), VIDEOS, frames=240)


def command(videos: Path, store: Path, *more: str) -> list[str]:
    own = ["--dataset", "folder", "--videos", str(videos), "--store", str(store), "--part-clips", "1", "--json"]
    return [sys.executable, "-m", "amex.cli", "extract", *own, *SLOW, *more]


BATCH = (
    "--cluster",
    "slurm",
    "--queue",
    "test",
    "--cpus",
    "1",
    "--memory",
    "1GB",
    "--walltime",
    "10",
    "--jobs",
    "2",
    "--interface",
    "lo",
)
SLOW = (*QUICK, "--set", f"{R2}.frames=4")


def jobs(env: dict[str, str], state: str = "RUNNING") -> list[str]:
    return slurm.output("squeue", "-h", "-t", state, "-o", "%i", env=env).split()


def committed(store: Path) -> int:
    return len(list((store / R2 / "commits").glob("*.json"))) if store.exists() else 0


def parts(store: Path) -> dict[str, Any]:
    """Return the parts of a store and their clips, without values, whose last bits depend on the number of threads."""
    commits = {path.name: json.loads(path.read_text()) for path in (store / R2 / "commits").glob("*.json")}
    return {name: (commit["clips"], commit["failures"]) for name, commit in commits.items()}


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    run = subprocess.run(command(videos, store), env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert run.returncode == 3
    return parts(store)


def test_a_cancelled_job_is_replaced_and_the_store_equals_that_of_a_local_run(
    env: dict[str, str], videos: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    store = tmp_path / "s.zarr"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    run = subprocess.Popen(command(videos, store, *BATCH), env=env, **pipes)
    slurm.wait_for(lambda: len(jobs(env)) == 2 and committed(store) >= 1)
    first, _ = before = sorted(jobs(env))
    slurm.output("scancel", first, env=env)
    slurm.wait_for(lambda: first not in jobs(env))
    slurm.wait_for(lambda: run.poll() is not None or set(jobs(env)) - set(before), 120)
    output, errors = run.communicate(timeout=300)
    assert run.returncode == 3, errors
    assert json.loads(output)["streams"][R2] == {"done": VIDEOS - 1, "empty": 0, "failed": 1, "absent": 0}
    assert parts(store) == undisturbed
    assert amex("features", "verify", store).output.endswith("is intact\n")
    slurm.wait_for(lambda: not jobs(env))
    assert not list(tmp_path.rglob("*.pem"))
    assert list((tmp_path / "s.zarr.jobs").rglob("amex-*.err"))


def test_a_refused_job_is_a_one_line_error(env: dict[str, str], videos: Path, tmp_path: Path) -> None:
    job = command(videos, tmp_path / "s.zarr", *BATCH, "--memory", "100TB")
    run = subprocess.run(job, env=env, text=True, capture_output=True, timeout=120, check=False)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("Error: slurm accepted no job: sbatch: error: Memory specification can not be satisfied")
    assert not list(tmp_path.rglob("*.pem"))


def test_the_tasks_of_an_allocation_make_one_store(
    env: dict[str, str], videos: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    store = tmp_path / "s.zarr"
    srun = ["srun", "-n", "2", "--mem", "2G", *command(videos, store, "--cluster", "runner")]
    run = subprocess.run(srun, env=env, text=True, capture_output=True, timeout=300, check=False)
    assert "3" in run.stderr.split("exit code")[-1], run.stderr  # 3: finished, but one file is empty
    assert json.loads(run.stdout)["streams"][R2]["done"] == VIDEOS - 1
    assert parts(store) == undisturbed
    commits = [json.loads(path.read_text()) for path in (store / R2 / "commits").glob("*.json")]
    assert len({commit["run"]["pid"] for commit in commits}) == 2
    assert not list(tmp_path.rglob("*.pem"))


def test_the_tasks_of_an_array_make_one_store(
    env: dict[str, str], videos: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    store = tmp_path / "s.zarr"
    task = shlex.join(command(videos, store)) + " --partition $SLURM_ARRAY_TASK_ID/3"
    script = tmp_path / "array.sh"
    script.write_text(f"#!/bin/sh\n{task}\n")
    array = ["sbatch", "--wait", "--array=0-2", "--mem=1G", f"--output={tmp_path}/%a.out", str(script)]
    subprocess.run(array, env=env, capture_output=True, timeout=300, check=False)
    assert parts(store) == undisturbed
    assert amex("features", "verify", store).output.endswith("is intact\n")
