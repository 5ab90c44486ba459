"""Dask workers: on this machine, in the tasks of an allocation, or connected to a scheduler. Batch jobs: batch.py.

Every worker is a process with one task at a time, at most one visible GPU, and its share of the cores.
``worker_options`` sets this for local workers and for those that ``amex worker`` starts in a batch job or container.

This module does not import torch: a run starts its workers before it imports torch itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT

from ...errors import AmexError, first_line
from ...storage import semaphores, write_json
from .keys import KEYS, remove_keys, security_of, temporary_security

# Replaces Dask's allocator settings, which return freed memory at once although a network needs it again for the next
# layer. Few arenas let threads reuse each other's freed memory.
ALLOCATOR = {"MALLOC_ARENA_MAX": 2}
# Dask keeps this many messages of every worker for debugging. Its default of 1000, each with the clips of a part, used
# 60 kB of the scheduler's memory per part.
SCHEDULER = {"distributed.admin.low-level-log-length": 20}
# A worker ends after this many seconds without a connection to its scheduler.
DEATH_TIMEOUT = 60.0
# Seconds that the tasks of an allocation wait for the first task, which plans the run.
MEETING_TIMEOUT = 3600.0
# Module that a worker preloads.
IMPORTS = f"{__package__}.imports"
# Environment variables of launchers: the number of a task, and the names that identify the allocation.
LAUNCHERS = (("SLURM_PROCID", ("SLURM_JOB_ID", "SLURM_STEP_ID")), ("OMPI_COMM_WORLD_RANK", ("PMIX_NAMESPACE",)))


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The workers of one Dask scheduler.

    Attributes:
        client: Dask client of the scheduler.
        may_wait: whether workers may start late, because batch jobs wait in a queue.
        replace: starts lost workers again; call it regularly.
        logs: folder of the workers' logs; None if they write none.
    """

    client: Any
    may_wait: bool = False
    replace: Callable[[], None] = lambda: None
    logs: Path | None = None

    def connected(self) -> dict[str, dict[str, Any]]:
        """Return the workers connected to the scheduler: address -> Dask's description."""
        # client.scheduler_info() is unreliable: the client's own periodic request for the scheduler without its workers
        # may replace its answer.
        return self.client.sync(self.client.scheduler.identity, n_workers=-1)["workers"]


def worker_options(workers: int, gpus: Sequence[str] = (), cpus: int = CPU_COUNT) -> list[dict[str, Any]]:
    """Return the options of Dask's Nanny for each worker of a machine.

    Args:
        gpus: names for CUDA_VISIBLE_DEVICES. Each worker sees one GPU; several workers may share it. If empty, the
            workers see no GPU.
        cpus: cores, divided evenly among the workers, for encoding on a CPU and for feeders.
    """
    options = []
    for index in range(workers):
        gpu = gpus[index % len(gpus)] if gpus else ""  # "" hides all GPUs
        env = {"OMP_NUM_THREADS": str(max(1, cpus // workers)), "CUDA_VISIBLE_DEVICES": gpu}
        # No memory limit: the sizes of models and batches bound the memory.
        option = {"nthreads": 1, "memory_limit": 0, "env": env, "preload": [IMPORTS]}
        if gpus:
            option["resources"] = {"GPU": 1}
        options.append(option)
    return options


def gpus_of(device: str) -> list[str]:
    """Return the GPUs of ``device`` as names for CUDA_VISIBLE_DEVICES; an empty list for ``cpu``."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return [gpus[int(index)]] if index else gpus


@contextlib.contextmanager
def script_not_imported() -> Iterator[None]:
    """Start workers without importing the program's ``__main__`` in them, as multiprocessing does.

    A script that extracts without ``if __name__ == "__main__"`` would extract again in every worker. Workers need
    nothing of it.
    """
    prepare = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        data = prepare(name)
        if name.startswith("Dask Worker"):  # other threads may start processes of their own
            data = {key: value for key, value in data.items() if not key.startswith("init_main")}
        return data

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = prepare


@contextlib.contextmanager
def local(workers: int, device: str = "cpu", *, address_file: Path | None = None) -> Iterator[Workers]:
    """Start worker processes on this machine; end them on exit.

    Args:
        address_file: if given, the scheduler accepts TLS connections from other machines, and its address is written to
            this file.
    """
    from distributed import Client, Nanny, Scheduler, SpecCluster

    options = [option | {"silence_logs": logging.CRITICAL} for option in worker_options(workers, gpus_of(device))]
    scheduler: dict[str, Any] = {"dashboard_address": "127.0.0.1:0"}
    security = None
    if address_file is None:
        scheduler["host"] = "127.0.0.1"
        for option in options:
            option["host"] = "127.0.0.1"
    else:
        security = temporary_security(address_file.parent)
        for option in (scheduler, *options):
            option |= {"protocol": "tls://", "security": security}
    settings = SCHEDULER | {
        "distributed.nanny.pre-spawn-environ": ALLOCATOR,
        "distributed.worker.profile.enabled": False,
        # A nanny restarts its worker when it dies. After this timeout without the worker, Dask would end the nanny too,
        # even if the worker is still starting, and the run would lose the worker for good.
        "distributed.deploy.lost-worker-timeout": "365 days",
    }
    with dask.config.set(settings), semaphores(), script_not_imported(), contextlib.ExitStack() as stack:
        specs = {number: {"cls": Nanny, "options": option} for number, option in enumerate(options)}
        cluster = stack.enter_context(
            SpecCluster(
                workers=specs,
                scheduler={"cls": Scheduler, "options": scheduler},
                security=security,
                silence_logs=logging.CRITICAL,
            )
        )
        client = stack.enter_context(Client(cluster, security=security, set_as_default=False))
        if address_file is not None:
            write_json(address_file, {"address": cluster.scheduler_address})
        yield Workers(client=client)


@contextlib.contextmanager
def remote(address: str) -> Iterator[Workers]:
    """Connect to a running scheduler. For ``tls://``, the keys come from Dask's configuration.

    Raises:
        AmexError: if no scheduler answers.
    """
    from distributed import Client, Security

    try:
        # Check before creating a Client: a Client that cannot connect may block forever when it is garbage collected.
        asyncio.run(check_scheduler(address, Security()))
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise AmexError(f"no Dask scheduler answers at {address}: {error}; check the address of --cluster") from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # suppresses tracebacks
    with Client(address, timeout="20s", set_as_default=False) as client:
        yield Workers(client=client)


async def check_scheduler(address: str, security: Any) -> None:
    """Connect to a scheduler and disconnect. Raise OSError if that fails, TypeError if the TLS keys are missing."""
    from distributed.comm import connect

    comm = await connect(address, timeout=10, **security.get_connection_args("client"))
    await comm.close()


def allocation(folder: Path) -> tuple[int, Path]:
    """Return this process's task number in an allocation, and the file in ``folder`` for the scheduler's address.

    Raises:
        AmexError: outside an allocation.
    """
    for rank, names in LAUNCHERS:
        if rank in os.environ:
            job = "-".join(os.environ.get(name, "0") for name in names)
            return int(os.environ[rank]), folder / f"runner-{job}" / "scheduler.json"
    raise AmexError(
        "--cluster runner works only in the tasks of an allocation; start it with srun amex extract ... --cluster "
        f"runner, or with mpirun (neither {' nor '.join(rank for rank, _ in LAUNCHERS)} is set)"
    )


@contextlib.contextmanager
def first_task(address_file: Path) -> Iterator[None]:
    """Wrap the work of an allocation's first task. On exit, also after an error, tell the other tasks that it ended."""
    try:
        yield
    finally:
        remove_keys(address_file.parent)
        write_json(address_file, {"ended": True})


def run_workers(
    address: str | None,
    *,
    workers: int,
    gpus: Sequence[str] = (),
    cpus: int = CPU_COUNT,
    address_file: Path | None = None,
    name: str | None = None,
    security: Any = None,
    interface: str | None = None,
) -> None:
    """Run workers until their scheduler ends or cannot be reached for DEATH_TIMEOUT seconds.

    Args:
        address: of the scheduler. None: wait until the first task writes ``address_file``; the keys are in its folder.

    Raises:
        AmexError: if the scheduler cannot be reached.
    """
    options = worker_options(workers, gpus, cpus)
    try:
        with semaphores():
            asyncio.run(_run_nannies(address, options, address_file, name, security, interface))
    except (TimeoutError, OSError) as error:
        waited = DEATH_TIMEOUT if address else MEETING_TIMEOUT
        raise AmexError(f"no scheduler at {address or address_file} for {waited:g} seconds") from error
    except RuntimeError as error:  # a nanny did not start
        raise AmexError(f"no worker could be started: {first_line(error.__cause__ or error)}") from error


async def _run_nannies(
    address: str | None,
    options: list[dict[str, Any]],
    address_file: Path | None,
    name: str | None,
    security: Any,
    interface: str | None,
) -> None:
    from distributed import Nanny

    if address is None:
        async with asyncio.timeout(MEETING_TIMEOUT):
            while not address_file.exists():
                await asyncio.sleep(0.2)
        address = json.loads(address_file.read_text()).get("address")
        if address is None:  # the first task ended without starting a scheduler
            return
        security = security_of(*(address_file.parent / f"{key}.pem" for key in KEYS))
    common = {"security": security, "interface": interface, "death_timeout": DEATH_TIMEOUT}
    common |= {"protocol": "tls://"} if address.startswith("tls://") else {}
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with dask.config.set({"distributed.nanny.pre-spawn-environ": ALLOCATOR}):
        nannies = []
        for number, option in enumerate(options):
            worker_name = {"name": f"{name}-{number}" if number else name} if name else {}
            nannies.append(Nanny(address, **option, **worker_name, **common))
        try:
            await asyncio.gather(*nannies)
            ended = asyncio.gather(*(nanny.finished() for nanny in nannies))
            await asyncio.wait([asyncio.ensure_future(stop.wait()), ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Errors of closing do not matter: the workers are done, or an earlier error is already being raised.
            await asyncio.gather(*(nanny.close() for nanny in nannies), return_exceptions=True)
