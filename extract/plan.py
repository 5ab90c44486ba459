"""What is left to do: a manifest, less what a store holds already, cut into parts; and what that will cost."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..features import Stream, clip_arrays, row_arrays
from ..manifests import Clip, VideoError, VideoFinder
from ..places import PlaceError, is_remote, on_disk
from .captions import PART_CAPTIONS, CaptionsTask, captions_of, plan_captions
from .check import header
from .decode import Unreadable
from .objects import ObjectsPlan
from .part import ClipTask, PartTask, VideoTask
from .presets import WindowPlan
from .streams import StreamPlan, by_kind

# Durations for an estimate are read from at most so many video files, evenly spread over the manifest.
ESTIMATE_FILES = 200
# And at most so many that must be fetched first.
FETCHED_FILES = 5


def states(clip_ids: Iterable[str], stream: Stream | None) -> Counter[str]:
    """How many clips, or captions, are done, empty, failed and absent in a stream; all absent where there is none."""
    return Counter(stream.state(clip_id) if stream is not None else "absent" for clip_id in clip_ids)


def existing(store: Path, name: str, *, skip_damaged: bool = False) -> Stream | None:
    """A stream of a store as it is on disk now, None if it is not there. Raises DamagedPart unless told to skip."""
    return Stream(store, name, skip_damaged=skip_damaged) if (store / name / "spec.json").exists() else None


def plan_tasks(
    clips: Sequence[Clip],
    finder: VideoFinder | None,
    plans: Sequence[StreamPlan],
    streams: Mapping[str, Stream | None],
    *,
    part_clips: int,
    retry_failed: bool,
    partition: Partition | None = None,
) -> list[CaptionsTask | PartTask]:
    """All that ``streams``, by name, lack: captions first, which are quick, then parts.

    Args:
        finder: None where all plans are of text.
    """
    seeing, texts = by_kind(plans)
    tasks: list[CaptionsTask | PartTask] = []
    for number, plan in enumerate(texts):
        tasks += plan_captions(captions_of(clips), streams[plan.name], number, retry_failed=retry_failed)
    if finder is not None:
        there = [streams[plan.name] for plan in seeing]
        tasks += plan_parts(clips, finder, there, part_clips=part_clips, retry_failed=retry_failed)
    return [task for task in tasks if partition is None or task.index in partition]


@dataclass(frozen=True)
class Partition:
    """One of several runs that share a manifest, as the tasks of a job array do: every ``of``-th part from ``number``.

    Where a manifest is cut into parts depends on the manifest alone, so runs that know nothing of each other overlap
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
        """The clips of its parts."""
        groups = enumerate(_groups(_by_video(clips), part_clips))
        return [clip for index, group in groups if index in self for own in group.values() for clip in own]

    def captions(self, captions: Sequence[str]) -> list[str]:
        """The captions of its parts."""
        return [caption for place, caption in enumerate(captions) if place // PART_CAPTIONS in self]


def plan_parts(
    clips: Sequence[Clip],
    finder: VideoFinder,
    streams: Sequence[Stream | None],
    *,
    part_clips: int,
    retry_failed: bool,
) -> Iterator[PartTask]:
    """Yields the parts that hold what ``streams`` lack, in manifest order.

    Clips of a video stay together. Where the manifest is cut depends on the manifest alone, not on what is done, so an
    interrupted run leaves whole parts to do and its repetition makes the parts that it would have made itself.
    """
    for index, group in enumerate(_groups(_by_video(clips), part_clips)):
        videos = [_video_task(group[name], name, finder, streams, retry_failed) for name in group]
        if videos := [video for video in videos if video.clips]:
            yield PartTask(index=index, videos=tuple(videos))


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
    clips: list[Clip], video: str, finder: VideoFinder, streams: Sequence[Stream | None], retry_failed: bool
) -> VideoTask:
    tasks = []
    for clip in clips:
        attempts = {}
        for index, stream in enumerate(streams):
            state = stream.state(clip.clip_id) if stream is not None else "absent"
            if state == "absent":
                attempts[index] = 1
            elif state == "failed" and retry_failed:
                attempts[index] = stream.failures[clip.clip_id].attempts + 1
        # Streams in which a clip has been tried differently often are different tasks of the same video.
        for attempt in sorted(set(attempts.values())):
            chosen = tuple(index for index, tried in attempts.items() if tried == attempt)
            kept = {name: getattr(clip, name) for name in ("clip_id", "video", "start", "end")}
            tasks.append(ClipTask(**kept, attempt=attempt, streams=chosen))
    if not tasks:
        return VideoTask(path=None, missing="", clips=())
    try:
        return VideoTask(path=finder.find(video), missing="", clips=tuple(tasks))
    except VideoError as error:
        return VideoTask(path=None, missing=str(error), clips=tuple(tasks))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the parts of a plan will come to. Hours are of this machine, with the workers it would use."""

    clips: int
    captions: int
    parts: int
    videos: int
    missing_videos: int
    video_hours: float
    rows: dict[str, int]
    bytes: int
    hours: float


def estimate(
    tasks: Sequence[CaptionsTask | PartTask], videos: Path | None, streams: Sequence[StreamPlan], device: str
) -> Estimate:
    """Costs from the headers of a sample of the files, and from one timed batch of each encoder."""
    plans, texts = by_kind(streams)
    captions = [task for task in tasks if isinstance(task, CaptionsTask)]
    video_tasks = [video for task in tasks if isinstance(task, PartTask) for video in task.videos]
    there = [video for video in video_tasks if video.path is not None]
    sample = there[:: max(1, len(there) // (FETCHED_FILES if is_remote(videos) else ESTIMATE_FILES))]
    seconds = 0.0
    rows = Counter({plan.name: 0 for plan in plans})
    for video in sample:
        try:
            with on_disk(videos, video.path) as file:
                duration, rate = header(file)
        except (Unreadable, PlaceError):
            continue
        for clip in video.clips:
            length = max(0.0, min(clip.end or duration, duration) - (clip.start or 0.0))
            seconds += length
            for index in clip.streams:
                sampling = plans[index].sampling
                rows[plans[index].name] += sampling.windows(sampling.samples(length, rate))
    scale = len(there) / len(sample) if sample else 0.0
    rows = Counter({name: round(count * scale) for name, count in rows.items()})
    size = sum(rows[plan.name] * entry_bytes(row_arrays(plan.spec)) for plan in plans)
    time_taken = sum(rows[plan.name] * _seconds_a_row(plan, device) for plan in plans if rows[plan.name])
    for number, plan in enumerate(texts):
        wanted = [caption for task in captions if task.stream == number for caption in task.captions]
        if not wanted:
            continue
        encoder = plan.encoder(device)
        encoder(wanted[:1])
        begin = time.monotonic()
        encoder(wanted[: plan.batch_size])
        time_taken += (time.monotonic() - begin) * len(wanted) / len(wanted[: plan.batch_size])
        rows[plan.name] = sum(map(len, encoder.tokenize(wanted)[0]))
        size += rows[plan.name] * entry_bytes(row_arrays(plan.spec)) + len(wanted) * entry_bytes(clip_arrays(plan.spec))
    return Estimate(
        clips=sum(len(video.clips) for video in video_tasks),
        captions=sum(len(task.captions) for task in captions),
        parts=len(tasks),
        videos=len(video_tasks),
        missing_videos=len(video_tasks) - len(there),
        video_hours=seconds * scale / 3600,
        rows=dict(rows),
        bytes=size,
        hours=time_taken / 3600,
    )


def entry_bytes(arrays: dict[str, tuple[tuple[int, ...], str]]) -> int:
    """Bytes of one entry of each array, before compression."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())


def _seconds_a_row(plan: WindowPlan | ObjectsPlan, device: str) -> float:
    encoder = plan.encoder(device)
    frame = encoder.prepare(torch.zeros(240, 320, 3, dtype=torch.uint8))
    batch = [(frame,) * plan.sampling.frames] * plan.batch_size
    encoder(batch)
    begin = time.monotonic()
    encoder(batch)
    return (time.monotonic() - begin) / plan.batch_size
