"""``amex extract``: from the command line to a run."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ..console import console
from ..extracting import default_networks_in, default_streams, has_stream, plan_streams
from .options import (
    JOB_OPTIONS,
    ExtractOptions,
    clip_options,
    cluster_options,
    compute_options,
    json_option,
    run_options,
    stream_options,
)
from .outcome import dry_run, print_outcome
from .parameters import STORAGE_PATH
from .places import known, placed, scan
from .remembering import remember
from .worker import default_workers


@click.command()
@click.argument("folder", required=False, type=STORAGE_PATH)
@clip_options
@stream_options
@compute_options
@cluster_options
@run_options
@json_option
def extract(**given: Any) -> None:
    """Extract features of videos and captions into a store.

    Missing features are extracted, existing ones are skipped. The same command resumes an interrupted run, follows a
    manifest that has grown, and adds streams. If a video cannot be read, only its own clips fail: `amex features
    failures STORE` lists them with the reasons.

    FOLDER contains your own videos, and optionally captions.csv with columns video and caption, and optionally start,
    end and split. A known data set needs only its name: missing annotations are downloaded, videos are read from
    ROOT/NAME/videos, features are written to ROOT/NAME/features.zarr, and `amex train --dataset NAME` finds them there.

    \b
    amex extract my_videos --store my.zarr
    amex extract --dataset youcook2
    amex extract --dataset msrvtt:full --videos DIR --store msrvtt.zarr --stream r2plus1d_18 --stream resnet152

    Exit status: 0 all clips are done; 3 finished, but some clips failed; 1 error; 2 wrong usage; 130 interrupted.
    """
    from ..extract.run import allocation, first_task, job_script, jobs_folder

    options = ExtractOptions(**given)
    if not (options.print_job and options.store):
        options = placed(options)
    cluster = chosen_cluster(options)
    folder = jobs_folder(options.store)
    if options.print_job:
        return click.echo(job_script(cluster, folder), nl=False)
    if cluster != "runner":
        return compute(options, cluster)
    number, address_file = allocation(folder)
    if number == 0:
        with first_task(address_file):
            return compute(options, cluster)
    join(options, number, address_file)


def chosen_cluster(options: ExtractOptions) -> Any:
    """Return the cluster that the options describe: batch jobs, a word (local, runner) or an address."""
    from ..extract.run import BATCH, Jobs

    cluster = options.cluster
    job_options = {
        field: value for name, field in JOB_OPTIONS.items() if (value := getattr(options, name)) not in (None, (), 0)
    }
    if cluster in BATCH:
        if options.workers:
            raise click.UsageError(
                "--workers is for this machine: a batch job has one worker, or one a GPU; say --jobs N, "
                "--gpus-per-job N, --workers-per-gpu N"
            )
        if options.workers_per_gpu and not options.gpus_per_job:
            raise click.UsageError("--workers-per-gpu is for jobs with GPUs: add --gpus-per-job N")
        for value in job_options.values():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and not text.isprintable():
                    raise click.UsageError(f"{text!r} cannot stand in a job script")
        defaults = {"count": 1, "cpus": 8, "memory": "32GB"}
        return Jobs(system=cluster, workers_per_gpu=options.workers_per_gpu or 1, **defaults | job_options)
    if "://" in cluster:
        for flag, value in (("--workers", options.workers), ("--workers-per-gpu", options.workers_per_gpu)):
            if value:
                raise click.UsageError(
                    f"{flag} is for this machine: on others, start them with amex worker {cluster} {flag} {value}"
                )
    elif cluster not in ("local", "runner"):
        names = ", ".join(("local", *BATCH, "runner"))
        raise click.UsageError(
            f"--cluster takes {names}, or a scheduler's address like tcp://host:8786, not {cluster!r}"
        )
    if job_options or options.print_job:
        name = next((name for name, field in JOB_OPTIONS.items() if field in job_options), "print_job")
        flag = {"job_directives": "--job-directive"}.get(name, f"--{name.replace('_', '-')}")
        raise click.UsageError(f"{flag} is for batch jobs: add --cluster {', '.join(BATCH)}")
    return cluster


def join(options: ExtractOptions, number: int, address_file: Path) -> None:
    """Work for the first task of an allocation, as task ``number``."""
    from ..extract.encoders import choose_device
    from ..extract.run import gpus_of, run_workers

    device = choose_device(options.device)
    workers = default_workers(device, options.workers, options.workers_per_gpu)
    run_workers(None, address_file=address_file, workers=workers, gpus=gpus_of(device), name=str(number))


def compute(options: ExtractOptions, cluster: Any) -> None:
    """Check all options, cheap checks first, then run."""
    options = with_recipes(options)
    every = clips_of(options)
    items = limited(every, options.limit)
    check_streams(options)
    with started(options, cluster, items) as cluster:
        from ..extract.run import Partition, choose_display
        from ..extract.run import extract as run
        from ..manifests import Clip

        options = with_default_stream(options, items)
        device, precision = where_computed(options, cluster)
        plans = stream_plans(options, device, precision)
        if options.dry_run:
            return dry_run(items, plans, device, options)
        clips = [item for item in every if isinstance(item, Clip)]
        try:
            outcome = run(
                items,
                plans,
                store=options.store,
                videos=options.videos,
                device=device,
                workers=default_workers(device, options.workers, options.workers_per_gpu),
                feeders=options.feeders,
                deterministic=options.deterministic,
                display=choose_display(console(stderr=True), quiet=options.as_json),
                cluster=cluster,
                partition=Partition(*options.partition) if options.partition else None,
                keep_changed=options.changed == "keep",
                longest_frame=options.longest_frame,
                keep_damaged=options.damaged == "keep",
                decoder=options.decoder,
                part_clips=options.part_clips,
                part_minutes=options.part_minutes,
                deadline=options.deadline,
                stall=options.stall,
                retry_failed=options.retry_failed,
                digest=options.digest,
                repair=options.repair,
            )
        except KeyboardInterrupt:  # committed features can already be searched
            if (options.store / "zarr.json").exists():
                remember(options, clips)
            raise
    print_outcome(outcome, options.store, as_json=options.as_json)
    remember(options, clips)
    sys.exit(outcome.exit_code)


def clips_of(options: ExtractOptions) -> list:
    """Return the clips that the options name, and the problems of others. Reads lists and annotations, no videos."""
    from ..manifests import VideoFinder, add_val_split, scan_folder, scan_manifest

    if options.repair and options.dry_run:
        raise click.UsageError("--dry-run repairs nothing: `amex features verify STORE` says what is damaged")
    if options.manifest_path is not None:
        return list(scan_manifest(options.manifest_path))
    if options.dataset == "folder":
        VideoFinder(options.videos)  # says what is wrong with the folder
        return add_val_split(scan_folder(options.videos, options.annotations))
    return scan(known(options.dataset, options.root, options.protocol), options.annotations)


def limited(items: list, clips: int | None) -> list:
    """Return the first ``clips`` clips, and all problems."""
    from ..manifests import Clip

    first = {id(item) for item in [item for item in items if isinstance(item, Clip)][:clips]}
    return [item for item in items if not isinstance(item, Clip) or id(item) in first]


def with_recipes(options: ExtractOptions) -> ExtractOptions:
    """Return the options with the streams of --recipe added; the user's own options take precedence."""
    from ..extract.encoders import find_recipe

    for name in reversed(options.recipes):
        recipe = find_recipe(name)
        for stream in recipe.streams.keys() & dict(options.streams).keys():
            raise click.UsageError(
                f"stream {stream!r} of recipe {name} is also one of another recipe or of --stream: to rename it, give "
                "the options of the recipe, which `amex streams --recipes` lists, one by one"
            )
        settings = ((stream, key, value) for stream, of in recipe.settings.items() for key, value in of.items())
        options = dataclasses.replace(
            options,
            streams=(*recipe.streams.items(), *options.streams),
            presets=(*recipe.presets.items(), *options.presets),
            settings=(*settings, *options.settings),
        )
    return options


def with_default_stream(options: ExtractOptions, items: list) -> ExtractOptions:
    """Return the options with streams; say which streams are chosen if the options name none.

    Raises:
        WeightsError: if the weights of no default network are available.
    """
    from ..manifests import Clip

    if options.streams:
        return options
    if options.weights or options.presets or options.settings:
        return dataclasses.replace(options, streams=tuple(options.networks.items()))
    captions = any(isinstance(item, Clip) and item.captions for item in items)
    streams, reason = default_streams(options.store, captions=captions, dry_run=options.dry_run)
    click.echo(f"computing {' and '.join(streams)}, {reason}; --stream chooses others", err=True)
    return dataclasses.replace(options, streams=tuple(streams.items()))


def check_streams(options: ExtractOptions) -> None:
    """Raise UsageError or AmexError for streams that are unknown or contradict each other."""
    from ..extract.encoders import check_network
    from ..features.schema import StoreError, stream_path

    networks = options.networks
    for name, count in Counter(name for name, _ in options.streams).items():
        if count > 1:
            raise click.UsageError(f"--stream gives {name!r} {count} times: give each a name of its own, NAME=NETWORK")
    by_option = {
        "--preset": dict(options.presets),
        "--weights": dict(options.weights),
        "--set": options.stream_settings,
    }
    for option, streams in by_option.items():
        for name in streams.keys() - networks.keys():
            raise click.UsageError(f"{option} names {name!r}, which is no stream of this run: {', '.join(networks)}")
    if options.text_encoder and "text_bert" not in networks.values():
        raise click.UsageError("--text-encoder sets the model of text_bert: add --stream text_bert")
    for name, network in networks.items():
        check_network(name, network)
        try:
            stream_path(options.store, name)
        except StoreError as error:
            raise click.UsageError(str(error)) from error


@contextlib.contextmanager
def started(options: ExtractOptions, cluster: Any, items: list) -> Iterator[Any]:
    """Yield the cluster. Start workers of this machine now, in parallel with planning, if there is certainly work.

    Both import the same libraries, which takes seconds. If the store has all streams there may be no work; the workers
    then start after planning.
    """
    from ..manifests import Clip

    named = options.networks if options.streams else default_networks_in(options.store) or options.networks
    absent = [name for name in named if not has_stream(options.store, name)]
    videos = {item.video for item in items if isinstance(item, Clip)}
    if cluster != "local" or options.dry_run or not absent or not videos:
        yield cluster
        return
    from ..extract.encoders import choose_device
    from ..extract.run import local

    device = choose_device(options.device)
    workers = default_workers(device, options.workers, options.workers_per_gpu)
    with local(min(workers, len(videos)), device) as running:
        yield running


def where_computed(options: ExtractOptions, cluster: Any) -> tuple[str, str]:
    """Return device and precision of the machines that will do the work."""
    from ..extract.encoders import choose_device, choose_precision
    from ..extract.run import Jobs, choose_on_workers

    device, precision = options.device, options.precision
    jobs = isinstance(cluster, Jobs)
    elsewhere = jobs or (isinstance(cluster, str) and "://" in cluster)
    if jobs and device == "auto":
        device = "cuda" if cluster.gpus else "cpu"
    if options.dry_run and elsewhere and device != "cpu":
        device = choose_device("auto")  # login nodes have no GPU, and then the precision may not be one for a CPU
        precision = precision if device != "cpu" else "auto"
    elif not elsewhere:
        device = choose_device(device)
    elif not jobs and "auto" in (device, precision):
        return choose_on_workers(cluster, device, precision)
    return device, choose_precision(precision, device)


def stream_plans(options: ExtractOptions, device: str, precision: str) -> list:
    """Plan the streams that the options describe."""
    return plan_streams(
        options.networks,
        device=device,
        precision=precision,
        presets=dict(options.presets),
        weights=dict(options.weights),
        settings=options.stream_settings,
        text_encoder=options.text_encoder,
        compiled=options.compiled,
        batch_size=options.batch_size,
        random_weights=options.dry_run,
    )
