"""``amex extract`` and ``amex streams``: from what the command line says to a run, and its result to text."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from ..console import STORAGE_PATH, console, json_option
from ..errors import plural, printable
from ..extract.limits import DEADLINE, LONGEST_FRAME, PART_CLIPS, PART_MINUTES, STALL
from .worker import cluster_options, default_workers, where


class Positive(click.FloatRange):
    """A number above zero, and neither NaN nor infinite."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@click.command()
def streams() -> None:
    """List the streams and the presets that `amex extract` knows."""
    from rich.table import Table

    from ..extract.encoders.networks import NETWORKS
    from ..extract.encoders.objects import ALIASES
    from ..extract.encoders.presets import DEFAULT_PRESET, PRESETS
    from ..extract.encoders.registry import KINDS
    from ..extract.encoders.text import DEFAULT_MODELS

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


@click.command()
@click.option("--manifest", "manifest_path", type=click.Path(path_type=Path), help="The clips, from `manifest build`.")
@click.option("--dataset", help="Instead of --manifest: a data set by name (folder for your own videos).")
@click.option("--annotations", type=click.Path(path_type=Path), help="Its annotations, as `manifest build` takes them.")
@click.option("--protocol", help="Which of its published splits.")
@click.option(
    "--videos",
    type=STORAGE_PATH,
    help="The folder the videos are in, any layout, or s3://... or https://...; not needed for text alone.",
)
@click.option(
    "--store",
    required=True,
    type=STORAGE_PATH,
    help="The Zarr store to write or to go on with: a folder, or s3://BUCKET/NAME.",
)
@click.option(
    "--stream",
    "stream_names",
    multiple=True,
    metavar="NAME[=NETWORK]",
    help="What to compute; repeat for several, all in one pass over each video. `amex streams` lists what there is. "
    "NAME=NETWORK keeps a variant under a name of its own; NETWORK may also be mmdet:CONFIG, clip:MODEL or text:MODEL."
    "  [default: r2plus1d_18]",
)
@click.option("--preset", "presets", multiple=True, metavar="NAME=PRESET", help="Feed a stream by another convention.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME.KEY=VALUE",
    help="One option of a stream. Windows: fps (a number or native) or count (so many samples a clip), at (shown or "
    "nearest: the frame on screen, or the nearest in time), frames, step, stride (in samples), tail (pad or drop). "
    "Objects: fps or count, at, boxes, score (the lowest), classes (a,b,...). Text: layers, max_tokens. For example "
    "--set r2plus1d_18.stride=8",
)
@click.option(
    "--text-encoder",
    metavar="MODEL",
    help="What text_bert is: minilm (needs no download), a directory, or a name on the model hub.  "
    "[default: BERT base, uncased]",
)
@click.option(
    "--weights",
    multiple=True,
    metavar="NAME=WHICH",
    help="A checkpoint file (of CLIP and text models: a directory), `default` (published, downloaded once), or "
    "random:SEED to try things out.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto (a GPU where the workers have one), cpu, cuda (all GPUs) or cuda:INDEX.",
)
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    help="auto is bf16 where the device computes in it: faster, and part of what the store remembers.",
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="torch.compile the networks of windows: faster after 30 s; needs a C++ compiler.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Windows, or frames with objects, a batch.  [default: 1 on a CPU; on a GPU 16, and 4 with objects]",
)
@cluster_options
@click.option(
    "--part-clips",
    default=PART_CLIPS,
    show_default=True,
    type=click.IntRange(min=1),
    help="Clips a group. Groups are cut into parts, which are written together; a crash loses the parts in flight.",
)
@click.option(
    "--part-minutes",
    default=PART_MINUTES,
    show_default=True,
    type=Positive(),
    help="Minutes of video a part, at most, as expected from clips and file sizes. The clips of a video stay together.",
)
@click.option(
    "--partition",
    metavar="K/N",
    help="Only every N-th group, from the K-th (0 to N-1): for job arrays, whose tasks know nothing of each other.",
)
@click.option(
    "--deadline",
    default=DEADLINE,
    show_default=True,
    metavar="SECONDS",
    type=Positive(),
    help="Time without a later frame after which a decoder is killed.",
)
@click.option(
    "--longest-frame",
    default=LONGEST_FRAME,
    show_default=True,
    metavar="SECONDS",
    type=click.IntRange(min=1),
    help="Longest time one frame may be shown. A longer frame is damage; raise it for slides.",
)
@click.option(
    "--damaged",
    default="fail",
    show_default=True,
    type=click.Choice(["fail", "keep"]),
    help="If a video is damaged part-way: fail the clip, or keep the windows before the damage.",
)
@click.option(
    "--stall",
    default=STALL,
    show_default=True,
    metavar="SECONDS",
    type=click.IntRange(min=1),
    help="End a worker that makes no progress for this long; the video it worked on fails.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many clips of the manifest.")
@click.option("--retry-failed", is_flag=True, help="Also try clips again that failed before.")
@click.option(
    "--changed",
    default="recompute",
    show_default=True,
    type=click.Choice(["recompute", "keep"]),
    help="What to do with clips whose times or video changed since extraction.",
)
@click.option(
    "--digest",
    is_flag=True,
    help="Record the sha256 of video files. A file that has only a new time of modification is then the same file.",
)
@click.option("--repair", is_flag=True, help="First read every byte in the store; compute damaged parts again.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done, how long and how many bytes; do nothing. Needs no weights."
)
@json_option
def extract(**options: Any) -> None:
    """Compute what the store lacks of the clips, and only that.

    The same command resumes an interrupted run, follows a manifest that has grown, and adds streams. A video that
    cannot be read costs its own clips alone: `amex features failures STORE` says which and why.

    \b
    amex extract --dataset folder --videos DIR --store my.zarr
    amex extract --dataset youcook2 --annotations youcookii_annotations_trainval.json --videos DIR --store yc2.zarr
                 --stream r2plus1d_18 --stream resnet152

    Exit status: 0 all done; 3 finished, but some clips failed; 1 an error; 2 wrong usage; 130 interrupted.
    """
    from ..extract.encoders.networks import choose_device
    from ..extract.run.batch import job_script
    from ..extract.run.cluster import allocation, first_task, gpus_of, serve
    from ..extract.run.job import jobs_folder

    cluster = where(options)
    folder = jobs_folder(options["store"])
    if options["print_job"]:
        return click.echo(job_script(cluster, folder), nl=False)
    if cluster != "runner":
        return compute(options, cluster)
    number, listed = allocation(folder)
    if number == 0:
        with first_task(listed):
            return compute(options, cluster)
    device = choose_device(options["device"])
    workers = options["workers"] or default_workers(device)
    serve(None, listed=listed, workers=workers, gpus=gpus_of(device), name=str(number))


def compute(options: dict[str, Any], cluster: Any) -> None:
    """Checks all options, then runs."""
    from ..extract.encoders.registry import is_text
    from ..extract.run.display import choose_display
    from ..extract.run.job import extract as run
    from ..manifests import VideoFinder, dataset, scan_manifest

    if (options["manifest_path"] is None) == (options["dataset"] is None):
        raise click.UsageError("give either --manifest or --dataset")
    if options["repair"] and options["dry_run"]:
        raise click.UsageError("--dry-run repairs nothing: `amex features verify STORE` says what is damaged")
    if options["dataset"] == "folder" and not options["annotations"]:
        if not options["videos"]:
            raise click.UsageError("--dataset folder needs --videos")
        VideoFinder(options["videos"])  # says what is wrong with the folder
    if options["dataset"]:
        annotations = options["annotations"] or (options["videos"] if options["dataset"] == "folder" else None)
        if annotations is None:
            raise click.UsageError(f"--dataset {options['dataset']} needs --annotations")
        items = dataset(options["dataset"]).scan(annotations, options["protocol"])
    else:
        items = list(scan_manifest(options["manifest_path"]))
    items = limited(items, options["limit"])
    options["partition"] = partition_of(options["partition"])
    if options["videos"] is None and not all(map(is_text, stream_networks(options).values())):
        raise click.UsageError("give --videos: only streams of text need none")
    device, precision = where_computed(options, cluster)
    plans = stream_plans(options, device, precision)
    if options["dry_run"]:
        return dry_run(items, plans, device, options)
    outcome = run(
        items,
        plans,
        store=options["store"],
        videos=options["videos"],
        device=device,
        workers=options["workers"] or default_workers(device),
        display=choose_display(console(stderr=True), quiet=options["as_json"]),
        cluster=cluster,
        partition=options["partition"],
        keep_changed=options["changed"] == "keep",
        longest_frame=options["longest_frame"],
        keep_damaged=options["damaged"] == "keep",
        **{
            name: options[name]
            for name in ("part_clips", "part_minutes", "deadline", "stall", "retry_failed", "digest", "repair")
        },
    )
    print_outcome(outcome, options["store"], as_json=options["as_json"])
    sys.exit(outcome.exit_code)


def limited(items: list, clips: int | None) -> list:
    """The first so many clips, and all problems."""
    from ..manifests import Clip

    first = {id(item) for item in [item for item in items if isinstance(item, Clip)][:clips]}
    return [item for item in items if not isinstance(item, Clip) or id(item) in first]


def where_computed(options: dict[str, Any], cluster: Any) -> tuple[str, str]:
    """Device and precision, of the machines that will do the work; of this one where it times a dry run."""
    from ..extract.encoders.networks import choose_device, choose_precision
    from ..extract.run.batch import Jobs
    from ..extract.run.job import choose_with_workers

    device, precision = options["device"], options["precision"]
    jobs = isinstance(cluster, Jobs)
    elsewhere = jobs or "://" in cluster
    if jobs and device == "auto":
        device = "cuda" if cluster.gpus else "cpu"
    if options["dry_run"] and elsewhere and device != "cpu":
        device = choose_device("auto")  # login nodes have no GPU, and then the precision may not be one for a CPU
        precision = precision if device != "cpu" else "auto"
    elif not elsewhere:
        device = choose_device(device)
    elif not jobs and "auto" in (device, precision):
        return choose_with_workers(cluster, device, precision)
    return device, choose_precision(precision, device)


def stream_plans(options: dict[str, Any], device: str, precision: str) -> list:
    """The streams that the options describe."""
    from ..extract.encoders.registry import plan_stream
    from ..features.schema import StoreError, stream_path

    names = stream_networks(options)
    presets = dict(pair(text) for text in options["presets"])
    weights = dict(pair(text) for text in options["weights"])
    settings: dict[str, dict[str, str]] = {}
    for key, value in map(pair, options["settings"]):
        name, dot, option = key.rpartition(".")
        if not dot:
            raise click.UsageError(f"--set takes NAME.KEY=VALUE, got {key}={value}")
        settings.setdefault(name, {})[option] = value
    for option, given in (("--preset", presets), ("--weights", weights), ("--set", settings)):
        for name in given.keys() - names.keys():
            raise click.UsageError(f"{option} names {name!r}, which is no stream of this run: {', '.join(names)}")
    if options["text_encoder"] and "text_bert" not in names.values():
        raise click.UsageError("--text-encoder says what text_bert is: add --stream text_bert")
    plans = []
    for name, network in names.items():
        try:
            stream_path(options["store"], name)
        except StoreError as error:
            raise click.UsageError(str(error)) from error
        if network == "text_bert" and options["text_encoder"]:
            network = f"text:{options['text_encoder']}"
        plans.append(
            plan_stream(
                name,
                network,
                device=device,
                precision=precision,
                weights=weights.get(name, "default"),
                preset=presets.get(name),
                options=settings.get(name, {}),
                compiled=options["compiled"],
                batch_size=options["batch_size"],
                random_weights=options["dry_run"],
            )
        )
    return plans


def stream_networks(options: dict[str, Any]) -> dict[str, str]:
    """The network of each stream that --stream names."""
    return dict(pair(text, alone=True) for text in options["stream_names"] or ("r2plus1d_18",))


def pair(text: str, alone: bool = False) -> tuple[str, str]:
    """``A=B`` as (A, B); with ``alone``, ``A`` as (A, A)."""
    left, equals, right = text.partition("=")
    if not left or (not right and not (alone and not equals)):
        raise click.UsageError(f"expected STREAM=VALUE, as in r2plus1d_18=random:0, got {text!r}")
    return left, right or left


def partition_of(text: str | None) -> Any:
    """``K/N`` as a partition; None where none is asked for."""
    from ..extract.run.plan import Partition

    if text is None:
        return None
    try:
        number, of = (int(word) for word in text.split("/"))
        return Partition(number, of)
    except ValueError as error:
        raise click.UsageError(f"--partition takes K/N with K from 0 to N-1, as in 3/64, got {text!r}") from error


def dry_run(items: list, plans: list, device: str, options: dict[str, Any]) -> None:
    from ..extract.run.plan import VideoFiles, changed_text, estimate, existing, plan_tasks
    from ..manifests import Clip, VideoFinder

    clips = [item for item in items if isinstance(item, Clip)]
    streams = {plan.name: existing(options["store"], plan.name) for plan in plans}
    keep = options["changed"] == "keep"
    seeing = any("sampling" in plan.spec for plan in plans)
    files = VideoFiles(VideoFinder(options["videos"]), keep=keep) if seeing else None
    kept = {name: options[name] for name in ("part_clips", "part_minutes", "retry_failed", "partition")}
    bounds = {name: options[name] for name in ("deadline", "longest_frame")}
    found = estimate(plan_tasks(clips, files, plans, streams, **kept), options["videos"], plans, device, **bounds)
    changed = Counter(files.changed.values()) if files is not None else {}
    if options["as_json"]:
        click.echo(json.dumps(dataclasses.asdict(found) | {"changed": changed}, indent=1))
        return
    text = f" and {plural(found.captions, 'caption')}" if found.captions else ""
    click.echo(
        f"would compute {found.clips:,} of {plural(len(clips), 'clip')}{text}, {plural(found.videos, 'video')} in "
        f"{plural(found.parts, 'part')}"
    )
    if changed:
        click.echo(f"  {changed_text(changed, keep)}")
    if found.missing_videos:
        click.echo(
            f"  not below {options['videos']}, and so recorded as failed: {plural(found.missing_videos, 'video')}"
        )
    for note in files.finder.notes() if files is not None else ():
        click.echo(f"  {note}")
    for name, rows in found.rows.items():
        click.echo(f"  {name}: about {rows:,} rows")
    click.echo(f"  about {duration(found.video_hours)} of video, {decimal(found.bytes)} before compression")
    which = "a GPU" if device != "cpu" else "the CPU"
    click.echo(
        f"  about {duration(found.hours)} on one worker, timed on {which} of this machine just now; "
        f"{duration(found.decoding_hours)} of it decoding"
    )


def duration(hours: float) -> str:
    """In the unit that suits it."""
    for size, unit in ((1.0, "hours"), (1 / 60, "minutes")):
        if hours >= size:
            return f"{hours / size:,.1f} {unit}"
    return f"{hours * 3600:.0f} seconds"


def print_outcome(outcome: Any, store: Path, *, as_json: bool) -> None:
    record = {
        "report": vars(outcome.report),
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
    for name, counts in outcome.states.items():
        click.echo(f"  {name}: " + ", ".join(f"{count:,} {state}" for state, count in counts.items()))
    for name in outcome.repaired:
        click.echo(f"  repaired: {name}")
    for note in outcome.notes:
        click.echo(f"  {note}")
    for problem in outcome.problems[:5]:
        click.echo(f"  manifest: {problem}", err=True)
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
