"""Checks of memory, limits, torch, GPUs, Dask and batch systems."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ...errors import first_line, plural
from .findings import Finding, Subject, tried

GIB = 1 << 30
# Peak memory of a worker and its feeders (docs/performance.md).
WORKER = 2 * GIB
# Required limit of open files: a read opens 64 ranges of a store at once, besides the files of Dask.
FILES = 1024
# The submit command of a batch system, and its name in --cluster.
BATCH_COMMANDS = {"sbatch": "slurm", "qsub": "pbs or sge", "bsub": "lsf"}


def machine(subject: Subject) -> Iterator[Finding]:
    """Check memory, shared memory and open files."""
    total, free = _memory()
    cores = len(os.sched_getaffinity(0))
    memory = f"{plural(cores, 'core')}, {total / GIB:.1f} GiB of memory, {free / GIB:.1f} free"
    if free < WORKER:
        remedy = "a worker and its feeders take up to 2 GiB: end other programs, or use --workers 1 --feeders 1"
        yield Finding(what="memory", state="broken", found=memory, remedy=remedy)
    else:
        yield Finding(what="memory", state="ok", found=memory)
    yield tried("memory that processes share", _share, remedy="amex uses TMPDIR in its place: have it on a fast disk")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = f"{soft:,} may be open, up to {hard:,} with ulimit" if hard > soft else f"{soft:,} may be open"
    if soft < FILES:
        remedy = f"ulimit -n {min(FILES, hard) if hard > 0 else FILES} before amex"
        yield Finding(what="open files", state="broken", found=limits, remedy=remedy)
    else:
        yield Finding(what="open files", state="ok", found=limits)


def _memory() -> tuple[int, int]:
    """Return the total and the free memory of this process in bytes: of the machine, or of its control group."""
    fields = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
    total, free = (int(fields[name]) * 1024 for name in ("MemTotal", "MemAvailable"))
    with contextlib.suppress(OSError, ValueError):  # no such group, or no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        total, free = min(total, limit), min(free, limit - int((group / "memory.current").read_text()))
    return total, free


def _share() -> str:
    descriptor = os.memfd_create("amex")
    os.ftruncate(descriptor, 8 << 20)
    os.close(descriptor)
    size = ""
    with contextlib.suppress(OSError):
        size = f"; /dev/shm has {shutil.disk_usage('/dev/shm').free / GIB:.1f} GiB free"
    return f"memfd{size}"


def computing(subject: Subject) -> Iterator[Finding]:
    """Check torch, torchvision and the GPUs with small computations."""
    again = "pip install --force-reinstall torch torchvision, both of one release"

    def compute() -> str:
        import torch

        if (torch.ones(8, 8) @ torch.ones(8, 8)).sum() != 512:
            raise ArithmeticError("a product of matrices is wrong")
        return f"{torch.__version__}, {torch.get_num_threads()} threads"

    def operators() -> str:
        import torch
        import torchvision

        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]])
        if len(torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)) != 1:
            raise ArithmeticError("its NMS is wrong")
        return torchvision.__version__

    first = tried("torch", compute, remedy=again, essential=True)
    yield first
    if first.state != "ok":
        return
    yield tried("torchvision", operators, remedy=again, essential=True)
    yield from _gpus()


def _gpus() -> Iterator[Finding]:
    import torch

    from ...extract.encoders.devices import has_driver

    build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    if torch.version.hip:
        build = f"torch is built for ROCm {torch.version.hip}"
    if not has_driver():
        remedy = "nothing, if there is none here: amex computes on the CPU; else install the GPU's driver"
        yield Finding(what="GPU", state="missing", found=f"no driver; {build}", remedy=remedy)
        return
    driver = "a driver"
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        driver = f"driver {match[1]}" if (match := re.search(r"  (\d+\.[\d.]+)", text)) else driver
    if not torch.cuda.is_available():
        reason = ""
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            reason = f": {first_line(error)}"
        remedy = "install a torch that is built for this driver (pytorch.org says how), or use --device cpu"
        yield Finding(what="GPU", state="broken", found=f"{driver}; {build}, and finds no GPU{reason}", remedy=remedy)
        return
    for index in range(torch.cuda.device_count()):

        def compute(index: int = index) -> str:
            about = torch.cuda.get_device_properties(index)
            square = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.float16)
            if (square @ square).float().sum().item() != 64**3:
                raise ArithmeticError("a product of matrices is wrong")
            capability = f"compute capability {about.major}.{about.minor}"
            return f"{about.name}, {about.total_memory / GIB:.0f} GiB, {capability}, {driver}; {build}"

        remedy = "install a torch that is built for this GPU and its driver (pytorch.org says how), or use --device cpu"
        yield tried(f"GPU {index}", compute, remedy=remedy)


def workers(subject: Subject) -> Iterator[Finding]:
    """Start a worker as ``amex extract`` does, and look for batch systems."""

    def ask() -> str:
        from ...extract.run.cluster import local

        begin = time.monotonic()
        with local(1) as started:
            answer = started.client.submit(os.getpid).result(timeout=45)
        return f"a worker (process {answer}) answered after {time.monotonic() - begin:.1f} s"

    remedy = (
        "amex extract cannot start workers: pip install --force-reinstall dask distributed; a firewall must let "
        "programs speak to 127.0.0.1"
    )
    yield tried("Dask", ask, remedy=remedy, essential=True)
    commands = [f"{command} (--cluster {name})" for command, name in BATCH_COMMANDS.items() if shutil.which(command)]
    if commands:
        yield Finding(what="batch systems", state="ok", found=", ".join(commands))
    else:
        absent = f"none of {', '.join(BATCH_COMMANDS)} is on PATH"
        yield Finding(what="batch systems", state="missing", found=absent, remedy="nothing, unless this is a cluster")
