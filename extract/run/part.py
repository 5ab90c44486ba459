"""One task of a job: the clips of some videos, from files to a committed part of every stream.

Follow a video in ``Run``: its feeder decodes, samples and transforms it; its windows come as events, gather in batches,
and become rows; the rows of all videos of the part are written together.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ...errors import AmexError
from ...features import ClipRows, ClipSource, Failure, bytes_of, is_committed, row_arrays, write_part
from ...features.schema import canonical, next_name
from ...storage import Fetched, Fetcher, StorageError
from ..encoders import Batches, Encoded, ObjectsPlan, TextPlan, WindowPlan, choose_kernels
from ..limits import LONGEST_FRAME, MOST_FEEDERS, STALL
from ..video import Digest, Done, End, Event, Failed, Feeders, Opened, Restart, SamplingRequest, Video, Window
from .rows import RequestRows
from .stalls import Stall, begin_stalls, forget_stalls, note_stalls
from .watch import Watch

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
    """The clips that one worker computes and commits together; ``index`` is that of their group in the manifest.

    ``renamed`` is how often its name was found to be taken, see ``schema.free_name``.
    """

    index: int
    videos: tuple[VideoTask, ...]
    renamed: int = 0

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
        name = f"{self.index:06d}-{hashlib.sha256(canonical(clips)).hexdigest()[:12]}"
        return functools.reduce(lambda name, _: next_name(name), range(self.renamed), name)


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
    feeders: int | None = None  # decoding processes of a worker; None: as many as suit its cores
    decoder: str = "auto"  # a key of limits.DECODERS
    deterministic: bool = False  # whether GPUs choose kernels by their repeatability, not by speed


# The feeders of this process, by the process and their settings: one entry at most.
_feeders: dict[tuple[Any, ...], Feeders] = {}

# What a worker and its feeders spend their time on.
ACTIVITIES = ("decode", "transform", "blocked", "encode", "write", "wait")


@dataclass
class Report:
    """What a part came to; the sum of reports is the result of a run.

    Attributes:
        seconds: of the worker: ``encode``, ``write``, and ``wait``, for windows. Of all its feeders together:
            ``decode``, ``transform``, and ``blocked``, waiting for the worker.
        notes: what the user should know.
    """

    clips: int = 0
    captions: int = 0
    failed: int = 0
    rows: int = 0
    bytes: int = 0
    videos: int = 0
    frames_decoded: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACTIVITIES, 0.0))
    notes: list[str] = field(default_factory=list)

    def add(self, other: Report, sign: int = 1) -> None:
        """Adds another report; with ``sign=-1``, takes it away."""
        for name in ("clips", "captions", "failed", "rows", "bytes", "videos", "frames_decoded"):
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))
        for name, seconds in other.seconds.items():
            self.seconds[name] += sign * seconds
        self.notes += [note for note in other.notes if note not in self.notes]


def run_part(
    part: PartTask, job: Job, device: str = "cpu", progress: Callable[[Report], None] = lambda report: None
) -> Report:
    """Computes and commits a part in every stream it has clips for; does nothing if another run has, meanwhile.

    Args:
        device: ``cpu`` or ``cuda:INDEX``.
        progress: called after each video with what is done so far.
    """
    parts = {stream: (job.streams[stream].name, part.name(stream)) for stream in part.streams}  # as the store has them
    if all(is_committed(job.store, *names) for names in parts.values()):
        return Report()
    stalls = {stream: begin_stalls(job.store, *names) for stream, names in parts.items()}

    def remember(stage: str, work: Collection[tuple[int, int]]) -> None:
        for stream in {stream for _, stream in work} or parts:
            videos = sorted({part.videos[number].path.as_posix() for number, other in work if other == stream})
            kept = {"stage": stage, "limit": job.stall, "batch": len(videos) > 1}
            more = [Stall(video=video, **kept) for video in videos or (None,)]
            note_stalls(job.store, *parts[stream], stalls[stream] + more)

    failures = {
        (stall.video, stream): (stall.stage, stall.reason)
        for stream, known in stalls.items()
        for stall in known
        if stall.limit >= job.stall  # a repetition that allows more time tries again
    }
    feeders = shared_feeders(job, device)
    with Watch(job.stall, remember, lambda: feeders.advanced) as watch:
        report = Run(part, job, device, progress, feeders, watch, failures).run()
    for stream, names in parts.items():
        if stalls[stream]:
            forget_stalls(job.store, *names)
    return report


# Whose a window is: the video's number, the rows it belongs to, and its index among them.
Owner = tuple[int, RequestRows, int]


class Run:
    """One part on its way through feeders and encoders.

    Args:
        stalled: by path of a video and stream over which a worker was ended before: stage and reason of the failure.
    """

    def __init__(
        self,
        part: PartTask,
        job: Job,
        device: str,
        progress: Callable[[Report], None],
        feeders: Feeders,
        watch: Watch,
        stalled: dict[tuple[str, int], tuple[str, str]],
    ) -> None:
        self.part, self.job, self.device = part, job, device
        self.progress, self.feeders, self.watch, self.stalled = progress, feeders, watch, stalled
        self.report = Report()
        self.layouts = [row_arrays(plan.spec) for plan in job.streams]
        self.batches: dict[int, Batches[Owner]] = {}  # by stream
        # By video: what is asked for of it, and the streams that want each answer.
        self.wanted: dict[int, dict[SamplingRequest, list[int]]] = {}
        # When a decoder starts a video over, its rows are replaced; windows of the old ones then lead nowhere.
        self.rows: dict[tuple[int, SamplingRequest, int], RequestRows] = {}
        self.files: dict[int, Fetched] = {}  # of the videos that are being decoded
        self.digests: dict[Path, str | None] = {}
        self.frames: dict[str, int] = {}  # decoded, by video
        self.loading = 0.0  # seconds in which networks were loaded, which is no wait for windows

    def run(self) -> Report:
        self.begun = time.monotonic()
        torch.set_num_threads(THREADS)
        choose_kernels(deterministic=self.job.deterministic)
        self.watch.on("encode", None)
        for number, video in enumerate(self.part.videos):
            if video.path is not None:
                self.wanted[number] = self.requests(number, video)
        names = [self.part.videos[number].path for number in self.wanted]
        for number in range(len(self.part.videos)):
            if not self.wanted.get(number):
                self.finish_video(number)
        with Fetcher(self.job.videos, names, ahead=self.feeders.count + 1) as files:
            for video, event in self.feeders.run(self.videos(files)):
                self.handle(video, event)
        for stream in list(self.batches):
            self.encode(stream, self.batches[stream].flush())
        self.batches.clear()  # they refer to this run: its rows would stay until the next garbage collection
        self.note_wait()
        written = time.monotonic()
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "seconds": round(time.monotonic() - self.begun, 3),
            "frames_decoded": self.frames,
            "versions": versions(),
        }
        self.report.rows = 0  # so far they were windows: clips that agree share theirs, and failed ones keep none
        self.watch.on("write")
        self.report.failed = len(self.write(record))
        self.report.seconds["write"] = time.monotonic() - written
        return self.report

    def requests(self, number: int, video: VideoTask) -> dict[SamplingRequest, list[int]]:
        """What is asked for of a video, and the streams that want each. Clips that agree share a request."""
        wanted: dict[SamplingRequest, list[int]] = {}
        for clip in video.clips:
            for stream in clip.streams:
                request = request_of(clip, self.job.streams[stream])
                key = (number, request, stream)
                if key in self.rows:
                    continue
                self.rows[key] = RequestRows(self.layouts[stream])
                if failure := self.stalled.get((video.path.as_posix(), stream)):
                    self.rows[key].failure = failure
                else:
                    wanted.setdefault(request, []).append(stream)
        return wanted

    def videos(self, files: Fetcher) -> Iterator[Video | None]:
        """The videos for the feeders, each as soon as its file is on this machine; None while it is not."""
        for number, file in zip(self.wanted, files, strict=True):
            if not self.wanted[number]:
                file.close()
                continue
            while not file.future.done():
                yield None
            try:
                path = file.future.result()
            except StorageError as error:
                for key in self.keys(number):
                    self.rows[key].failure = ("find", str(error))
                self.finish_video(number)
                continue
            self.files[number] = file
            yield Video(number, path, tuple(self.wanted[number]))

    def handle(self, video: Video, event: Event) -> None:
        """What an event means for the rows of its video."""
        number = video.number
        match event:
            case Digest():
                self.digests[self.part.videos[number].path] = event.sha256
            case Opened():
                self.start_over(number, event.decoder)
            case Restart():
                self.start_over(number, "")
            case Window():
                request = video.requests[event.request]
                for stream in self.wanted[number][request]:
                    rows = self.rows[number, request, stream]
                    rows.times.append((event.start, event.end))
                    self.encode(stream, self.batches_of(stream).add((number, rows, event.index), event.pixels))
            case Done():
                for rows in self.rows_of(video, event.request):
                    rows.failure, rows.missing, rows.damage = None, event.missing, event.damage
            case Failed():
                for rows in self.rows_of(video, event.request):
                    rows.failure = event.stage, event.reason
            case End():
                self.files.pop(number).close()
                self.frames[self.part.videos[number].path.as_posix()] = event.frames
                self.report.frames_decoded += event.frames
                for activity, seconds in event.seconds.items():
                    self.report.seconds[activity] += seconds
                self.finish_video(number)

    def keys(self, number: int) -> list[tuple[int, SamplingRequest, int]]:
        """Of the rows that a video is decoded for."""
        return [(number, request, stream) for request, streams in self.wanted[number].items() for stream in streams]

    def rows_of(self, video: Video, request: int) -> list[RequestRows]:
        """A request's rows in every stream that wants them."""
        wanted = video.requests[request]
        return [self.rows[video.number, wanted, stream] for stream in self.wanted[video.number][wanted]]

    def start_over(self, number: int, decoder: str) -> None:
        for key in self.keys(number):
            self.rows[key] = RequestRows(self.layouts[key[2]], decoder=decoder)

    def finish_video(self, number: int) -> None:
        """Counts a video that is done."""
        video = self.part.videos[number]
        self.report.videos += 1
        self.report.clips += len(video.clips)
        self.report.failed += sum(
            video.path is None
            or any(
                self.rows[number, request_of(clip, self.job.streams[stream]), stream].failure for stream in clip.streams
            )
            for clip in video.clips
        )
        self.note_wait()
        self.progress(self.report)

    def note_wait(self) -> None:
        """What of the time so far was neither spent on encoding nor on loading networks."""
        self.report.seconds["wait"] = time.monotonic() - self.begun - self.report.seconds["encode"] - self.loading

    def batches_of(self, stream: int) -> Batches[Owner]:
        """The batches of a stream. Its network is loaded with its first window: decoding goes on meanwhile."""
        if stream not in self.batches:
            plan = self.job.streams[stream]

            def begins(owners: list[Owner] | None) -> None:
                self.watch.on("encode", None if owners is None else {(number, stream) for number, _, _ in owners})

            def note(text: str) -> None:
                self.report.notes.append(f"{plan.name}: {text}")

            begin = time.monotonic()
            try:
                encoder = plan.encoder(self.device)
            except AmexError as error:  # of several streams, which
                raise type(error)(f"stream {plan.name}: {error}") from error
            self.loading += time.monotonic() - begin
            self.batches[stream] = Batches(encoder, plan.batch_size, begins=begins, note=note)
        return self.batches[stream]

    def encode(self, stream: int, encoded: Iterator[Encoded[Owner]]) -> None:
        """Keeps the rows that batches have become."""
        begin = time.monotonic()
        for batch in encoded:
            self.report.rows += len(batch.owners)
            for position, (_, rows, index) in enumerate(batch.owners):
                rows.put(index, {name: array[position] for name, array in batch.arrays.items()})
        self.report.seconds["encode"] += time.monotonic() - begin

    def write(self, record: dict[str, Any]) -> set[str]:
        """Commits the part in each stream; returns the ids of clips that failed in any.

        Args:
            record: how the part was made, for the commits.
        """
        failed: set[str] = set()
        for stream, plan in enumerate(self.job.streams):
            rows: list[ClipRows] = []
            failures: list[Failure] = []
            for number, video in enumerate(self.part.videos):
                for clip in video.clips:
                    if stream not in clip.streams:
                        continue
                    source = ClipSource(
                        video=None if video.path is None else video.path.as_posix(),
                        start=clip.start,
                        end=clip.end,
                        bytes=video.bytes,
                        modified=video.modified,
                        sha256=self.digests.get(video.path),
                        revision=clip.revision,
                    )
                    if video.path is None:
                        result: ClipRows | tuple[str, str] = ("find", video.missing)
                    else:
                        result = clip_rows(clip.clip_id, source, self.rows[number, request_of(clip, plan), stream])
                    if isinstance(result, ClipRows):
                        rows.append(result)
                    else:
                        stage, reason = result
                        entry = {"clip_id": clip.clip_id, "video": clip.video, "attempts": clip.attempt}
                        failures.append(Failure(**entry, stage=stage, reason=reason, source=source.entry))
                        failed.add(clip.clip_id)
            if not rows and not failures:
                continue
            name = self.part.name(stream)
            self.watch.on("write")  # the bound is on each stream, however many there are
            commit = write_part(
                self.job.store, plan.name, name, spec=plan.spec, clips=rows, failures=failures, run=record
            )
            self.report.rows += commit["rows"]
            self.report.bytes += bytes_of(commit)
        return failed


def request_of(clip: ClipTask, plan: WindowPlan | ObjectsPlan) -> SamplingRequest:
    """What a stream asks for of a clip's video."""
    return SamplingRequest(clip.start, clip.end, plan.sampling, plan.transform)


def clip_rows(clip_id: str, source: ClipSource, rows: RequestRows) -> ClipRows | tuple[str, str]:
    """A clip's rows, or the stage and reason of its failure."""
    if rows.failure is not None:
        return rows.failure
    if rows.overflow:
        index = min(rows.overflow)
        return "encode", f"the feature of window {index} {rows.overflow[index]}"
    kept = {"missing": rows.missing, "damage": rows.damage}
    return ClipRows(clip_id=clip_id, arrays=rows.arrays(), decoder=rows.decoder, source=source, **kept)


def shared_feeders(job: Job, device: str) -> Feeders:
    """The feeders of this process; they stay from part to part, and end where a part wants others."""
    count = job.feeders or default_feeders(device)
    bounds = (job.deadline, job.longest_frame, job.keep_damaged, job.digest, job.decoder)
    key = (os.getpid(), count, *bounds)
    if key not in _feeders:
        for (process, *_), feeders in _feeders.items():
            if process == key[0]:  # not those of the process that this one was forked from
                feeders.close()
        _feeders.clear()
        settings = dict(zip(("deadline", "longest", "keep", "digest", "decoder"), bounds, strict=True))
        _feeders[key] = Feeders(count, threads=max(1, THREADS // count), **settings)
    return _feeders[key]


def default_feeders(device: str) -> int:
    """Decoding processes of a worker: one a core beside a GPU; on a CPU a quarter of the cores, which encode too."""
    return max(1, THREADS // 4) if device == "cpu" else min(THREADS, MOST_FEEDERS)


def versions() -> dict[str, str]:
    """Versions of everything that touches pixels or numbers."""
    libraries = (
        "av",
        "decord2",
        "numpy",
        "onedl-mmdetection",
        "pillow",
        "torch",
        "torchvision",
        "transformers",
        "zarr",
    )
    installed = {name: version(name) for name in ("amex", *libraries)}
    return {"python": ".".join(map(str, sys.version_info[:3])), **installed}
