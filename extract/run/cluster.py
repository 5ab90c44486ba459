"""Who does the work: processes of this machine, the tasks of an allocation, the workers of a scheduler (and batch.py).

Every worker is a process of one thread that sees one GPU, or none, and has its share of the cores: ``placement``
decides that, for workers on this machine as for those that ``amex worker`` starts in a batch job or in a container.

torch is not imported here: a run starts its workers before it imports torch itself.
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
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT

from ...errors import AmexError, first_line
from ...storage import semaphores, write_json
from .keys import KEYS, remove_keys, security_of, temporary_security

# In place of Dask's own settings, which have the allocator hand memory back at every chance: a network asks for it
# again with every layer. Few arenas instead: each thread's keeps what the others could use.
ALLOCATOR = {"MALLOC_ARENA_MAX": 2}
# Dask keeps so many of the last messages of every worker, to debug itself: 1000 of its own accord, each with the clips
# of a part in it, which came to 60 kB of the scheduler's memory a part.
SCHEDULER = {"distributed.admin.low-level-log-length": 20}
# Seconds after which a worker in a job ends that cannot reach its scheduler.
DEATH_TIMEOUT = 60.0
# Seconds that tasks of an allocation wait for the first of them, which plans the run.
MEETING_TIMEOUT = 3600.0
# What a worker imports beside its registration, see there.
IMPORTS = f"{__package__}.imports"
# Who a process is among the tasks of an allocation: its number, and what names the allocation.
LAUNCHERS = (("SLURM_PROCID", ("SLURM_JOB_ID", "SLURM_STEP_ID")), ("OMPI_COMM_WORLD_RANK", ("PMIX_NAMESPACE",)))


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that do the work, by the scheduler that they are connected to.

    Attributes:
        client: Dask's, of their scheduler.
        patient: whether they may come late: batch jobs wait in a queue.
        replace: starts lost workers again; to be called now and then.
        logs: the folder of their logs, if they write any.
    """

    client: Any
    patient: bool = False
    replace: Callable[[], None] = lambda: None
    logs: Path | None = None

    def present(self) -> dict[str, dict[str, Any]]:
        """The workers that the scheduler has now, as it describes them, by address."""
        # Not client.scheduler_info(): every two seconds the client asks for the scheduler without its workers, and
        # scheduler_info() may return that answer in place of its own.
        return self.client.sync(self.client.scheduler.identity, n_workers=-1)["workers"]


def placement(workers: int, gpus: Sequence[str] = (), cpus: int = CPU_COUNT) -> list[dict[str, Any]]:
    """How each worker of a machine is started, as options of Dask's Nanny.

    Args:
        gpus: as CUDA_VISIBLE_DEVICES names them; a worker sees one of them, which further workers may share. None: the
            workers see no GPU.
        cpus: cores, which the workers share evenly: for encoding on a CPU, and for the feeders of each worker.
    """
    options = []
    for index in range(workers):
        gpu = gpus[index % len(gpus)] if gpus else ""  # "" hides all: what a worker can do is asked of it
        env = {"OMP_NUM_THREADS": str(max(1, cpus // workers)), "CUDA_VISIBLE_DEVICES": gpu}
        # Without a limit of memory: a model and its frames are bounded by design.
        option = {"nthreads": 1, "memory_limit": 0, "env": env, "preload": [IMPORTS]}
        if gpus:
            option["resources"] = {"GPU": 1}
        options.append(option)
    return options


def gpus_of(device: str) -> list[str]:
    """The GPUs of this machine that ``device`` means, as CUDA_VISIBLE_DEVICES names them; none for ``cpu``."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    return [gpus[int(index)]] if index else gpus


@contextlib.contextmanager
def local(workers: int, device: str = "cpu", *, listed: Path | None = None) -> Iterator[Workers]:
    """Worker processes of this machine, which end with the run.

    Args:
        listed: make the scheduler reachable from other machines, under TLS, and write to this file how.
    """
    from distributed import Client, Nanny, Scheduler, SpecCluster

    options = [option | {"silence_logs": logging.CRITICAL} for option in placement(workers, gpus_of(device))]
    scheduler: dict[str, Any] = {"dashboard_address": "127.0.0.1:0"}
    security = None
    if listed is None:
        scheduler["host"] = "127.0.0.1"
        for option in options:
            option["host"] = "127.0.0.1"
    else:
        security = temporary_security(listed.parent)
        for option in (scheduler, *options):
            option |= {"protocol": "tls://", "security": security}
    settings = SCHEDULER | {
        "distributed.nanny.pre-spawn-environ": ALLOCATOR,
        "distributed.worker.profile.enabled": False,
        # A worker that dies is started again by its nanny. Dask ends that nanny too if the worker is not there so long
        # after its death: also one that is still starting, or has died again. Nobody would then do what is left.
        "distributed.deploy.lost-worker-timeout": "365 days",
    }
    with dask.config.set(settings), semaphores(), contextlib.ExitStack() as stack:
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
        if listed is not None:
            write_json(listed, {"address": cluster.scheduler_address})
        yield Workers(client=client)


@contextlib.contextmanager
def remote(address: str) -> Iterator[Workers]:
    """The workers of a scheduler that somebody else started. Of a tls:// one, Dask's configuration has the keys."""
    from distributed import Client, Security

    try:
        # Not by a Client: one that cannot connect is closed whenever Python collects it, and may wait for ever then.
        asyncio.run(knock(address, Security()))
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise AmexError(f"no Dask scheduler answers at {address}: {error}") from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it would print tracebacks
    with Client(address, timeout="20s", set_as_default=False) as client:
        yield Workers(client=client)


async def knock(address: str, security: Any) -> None:
    """Connects to a scheduler and leaves; raises OSError, or TypeError for want of keys, where that cannot be."""
    from distributed.comm import connect

    comm = await connect(address, timeout=10, **security.get_connection_args("client"))
    await comm.close()


def allocation(folder: Path) -> tuple[int, Path]:
    """Which task of an allocation this process is, and the file in ``folder`` where the tasks meet.

    Raises:
        AmexError: outside of an allocation.
    """
    for rank, names in LAUNCHERS:
        if rank in os.environ:
            meeting = "-".join(os.environ.get(name, "0") for name in names)
            return int(os.environ[rank]), folder / f"runner-{meeting}" / "scheduler.json"
    raise AmexError(
        "--cluster runner is for the tasks of an allocation: srun amex extract ... --cluster runner, or mpirun; "
        f"neither {' nor '.join(rank for rank, _ in LAUNCHERS)} is set"
    )


@contextlib.contextmanager
def first_task(listed: Path) -> Iterator[None]:
    """Around all that the first task of an allocation does: tells the others at the end, whatever it was."""
    try:
        yield
    finally:
        remove_keys(listed.parent)
        write_json(listed, {"ended": True})


def serve(
    address: str | None,
    *,
    workers: int,
    gpus: Sequence[str] = (),
    cpus: int = CPU_COUNT,
    listed: Path | None = None,
    name: str | None = None,
    security: Any = None,
    interface: str | None = None,
) -> None:
    """Works for a scheduler until it ends, or is not to be reached for ``DEATH_TIMEOUT`` seconds.

    Args:
        address: the scheduler's; None: wait for the file ``listed`` of the first task, which has its keys beside it.

    Raises:
        AmexError: if the scheduler never was there.
    """
    options = placement(workers, gpus, cpus)
    try:
        with semaphores():
            asyncio.run(_serve(address, options, listed, name, security, interface))
    except (TimeoutError, OSError) as error:
        waited = DEATH_TIMEOUT if address else MEETING_TIMEOUT
        raise AmexError(f"no scheduler at {address or listed} for {waited:g} seconds") from error
    except RuntimeError as error:  # of a nanny that did not start
        raise AmexError(f"no worker could be started: {first_line(error.__cause__ or error)}") from error


async def _serve(
    address: str | None,
    options: list[dict[str, Any]],
    listed: Path | None,
    name: str | None,
    security: Any,
    interface: str | None,
) -> None:
    from distributed import Nanny

    if address is None:
        async with asyncio.timeout(MEETING_TIMEOUT):
            while not listed.exists():
                await asyncio.sleep(0.2)
        address = json.loads(listed.read_text()).get("address")
        if address is None:  # the first task has ended: there was nothing to do, or nothing could be done
            return
        security = security_of(*(listed.parent / f"{name}.pem" for name in KEYS))
    more = {"security": security, "interface": interface, "death_timeout": DEATH_TIMEOUT}
    more |= {"protocol": "tls://"} if address.startswith("tls://") else {}
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with dask.config.set({"distributed.nanny.pre-spawn-environ": ALLOCATOR}):
        nannies = []
        for number, option in enumerate(options):
            named = {"name": f"{name}-{number}" if number else name} if name else {}
            nannies.append(Nanny(address, **option, **named, **more))
        try:
            await asyncio.gather(*nannies)
            ended = asyncio.gather(*(nanny.finished() for nanny in nannies))
            await asyncio.wait([asyncio.ensure_future(stop.wait()), ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await asyncio.gather(*(nanny.close() for nanny in nannies), return_exceptions=True)
