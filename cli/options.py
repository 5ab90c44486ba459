"""What commands share: types and decorators of options, and what the options of ``amex extract`` say, in one object."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..extract.limits import (
    DEADLINE,
    DECODERS,
    GPU_PART_CLIPS,
    GPU_PART_MINUTES,
    LONGEST_FRAME,
    MOST_FEEDERS,
    PART_CLIPS,
    PART_MINUTES,
    STALL,
)

Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


class StoragePath(click.ParamType):
    """A folder, or an address such as s3://BUCKET/NAME."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..storage import open_path

        return open_path(value)


class Positive(click.FloatRange):
    """A number above zero, up to ``most``, and neither NaN nor infinite."""

    def __init__(self, most: float | None = None) -> None:
        super().__init__(min=0, min_open=True, max=most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class StreamValue(click.ParamType):
    """``STREAM=VALUE`` as (stream, value).

    Args:
        optional: whether ``STREAM`` alone may stand for ``STREAM=STREAM``.
    """

    name = "stream=value"

    def __init__(self, *, optional: bool = False) -> None:
        self.optional = optional

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        stream, equals, rest = value.partition("=")
        if not stream or (not rest and not (self.optional and not equals)):
            self.fail(f"expected STREAM=VALUE, as in r2plus1d_18=random:0, got {value!r}", param, ctx)
        return stream, rest or stream


class StreamSetting(click.ParamType):
    """``STREAM.KEY=VALUE`` as (stream, key, value)."""

    name = "stream.key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str, str]:
        path, equals, text = value.partition("=")
        stream, _, key = path.rpartition(".")
        if not (stream and key and equals):
            self.fail(f"expected NAME.KEY=VALUE, as in r2plus1d_18.stride=8, got {value!r}", param, ctx)
        return stream, key, text


class PartitionNumber(click.ParamType):
    """``K/N`` as (K, N), K from 0 to N-1."""

    name = "k/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        try:
            number, of = (int(word) for word in value.split("/"))
        except ValueError:
            number, of = 0, 0
        if not 0 <= number < of:
            self.fail(f"expected K/N with K from 0 to N-1, as in 3/64, got {value!r}", param, ctx)
        return number, of


STORAGE_PATH = StoragePath()
POSITIVE = Positive()
FILE = click.Path(path_type=Path)


def added(options: list[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """A decorator that adds several options, in the order in which ``--help`` lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


root_option = click.option(
    "--root", type=FILE, help="The folder that has known data sets by name.  [default: $AMEX_ROOT, or ./data]"
)
dataset_option = click.option(
    "--dataset",
    metavar="NAME[:PROTOCOL]",
    help="A known data set, for its store and manifest below the data root. `amex datasets` lists them.",
)
workers_per_gpu_option = click.option(
    "--workers-per-gpu",
    type=click.IntRange(min=1),
    help="Workers that share each GPU, for networks that leave half of it idle. Each has its share of the cores.  "
    "[default: 1]",
)

clip_options = added(
    [
        click.option("--manifest", "manifest_path", type=FILE, help="Instead of FOLDER: clips of `amex manifest`."),
        click.option(
            "--dataset",
            metavar="NAME[:PROTOCOL]",
            help="Instead of FOLDER: a known data set, with one of its published splits. `amex datasets` lists them.",
        ),
        click.option("--protocol", help="The same as NAME:PROTOCOL."),
        root_option,
        click.option(
            "--annotations",
            type=FILE,
            help="The folder of the annotation files, or the one there is; with FOLDER the file of captions.  "
            "[default: ROOT/NAME/annotations; captions.csv or captions.jsonl in FOLDER]",
        ),
        click.option(
            "--videos",
            type=STORAGE_PATH,
            help="The folder the videos are in, any layout, or s3://... or https://...; not needed for text alone.  "
            "[default: FOLDER, or ROOT/NAME/videos]",
        ),
        click.option(
            "--store",
            type=STORAGE_PATH,
            help="The Zarr store to write or to go on with: a folder, or s3://BUCKET/NAME.  "
            "[default: ROOT/NAME/features.zarr; must be given for FOLDER and --manifest]",
        ),
    ]
)

stream_options = added(
    [
        click.option(
            "--stream",
            "streams",
            multiple=True,
            type=StreamValue(optional=True),
            metavar="NAME[=NETWORK]",
            help="What to compute; repeat for several, all in one pass over each video. `amex streams` lists what "
            "there is. NAME=NETWORK keeps a variant under a name of its own; NETWORK may also be frames:MODEL or "
            "video:MODEL (transformers), timm:MODEL, python:MODULE:FACTORY (your own), mmdet:CONFIG, clip:MODEL or "
            "text:MODEL.  [default: clip_vit_b32, or where that cannot be downloaded efficientnet_lite2: `amex search` "
            "can search both without training; with captions also text_clip, or text_bert by minilm]",
        ),
        click.option(
            "--recipe",
            "recipes",
            multiple=True,
            metavar="NAME",
            help="The streams that a paper's users extract, such as clip4clip, under its names and fed by its "
            "convention. `amex streams --recipes` lists them. --weights and --set apply as to streams of yours, and "
            "--stream adds to them.",
        ),
        click.option(
            "--preset",
            "presets",
            multiple=True,
            type=StreamValue(),
            metavar="NAME=PRESET",
            help="Feed a stream by another convention.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            type=StreamSetting(),
            metavar="NAME.KEY=VALUE",
            help="One option of a stream. Windows: fps (a number or native) or count (so many samples a clip), at "
            "(shown or nearest: the frame on screen, or the nearest in time), frames, step, stride (in samples), tail "
            "(pad or drop); frames:, video: and timm: also pooling and layer. Objects: fps or count, at, boxes, score "
            "(the lowest), classes (a,b,...). Text: layers, max_tokens. For example --set r2plus1d_18.stride=8",
        ),
        click.option(
            "--text-encoder",
            metavar="MODEL",
            help="What text_bert is: minilm (needs no download), a directory, or a name on the model hub.  "
            "[default: BERT base, uncased]",
        ),
        click.option(
            "--weights",
            multiple=True,
            type=StreamValue(),
            metavar="NAME=WHICH",
            help="A checkpoint file (of CLIP and text models: a directory), `default` (published, downloaded once), "
            "or random:SEED to try things out.",
        ),
    ]
)

compute_options = added(
    [
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="auto (a GPU where the workers have one), cpu, cuda (all GPUs) or cuda:INDEX.",
        ),
        click.option(
            "--precision",
            default="auto",
            show_default=True,
            type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
            help="auto is bf16 where the device computes in it: faster, and part of what the store remembers.",
        ),
        click.option(
            "--compile",
            "compiled",
            is_flag=True,
            help="torch.compile the networks of windows: faster after 30 s; needs a C++ compiler.",
        ),
        click.option(
            "--deterministic",
            is_flag=True,
            help="On a GPU, choose kernels by their repeatability, not by speed. Part of what the store remembers.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            help="Windows, or frames with objects, a batch.  [default: 1 on a CPU; on a GPU 16, and 4 with objects]",
        ),
    ]
)

# Options of batch jobs -> what they are in `Jobs`.
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

cluster_options = added(
    [
        click.option(
            "--workers", type=click.IntRange(min=1), help="Processes on this machine.  [default: 1, or one a GPU]"
        ),
        workers_per_gpu_option,
        click.option(
            "--feeders",
            type=click.IntRange(min=1),
            help="Processes a worker that decode and transform, each its own video.  [default: with a GPU as many as "
            f"the worker has cores, at most {MOST_FEEDERS}; on a CPU a quarter of its cores, at least 1]",
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
        click.option("--gpus-per-job", type=click.IntRange(min=0), help="A worker for each; none computes on the CPU."),
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
    ]
)

run_options = added(
    [
        click.option(
            "--part-clips",
            type=click.IntRange(min=1),
            help="Clips a group. Groups are cut into parts, which are written together; a crash loses the parts in "
            f"flight.  [default: {PART_CLIPS}; on a GPU {GPU_PART_CLIPS}, but not with --partition]",
        ),
        click.option(
            "--part-minutes",
            type=POSITIVE,
            help="Minutes of video a part, at most, as expected from clips and file sizes. The clips of a video stay "
            f"together.  [default: {PART_MINUTES:g}; on a GPU {GPU_PART_MINUTES:g}]",
        ),
        click.option(
            "--partition",
            type=PartitionNumber(),
            metavar="K/N",
            help="Only every N-th group, from the K-th (0 to N-1): for job arrays, whose tasks know nothing of each "
            "other.",
        ),
        click.option(
            "--deadline",
            default=DEADLINE,
            show_default=True,
            metavar="SECONDS",
            type=POSITIVE,
            help="Time without a later frame after which a decoder is killed.",
        ),
        click.option(
            "--longest-frame",
            default=LONGEST_FRAME,
            show_default=True,
            metavar="SECONDS",
            type=click.IntRange(min=1),
            help="Longest time one frame may be shown. A longer frame is damage; raise it for slides.",
        ),
        click.option(
            "--decoder",
            default="auto",
            show_default=True,
            type=click.Choice(list(DECODERS)),
            help="auto: decord for the files that it serves right, PyAV for all others. nvdec: the GPU's own decoder. "
            "PyAV serves what the chosen one cannot. A choice other than auto is part of what the store remembers.",
        ),
        click.option(
            "--damaged",
            default="fail",
            show_default=True,
            type=click.Choice(["fail", "keep"]),
            help="If a video is damaged part-way: fail the clip, or keep the windows before the damage.",
        ),
        click.option(
            "--stall",
            default=STALL,
            show_default=True,
            metavar="SECONDS",
            type=click.IntRange(min=1),
            help="End a worker that makes no progress for this long; the video it worked on fails.",
        ),
        click.option("--limit", type=click.IntRange(min=1), help="Only the first so many clips of the manifest."),
        click.option("--retry-failed", is_flag=True, help="Also try clips again that failed before."),
        click.option(
            "--changed",
            default="recompute",
            show_default=True,
            type=click.Choice(["recompute", "keep"]),
            help="What to do with clips whose times or video changed since extraction.",
        ),
        click.option(
            "--digest",
            is_flag=True,
            help="Record the sha256 of video files. A file that has only a new time of modification is then the same "
            "file.",
        ),
        click.option("--repair", is_flag=True, help="First read every byte in the store; compute damaged parts again."),
        click.option(
            "--dry-run",
            is_flag=True,
            help="Say what would be done, how long and how many bytes; do nothing. Needs no weights.",
        ),
    ]
)


# Streams of a run that names none, the first choice first; the last is what earlier versions computed.
USUAL = ("clip_vit_b32", "efficientnet_lite2", "r2plus1d_18")


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """What the command line of ``amex extract`` says, under the names of its options.

    Attributes:
        dataset: ``folder`` for videos of one's own.
        store, videos: filled in by ``places.placed`` where they are left out.
        streams: (name, network) of each ``--stream``; so are ``presets`` and ``weights``, by stream.
        settings: (stream, key, value) of each ``--set``.
        partition: (K, N).
    """

    folder: Path | None
    manifest_path: Path | None
    dataset: str | None
    protocol: str | None
    root: Path | None
    annotations: Path | None
    videos: Path | None
    store: Path
    streams: tuple[tuple[str, str], ...]
    recipes: tuple[str, ...]
    presets: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str, str], ...]
    text_encoder: str | None
    weights: tuple[tuple[str, str], ...]
    device: str
    precision: str
    compiled: bool
    deterministic: bool
    batch_size: int | None
    workers: int | None
    workers_per_gpu: int | None
    feeders: int | None
    cluster: str
    jobs: int | None
    queue: str | None
    account: str | None
    cpus: int | None
    memory: str | None
    gpus_per_job: int | None
    walltime: str | None
    job_directives: tuple[str, ...]
    job_prologue: tuple[str, ...]
    interface: str | None
    print_job: bool
    part_clips: int | None
    part_minutes: float | None
    partition: tuple[int, int] | None
    deadline: float
    longest_frame: int
    decoder: str
    damaged: str
    stall: int
    limit: int | None
    retry_failed: bool
    changed: str
    digest: bool
    repair: bool
    dry_run: bool
    as_json: bool

    @property
    def networks(self) -> dict[str, str]:
        """The network of each stream, by the stream's name in the store; where none is named, the default's.

        An option for one of the streams that are computed by default chooses it.
        """
        if self.streams:
            return dict(self.streams)
        named = {*dict(self.weights), *dict(self.presets), *self.stream_settings}
        return {name: name for name in USUAL if name in named} or {USUAL[0]: USUAL[0]}

    @property
    def stream_settings(self) -> dict[str, dict[str, str]]:
        """What ``--set`` says, by stream."""
        settings: dict[str, dict[str, str]] = {}
        for stream, key, value in self.settings:
            settings.setdefault(stream, {})[key] = value
        return settings
