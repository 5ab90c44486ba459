"""One part of a run: decode the videos of its clips, encode them, and commit the rows to every stream.

Follow a video in ``PartRun``: a feeder decodes, samples and transforms it; its windows arrive as events, are collected
in batches and encoded into rows; the rows of all videos of the part are written together.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ...errors import AmexError
from ...features import ClipRows, ClipSource, Failure, bytes_of, is_committed, row_arrays, write_part
from ...features.schema import canonical, next_name
from ...storage import FetchedFile, Fetcher, StorageError
from ..encoders import Batches, Encoded, ObjectsPlan, TextPlan, WindowPlan, choose_kernels
from ..limits import LONGEST_FRAME, MAX_FEEDERS, STALL
from ..video import Digest, Done, End, Event, Failed, Feeders, Opened, Restart, SamplingRequest, Video, Window
from .rows import RequestRows
from .stalls import Stall, delete_stalls, take_video_stalls, write_stalls
from .watch import Watchdog

# Threads of this process for encoding and decoding. OMP_NUM_THREADS sets a worker's share of the cores.
THREADS = torch.get_num_threads()


@dataclass(frozen=True, kw_only=True)
class ClipTask:
    """A clip and the streams (by index) to extract it for.

    Attributes:
        start: seconds; None for the beginning of the video.
        end: seconds; None for the end of the video.
        attempt: number of this try, from 1.
        revision: how often the clip was extracted anew because its times or video changed.
    """

    clip_id: str
    video: str
    start: float | None
    end: float | None
    attempt: int
    streams: tuple[int, ...]
    revision: int = 0


@dataclass(frozen=True, kw_only=True)
class VideoTask:
    """A video file and its clips.

    Attributes:
        path: of the file, relative to the folder of videos; None if no file was found.
        missing: why no file was found.
        bytes: size of the file when the run was planned; see ``ClipSource``.
        modified: modification time of the file when the run was planned; see ``ClipSource``.
    """

    path: Path | None
    missing: str
    clips: tuple[ClipTask, ...]
    bytes: int | None = None
    modified: int | None = None


@dataclass(frozen=True, kw_only=True)
class PartTask:
    """The clips that one worker extracts and commits together.

    Attributes:
        index: number of the clips' group in the manifest.
        renamed: how many names to skip because they are taken; see ``schema.free_name``.
    """

    index: int
    videos: tuple[VideoTask, ...]
    renamed: int = 0

    @property
    def streams(self) -> tuple[int, ...]:
        """The streams (by index) that the part has clips for."""
        return tuple(sorted({stream for video in self.videos for clip in video.clips for stream in clip.streams}))

    def name(self, stream: int) -> str:
        """Return the part's name in a stream: the group, and a digest of its clips, their times and attempts.

        The name does not depend on the video files, so a run with the videos in another folder makes the same parts.
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
    """The settings that all parts of a run share. See ``job.extract`` for their meaning."""

    store: Path
    videos: Path | None  # None if all streams are of text
    streams: tuple[WindowPlan | ObjectsPlan, ...]  # streams of frames; one decoding pass serves all of them
    texts: tuple[TextPlan, ...]
    deadline: float  # seconds
    digest: bool = False
    longest_frame: float = LONGEST_FRAME  # seconds
    keep_damaged: bool = False
    stall: float = STALL  # seconds
    feeders: int | None = None
    decoder: str = "auto"
    deterministic: bool = False


# The feeders of this process, by process id and settings. At most one entry.
_feeders: dict[tuple[Any, ...], Feeders] = {}

# The activities that a worker and its feeders spend time on.
ACTIVITIES = ("decode", "transform", "blocked", "encode", "write", "wait")


@dataclass
class Report:
    """The work of one part so far, or the sum over parts.

    Attributes:
        bytes: size of the written arrays.
        seconds: activity -> seconds. Of the worker: ``encode``, ``write``, and ``wait`` (for windows). Of all its
            feeders together: ``decode``, ``transform``, and ``blocked`` (waiting for the worker).
        notes: lines for the user.
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
        """Add another report; with ``sign=-1``, subtract it."""
        for name in ("clips", "captions", "failed", "rows", "bytes", "videos", "frames_decoded"):
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))
        for name, seconds in other.seconds.items():
            self.seconds[name] += sign * seconds
        self.notes += [note for note in other.notes if note not in self.notes]


def run_part(
    part: PartTask, job: Job, device: str = "cpu", progress: Callable[[Report], None] = lambda report: None
) -> Report:
    """Extract a part and commit it to its streams. Do nothing if it is committed already, for example by another run.

    Args:
        device: ``cpu`` or ``cuda:INDEX``.
        progress: called after each video with the report so far.
    """
    parts = {stream: (job.streams[stream].name, part.name(stream)) for stream in part.streams}
    if all(is_committed(job.store, *names) for names in parts.values()):
        return Report()
    stalls = {stream: take_video_stalls(job.store, *names) for stream, names in parts.items()}

    def record_stall(stage: str, work: Collection[tuple[int, int]]) -> None:
        for stream in {stream for _, stream in work} or parts:
            videos = sorted({part.videos[number].path.as_posix() for number, other in work if other == stream})
            fields = {"stage": stage, "limit": job.stall, "batch": len(videos) > 1}
            new_stalls = [Stall(video=video, **fields) for video in videos or (None,)]
            write_stalls(job.store, *parts[stream], stalls[stream] + new_stalls)

    failures = {
        (stall.video, stream): (stall.stage, stall.reason)
        for stream, video_stalls in stalls.items()
        for stall in video_stalls
        if stall.limit >= job.stall  # with a longer --stall, the video is tried again
    }
    feeders = shared_feeders(job, device)
    with Watchdog(job.stall, record_stall, lambda: feeders.advanced) as watch:
        report = PartRun(part, job, device, progress, feeders, watch, failures).run()
    for stream, names in parts.items():
        if stalls[stream]:
            delete_stalls(job.store, *names)
    return report


# The destination of a window: the number of its video, the rows of its request, and its index in them.
Owner = tuple[int, RequestRows, int]


class PartRun:
    """The extraction of one part.

    Args:
        stalled: (path of a video, stream) -> (stage, reason), for videos on which a worker stalled before. They fail
            without being decoded.
    """

    def __init__(
        self,
        part: PartTask,
        job: Job,
        device: str,
        progress: Callable[[Report], None],
        feeders: Feeders,
        watch: Watchdog,
        stalled: dict[tuple[str, int], tuple[str, str]],
    ) -> None:
        self.part, self.job, self.device = part, job, device
        self.progress, self.feeders, self.watch, self.stalled = progress, feeders, watch, stalled
        self.report = Report()
        self.layouts = [row_arrays(plan.spec) for plan in job.streams]
        self.batches: dict[int, Batches[Owner]] = {}  # by stream
        # By video number: each request, with the streams that use its windows.
        self.requests: dict[int, dict[SamplingRequest, list[int]]] = {}
        # By video number, request and stream. If decoding restarts, new rows replace the old ones, and windows that
        # are still being encoded for the old ones are ignored.
        self.rows: dict[tuple[int, SamplingRequest, int], RequestRows] = {}
        self.files: dict[int, FetchedFile] = {}  # files of the videos that are being decoded, by video number
        self.digests: dict[Path, str | None] = {}
        self.frames: dict[str, int] = {}  # decoded frames, by path of the video
        self.loading = 0.0  # seconds spent on loading networks, not counted as waiting for windows

    def run(self) -> Report:
        """Extract and commit the part."""
        self.begun = time.monotonic()
        torch.set_num_threads(THREADS)
        choose_kernels(deterministic=self.job.deterministic)
        self.watch.step("encode", None)
        for number, video in enumerate(self.part.videos):
            if video.path is not None:
                self.requests[number] = self.make_requests(number, video)
        names = [self.part.videos[number].path for number in self.requests]
        for number in range(len(self.part.videos)):
            if not self.requests.get(number):
                self.finish_video(number)
        with Fetcher(self.job.videos, names, ahead=self.feeders.count + 1) as files:
            for video, event in self.feeders.run(self.videos(files)):
                self.handle(video, event)
        for stream in list(self.batches):
            self.encode(self.batches[stream].flush())
        self.batches.clear()  # breaks a reference cycle that would keep the rows until the next garbage collection
        self.note_wait()
        written = time.monotonic()
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "seconds": round(time.monotonic() - self.begun, 3),
            "frames_decoded": self.frames,
            "versions": versions(),
        }
        self.watch.step("write")
        self.report.failed = len(self.write(record))
        self.report.seconds["write"] = time.monotonic() - written
        return self.report

    def make_requests(self, number: int, video: VideoTask) -> dict[SamplingRequest, list[int]]:
        """Return the requests of a video, each with its streams. Clips with equal times share a request."""
        requests: dict[SamplingRequest, list[int]] = {}
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
                    requests.setdefault(request, []).append(stream)
        return requests

    def videos(self, files: Fetcher) -> Iterator[Video | None]:
        """Yield the videos for the feeders; yield None while the next file is still being fetched."""
        for number, file in zip(self.requests, files, strict=True):
            if not self.requests[number]:
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
            yield Video(number, path, tuple(self.requests[number]))

    def handle(self, video: Video, event: Event) -> None:
        """Apply an event to the rows of its video."""
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
                for stream in self.requests[number][request]:
                    rows = self.rows[number, request, stream]
                    rows.times.append((event.start, event.end))
                    self.encode(self.batches_of(stream).add((number, rows, event.index), event.pixels))
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
        """Return the keys in ``rows`` of a video."""
        return [(number, request, stream) for request, streams in self.requests[number].items() for stream in streams]

    def rows_of(self, video: Video, index: int) -> list[RequestRows]:
        """Return the rows of a video's request ``index`` in all its streams."""
        request = video.requests[index]
        return [self.rows[video.number, request, stream] for stream in self.requests[video.number][request]]

    def start_over(self, number: int, decoder: str) -> None:
        """Discard the rows of a video: a decoder starts from the beginning."""
        for key in self.keys(number):
            self.rows[key] = RequestRows(self.layouts[key[2]], decoder=decoder)

    def finish_video(self, number: int) -> None:
        """Count a finished video and report the progress."""
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
        """Count the time that was not spent on encoding or loading networks as waiting."""
        self.report.seconds["wait"] = time.monotonic() - self.begun - self.report.seconds["encode"] - self.loading

    def batches_of(self, stream: int) -> Batches[Owner]:
        """Return the batches of a stream. Load its network on the first window, while decoding continues."""
        if stream not in self.batches:
            plan = self.job.streams[stream]

            def begins(owners: list[Owner] | None) -> None:
                self.watch.step("encode", None if owners is None else {(number, stream) for number, _, _ in owners})

            def note(text: str) -> None:
                self.report.notes.append(f"{plan.name}: {text}")

            begin = time.monotonic()
            try:
                encoder = plan.encoder(self.device)
            except AmexError as error:
                raise type(error)(f"stream {plan.name}: {error}") from error
            self.loading += time.monotonic() - begin
            self.batches[stream] = Batches(encoder, plan.batch_size, begins=begins, note=note)
        return self.batches[stream]

    def encode(self, encoded: Iterator[Encoded[Owner]]) -> None:
        """Store the rows of encoded batches."""
        begin = time.monotonic()
        for batch in encoded:
            self.report.rows += len(batch.owners)
            for position, (_, rows, index) in enumerate(batch.owners):
                rows.put(index, {name: array[position] for name, array in batch.arrays.items()})
        self.report.seconds["encode"] += time.monotonic() - begin

    def write(self, record: dict[str, Any]) -> set[str]:
        """Commit the part to each stream; return the ids of clips that failed in any stream.

        Args:
            record: facts about this run, for the commit records.
        """
        failed: set[str] = set()
        committed_rows = 0
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
            self.watch.step("write")  # each stream gets the full time limit
            commit = write_part(
                self.job.store, plan.name, name, spec=plan.spec, clips=rows, failures=failures, run=record
            )
            committed_rows += commit["rows"]
            self.report.bytes += bytes_of(commit)
        # So far the report counted encoded windows. Clips may share windows, and failed clips have no rows.
        self.report.rows = committed_rows
        return failed


def request_of(clip: ClipTask, plan: WindowPlan | ObjectsPlan) -> SamplingRequest:
    """Return the sampling request of a stream for a clip."""
    return SamplingRequest(clip.start, clip.end, plan.sampling, plan.transform)


def clip_rows(clip_id: str, source: ClipSource, rows: RequestRows) -> ClipRows | tuple[str, str]:
    """Return a clip's rows, or the stage and reason of its failure."""
    if rows.failure is not None:
        return rows.failure
    if rows.overflow:
        index = min(rows.overflow)
        return "encode", f"the feature of window {index} {rows.overflow[index]}"
    damage = {"missing": rows.missing, "damage": rows.damage}
    return ClipRows(clip_id=clip_id, arrays=rows.arrays(), decoder=rows.decoder, source=source, **damage)


def shared_feeders(job: Job, device: str) -> Feeders:
    """Return the feeders of this process. Parts share them; other settings end them and start new ones."""
    count = job.feeders or default_feeders(device)
    bounds = (job.deadline, job.longest_frame, job.keep_damaged, job.digest, job.decoder)
    key = (os.getpid(), count, *bounds)
    if key not in _feeders:
        for (process, *_), feeders in _feeders.items():
            if process == key[0]:  # after a fork, the parent process still owns the others
                feeders.close()
        _feeders.clear()
        settings = dict(zip(("deadline", "longest_frame", "keep_damaged", "digest", "decoder"), bounds, strict=True))
        _feeders[key] = Feeders(count, threads=max(1, THREADS // count), **settings)
    return _feeders[key]


def default_feeders(device: str) -> int:
    """Return the default number of decoding processes: one per core with a GPU, else one per four cores."""
    return max(1, THREADS // 4) if device == "cpu" else min(THREADS, MAX_FEEDERS)


def versions() -> dict[str, str]:
    """Return the versions of Python and of all installed libraries that affect the numbers."""
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
    installed = {"amex": version("amex")}
    for name in libraries:
        with contextlib.suppress(PackageNotFoundError):  # an extra that is not installed
            installed[name] = version(name)
    return {"python": ".".join(map(str, sys.version_info[:3])), **installed}
