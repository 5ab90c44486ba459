"""``amex worker``, and the options of ``amex extract`` that say who does the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

# Of `amex extract`: option -> what it is in `Jobs`.
JOB_OPTIONS = {
    "jobs": "count",
    "queue": "queue",
    "account": "account",
    "cpus": "cpus",
    "memory": "memory",
    "gpus_per_job": "gpus",
    "walltime": "walltime",
    "job_directives": "directives",
    "job_prologue": "prologue",
    "interface": "interface",
}


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that ``where`` reads."""
    for option in reversed(
        (
            click.option(
                "--workers", type=click.IntRange(min=1), help="Processes on this machine.  [default: 1, or one a GPU]"
            ),
            click.option(
                "--cluster",
                default="local",
                show_default=True,
                help="Who does the work. local: this machine. slurm, pbs, sge, lsf: batch jobs, which are submitted, "
                "replaced when they are lost, and cancelled at the end. runner: the tasks of an allocation you have, "
                "as in `srun amex extract ...`. tcp://... or tls://...: the workers of a Dask scheduler.",
            ),
            click.option("--jobs", type=click.IntRange(min=1), help="Batch jobs.  [default: 1]"),
            click.option("--queue", help="Their queue (partition)."),
            click.option("--account", help="Who pays (project)."),
            click.option("--cpus", type=click.IntRange(min=1), help="Cores of a job.  [default: 8]"),
            click.option("--memory", help="Memory of a job.  [default: 32GB]"),
            click.option(
                "--gpus-per-job", type=click.IntRange(min=0), help="A worker for each; none computes on the CPU."
            ),
            click.option("--walltime", help="As the batch system writes it: 4:00:00."),
            click.option(
                "--job-directive",
                "job_directives",
                multiple=True,
                metavar="TEXT",
                help="A further line of the job script's head, as in --job-directive=--constraint=a100; repeatable.",
            ),
            click.option(
                "--job-prologue",
                multiple=True,
                metavar="LINE",
                help="A shell line before amex starts in a job, as in --job-prologue 'module load cuda'; repeatable.",
            ),
            click.option("--interface", help="The network between nodes, as in ib0."),
            click.option("--print-job", is_flag=True, help="Print the script of a job; submit nothing."),
        )
    ):
        command = option(command)
    return command


def where(options: dict[str, Any]) -> Any:
    """What the options say of the cluster: batch jobs, or the word or address that was given."""
    from ..extract.run.batch import BATCH, Jobs

    cluster = options["cluster"]
    given = {field: options[name] for name, field in JOB_OPTIONS.items() if options[name] not in (None, (), 0)}
    if options["workers"] and cluster in BATCH:
        raise click.UsageError(
            "--workers is for this machine: a batch job has one worker, or one a GPU; say --jobs N, --gpus-per-job N"
        )
    if options["workers"] and "://" in cluster:
        more = f"amex worker {cluster} --workers {options['workers']}"
        raise click.UsageError(f"--workers is for this machine: on others, start them with {more}")
    if cluster in BATCH:
        for value in given.values():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and not text.isprintable():
                    raise click.UsageError(f"{text!r} cannot stand in a job script")
        return Jobs(system=cluster, **{"count": 1, "cpus": 8, "memory": "32GB"} | given)
    if cluster not in ("local", "runner") and "://" not in cluster:
        known = ", ".join(("local", *BATCH, "runner"))
        raise click.UsageError(
            f"--cluster takes {known}, or a scheduler's address like tcp://host:8786, not {cluster!r}"
        )
    if given or options["print_job"]:
        name = next((name for name, field in JOB_OPTIONS.items() if field in given), "print_job")
        flag = {"job_directives": "--job-directive"}.get(name, f"--{name.replace('_', '-')}")
        raise click.UsageError(f"{flag} is for batch jobs: add --cluster {', '.join(BATCH)}")
    return cluster


@click.command()
@click.argument("address")
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: 1, or one a GPU]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda (all GPUs) or cuda:INDEX.")
@click.option("--cpus", type=click.IntRange(min=1), help="Cores to share among them.  [default: those of this machine]")
@click.option("--name", help="Of the first worker; the others are NAME-1, NAME-2, ...")
@click.option("--interface", help="The network to the scheduler, as in ib0.")
@click.option("--tls-ca-file", type=click.Path(path_type=Path), help="Of a tls:// scheduler: its authority.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="This worker's certificate.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="And its key.")
def worker(address: str, device: str, workers: int | None, cpus: int | None, **options: Any) -> None:
    """Work for the Dask scheduler at ADDRESS, until it ends.

    One process a GPU, which sees that GPU alone, with its share of the cores for decoding beside it. Batch jobs of
    `amex extract --cluster slurm` run this command; in a container or on a machine of your own, start it yourself:

    \b
    dask scheduler --host 10.0.0.1
    amex worker tcp://10.0.0.1:8786                 (on each machine that is to help)
    amex extract --cluster tcp://10.0.0.1:8786 ...

    Whoever can reach a scheduler can run code on its workers. On a network that others use, give it keys (tls://).
    """
    from dask.system import CPU_COUNT

    from ..extract.encoders.networks import choose_device
    from ..extract.run.cluster import gpus_of, serve
    from ..extract.run.keys import security_of

    keys = [options.pop(f"tls_{name}") for name in ("ca_file", "cert", "key")]
    if any(keys) != all(keys):
        raise click.UsageError("--tls-ca-file, --tls-cert and --tls-key belong together")
    device = choose_device(device)
    serve(
        address,
        workers=workers or default_workers(device),
        gpus=gpus_of(device),
        cpus=cpus or CPU_COUNT,
        security=security_of(*keys) if all(keys) else None,
        **options,
    )


def default_workers(device: str) -> int:
    """One, or one a GPU."""
    from ..extract.run.cluster import gpus_of

    return len(gpus_of(device)) or 1
