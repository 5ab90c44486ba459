"""Plan a run: find the clips that a store lacks, cut them into parts, and estimate time and space."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from ...errors import plural
from ...features import ClipSource, Stream, clip_arrays, entry_bytes, row_arrays
from ...manifests import Clip, VideoError, VideoFinder
from ...storage import StorageError, storage_at
from ..encoders import ObjectsPlan, StreamPlan, WindowPlan, split_plans
from ..limits import DEADLINE, LONGEST_FRAME, PART_MINUTES
from ..video import Feeders, Header, Sampling, SamplingRequest, Transform, Unreadable
from ..video.feeder import file_digest
from .captions import PART_CAPTIONS, CaptionsTask, captions_of, plan_captions
from .part import THREADS, ClipTask, PartTask, VideoTask, default_feeders

# Maximum number of video files whose headers an estimate reads, evenly spread over the manifest.
ESTIMATE_FILES = 200
# The same for files that must be fetched first.
FETCHED_FILES = 5
# Maximum bytes of rows in a part, over all streams. Writing a part takes several times the memory of its rows.
PART_BYTES = 256 << 20
# Planning estimates the length of a video from its size, at a low bit rate of half a megabit per second. As a result,
# parts hold fewer high-resolution videos, which take longer to decode.
BYTES_A_SECOND = 64_000
# Assumed length of a video of unknown size, for example behind a web server. Seconds.
UNKNOWN_SECONDS = 120.0
# Assumed frame rate of a video whose file is not opened.
EXPECTED_RATE = 30.0
# An estimate decodes this many seconds of this many files to measure the speed.
TIMED_FILES = 3
TIMED_SECONDS = 3.0


def existing_stream(store: Path, name: str, *, skip_damaged: bool = False, afresh: bool = False) -> Stream | None:
    """Open a stream as it is on disk now; return None if it does not exist. See ``Stream`` for the options."""
    exists = (store / name / "spec.json").exists()
    return Stream(store, name, skip_damaged=skip_damaged, afresh=afresh) if exists else None


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """The current file of a manifest's video, or ``missing``: why there is none. See ``ClipSource``."""

    path: Path | None = None
    missing: str = ""
    bytes: int | None = None
    modified: int | None = None


@dataclass
class VideoFiles:
    """The video files of a manifest. Each is located once. Also compares them with the sources of stored clips.

    Attributes:
        keep_changed: whether to keep the features of clips whose times or video file changed since their extraction.
        changed: clip_id -> ``times`` or ``video``, what changed, for the clips whose state was asked for.
    """

    finder: VideoFinder
    keep_changed: bool = False
    changed: dict[str, str] = field(default_factory=dict)
    _files: dict[str, VideoFile] = field(default_factory=dict)
    _digests: dict[str, str | None] = field(default_factory=dict)

    def __getitem__(self, video: str) -> VideoFile:
        if video not in self._files:
            self._files[video] = self._locate(video)
        return self._files[video]

    def _locate(self, video: str) -> VideoFile:
        try:
            path = self.finder.find(video)
        except VideoError as error:
            return VideoFile(missing=str(error))
        size, modified = self.finder.size_and_time(path)
        return VideoFile(path=path, bytes=size, modified=modified)

    def state(self, clip: Clip, stream: Stream | None) -> str:
        """Return the state of a clip in a stream. A changed clip is absent, unless ``keep_changed``."""
        state = stream.state(clip.clip_id) if stream is not None else "absent"
        if state == "absent":
            return state
        difference = self.difference(clip, stream.source(clip.clip_id))
        if not difference:
            return state
        self.changed[clip.clip_id] = difference
        return state if self.keep_changed else "absent"

    def difference(self, clip: Clip, source: ClipSource) -> str:
        """Return ``times`` or ``video`` if the manifest differs from the source of a stored clip, else an empty string.

        Two files are equal if name, size and modification time are equal; their folders may differ. If size and time
        are unknown, as behind a web server, the paths must be equal. A value that the source does not record counts
        as equal. A deleted file counts as equal if the recorded name matches the manifest, because users may delete
        videos after the extraction.
        """
        if not source.has_times(clip.start, clip.end):
            return "times"
        file = self[clip.video]
        if file.path is None:
            return "" if source.video is None or could_match(source.video, clip.video) else "video"
        if source.video is None:  # no file was found at the time; older records do not store this
            return "video" if source.recorded else ""
        if file.bytes is None and file.modified is None:
            return "" if source.video == file.path.as_posix() else "video"
        if PurePosixPath(source.video).name != file.path.name or known_to_differ(source.bytes, file.bytes):
            return "video"
        if known_to_differ(source.modified, file.modified):
            return "video" if source.sha256 is None or known_to_differ(source.sha256, self._digest(clip.video)) else ""
        return ""

    def _digest(self, video: str) -> str | None:
        """Return the sha256 of a video's file; None if it cannot be read."""
        if video not in self._digests:
            self._digests[video] = None
            with contextlib.suppress(StorageError):
                with storage_at(self.finder.root / self[video].path.as_posix()).local_copy() as path:
                    self._digests[video] = file_digest(path)
        return self._digests[video]


def known_to_differ(recorded: Any, now: Any) -> bool:
    """Return whether both values are known and differ."""
    return recorded is not None and now is not None and recorded != now


def could_match(path: str, video: str) -> bool:
    """Return whether the path of a file matches a manifest's ``video``, perhaps with another extension."""
    file, expected = PurePosixPath(path), PurePosixPath(video.replace("\\", "/"))
    return file.name == expected.name or file.stem in (expected.name, expected.stem)


def changed_text(counts: Mapping[str, int], keep_changed: bool) -> str:
    """Return the line that tells how many clips changed since their extraction, and how.

    Args:
        counts: ``times`` or ``video`` -> number of clips, from ``VideoFiles.changed``.
        keep_changed: whether the stored features are kept.
    """
    total = sum(counts.values())
    verb = "is" if total == 1 else "are"
    head = f"{plural(total, 'clip')} {verb} {'kept as computed' if keep_changed else 'computed again'}"
    changes = {"times": "other times in the manifest", "video": "another or a modified video file"}
    reasons = [
        f"{counts[name]:,} {'has' if counts[name] == 1 else 'have'} {text}"
        for name, text in changes.items()
        if counts.get(name)
    ]
    hint = "; --digest compares files by content" if counts.get("video") and not keep_changed else ""
    return f"{head}: {', '.join(reasons)}{hint}"


def plan_tasks(
    clips: Sequence[Clip],
    files: VideoFiles | None,
    plans: Sequence[StreamPlan],
    streams: Mapping[str, Stream | None],
    *,
    part_clips: int,
    part_minutes: float,
    retry_failed: bool,
    partition: Partition | None = None,
) -> list[CaptionsTask | PartTask]:
    """Return the tasks that complete the streams: first captions, which are fast, then parts of clips.

    Args:
        files: None if all plans are of text.
        streams: by name; None for a stream that does not exist yet.
    """
    partition = partition or Partition()
    video_plans, text_plans = split_plans(plans)
    tasks: list[CaptionsTask | PartTask] = []
    for number, plan in enumerate(text_plans):
        captions = plan_captions(captions_of(clips), streams[plan.name], number, retry_failed=retry_failed)
        tasks += [task for task in captions if task.index in partition]
    if files is not None:
        stored = [streams[plan.name] for plan in video_plans]
        options = {"part_clips": part_clips, "part_minutes": part_minutes, "retry_failed": retry_failed}
        tasks += plan_parts(clips, files, video_plans, stored, **options, partition=partition)
    return tasks


@dataclass(frozen=True)
class Partition:
    """One of ``of`` runs that share a manifest, like the tasks of a job array: every ``of``-th group from ``number``.

    Only the manifest decides how it is cut into groups. Therefore independent runs never overlap, and together they
    cover the manifest.
    """

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise ValueError(f"partitions are numbered 0 to N-1 of N, got {self.number}/{self.of}")

    def __contains__(self, index: int) -> bool:
        return index % self.of == self.number

    def clips(self, clips: Sequence[Clip], part_clips: int) -> list[Clip]:
        """Return the clips of this partition's groups."""
        groups = enumerate(_groups(_by_video(clips), part_clips))
        return [
            clip for index, group in groups if index in self for video_clips in group.values() for clip in video_clips
        ]

    def captions(self, captions: Sequence[str]) -> list[str]:
        """Return the captions of this partition's parts."""
        return [caption for index, caption in enumerate(captions) if index // PART_CAPTIONS in self]


def plan_parts(
    clips: Sequence[Clip],
    files: VideoFiles,
    plans: Sequence[WindowPlan | ObjectsPlan],
    streams: Sequence[Stream | None],
    *,
    part_clips: int,
    part_minutes: float = PART_MINUTES,
    retry_failed: bool = False,
    partition: Partition = Partition(),
) -> Iterator[PartTask]:
    """Yield the parts that complete the streams, in manifest order.

    The manifest is cut into groups of ``part_clips`` clips, and a group into parts of at most ``part_minutes`` of video
    and PART_BYTES of rows. The clips of one video stay together, even beyond these bounds. Finished clips do not
    influence the cuts, so a repeated run makes exactly the parts that an interrupted run left.
    """
    rows = [(plan.sampling, entry_bytes(row_arrays(plan.spec))) for plan in plans]
    replaced = [stream.replaced if stream is not None else frozenset() for stream in streams]
    for index, group in enumerate(_groups(_by_video(clips), part_clips)):
        if index not in partition:
            continue
        tasks = {video: _video_task(own_clips, files, streams, retry_failed) for video, own_clips in group.items()}
        if not any(task.clips for task in tasks.values()):
            continue
        work = {video: expected_work(own_clips, files[video], rows) for video, own_clips in group.items()}
        for part in _parts(work, part_minutes):
            if videos := [tasks[video] for video in part if tasks[video].clips]:
                task = PartTask(index=index, videos=tuple(videos))
                while any(replaced[number] and task.name(number) in replaced[number] for number in task.streams):
                    task = replace(task, renamed=task.renamed + 1)
                yield task


def expected_work(clips: Sequence[Clip], file: VideoFile, rows: Sequence[tuple[Sampling, int]]) -> tuple[float, float]:
    """Estimate the seconds of video and bytes of rows of a video's clips, without opening the file.

    Args:
        rows: sampling and bytes per row of each stream.
    """
    if file.path is None:
        return 0.0, 0.0
    video_seconds = UNKNOWN_SECONDS if file.bytes is None else file.bytes / BYTES_A_SECOND
    lengths = [max(0.0, (video_seconds if clip.end is None else clip.end) - (clip.start or 0.0)) for clip in clips]
    size = sum(
        each * sampling.windows(sampling.samples(seconds, EXPECTED_RATE))
        for sampling, each in rows
        for seconds in lengths
    )
    return sum(lengths), size


def _parts(work: Mapping[str, tuple[float, float]], minutes: float) -> Iterator[list[str]]:
    """Yield the videos of each part of a group. A part ends before the video that would exceed one of the bounds."""
    part: list[str] = []
    seconds = size = 0.0
    for video, (more_seconds, more_size) in work.items():
        seconds, size = seconds + more_seconds, size + more_size
        if part and (seconds > minutes * 60 or size > PART_BYTES):
            yield part
            part, seconds, size = [], more_seconds, more_size
        part.append(video)
    yield part


def _by_video(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    by_video: dict[str, list[Clip]] = {}
    for clip in clips:
        by_video.setdefault(clip.video, []).append(clip)
    return by_video


def _groups(by_video: dict[str, list[Clip]], part_clips: int) -> Iterator[dict[str, list[Clip]]]:
    group: dict[str, list[Clip]] = {}
    size = 0
    for video, clips in by_video.items():
        group[video] = clips
        size += len(clips)
        if size >= part_clips:
            yield group
            group, size = {}, 0
    if group:
        yield group


def _video_task(
    clips: list[Clip], files: VideoFiles, streams: Sequence[Stream | None], retry_failed: bool
) -> VideoTask:
    file = files[clips[0].video]
    tasks = []
    for clip in clips:
        tries: dict[int, tuple[int, int]] = {}  # stream -> revision, attempt
        for index, stream in enumerate(streams):
            state = files.state(clip, stream)
            if state == "absent":
                stored = stream is not None and stream.state(clip.clip_id) != "absent"
                tries[index] = (stream.source(clip.clip_id).revision + 1 if stored else 0, 1)
            elif state == "failed" and retry_failed:
                revision, attempts = stream.tries(clip.clip_id)
                tries[index] = (revision, attempts + 1)
        # One task per revision and attempt: they may differ between streams.
        for revision, attempt in sorted(set(tries.values())):
            indices = tuple(index for index, numbers in tries.items() if numbers == (revision, attempt))
            fields = {name: getattr(clip, name) for name in ("clip_id", "video", "start", "end")}
            tasks.append(ClipTask(**fields, revision=revision, attempt=attempt, streams=indices))
    return VideoTask(**vars(file), clips=tuple(tasks))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The expected size and duration of a plan.

    Attributes:
        video_hours: hours of video in the clips.
        rows: stream -> rows.
        bytes: size of all rows.
        feeders: decoding processes of the worker that the hours are for.
        hours: duration with one worker on this machine. Decoding and encoding overlap, but share the cores of a CPU.
        decoding_hours: duration of decoding alone.
    """

    clips: int
    captions: int
    parts: int
    videos: int
    missing_videos: int
    video_hours: float
    rows: dict[str, int]
    bytes: int
    feeders: int
    hours: float
    decoding_hours: float


def estimate(
    tasks: Sequence[CaptionsTask | PartTask],
    videos: Path | None,
    streams: Sequence[StreamPlan],
    device: str,
    *,
    feeders: int | None = None,
    deadline: float = DEADLINE,
    longest_frame: float = LONGEST_FRAME,
    decoder: str = "auto",
) -> Estimate:
    """Estimate a plan from the headers of sample files, timed decoding, and one timed batch of each encoder.

    Args:
        feeders: see ``job.extract``, also for ``deadline``, ``longest_frame`` and ``decoder``.
    """
    plans, text_plans = split_plans(streams)
    captions = [task for task in tasks if isinstance(task, CaptionsTask)]
    video_tasks = [video for task in tasks if isinstance(task, PartTask) for video in task.videos]
    findable = [video for video in video_tasks if video.path is not None]
    fetched = videos is not None and storage_at(videos).must_fetch
    sample = findable[:: max(1, len(findable) // (FETCHED_FILES if fetched else ESTIMATE_FILES))]
    seconds = to_decode = 0.0
    paces: list[float] = []
    rows = Counter({plan.name: 0 for plan in plans})
    count = feeders or default_feeders(device)
    settings = {"deadline": deadline, "longest_frame": longest_frame, "decoder": decoder}
    one_feeder = Feeders(threads=max(1, THREADS // count), **settings)
    with contextlib.closing(one_feeder) as feeder:
        for video in sample:
            try:
                with storage_at(videos / video.path.as_posix()).local_copy() as file:
                    header = feeder.header(file)
                    inputs = {
                        (plans[index].sampling, plans[index].transform)
                        for clip in video.clips
                        for index in clip.streams
                    }
                    if len(paces) < TIMED_FILES:
                        if not paces:  # not timed: the process first imports its libraries
                            _decoding_pace(feeder, file, header, inputs)
                        paces.append(_decoding_pace(feeder, file, header, inputs))
            except (Unreadable, StorageError):  # the run reports it; an estimate only leaves it out
                continue
            duration = header.end or 0.0
            last = max(min(clip.end or duration, duration) for clip in video.clips)
            to_decode += max(0.0, last - header.begin)
            for clip in video.clips:
                length = max(0.0, min(clip.end or duration, duration) - (clip.start or 0.0))
                seconds += length
                for index in clip.streams:
                    sampling = plans[index].sampling
                    rows[plans[index].name] += sampling.windows(sampling.samples(length, header.rate))
    scale = len(findable) / len(sample) if sample else 0.0
    rows = Counter({name: round(count * scale) for name, count in rows.items()})
    size = sum(rows[plan.name] * entry_bytes(row_arrays(plan.spec)) for plan in plans)
    one_feeder_seconds = to_decode * scale * (sum(paces) / len(paces) if paces else 0.0)
    decoding = one_feeder_seconds / min(count, THREADS)
    encoding = sum(rows[plan.name] * _encoding_pace(plan, device) for plan in plans if rows[plan.name])
    for number, plan in enumerate(text_plans):
        texts = [caption for task in captions if task.stream == number for caption in task.captions]
        if not texts:
            continue
        encoder = plan.encoder(device)
        encoder(texts[:1])
        begin = time.monotonic()
        encoder(texts[: plan.batch_size])
        encoding += (time.monotonic() - begin) * len(texts) / len(texts[: plan.batch_size])
        rows[plan.name] = sum(map(len, encoder.tokenize(texts)[0]))
        size += rows[plan.name] * entry_bytes(row_arrays(plan.spec)) + len(texts) * entry_bytes(clip_arrays(plan.spec))
    return Estimate(
        clips=sum(len(video.clips) for video in video_tasks),
        captions=sum(len(task.captions) for task in captions),
        parts=len(tasks),
        videos=len(video_tasks),
        missing_videos=len(video_tasks) - len(findable),
        video_hours=seconds * scale / 3600,
        rows=dict(rows),
        bytes=size,
        feeders=count,
        hours=max(decoding, encoding + (one_feeder_seconds / THREADS if device == "cpu" else 0.0)) / 3600,
        decoding_hours=decoding / 3600,
    )


def _decoding_pace(
    feeders: Feeders, file: Path, header: Header, inputs: Iterable[tuple[Sampling, Transform | None]]
) -> float:
    """Return the seconds that one feeder needs for one second of a video."""
    length = min(TIMED_SECONDS, (header.end or math.inf) - header.begin)
    begin = time.monotonic()
    for _ in feeders.read(file, [SamplingRequest(None, header.begin + length, *pair) for pair in inputs]):
        pass
    return (time.monotonic() - begin) / max(length, 1e-3)


def _encoding_pace(plan: WindowPlan | ObjectsPlan, device: str) -> float:
    """Return the seconds that the encoder of a stream needs for one row."""
    encoder = plan.encoder(device)
    frame = np.zeros((240, 320, 3), np.uint8)
    frame = frame if plan.transform is None else plan.transform(frame)
    windows = torch.from_numpy(np.stack([np.stack([frame] * plan.sampling.frames)] * plan.batch_size))
    windows = windows.to(encoder.device)
    encoder(windows)
    begin = time.monotonic()
    for array in encoder(windows).values():
        array.cpu()
    return (time.monotonic() - begin) / plan.batch_size
