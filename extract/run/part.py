"""One task of a job: the clips of some videos, from files to a committed part of every stream.

Read ``run_part`` from top to bottom to follow a video: decode -> sample -> transform -> encode -> write.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ...features import ClipRows, ClipSource, Failure, is_committed, row_arrays, write_part
from ...features.schema import canonical
from ...storage.fetch import on_disk
from ...storage.places import StorageError
from ..encoders.objects import ObjectsPlan
from ..encoders.presets import WindowPlan
from ..encoders.text import TextPlan
from ..limits import LONGEST_FRAME, STALL
from ..video.decoder import Decoder, Done, Failed, Frame, Opened, Restart, Sampled, Track
from ..video.decoder import End as VideoEnd
from .stalls import Stall, begin_stalls, forget_stalls, note_stalls
from .watch import Watch

FLOAT16_MAX = float(np.finfo(np.float16).max)
# Batches of windows that are decoded and transformed ahead of the encoder.
PREFETCH = 2
# Of this process, for encoding and for decoding: its share of the cores, as OMP_NUM_THREADS tells a worker.
THREADS = torch.get_num_threads()


@dataclass(frozen=True, kw_only=True)
class ClipTask:
    """A clip, and the streams (by index) it is to be computed in."""

    clip_id: str
    video: str
    start: float | None
    end: float | None
    attempt: int
    streams: tuple[int, ...]
    revision: int = 0


@dataclass(frozen=True, kw_only=True)
class VideoTask:
    """A video file with the clips cut from it; or, where no file could be found, the reason.

    ``bytes`` and ``modified`` are the file's as the run found it, see ``ClipSource``.
    """

    path: Path | None
    missing: str
    clips: tuple[ClipTask, ...]
    bytes: int | None = None
    modified: int | None = None


@dataclass(frozen=True, kw_only=True)
class PartTask:
    """The clips that one worker computes and commits together; ``index`` is that of their group in the manifest."""

    index: int
    videos: tuple[VideoTask, ...]

    @property
    def streams(self) -> tuple[int, ...]:
        """Those (by index) that it has clips for."""
        return tuple(sorted({stream for video in self.videos for clip in video.clips for stream in clip.streams}))

    def name(self, stream: int) -> str:
        """The part's name in a stream: its group, and a digest of the clips in it, their times and attempts.

        Nothing of the files is in it: a run whose videos are elsewhere makes the same parts.
        """
        clips = [
            [clip.clip_id, clip.revision, clip.attempt, clip.start, clip.end]
            for video in self.videos
            for clip in video.clips
            if stream in clip.streams
        ]
        return f"{self.index:06d}-{hashlib.sha256(canonical(clips)).hexdigest()[:12]}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all parts of a run have in common."""

    store: Path
    videos: Path | None  # None where all streams are of text
    streams: tuple[WindowPlan | ObjectsPlan, ...]  # those that look at frames, in one pass
    texts: tuple[TextPlan, ...]
    deadline: float  # seconds without a later frame after which a decoder is killed
    digest: bool = False  # whether commits record the sha256 of video files
    longest_frame: float = LONGEST_FRAME  # seconds for which a frame is shown at most
    keep_damaged: bool = False  # whether a clip is kept as far as its video is undamaged
    stall: float = STALL  # seconds without progress after which the worker is ended


@dataclass
class Report:
    """What a part came to; the sum of reports is the result of a run."""

    clips: int = 0
    captions: int = 0
    failed: int = 0
    rows: int = 0
    bytes: int = 0
    videos: int = 0
    frames_decoded: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"wait": 0.0, "encode": 0.0, "write": 0.0})

    def add(self, other: Report, sign: int = 1) -> None:
        """Adds another report; with ``sign=-1``, takes it away."""
        for name in ("clips", "captions", "failed", "rows", "bytes", "videos", "frames_decoded"):
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))
        for name, seconds in other.seconds.items():
            self.seconds[name] += sign * seconds


@dataclass
class Stretch:
    """What is known of one track in one stream: the rows as they are encoded, or why there are none.

    When the decoder starts a video over, its stretches are replaced; windows of the old ones then lead nowhere.
    """

    rows: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # by window: batches finish out of order
    unfit: dict[int, str] = field(default_factory=dict)  # windows whose feature the store cannot hold, and why
    times: list[tuple[float, float]] = field(default_factory=list)
    failure: tuple[str, str] | None = ("decode", "the decoder gave no result")
    decoder: str = ""
    stacked: dict[str, np.ndarray] = field(default_factory=dict)  # in the end, in place of rows
    missing: float | None = None  # seconds, if it was cut off by damage and is kept; None: nobody knows how many
    damage: str = ""

    def arrays(self, spec: dict[str, Any]) -> dict[str, np.ndarray]:
        """All rows as the arrays of a stream. Clips that share the stretch share them."""
        if not self.stacked:
            rows = [self.rows[index] for index in range(len(self.times))]
            self.stacked["times"] = np.array(self.times, dtype=np.float64).reshape(-1, 2)
            for name, (shape, dtype) in row_arrays(spec).items():
                if name != "times":
                    self.stacked[name] = np.array([row[name] for row in rows], dtype).reshape(len(rows), *shape)
            self.rows.clear()
        return self.stacked


@dataclass(frozen=True)
class Prepared:
    """One window, ready for the encoder of ``stream``; its frames are as that prepared them, shared between windows."""

    video: int
    stream: int
    stretch: Stretch
    index: int
    frames: tuple[Any, ...]


@dataclass(frozen=True)
class VideoDone:
    """All windows of a video have been prepared."""

    clips: int
    failed: int
    frames: int


def run_part(
    part: PartTask, job: Job, device: str = "cpu", progress: Callable[[Report], None] = lambda report: None
) -> Report:
    """Computes and commits a part in every stream it has clips for; does nothing if another run has, meanwhile.

    Args:
        device: ``cpu`` or ``cuda:INDEX``.
        progress: called after each video with what is done so far.
    """
    places = {stream: (job.streams[stream].name, part.name(stream)) for stream in part.streams}
    if all(is_committed(job.store, *place) for place in places.values()):
        return Report()
    decoder = _decoder(job.deadline, job.longest_frame, job.keep_damaged)
    stalls = {stream: begin_stalls(job.store, *place) for stream, place in places.items()}

    def remember(stage: str, work: Collection[tuple[int, int]]) -> None:
        for stream in {stream for _, stream in work} or places:
            videos = sorted({part.videos[number].path.as_posix() for number, other in work if other == stream})
            kept = {"stage": stage, "limit": job.stall, "batch": len(videos) > 1}
            more = [Stall(video=video, **kept) for video in videos or (None,)]
            note_stalls(job.store, *places[stream], stalls[stream] + more)

    failures = {
        (stall.video, stream): (stall.stage, stall.reason)
        for stream, known in stalls.items()
        for stall in known
        if stall.limit >= job.stall  # a repetition that allows more time tries again
    }
    with Watch(job.stall, remember, lambda: decoder.advanced) as watch:
        report = _run(part, job, device, progress, decoder, watch, failures)
    for stream, place in places.items():
        if stalls[stream]:
            forget_stalls(job.store, *place)
    return report


def _run(
    part: PartTask,
    job: Job,
    device: str,
    progress: Callable[[Report], None],
    decoder: Decoder,
    watch: Watch,
    stalled: dict[tuple[str, int], tuple[str, str]],
) -> Report:
    """Computes and commits a part.

    Args:
        stalled: by path of a video and stream over which a worker was ended before: stage and reason of the failure.
    """
    started = time.monotonic()
    report = Report()
    torch.set_num_threads(THREADS)  # what `prepared` sets for its thread becomes that of later threads
    encoders = [plan.encoder(device) for plan in job.streams]
    layouts = [row_arrays(plan.spec) for plan in job.streams]
    stretches: dict[tuple[int, Track, int], Stretch] = {}
    digests: dict[Path, str | None] = {}
    watch.on("encode", None)  # noted first: preparing waits for it when enough is ahead

    def prepared() -> Iterator[Prepared | VideoDone]:
        torch.set_num_threads(1)  # of this thread, which runs beside the encoder's: transforms are small
        for number, video in enumerate(part.videos):
            frames, failed = 0, len(video.clips)
            if video.path is not None:
                owners = _tracks(video, job.streams)
                for track, streams in list(owners.items()):
                    for stream in streams:
                        if failure := stalled.get((video.path.as_posix(), stream)):
                            stretches[number, track, stream] = Stretch(failure=failure)
                    owners[track] = [stream for stream in streams if (number, track, stream) not in stretches]
                if owners := {track: streams for track, streams in owners.items() if streams}:
                    frames = yield from _prepare(
                        number, video.path, owners, job, encoders, decoder, stretches, digests, watch
                    )
                    watch.on("decode", None)
                failed = sum(
                    any(stretches[number, _track(clip, job.streams[stream]), stream].failure for stream in clip.streams)
                    for clip in video.clips
                )
            yield VideoDone(len(video.clips), failed, frames)

    pending: dict[tuple[int, tuple[int, ...]], list[Prepared]] = {}  # windows that make a batch: one stream, one size

    def encode(batch: list[Prepared]) -> None:
        begin = time.monotonic()
        watch.on("encode", {(window.video, window.stream) for window in batch})
        arrays = encoders[batch[0].stream]([window.frames for window in batch])
        watch.on("encode", None)
        report.seconds["encode"] += time.monotonic() - begin
        report.rows += len(batch)
        for row, window in enumerate(batch):
            if reason := unfit(arrays["values"][row]):
                window.stretch.unfit[window.index] = reason
            else:  # as small as it will be stored: rows wait here until the part is written
                kept = {name: array[row].astype(layouts[window.stream][name][1]) for name, array in arrays.items()}
                window.stretch.rows[window.index] = kept

    decoded: dict[str, int] = {}
    begin = time.monotonic()
    for item in prefetch(prepared(), depth=PREFETCH * max(plan.batch_size for plan in job.streams)):
        if isinstance(item, Prepared):
            key = (item.stream, tuple(item.frames[0].shape))
            pending.setdefault(key, []).append(item)
            if len(pending[key]) == job.streams[item.stream].batch_size:
                encode(pending.pop(key))
            continue
        if (path := part.videos[report.videos].path) is not None:
            decoded[path.as_posix()] = item.frames
        report.videos += 1
        report.clips += item.clips
        report.failed += item.failed
        report.frames_decoded += item.frames
        progress(report)
    for batch in pending.values():
        encode(batch)
    report.seconds["wait"] = time.monotonic() - begin - report.seconds["encode"]
    begin = time.monotonic()
    run = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "seconds": round(time.monotonic() - started, 3),
        "frames_decoded": decoded,
        "versions": versions(),
    }
    report.rows = 0  # so far they were windows: clips that agree share theirs, and failed ones keep none
    watch.on("write")
    report.failed = len(_write(part, job, stretches, digests, report, run))
    report.seconds["write"] = time.monotonic() - begin
    return report


def _tracks(video: VideoTask, streams: tuple[WindowPlan | ObjectsPlan, ...]) -> dict[Track, list[int]]:
    """The tracks of a video and the streams that want each. Clips that agree share a track, and so its encoding."""
    tracks: dict[Track, list[int]] = {}
    for clip in video.clips:
        for stream in clip.streams:
            wanted = tracks.setdefault(_track(clip, streams[stream]), [])
            if stream not in wanted:
                wanted.append(stream)
    return tracks


def _track(clip: ClipTask, plan: WindowPlan | ObjectsPlan) -> Track:
    return Track(clip.start, clip.end, plan.sampling)


def _prepare(
    number: int,
    path: Path,
    owners: dict[Track, list[int]],
    job: Job,
    encoders: Sequence[Any],
    decoder: Decoder,
    stretches: dict[tuple[int, Track, int], Stretch],
    digests: dict[Path, str | None],
    watch: Watch,
) -> Generator[Prepared, None, int]:
    """One pass over one video: yields its windows, fills the dictionaries, and returns the number of frames decoded."""
    tracks = list(owners)
    frames = 0

    def begin(served_by: str) -> list[dict[int, Any]]:
        for track, streams in owners.items():
            for stream in streams:
                stretches[number, track, stream] = Stretch(decoder=served_by)
        return [{} for _ in job.streams]  # the frames of each stream that a later window may need, by key

    ring = begin("")
    work = {(number, stream) for streams in owners.values() for stream in streams}
    for event in _events(job, path, tracks, decoder, digests):
        watch.on("decode", work)
        match event:
            case Opened():
                ring = begin(event.decoder)
            case Frame():
                pixels = torch.from_numpy(event.image)
                for stream in {stream for user in event.users for stream in owners[tracks[user]]}:
                    ring[stream][event.key] = encoders[stream].prepare(pixels)
            case Sampled():
                for stream in owners[tracks[event.track]]:
                    stretch = stretches[number, tracks[event.track], stream]
                    frames_seen = tuple(ring[stream][key] for key in event.keys)
                    stretch.times.append((event.start, event.end))
                    yield Prepared(number, stream, stretch, len(stretch.times) - 1, frames_seen)
                if event.oldest is not None:
                    for frames_held in ring:
                        for key in [key for key in frames_held if key < event.oldest]:
                            del frames_held[key]
            case Done() | Failed():
                for stream in owners[tracks[event.track]]:
                    stretch = stretches[number, tracks[event.track], stream]
                    if isinstance(event, Done):
                        stretch.failure, stretch.missing, stretch.damage = None, event.missing, event.damage
                    else:
                        stretch.failure = event.stage, event.reason
            case Restart():
                ring = begin("")
            case VideoEnd():
                frames = event.frames
    return frames


def _events(
    job: Job, path: Path, tracks: list[Track], decoder: Decoder, digests: dict[Path, str | None]
) -> Iterator[Any]:
    """What the decoder says of a video, which is fetched first where it is elsewhere."""
    try:
        with on_disk(job.videos, path) as file:
            if job.digest:
                digests[path] = sha256_of(file)
            yield from decoder.read(file, tracks)
    except StorageError as error:
        for number in range(len(tracks)):
            yield Failed(number, "find", str(error))


def sha256_of(path: Path) -> str | None:
    """sha256 of a file; None if it cannot be read, or is a pipe, which would wait for ever."""
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
    return None


def _write(
    part: PartTask,
    job: Job,
    stretches: dict[tuple[int, Track, int], Stretch],
    digests: dict[Path, str | None],
    report: Report,
    run: dict[str, Any],
) -> set[str]:
    """Commits the part in each stream; returns the ids of clips that failed in any."""
    failed: set[str] = set()
    for stream, plan in enumerate(job.streams):
        spec = plan.spec
        rows: list[ClipRows] = []
        failures: list[Failure] = []
        for number, video in enumerate(part.videos):
            for clip in video.clips:
                if stream not in clip.streams:
                    continue
                source = ClipSource(
                    video=None if video.path is None else video.path.as_posix(),
                    start=clip.start,
                    end=clip.end,
                    bytes=video.bytes,
                    modified=video.modified,
                    sha256=digests.get(video.path),
                    revision=clip.revision,
                )
                if video.path is None:
                    result: ClipRows | tuple[str, str] = ("find", video.missing)
                else:
                    stretch = stretches[number, _track(clip, plan), stream]
                    result = _rows(clip.clip_id, source, stretch, spec)
                if isinstance(result, ClipRows):
                    rows.append(result)
                else:
                    stage, reason = result
                    entry = {"clip_id": clip.clip_id, "video": clip.video, "attempts": clip.attempt}
                    failures.append(Failure(**entry, stage=stage, reason=reason, source=source.entry))
                    failed.add(clip.clip_id)
        if not rows and not failures:
            continue
        commit = write_part(
            job.store,
            plan.name,
            part.name(stream),
            spec=spec,
            clips=rows,
            failures=failures,
            run=run,
        )
        report.rows += commit["rows"]
        report.bytes += sum(file["bytes"] for file in commit["files"].values())
    return failed


def _rows(clip_id: str, source: ClipSource, stretch: Stretch, spec: dict[str, Any]) -> ClipRows | tuple[str, str]:
    """A clip's rows, or the stage and reason of its failure."""
    if stretch.failure is not None:
        return stretch.failure
    if stretch.unfit:
        index = min(stretch.unfit)
        return "encode", f"the feature of window {index} {stretch.unfit[index]}"
    kept = {"missing": stretch.missing, "damage": stretch.damage}
    return ClipRows(clip_id=clip_id, arrays=stretch.arrays(spec), decoder=stretch.decoder, source=source, **kept)


def unfit(values: np.ndarray) -> str:
    """Why float16 cannot hold a feature, or nothing."""
    if not np.isfinite(values).all():
        return "is not finite"
    largest = np.abs(values).max(initial=0)
    return f"reaches {largest:.3g}, more than float16 holds" if largest > FLOAT16_MAX else ""


@functools.lru_cache(maxsize=1)
def _decoder(deadline: float, longest: float, keep: bool) -> Decoder:
    """The one Decoder of this process."""
    return Decoder(deadline=deadline, threads=THREADS, longest=longest, keep=keep)


def versions() -> dict[str, str]:
    """Versions of everything that touches pixels or numbers."""
    names = ("amex", "av", "decord2", "numpy", "onedl-mmdetection", "torch", "torchvision", "transformers", "zarr")
    return {"python": ".".join(map(str, sys.version_info[:3])), **{name: version(name) for name in names}}


Item = TypeVar("Item")


def prefetch(items: Iterable[Item], *, depth: int) -> Iterator[Item]:
    """Yields ``items`` in order while a thread makes up to ``depth`` of them ahead."""
    ahead: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ahead.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(end)
        except BaseException as error:  # raised again where the items are used
            put(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while (item := ahead.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
