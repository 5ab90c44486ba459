"""Workers: their GPUs and cores, the scripts of batch jobs, and the tasks of an allocation.

A real SLURM is in test_slurm.py.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from conftest import QUICK, amex, extract, extract_options
from distributed import Client
from stand_in import note
from test_extract import R2
from test_resume import committed

from amex.cli import main
from amex.cli.extract import chosen_cluster
from amex.cli.worker import default_workers
from amex.extract.run import cluster, job
from amex.extract.run.cluster import gpus_of, local, worker_options
from amex.extract.run.display import NoDisplay
from amex.extract.run.part import PartTask
from amex.features import open_store


def test_every_worker_has_one_gpu_and_its_share_of_the_cores() -> None:
    placed = worker_options(4, ["0", "1", "2", "3"], cpus=32)
    assert [option["env"]["CUDA_VISIBLE_DEVICES"] for option in placed] == ["0", "1", "2", "3"]
    assert all(option["resources"] == {"GPU": 1} and option["nthreads"] == 1 for option in placed)
    assert {option["env"]["OMP_NUM_THREADS"] for option in placed} == {"8"}
    shared = [option["env"]["CUDA_VISIBLE_DEVICES"] for option in worker_options(4, ["0", "1"], cpus=2)]
    assert shared == ["0", "1", "0", "1"]


def test_workers_without_gpus_share_the_cores() -> None:
    env = {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    preload = ["amex.extract.run.imports"]
    assert worker_options(3, cpus=8) == [{"nthreads": 1, "memory_limit": 0, "env": env, "preload": preload}] * 3
    assert worker_options(3, cpus=2)[0]["env"]["OMP_NUM_THREADS"] == "1"


def test_a_worker_uses_only_the_gpus_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpus_of("cuda") == ["0", "1"]
    assert gpus_of("cuda:1") == ["1"]
    assert gpus_of("cpu") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a,GPU-7c")
    assert gpus_of("cuda") == ["GPU-5a", "GPU-7c"]
    assert gpus_of("cuda:1") == ["GPU-7c"]


def test_a_gpu_computes_one_part_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "gpus_of", lambda device: ["GPU-5a", "GPU-7c"])
    monkeypatch.setattr(job, "run_task", note)
    tasks = [PartTask(index=number, videos=()) for number in range(10)]
    with local(2, "cuda") as workers:
        workers.client.wait_for_workers(2, timeout=100)
        report, broken = job.run_tasks(workers, tasks, tmp_path, "cuda", NoDisplay())
    assert (report.clips, broken) == (10, {})
    reports = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert {record["gpu"] for record in reports} == {"GPU-5a", "GPU-7c"}
    assert {record["device"] for record in reports} == {"cuda"}
    assert {record["threads"] for record in reports} == {max(1, cluster.CPU_COUNT // 2)}
    for gpu in ("GPU-5a", "GPU-7c"):
        spans = sorted(record["span"] for record in reports if record["gpu"] == gpu)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


JOB = ("--queue", "gpu", "--cpus", "8", "--memory", "32GB", "--walltime", "4:00:00", "--account", "lab", "--jobs", "16")


@pytest.mark.parametrize(
    ("system", "lines"),
    {
        "slurm": ["-p gpu", "-A lab", "--cpus-per-task=8", "--mem=30G", "-t 4:00:00", "--gres=gpu:2"],
        "pbs": ["-q gpu", "-A lab", "-l select=1:ncpus=8:ngpus=2:mem=32GB", "-l walltime=4:00:00"],
        "sge": ["-q gpu", "-P lab", "-l h_rt=4:00:00", "-l gpu=2"],
        "lsf": ["-q gpu", '-P "lab"', "-n 8", "-W 4:00:00", '-gpu "num=2"'],
    }.items(),
)
def test_a_job_script_requests_what_the_options_say(system: str, lines: list[str], tmp_path: Path) -> None:
    store = tmp_path / "it's $HOME; echo.zarr"
    site = ("--job-prologue", "module load cuda", "--interface", "ib0")
    printed = amex("extract", "--cluster", system, *JOB, *site, "--gpus-per-job", 2, "--store", store, "--print-job")
    assert printed.exit_code == 0, printed.output
    *head, prologue, command = printed.stdout.splitlines()
    for line in lines:
        assert any(written.endswith(f" {line}") for written in head), line
    assert prologue == "module load cuda"
    words = shlex.split(command)
    assert words[1:5] == ["-m", "amex.cli", "worker", "tls://HOST:PORT"]
    assert words[words.index("--tls-key") + 1] == f"{store}.jobs/key.pem"  # quoted, so that the shell expands nothing
    assert [words[words.index(name) + 1] for name in ("--cpus", "--device", "--interface")] == ["8", "cuda", "ib0"]
    assert not list(tmp_path.iterdir())
    own = amex(
        "extract",
        "--cluster",
        system,
        "--gpus-per-job",
        2,
        "--job-directive=--gpus=a100:2",
        "--store",
        store,
        "--print-job",
    )
    assert own.stdout.count("gpu") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cluster", "slrm"), "--cluster takes local, slurm, pbs, sge, lsf, runner, or a scheduler's address"),
        (("--jobs", "4"), "--jobs is for batch jobs: add --cluster slurm"),
        (("--print-job",), "--print-job is for batch jobs"),
        (("--cluster", "slurm", "--queue", "a\n#SBATCH --uid=0"), "cannot stand in a job script"),
        (("--cluster", "runner"), "--cluster runner works only in the tasks of an allocation"),
    ],
)
def test_contradictory_options_are_refused_before_anything_starts(
    options: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, _ in cluster.LAUNCHERS:
        monkeypatch.delenv(rank, raising=False)
    refused = amex("extract", "--dataset", "folder", "--videos", tmp_path, "--store", tmp_path / "s.zarr", *options)
    assert refused.exit_code in (1, 2)
    assert words in refused.output
    assert not list(tmp_path.iterdir())


def test_without_the_batch_system_a_run_ends_with_a_one_line_error(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    options = ("--dataset", "folder", "--videos", clips, "--store", tmp_path / "s.zarr", *QUICK)
    refused = amex("extract", *options, "--cluster", "slurm", "--interface", "lo")
    assert refused.exit_code == 1
    assert "slurm accepted no job" in refused.output
    assert "sbatch" in refused.output
    assert not list(tmp_path.rglob("*.pem"))


def test_a_worker_without_a_scheduler_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "DEATH_TIMEOUT", 2.0)
    ended = amex("worker", "tcp://127.0.0.1:9", "--device", "cpu")
    assert ended.exit_code == 1
    assert "no scheduler at tcp://127.0.0.1:9 for 2 seconds" in ended.output


@pytest.mark.slow
def test_tasks_of_an_allocation_find_each_other_and_write_one_store(clips: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    options = ["--dataset", "folder", "--videos", clips, "--store", store, "--part-clips", "1", "--json", *QUICK]
    command = [sys.executable, "-m", "amex.cli", "extract", *options, "--device", "cpu", "--cluster", "runner"]
    env = os.environ | {"OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "prte-7"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    second, first = (
        subprocess.Popen(command, env=env | {"OMPI_COMM_WORLD_RANK": str(rank)}, **pipes) for rank in (1, 0)
    )
    output, errors = first.communicate(timeout=200)
    assert first.returncode == 0, errors
    assert json.loads(output)["streams"][R2]["done"] == 4
    output, errors = second.communicate(timeout=60)
    assert (second.returncode, output) == (0, ""), errors
    assert len(committed(store)) == len(open_store(store)[R2]) == 4
    assert not list(tmp_path.rglob("*.pem"))
    for rank in (0, 1):  # nothing is left to do; the second task learns it even if it starts late
        env["PMIX_NAMESPACE"] = "prte-8"
        again = subprocess.run(
            command, env=env | {"OMPI_COMM_WORLD_RANK": str(rank)}, timeout=100, check=False, **pipes
        )
        assert again.returncode == 0, again.stderr


def test_jobs_get_the_options_of_the_command_line() -> None:
    job_options = ("--cluster", "slurm", "--jobs", 3, "--account", "lab", "--memory", "8GB", "--gpus-per-job", 1)
    jobs = chosen_cluster(extract_options(*job_options, "--job-directive=-x"))
    assert (jobs.count, jobs.cpus, jobs.memory, jobs.gpus, jobs.directives) == (3, 8, "8GB", 1, ("-x",))
    assert jobs.workers_per_gpu == 1


def test_workers_share_a_local_gpu_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5a,GPU-7c")
    assert default_workers("cuda") == 2
    assert default_workers("cuda", per_gpu=2) == 4
    assert default_workers("cuda:1", per_gpu=2) == 2
    assert default_workers("cpu", 3) == 3
    gpus = [option["env"]["CUDA_VISIBLE_DEVICES"] for option in worker_options(4, gpus_of("cuda"), cpus=16)]
    assert sorted(gpus) == ["GPU-5a", "GPU-5a", "GPU-7c", "GPU-7c"]
    for given in ({"device": "cpu", "per_gpu": 2}, {"device": "cuda", "workers": 3, "per_gpu": 2}):
        with pytest.raises(click.UsageError, match="--workers"):
            default_workers(**given)


def test_workers_share_the_gpus_of_a_job_on_request(tmp_path: Path) -> None:
    job_options = ("--cluster", "slurm", *JOB, "--gpus-per-job", 2, "--store", tmp_path / "s.zarr", "--print-job")
    alone, sharing = (amex("extract", *job_options, *more) for more in ((), ("--workers-per-gpu", 2)))
    assert "--workers-per-gpu" not in alone.stdout
    words = shlex.split(sharing.stdout.splitlines()[-1])
    assert words[words.index("--workers-per-gpu") + 1] == "2"
    arguments = words[words.index("worker") + 1 :]
    assert main.commands["worker"].make_context("worker", arguments).params["workers_per_gpu"] == 2
    refused = amex("extract", "--cluster", "slurm", *job_options[-3:], "--workers-per-gpu", 2)
    assert refused.exit_code == 2
    assert "add --gpus-per-job" in refused.output


def test_settings_reach_the_workers_and_the_spec_records_only_those_that_change_features(
    clips: Path, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[job.Job] = []
    run_tasks = job.run_tasks
    monkeypatch.setattr(job, "run_tasks", lambda *given: (jobs.append(given[2]), run_tasks(*given))[1])
    plain, deterministic = tmp_path / "plain.zarr", tmp_path / "deterministic.zarr"
    extract(clips, plain, cluster, "--limit", 1)
    extract(clips, deterministic, cluster, "--limit", 1, "--deterministic", "--feeders", 2)
    assert [(each.deterministic, each.feeders) for each in jobs] == [(False, None), (True, 2)]
    specs = [open_store(store)[R2].spec for store in (plain, deterministic)]
    assert "deterministic" not in specs[0]["compute"]  # fingerprints of earlier stores stay
    assert specs[1].pop("compute") == specs[0].pop("compute") | {"deterministic": True}
    assert specs[0] == specs[1]
    refused = extract(clips, deterministic, cluster, "--limit", 2, code=1)
    assert "compute.deterministic" in refused["output"]


def test_workers_are_counted_correctly_during_dasks_own_requests(
    clips: Path, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh = Client._update_scheduler_info

    async def overtaken(client: Client, n_workers: int = 0) -> None:
        """Let the client's own periodic request, which asks for no workers, arrive right after this one."""
        await refresh(client, n_workers)
        await refresh(client)

    monkeypatch.setattr(Client, "_update_scheduler_info", overtaken)
    monkeypatch.setattr(job, "WITHOUT_WORKERS", 2.0)
    assert extract(clips, tmp_path / "s.zarr", cluster, "--limit", 1)["streams"][R2]["done"] == 1
