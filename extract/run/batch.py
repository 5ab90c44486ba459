"""Workers in batch jobs (Slurm, PBS, SGE, LSF), through dask-jobqueue."""

from __future__ import annotations

import contextlib
import importlib
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import dask

from ...errors import AmexError, needs
from ...storage import storage_at
from .cluster import SCHEDULER, Workers
from .keys import KEYS, remove_keys, security_of, temporary_security

BATCH = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster"}
# Seconds without a worker after which a job counts as lost, and seconds between attempts to replace lost jobs.
REPLACE_INTERVAL = 20.0


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """The number of batch jobs and the resources of each.

    Attributes:
        system: a key of ``BATCH``.
        count: number of jobs.
        cpus: cores of a job.
        memory: of a job, with a unit: 32GB.
        gpus: of a job.
        walltime: time limit in the batch system's format.
        directives: additional directives for the job script, without the system's prefix. A directive that contains
            ``gpu`` replaces the request for GPUs.
        prologue: shell lines that make amex available on a node.
        interface: network interface between the nodes, as listed by ``ip link``.
        workers_per_gpu: number of workers that share each GPU.
    """

    system: str
    count: int
    cpus: int
    memory: str
    gpus: int = 0
    queue: str | None = None
    account: str | None = None
    walltime: str | None = None
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    interface: str | None = None
    workers_per_gpu: int = 1


@contextlib.contextmanager
def batch(jobs: Jobs, folder: Path) -> Iterator[Workers]:
    """Start workers in batch jobs; cancel the jobs on exit. The scheduler runs in this process and accepts TLS only.

    Args:
        folder: for logs and keys, readable by every node.

    Raises:
        AmexError: if dask-jobqueue is not installed, or the batch system accepts no job.
    """
    from distributed import Client

    queueing = dask_jobqueue()
    if " " in str(folder):
        raise AmexError(
            f"batch systems cannot write logs to {folder}, which contains a space: use a --store without spaces"
        )
    folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{jobs.system}-{datetime.now():%Y%m%d-%H%M%S}-", dir=folder))
    options = job_options(jobs, folder, temporary_security(folder))
    scheduler = {"dashboard_address": "127.0.0.1:0"} | ({"interface": jobs.interface} if jobs.interface else {})
    make = getattr(queueing, BATCH[jobs.system])
    settings = SCHEDULER | {"distributed.deploy.lost-worker-timeout": REPLACE_INTERVAL}
    options |= {"job_cls": job_class(jobs), "scheduler_options": scheduler, "silence_logs": logging.CRITICAL}
    try:
        with dask.config.set(settings), make(**options) as cluster:
            with Client(cluster, security=cluster.security, set_as_default=False) as client:
                submit(cluster, jobs)
                yield Workers(client=client, may_wait=True, replace=JobReplacer(cluster, jobs), logs=folder)
    finally:
        remove_keys(folder)


def submit(cluster: Any, jobs: Jobs) -> None:
    """Submit the jobs; raise AmexError if the batch system refuses all of them."""
    cluster.scale(jobs=jobs.count)
    cluster.sync(cluster.__aenter__)  # waits until all are submitted
    if all(job.refused for job in cluster.workers.values()):
        reason = next(iter(cluster.workers.values())).refused
        raise AmexError(f"{jobs.system} accepted no job: {reason}; --print-job shows the job script")


class JobReplacer:
    """Submits lost and refused jobs again, at most every REPLACE_INTERVAL seconds."""

    def __init__(self, cluster: Any, jobs: Jobs) -> None:
        self.cluster, self.jobs = cluster, jobs
        self.next = time.monotonic() + REPLACE_INTERVAL

    def __call__(self) -> None:
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + REPLACE_INTERVAL
        for name in [name for name, job in self.cluster.workers.items() if job.refused]:
            del self.cluster.workers[name]
        self.cluster.scale(jobs=self.jobs.count)  # submits the missing jobs


def jobs_folder(store: Path) -> Path:
    """Return the folder for logs and keys of jobs: beside a local store, which every node sees, else in the cwd."""
    return storage_at(store).nearest_folder() / f"{store.name}.jobs"


def job_script(jobs: Jobs, folder: Path) -> str:
    """Return the script of one job, with HOST:PORT in place of the scheduler's address."""
    options = job_options(jobs, folder, security_of(*(folder / f"{name}.pem" for name in KEYS)))
    existed = folder.exists()
    script = job_class(jobs)("tls://HOST:PORT", name="amex-0", **options).job_script()
    if not existed:
        folder.rmdir()  # dask-jobqueue creates it for logs
    return script


def job_options(jobs: Jobs, folder: Path, security: Any) -> dict[str, Any]:
    """Return dask-jobqueue's options of a job. Other options come from jobqueue.yaml."""
    options = {
        "cores": jobs.cpus,
        "memory": jobs.memory,
        "processes": 1,
        "walltime": jobs.walltime,
        "queue": jobs.queue,
        "interface": jobs.interface,
        "job_script_prologue": list(jobs.prologue) or None,
        "log_directory": str(folder),
        "job_name": "amex",
        "security": security,
    }
    directives = list(jobs.directives)
    if jobs.system in ("slurm", "pbs"):
        options["account"] = jobs.account
    else:
        options["project"] = jobs.account
    if jobs.gpus and not any("gpu" in directive for directive in directives):
        # PBS needs all resources in one line. Without GPUs dask-jobqueue writes it.
        if jobs.system == "pbs":
            options["resource_spec"] = f"select=1:ncpus={jobs.cpus}:ngpus={jobs.gpus}:mem={jobs.memory}"
        directives += {
            "slurm": [f"--gres=gpu:{jobs.gpus}"],
            "sge": [f"-l gpu={jobs.gpus}"],
            "lsf": [f'-gpu "num={jobs.gpus}"'],
        }.get(jobs.system, [])
    options["job_extra_directives"] = directives or None
    return options


def job_class(jobs: Jobs) -> type:
    """Return a subclass of dask-jobqueue's job that runs ``amex worker``."""
    from distributed.core import Status

    base = getattr(dask_jobqueue(), BATCH[jobs.system]).job_cls

    class AmexJob(base):  # type: ignore[misc, valid-type]
        def __init__(self, scheduler: str, name: str, security: Any = None, **options: Any) -> None:
            super().__init__(scheduler, name=name, security=security, **options)
            files = security.get_tls_config_for_role("worker")
            command = [sys.executable, "-m", "amex.cli", "worker", scheduler, "--name", str(name)]
            command += ["--cpus", str(jobs.cpus), "--device", "cuda" if jobs.gpus else "cpu"]
            command += ["--workers-per-gpu", str(jobs.workers_per_gpu)] if jobs.workers_per_gpu > 1 else []
            command += ["--tls-ca-file", files["ca_file"], "--tls-cert", files["cert"], "--tls-key", files["key"]]
            command += ["--interface", jobs.interface] if jobs.interface else []
            self._command_template = shlex.join(command)
            self.refused = ""

        async def start(self) -> None:
            try:
                await super().start()
            except (OSError, RuntimeError) as error:  # the submit command is missing, or it refuses the job
                self.status = Status.failed
                self.refused = str(error).rpartition("stderr:")[2].strip().replace("\n", "; ")

    return AmexJob


def dask_jobqueue() -> Any:
    """Import dask_jobqueue. Raise MissingExtra if it is not installed."""
    with needs("cluster", "a batch job"):
        return importlib.import_module("dask_jobqueue")
