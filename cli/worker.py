"""``amex worker``: processes that work for a Dask scheduler."""

from __future__ import annotations

from typing import Any

import click

from .options import FILE, workers_per_gpu_option


@click.command()
@click.argument("address")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: 1, or one a GPU]")
@workers_per_gpu_option
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda (all GPUs) or cuda:INDEX.")
@click.option("--cpus", type=click.IntRange(min=1), help="Cores to share among them.  [default: those of this machine]")
@click.option("--name", help="Of the first worker; the others are NAME-1, NAME-2, ...")
@click.option("--interface", help="The network to the scheduler, as in ib0.")
@click.option("--tls-ca-file", type=FILE, help="Of a tls:// scheduler: its authority.")
@click.option("--tls-cert", type=FILE, help="This worker's certificate.")
@click.option("--tls-key", type=FILE, help="And its key.")
def worker(
    address: str, device: str, workers: int | None, workers_per_gpu: int | None, cpus: int | None, **options: Any
) -> None:
    """Work for the Dask scheduler at ADDRESS, until it ends.

    One process a GPU, which sees that GPU alone, with its share of the cores for decoding beside it. Batch jobs of
    `amex extract --cluster slurm` run this command; in a container or on a machine of your own, start it yourself:

    \b
    dask scheduler --host 10.0.0.1
    amex worker tcp://10.0.0.1:8786                 (on each machine that is to help)
    amex extract --cluster tcp://10.0.0.1:8786 ...

    Whoever can reach a scheduler can run code on its workers. On a network that others use, give it keys (tls://).
    """
    keys = [options.pop(f"tls_{name}") for name in ("ca_file", "cert", "key")]
    if any(keys) != all(keys):
        raise click.UsageError("--tls-ca-file, --tls-cert and --tls-key belong together")

    from dask.system import CPU_COUNT

    from ..extract.encoders import choose_device
    from ..extract.run import gpus_of, security_of, serve

    device = choose_device(device)
    serve(
        address,
        workers=default_workers(device, workers, workers_per_gpu),
        gpus=gpus_of(device),
        cpus=cpus or CPU_COUNT,
        security=security_of(*keys) if all(keys) else None,
        **options,
    )


def default_workers(device: str, workers: int | None = None, per_gpu: int | None = None) -> int:
    """How many workers a machine has: as many as asked for, or ``per_gpu`` a GPU; without GPUs one.

    Raises:
        UsageError: if both are given, or there are no GPUs to share.
    """
    from ..extract.run import gpus_of

    if workers and per_gpu:
        raise click.UsageError("give either --workers or --workers-per-gpu")
    if per_gpu and device == "cpu":
        raise click.UsageError("--workers-per-gpu is for GPUs, and the work is done on a CPU: use --workers N")
    return workers or len(gpus_of(device)) * (per_gpu or 1) or 1
