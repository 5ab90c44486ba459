"""``amex worker``: processes that work for a Dask scheduler."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import click

from .options import workers_per_gpu_option
from .parameters import FILE


@click.command()
@click.argument("address")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: 1, or one a GPU]")
@workers_per_gpu_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda (all GPUs) or cuda:INDEX.")
@click.option(
    "--cpus", type=click.IntRange(min=1), help="Cores that the workers share.  [default: all of this machine]"
)
@click.option("--name", help="Name of the first worker; the others are NAME-1, NAME-2, ...")
@click.option("--interface", help="The network to the scheduler, as in ib0.")
@click.option("--tls-ca-file", type=FILE, help="For tls://: the certificate of the authority.")
@click.option("--tls-cert", type=FILE, help="For tls://: the certificate of this worker.")
@click.option("--tls-key", type=FILE, help="For tls://: the key of this worker.")
def worker(
    address: str, device: str, workers: int | None, workers_per_gpu: int | None, cpus: int | None, **options: Any
) -> None:
    """Work for the Dask scheduler at ADDRESS until it ends.

    Starts one process per GPU, which sees only that GPU and uses its share of the cores for decoding. Batch jobs of
    `amex extract --cluster slurm` run this command. On other machines, or in a container, start it yourself:

    \b
    dask scheduler --host 10.0.0.1
    amex worker tcp://10.0.0.1:8786                 (on each machine that helps)
    amex extract --cluster tcp://10.0.0.1:8786 ...

    Anyone who can reach a scheduler can run code on its workers. In a shared network, use keys (tls://).
    """
    keys = [options.pop(f"tls_{name}") for name in ("ca_file", "cert", "key")]
    if any(keys) != all(keys):
        raise click.UsageError("--tls-ca-file, --tls-cert and --tls-key belong together")

    if not is_address(address):
        raise click.UsageError(f"ADDRESS is that of a Dask scheduler, as in tcp://10.0.0.1:8786, not {address!r}")

    from dask.system import CPU_COUNT

    from ..extract.encoders import choose_device
    from ..extract.run import gpus_of, run_workers, security_of

    device = choose_device(device)
    run_workers(
        address,
        workers=default_workers(device, workers, workers_per_gpu),
        gpus=gpus_of(device),
        cpus=cpus or CPU_COUNT,
        security=security_of(*keys) if all(keys) else None,
        **options,
    )


def is_address(text: str) -> bool:
    """Return whether a text has the form ``PROTOCOL://HOST:PORT``."""
    parts = urlsplit(text)
    try:
        return bool(parts.scheme and parts.hostname and parts.port)
    except ValueError:  # the port is no number
        return False


def default_workers(device: str, workers: int | None = None, per_gpu: int | None = None) -> int:
    """Return the number of workers of a machine: as given, or ``per_gpu`` for each GPU; without GPUs one.

    Raises:
        UsageError: if both are given, or there are no GPUs to share.
    """
    from ..extract.run import gpus_of

    if workers and per_gpu:
        raise click.UsageError("give either --workers or --workers-per-gpu")
    if per_gpu and device == "cpu":
        raise click.UsageError("--workers-per-gpu is for GPUs, and the work is done on a CPU: use --workers N")
    return workers or len(gpus_of(device)) * (per_gpu or 1) or 1
