"""Options that commands share, and the options of ``amex extract`` as one object."""

from __future__ import annotations

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
    MAX_FEEDERS,
    PART_CLIPS,
    PART_MINUTES,
    PRECISIONS,
    STALL,
)
from ..extracting import DEFAULT_NETWORKS
from .parameters import FILE, MANIFEST, POSITIVE, STORAGE_PATH, PartitionNumber, StreamSetting, StreamValue

Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def added(options: list[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """A decorator that adds several options, in the order in which ``--help`` lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


root_option = click.option("--root", type=FILE, help="The folder of known data sets.  [default: $AMEX_ROOT, or ./data]")
dataset_option = click.option(
    "--dataset",
    metavar="NAME[:PROTOCOL]",
    help="A known data set, or your own (python:MODULE:NAME): uses its store and manifest below the data root. "
    "`amex datasets` lists all.",
)
workers_per_gpu_option = click.option(
    "--workers-per-gpu",
    type=click.IntRange(min=1),
    help="Workers per GPU, for networks that leave half of it idle. They share the cores.  [default: 1]",
)

clip_options = added(
    [
        click.option(
            "--manifest", "manifest_path", type=MANIFEST, help="Instead of FOLDER: a manifest of `amex manifest`."
        ),
        click.option(
            "--dataset",
            metavar="NAME[:PROTOCOL]",
            help="Instead of FOLDER: a known data set and one of its published splits, or your own "
            "(python:MODULE:NAME). `amex datasets` lists all.",
        ),
        click.option("--protocol", help="The same as NAME:PROTOCOL."),
        root_option,
        click.option(
            "--annotations",
            type=FILE,
            help="The folder of the annotation files, or the only file; with FOLDER the file of captions.  "
            "[default: ROOT/NAME/annotations; captions.csv or captions.jsonl in FOLDER]",
        ),
        click.option(
            "--videos",
            type=STORAGE_PATH,
            help="The folder of the videos, in any layout, or s3://... or https://...; not needed for text alone.  "
            "[default: FOLDER, or ROOT/NAME/videos]",
        ),
        click.option(
            "--store",
            type=STORAGE_PATH,
            help="The Zarr store to create, or to add to: a folder, or s3://BUCKET/NAME.  "
            "[default: ROOT/NAME/features.zarr; required for FOLDER and --manifest]",
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
            help="A stream to extract; repeat for more, all in one pass over each video. `amex streams` lists all. "
            "NAME=NETWORK stores it under another name; NETWORK may also be frames:MODEL or video:MODEL "
            "(transformers), timm:MODEL, python:MODULE:FACTORY (your own), mmdet:CONFIG, clip:MODEL or text:MODEL.  "
            "[default: clip_vit_b32, or efficientnet_lite2 if CLIP cannot be downloaded; `amex search` can search "
            "both without training; with captions also text_clip, or text_bert by minilm]",
        ),
        click.option(
            "--recipe",
            "recipes",
            multiple=True,
            metavar="NAME",
            help="Extract the streams of a paper, such as clip4clip, with its names and its sampling. `amex streams "
            "--recipes` lists all. --weights and --set change them, and --stream adds to them.",
        ),
        click.option(
            "--preset",
            "presets",
            multiple=True,
            type=StreamValue(),
            metavar="NAME=PRESET",
            help="Sample and resize videos for a stream as this preset does. `amex streams` lists all.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            type=StreamSetting(),
            metavar="NAME.KEY=VALUE",
            help="Set an option of a stream. Windows: fps (a number or native) or count (samples per clip), at (shown "
            "or nearest: the frame on screen, or the nearest in time), frames, step, stride (in samples), tail (pad or "
            "drop); frames:, video: and timm: also pooling and layer. Objects: fps or count, at, boxes, score (the "
            "minimum), classes (a,b,...). Text: layers, max_tokens. For example --set r2plus1d_18.stride=8",
        ),
        click.option(
            "--text-encoder",
            metavar="MODEL",
            help="The model of text_bert: minilm (needs no download), a directory, or a name on the model hub.  "
            "[default: BERT base, uncased]",
        ),
        click.option(
            "--weights",
            multiple=True,
            type=StreamValue(),
            metavar="NAME=WHICH",
            help="The weights of a stream: a checkpoint file (for CLIP and text models a directory), default "
            "(published, downloaded once), or random:SEED for a trial.",
        ),
    ]
)

compute_options = added(
    [
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="auto (GPUs if the workers have any), cpu, cuda (all GPUs) or cuda:INDEX.",
        ),
        click.option(
            "--precision",
            default="auto",
            show_default=True,
            type=click.Choice(PRECISIONS),
            help="auto is bf16 if the device supports it, which is faster. The store records the precision.",
        ),
        click.option(
            "--compile",
            "compiled",
            is_flag=True,
            help="Compile the networks of windows (torch.compile): faster after 30 s; needs a C++ compiler.",
        ),
        click.option(
            "--deterministic",
            is_flag=True,
            help="On a GPU, use only deterministic kernels, which are slower. The store records this.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            help="Windows per batch; for objects, frames.  [default: 1 on a CPU; on a GPU 16, for objects 4]",
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
            "--workers", type=click.IntRange(min=1), help="Processes on this machine.  [default: 1, or one per GPU]"
        ),
        workers_per_gpu_option,
        click.option(
            "--feeders",
            type=click.IntRange(min=1),
            help="Processes per worker that decode and transform, each its own video.  [default: with a GPU one per "
            f"core of the worker, at most {MAX_FEEDERS}; on a CPU a quarter of its cores, at least 1]",
        ),
        click.option(
            "--cluster",
            default="local",
            show_default=True,
            help="Where the workers run. local: on this machine. slurm, pbs, sge, lsf: in batch jobs, which are "
            "submitted, replaced if they are lost, and cancelled at the end. runner: in the tasks of your allocation, "
            "as in `srun amex extract ...`. tcp://... or tls://...: the workers of a Dask scheduler.",
        ),
        click.option("--jobs", type=click.IntRange(min=1), help="Number of batch jobs.  [default: 1]"),
        click.option("--queue", help="The queue (partition) of the jobs."),
        click.option("--account", help="The account (project) of the jobs."),
        click.option("--cpus", type=click.IntRange(min=1), help="Cores per job.  [default: 8]"),
        click.option("--memory", help="Memory per job.  [default: 32GB]"),
        click.option(
            "--gpus-per-job", type=click.IntRange(min=0), help="GPUs per job, with one worker each; 0 for CPU."
        ),
        click.option("--walltime", help="Time limit of a job, such as 4:00:00."),
        click.option(
            "--job-directive",
            "job_directives",
            multiple=True,
            metavar="TEXT",
            help="A directive in the head of the job script, as in --job-directive=--constraint=a100; repeat for more.",
        ),
        click.option(
            "--job-prologue",
            multiple=True,
            metavar="LINE",
            help="A shell command before amex in the job, as in --job-prologue 'module load cuda'; repeat for more.",
        ),
        click.option("--interface", help="The network interface between nodes, such as ib0."),
        click.option("--print-job", is_flag=True, help="Print the job script, and submit nothing."),
    ]
)

run_options = added(
    [
        click.option(
            "--part-clips",
            type=click.IntRange(min=1),
            help="Clips per group. Groups are divided into parts, and a part is written as a whole; a crash loses only "
            f"unwritten parts.  [default: {PART_CLIPS}; on a GPU {GPU_PART_CLIPS}, but not with --partition]",
        ),
        click.option(
            "--part-minutes",
            type=POSITIVE,
            help="Maximum minutes of video per part, estimated from clips and file sizes. The clips of a video stay "
            f"together.  [default: {PART_MINUTES:g}; on a GPU {GPU_PART_MINUTES:g}]",
        ),
        click.option(
            "--partition",
            type=PartitionNumber(),
            metavar="K/N",
            help="Extract only every N-th group, starting with group K (0 to N-1): for job arrays, whose tasks do not "
            "communicate.",
        ),
        click.option(
            "--deadline",
            default=DEADLINE,
            show_default=True,
            metavar="SECONDS",
            type=POSITIVE,
            help="End a decoder that returns no further frame for this long; its video fails.",
        ),
        click.option(
            "--longest-frame",
            default=LONGEST_FRAME,
            show_default=True,
            metavar="SECONDS",
            type=click.IntRange(min=1),
            help="Maximum duration of one frame. A longer frame counts as damage; raise it for slides.",
        ),
        click.option(
            "--decoder",
            default="auto",
            show_default=True,
            type=click.Choice(list(DECODERS)),
            help="auto: decord for the files that it decodes correctly, PyAV for all others. nvdec: the decoder of "
            "the GPU. PyAV decodes what the chosen decoder cannot. The store records a choice other than auto.",
        ),
        click.option(
            "--damaged",
            default="fail",
            show_default=True,
            type=click.Choice(["fail", "keep"]),
            help="For a video that is damaged midway: fail the clip, or keep the windows before the damage.",
        ),
        click.option(
            "--stall",
            default=STALL,
            show_default=True,
            metavar="SECONDS",
            type=click.IntRange(min=1),
            help="End a worker that makes no progress for this long; its current video fails.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            help="Extract only the first clips of the manifest, up to this number.",
        ),
        click.option("--retry-failed", is_flag=True, help="Try failed clips again."),
        click.option(
            "--changed",
            default="recompute",
            show_default=True,
            type=click.Choice(["recompute", "keep"]),
            help="For clips whose times or video changed since extraction: extract them again, or keep their features.",
        ),
        click.option(
            "--digest",
            is_flag=True,
            help="Record the sha256 of video files. A file with only a new modification time then counts as unchanged.",
        ),
        click.option(
            "--repair", is_flag=True, help="First verify every byte of the store, and extract damaged parts again."
        ),
        click.option(
            "--dry-run",
            is_flag=True,
            help="Print what would be done, the time and the bytes, and do nothing. Needs no weights.",
        ),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """The options of ``amex extract``, by name.

    Attributes:
        dataset: ``folder`` for videos of one's own.
        store, videos: ``places.placed`` fills in omitted values.
        streams: (name, network) of each ``--stream``.
        presets, weights: (stream, value) of each ``--preset`` and ``--weights``.
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
        """The network of each stream by its name in the store.

        Without ``--stream`` it is the default network that another option names, else the first default network.
        """
        if self.streams:
            return dict(self.streams)
        named = {*dict(self.weights), *dict(self.presets), *self.stream_settings}
        return {name: name for name in DEFAULT_NETWORKS if name in named} or {DEFAULT_NETWORKS[0]: DEFAULT_NETWORKS[0]}

    @property
    def stream_settings(self) -> dict[str, dict[str, str]]:
        """The settings of ``--set`` by stream."""
        settings: dict[str, dict[str, str]] = {}
        for stream, key, value in self.settings:
            settings.setdefault(stream, {})[key] = value
        return settings
