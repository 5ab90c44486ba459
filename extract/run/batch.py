"""Batch jobs as workers, through dask-jobqueue: what each asks for, its script, and the replacement of lost ones."""

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

from ...errors import AmexError
from ...storage import storage_at
from .cluster import SCHEDULER, Workers
from .keys import KEYS, remove_keys, security_of, temporary_security

BATCH = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster"}
# Seconds after which a job is given up whose worker has left, and between looks at which are to be submitted again.
REPLACE_INTERVAL = 20.0


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """Batch jobs, and what each of them asks for.

    Attributes:
        system: a key of ``BATCH``.
        count: how many jobs.
        memory: with its unit, as in 32GB.
        walltime: as the batch system writes it.
        directives: further lines for the head of the script, without the system's prefix. One with ``gpu`` in it is the
            request for GPUs.
        prologue: shell lines that make amex available on a node.
        interface: the network between nodes, as ``ip link`` calls it.
        workers_per_gpu: workers that share each GPU of a job.
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
    """Workers in batch jobs, which are cancelled when the run ends. The scheduler is here and speaks TLS only.

    Args:
        folder: for the jobs' logs and keys, where every node can read it.
    """
    from distributed import Client

    queueing = dask_jobqueue()
    if " " in str(folder):
        raise AmexError(
            f"batch systems cannot write their logs below {folder}: use a --store without spaces in its path"
        )
    folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{jobs.system}-{datetime.now():%Y%m%d-%H%M%S}-", dir=folder))
    options = job_options(jobs, folder, temporary_security(folder))
    scheduler = {"dashboard_address": "127.0.0.1:0"} | ({"interface": jobs.interface} if jobs.interface else {})
    make = getattr(queueing, BATCH[jobs.system])
    # The nanny in a job starts a worker again that died.
    settings = SCHEDULER | {"distributed.deploy.lost-worker-timeout": REPLACE_INTERVAL}
    options |= {"job_cls": job_class(jobs), "scheduler_options": scheduler, "silence_logs": logging.CRITICAL}
    try:
        with dask.config.set(settings), make(**options) as cluster:
            with Client(cluster, security=cluster.security, set_as_default=False) as client:
                submit(cluster, jobs)
                yield Workers(client=client, patient=True, replace=Replacement(cluster, jobs), logs=folder)
    finally:
        remove_keys(folder)


def submit(cluster: Any, jobs: Jobs) -> None:
    """Submits the jobs; raises AmexError if the batch system takes none of them."""
    cluster.scale(jobs=jobs.count)
    cluster.sync(cluster.__aenter__)  # until all are submitted
    if all(job.refused for job in cluster.workers.values()):
        reason = next(iter(cluster.workers.values())).refused
        raise AmexError(f"{jobs.system} took no job: {reason}; --print-job shows what it was asked")


class Replacement:
    """Submits those jobs again, now and then, that were lost or refused: limits pass."""

    def __init__(self, cluster: Any, jobs: Jobs) -> None:
        self.cluster, self.jobs = cluster, jobs
        self.next = time.monotonic() + REPLACE_INTERVAL

    def __call__(self) -> None:
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + REPLACE_INTERVAL
        for name in [name for name, job in self.cluster.workers.items() if job.refused]:
            del self.cluster.workers[name]
        self.cluster.scale(jobs=self.jobs.count)  # which submits what is not among the workers


def jobs_folder(store: Path) -> Path:
    """Where the logs and keys of cluster jobs go: beside the store, which every node sees, or the current folder."""
    return storage_at(store).nearest_folder() / f"{store.name}.jobs"


def job_script(jobs: Jobs, folder: Path) -> str:
    """The script of one of the jobs, with HOST:PORT where the scheduler's address will be."""
    options = job_options(jobs, folder, security_of(*(folder / f"{name}.pem" for name in KEYS)))
    existed = folder.exists()
    script = job_class(jobs)("tls://HOST:PORT", name="amex-0", **options).job_script()
    if not existed:
        folder.rmdir()  # which dask-jobqueue makes for the logs
    return script


def job_options(jobs: Jobs, folder: Path, security: Any) -> dict[str, Any]:
    """What dask-jobqueue is told of a job. It reads jobqueue.yaml for what is not said here."""
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
        # PBS wants all resources in one line, which dask-jobqueue writes itself where there are no GPUs.
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
    """dask-jobqueue's class of job with ``amex worker`` in it."""
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
            except (OSError, RuntimeError) as error:  # there is no such command, or it does not take the job
                self.status = Status.failed
                self.refused = str(error).rpartition("stderr:")[2].strip().replace("\n", "; ")

    return AmexJob


def dask_jobqueue() -> Any:
    """The package, which is an extra."""
    try:
        return importlib.import_module("dask_jobqueue")
    except ImportError as error:
        raise AmexError("batch jobs need dask-jobqueue: pip install 'amex[cluster]'") from error
