"""What is left to do: a manifest, less what a store holds already, cut into parts; and what that will cost."""

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

from ...features import ClipSource, Stream, clip_arrays, entry_bytes, row_arrays
from ...manifests import Clip, VideoError, VideoFinder
from ...storage import StorageError, storage_at
from ..encoders import ObjectsPlan, StreamPlan, WindowPlan, by_kind
from ..limits import DEADLINE, LONGEST_FRAME, PART_MINUTES
from ..video import Feeders, Header, Sampling, SamplingRequest, Transform, Unreadable
from ..video.feeder import file_digest
from .captions import PART_CAPTIONS, CaptionsTask, captions_of, plan_captions
from .part import THREADS, ClipTask, PartTask, VideoTask, default_feeders

# Durations for an estimate are read from at most so many video files, evenly spread over the manifest.
ESTIMATE_FILES = 200
# And at most so many that must be fetched first.
FETCHED_FILES = 5
# Bytes of rows a part, of all streams together, at most. Writing a part takes several times the memory of its rows.
PART_BYTES = 256 << 20
# How long a video is that is cut nowhere is judged from its size. This rate is a low one, half a megabit a second: of
# high-resolution videos, which take longer to decode, fewer make a part.
BYTES_A_SECOND = 64_000
# Where the size is not known either, as behind a web server: seconds of a video.
UNKNOWN_SECONDS = 120.0
# Frames a second where the file is not opened.
EXPECTED_RATE = 30.0
# The first so many of them are decoded for so many seconds of video.
TIMED_FILES = 3
TIMED_SECONDS = 3.0


def existing(store: Path, name: str, *, skip_damaged: bool = False, afresh: bool = False) -> Stream | None:
    """A stream of a store as it is on disk now, None if it is not there. The others are arguments of ``Stream``."""
    there = (store / name / "spec.json").exists()
    return Stream(store, name, skip_damaged=skip_damaged, afresh=afresh) if there else None


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """The file of a manifest's video as it is now; or, where there is none, why. See ``ClipSource``."""

    path: Path | None = None
    missing: str = ""
    bytes: int | None = None
    modified: int | None = None


@dataclass
class VideoFiles:
    """The files of a manifest's videos, each found and looked at once, and whether what a stream holds is of them.

    Attributes:
        keep: whether clips count as they are that were computed from other times or from another file.
        changed: clip_id -> ``times`` or ``video``, what differs, for such clips among those asked for so far.
    """

    finder: VideoFinder
    keep: bool = False
    changed: dict[str, str] = field(default_factory=dict)
    _files: dict[str, VideoFile] = field(default_factory=dict)
    _digests: dict[str, str | None] = field(default_factory=dict)

    def __getitem__(self, video: str) -> VideoFile:
        if video not in self._files:
            self._files[video] = self._look(video)
        return self._files[video]

    def _look(self, video: str) -> VideoFile:
        try:
            path = self.finder.find(video)
        except VideoError as error:
            return VideoFile(missing=str(error))
        size, modified = self.finder.size_and_time(path)
        return VideoFile(path=path, bytes=size, modified=modified)

    def state(self, clip: Clip, stream: Stream | None) -> str:
        """As ``Stream.state``, but a clip is absent too that was computed from other times or from another file."""
        state = stream.state(clip.clip_id) if stream is not None else "absent"
        if state == "absent":
            return state
        difference = self.difference(clip, stream.source(clip.clip_id))
        if not difference:
            return state
        self.changed[clip.clip_id] = difference
        return state if self.keep else "absent"

    def difference(self, clip: Clip, source: ClipSource) -> str:
        """``times`` or ``video`` where a clip was computed from another than the manifest's; nothing otherwise.

        A file is the same if its name, size and time of modification are, in whatever folder it is; behind a web
        server, where nothing else is known, if its path is. What a record does not know is no difference; nor is a file
        that is gone, since people delete videos that they have extracted, if the recorded one has the name that the
        manifest gives.
        """
        if not source.is_of(clip.start, clip.end):
            return "times"
        file = self[clip.video]
        if file.path is None:
            return "" if source.video is None or may_be(source.video, clip.video) else "video"
        if source.video is None:  # there was no file, which only a full record says
            return "video" if source.recorded else ""
        if file.bytes is None and file.modified is None:
            return "" if source.video == file.path.as_posix() else "video"
        if PurePosixPath(source.video).name != file.path.name or differ(source.bytes, file.bytes):
            return "video"
        if differ(source.modified, file.modified):
            return "video" if source.sha256 is None or differ(source.sha256, self._digest(clip.video)) else ""
        return ""

    def _digest(self, video: str) -> str | None:
        """sha256 of a file, None if it cannot be had."""
        if video not in self._digests:
            self._digests[video] = None
            with contextlib.suppress(StorageError):
                with storage_at(self.finder.root / self[video].path.as_posix()).on_disk() as path:
                    self._digests[video] = file_digest(path)
        return self._digests[video]


def differ(recorded: Any, now: Any) -> bool:
    """Whether both are known and not equal."""
    return recorded is not None and now is not None and recorded != now


def may_be(path: str, video: str) -> bool:
    """Whether a file can be the one that a manifest means by ``video``, under another extension perhaps."""
    file, named = PurePosixPath(path), PurePosixPath(video.replace("\\", "/"))
    return file.name == named.name or file.stem in (named.name, named.stem)


def changed_text(counts: Mapping[str, int], keep: bool) -> str:
    """The line of a run that says how many clips were computed from something else, and what that is.

    Args:
        counts: of what ``VideoFiles.changed`` says.
    """
    total = sum(counts.values())
    head = f"{total:,} clip{' is' if total == 1 else 's are'} {'kept as computed' if keep else 'computed again'}"
    what = {"times": "other times in the manifest", "video": "another video file, or one that was modified"}
    reasons = [
        f"{counts[name]:,} {'has' if counts[name] == 1 else 'have'} {what[name]}" for name in what if counts.get(name)
    ]
    digest = "; --digest tells a file by its content" if counts.get("video") and not keep else ""
    return f"{head}: {', '.join(reasons)}{digest}"


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
    """All that ``streams``, by name, lack: captions first, which are quick, then parts.

    Args:
        files: None where all plans are of text.
    """
    partition = partition or Partition()
    seeing, texts = by_kind(plans)
    tasks: list[CaptionsTask | PartTask] = []
    for number, plan in enumerate(texts):
        captions = plan_captions(captions_of(clips), streams[plan.name], number, retry_failed=retry_failed)
        tasks += [task for task in captions if task.index in partition]
    if files is not None:
        stored = [streams[plan.name] for plan in seeing]
        kept = {"part_clips": part_clips, "part_minutes": part_minutes, "retry_failed": retry_failed}
        tasks += plan_parts(clips, files, seeing, stored, **kept, partition=partition)
    return tasks


@dataclass(frozen=True)
class Partition:
    """One of several runs that share a manifest, as the tasks of a job array do: every ``of``-th group from ``number``.

    Where a manifest is cut into groups depends on the manifest alone, so runs that know nothing of each other overlap
    nowhere and together are one run.
    """

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise ValueError(f"partitions are numbered 0 to N-1 of N, got {self.number}/{self.of}")

    def __contains__(self, index: int) -> bool:
        return index % self.of == self.number

    def clips(self, clips: Sequence[Clip], part_clips: int) -> list[Clip]:
        """The clips of its groups."""
        groups = enumerate(_groups(_by_video(clips), part_clips))
        return [clip for index, group in groups if index in self for own in group.values() for clip in own]

    def captions(self, captions: Sequence[str]) -> list[str]:
        """The captions of its parts."""
        return [caption for place, caption in enumerate(captions) if place // PART_CAPTIONS in self]


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
    """Yields the parts that hold what ``streams`` lack, in manifest order.

    The manifest is cut into groups of ``part_clips`` clips, and a group into parts of ``part_minutes`` of video and
    PART_BYTES of rows. Clips of a video stay together, also where they are more than that. What is done plays no role,
    so an interrupted run leaves whole parts to do and its repetition makes the parts that it would have made itself.
    """
    rows = [(plan.sampling, entry_bytes(row_arrays(plan.spec))) for plan in plans]
    replaced = [stream.replaced if stream is not None else frozenset() for stream in streams]
    for index, group in enumerate(_groups(_by_video(clips), part_clips)):
        if index not in partition:
            continue
        tasks = {video: _video_task(own, files, streams, retry_failed) for video, own in group.items()}
        if not any(task.clips for task in tasks.values()):
            continue
        for part in _parts(
            {video: expected_work(own, files[video], rows) for video, own in group.items()}, part_minutes
        ):
            if videos := [tasks[video] for video in part if tasks[video].clips]:
                task = PartTask(index=index, videos=tuple(videos))
                while any(replaced[number] and task.name(number) in replaced[number] for number in task.streams):
                    task = replace(task, renamed=task.renamed + 1)
                yield task


def expected_work(clips: Sequence[Clip], file: VideoFile, rows: Sequence[tuple[Sampling, int]]) -> tuple[float, float]:
    """Seconds of video and bytes of rows that clips of a video will come to, about, without a look into the file.

    Args:
        rows: how each stream samples, and the bytes of one of its rows.
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
    """Cuts the videos of a group, in order, where the next would bring a part over one of its bounds."""
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
                before = stream is not None and stream.state(clip.clip_id) != "absent"
                tries[index] = (stream.source(clip.clip_id).revision + 1 if before else 0, 1)
            elif state == "failed" and retry_failed:
                revision, attempts = stream.tries(clip.clip_id)
                tries[index] = (revision, attempts + 1)
        # Streams in which a clip has been tried differently often are different tasks of the same video.
        for revision, attempt in sorted(set(tries.values())):
            chosen = tuple(index for index, tried in tries.items() if tried == (revision, attempt))
            kept = {name: getattr(clip, name) for name in ("clip_id", "video", "start", "end")}
            tasks.append(ClipTask(**kept, revision=revision, attempt=attempt, streams=chosen))
    return VideoTask(**vars(file), clips=tuple(tasks))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the parts of a plan will come to.

    Attributes:
        feeders: those of the one worker that hours are of, on this machine.
        hours: until the slower is done, the feeders or the encoders, which on a CPU share its cores.
        decoding_hours: until the feeders alone are done.
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
    """Costs from the headers of a sample of the files, timed decoding of some, and one timed batch of each encoder.

    Args:
        feeders: as of ``job.extract``; so are ``deadline``, ``longest_frame`` and ``decoder``.
    """
    plans, texts = by_kind(streams)
    captions = [task for task in tasks if isinstance(task, CaptionsTask)]
    video_tasks = [video for task in tasks if isinstance(task, PartTask) for video in task.videos]
    findable = [video for video in video_tasks if video.path is not None]
    fetched = videos is not None and storage_at(videos).must_fetch
    sample = findable[:: max(1, len(findable) // (FETCHED_FILES if fetched else ESTIMATE_FILES))]
    seconds = to_decode = 0.0
    paces: list[float] = []
    rows = Counter({plan.name: 0 for plan in plans})
    count = feeders or default_feeders(device)
    kept = {"deadline": deadline, "longest": longest_frame, "decoder": decoder}
    one_feeder = Feeders(threads=max(1, THREADS // count), **kept)
    with contextlib.closing(one_feeder) as feeder:
        for video in sample:
            try:
                with storage_at(videos / video.path.as_posix()).on_disk() as file:
                    header = feeder.header(file)
                    wanted = {
                        (plans[index].sampling, plans[index].transform)
                        for clip in video.clips
                        for index in clip.streams
                    }
                    if len(paces) < TIMED_FILES:
                        if not paces:  # the process imports its libraries
                            _seconds_a_second(feeder, file, header, wanted)
                        paces.append(_seconds_a_second(feeder, file, header, wanted))
            except (Unreadable, StorageError):
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
    by_one_feeder = to_decode * scale * (sum(paces) / len(paces) if paces else 0.0)
    decoding = by_one_feeder / min(count, THREADS)
    encoding = sum(rows[plan.name] * _seconds_a_row(plan, device) for plan in plans if rows[plan.name])
    for number, plan in enumerate(texts):
        wanted = [caption for task in captions if task.stream == number for caption in task.captions]
        if not wanted:
            continue
        encoder = plan.encoder(device)
        encoder(wanted[:1])
        begin = time.monotonic()
        encoder(wanted[: plan.batch_size])
        encoding += (time.monotonic() - begin) * len(wanted) / len(wanted[: plan.batch_size])
        rows[plan.name] = sum(map(len, encoder.tokenize(wanted)[0]))
        size += rows[plan.name] * entry_bytes(row_arrays(plan.spec)) + len(wanted) * entry_bytes(clip_arrays(plan.spec))
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
        hours=max(decoding, encoding + (by_one_feeder / THREADS if device == "cpu" else 0.0)) / 3600,
        decoding_hours=decoding / 3600,
    )


def _seconds_a_second(
    feeders: Feeders, file: Path, header: Header, wanted: Iterable[tuple[Sampling, Transform | None]]
) -> float:
    """How long a second of a video takes one feeder, for those who sample and transform it so."""
    length = min(TIMED_SECONDS, (header.end or math.inf) - header.begin)
    begin = time.monotonic()
    for _ in feeders.read(file, [SamplingRequest(None, header.begin + length, *each) for each in wanted]):
        pass
    return (time.monotonic() - begin) / max(length, 1e-3)


def _seconds_a_row(plan: WindowPlan | ObjectsPlan, device: str) -> float:
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
