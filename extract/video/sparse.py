"""Frames from PyAV where few are needed: only the groups of pictures that hold them are decoded.

The index of a container says when every frame is shown, so sampling runs on it first and tells which frames it needs.
Decoding then seeks to the keyframes before those. Every packet that is read and every frame that is decoded must be
the one that the index lists; where one is not, DecoderFailed sends the video to the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av.error
import numpy as np

from .container import Header, Index, frame_period, open_video
from .frames import BEAT_PACKETS, DecoderFailed, RgbConverter, Shown, Unreadable, short_reason
from .sampling import Sampler, exact

# The largest share that a sparse pass decodes of the packets of a forward pass, which ends where the last request does.
# Above it, seeks and a second reading cost what they save.
MOST_DECODED = 0.5
# The containers in which a seek was measured to lead to a keyframe, or before it: FFmpeg's names for their readers.
SEEKABLE = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"})
# Those of them that are searched by decoding times, not by those of presentation.
BY_DECODING_TIME = frozenset({"mpegts"})
# Codecs whose decoder misses, from the keyframe of an open group, frames that later packets name (not show).
WARMED = frozenset({"h264"})


@dataclass(frozen=True)
class PacketRun:
    """Packets to decode one after the other, [first, after), in the order in which they are stored.

    ``first`` and ``sound`` are keyframes. What is shown before the latter only warms the decoder up: it is decoded, but
    its frames may be broken.
    """

    first: int
    sound: int
    after: int


@dataclass(frozen=True)
class SparsePlan:
    """What a sparse pass decodes.

    Attributes:
        fed: of every packet, whether its frame comes out of the decoder, as it should.
        first: of the frames in the order in which they are shown, the first that is on screen in a request's time.
    """

    runs: tuple[PacketRun, ...]
    fed: np.ndarray
    first: int


def is_hopeless(header: Header, requests: Sequence[Any]) -> bool:
    """Whether one request alone takes most frames of a forward pass: then no index need be read."""
    if header.end is None or header.end <= header.begin:
        return True
    spans = [
        (
            header.begin if request.start is None else max(request.start, header.begin),
            header.end if request.end is None else min(request.end, header.end),
        )
        for request in requests
    ]
    forward = (max(end for _, end in spans) - header.begin) * header.rate
    for request, (begin, end) in zip(requests, spans, strict=True):
        used = min(1.0, request.sampling.frames / request.sampling.stride)  # of its samples
        if request.sampling.samples(max(0.0, end - begin), header.rate) * used > MOST_DECODED * forward:
            return True
    return False


def plan_sparse(
    container: Any,
    stream: Any,
    index: Index,
    requests: Sequence[Any],
    longest: Fraction,
    alive: Callable[[Fraction], None],
) -> SparsePlan | None:
    """Which packets to decode for some requests; None if that is most of them, or if the index cannot be trusted.

    Args:
        requests: each with ``start``, ``end`` and ``sampling``, as ``Sampler`` takes them.
        longest: for so many seconds at most a frame may be shown.
    """
    if container.format.name not in SEEKABLE or not trustworthy(index, stream.frames, longest):
        return None
    first = first_shown(index, requests)
    needed = needed_packets(index, requests, first, frame_period(stream), alive)
    runs = runs_of(index, needed, stream.codec_context.codec.canonical_name)
    forward = runs[-1].after if runs else 0  # a forward pass ends where the last request does
    if sum(run.after - run.first for run in runs) > MOST_DECODED * forward:
        return None
    fed = np.zeros(len(index), bool)
    for run in runs:
        # Frames that are shown before a run's keyframe need the group before it, and none of this run needs them.
        fed[run.first : run.after] = index.pts[run.first : run.after] >= index.pts[run.sound]
    return SparsePlan(runs, fed, min([first, *np.flatnonzero(fed[index.order])[:1]]))


def trustworthy(index: Index, announced: int, longest: Fraction) -> bool:
    """Whether an index lists every frame once, at a time of its own, in groups that follow each other.

    Args:
        announced: how many frames the header says there are, 0 if it does not.
    """
    if index.broken or not len(index) or not index.keyframe[0] or announced > len(index):
        return False
    pts = index.pts
    if pts[0] != pts.min() or (np.diff(pts[index.order]) <= 0).any():
        return False
    # What is stored before a keyframe is shown before it.
    latest_before = np.maximum.accumulate(pts)[:-1]
    keyframes = np.flatnonzero(index.keyframe)[1:]
    return bool((latest_before[keyframes - 1] < pts[keyframes]).all()) and not index.too_long(longest)


def first_shown(index: Index, requests: Sequence[Any]) -> int:
    """Which frame, in the order in which they are shown, is on screen when the first of the requests starts."""
    starts = [request.start for request in requests]
    if None in starts:
        return 0
    ticks = exact(min(starts)) / index.base
    return max(0, int(np.searchsorted(index.pts[index.order], math.floor(ticks), side="right")) - 1)


def needed_packets(
    index: Index, requests: Sequence[Any], first: int, period: Fraction, alive: Callable[[Fraction], None]
) -> np.ndarray:
    """Of every packet, whether the samplers of ``requests`` use its frame: a rehearsal, with times alone."""
    needed = np.zeros(len(index), bool)
    samplers = [Sampler(request.sampling, request.start, request.end, index.end) for request in requests]
    waiting = sorted(samplers, key=lambda sampler: sampler.start, reverse=True)
    active: list[Sampler] = []
    for position, (begin, end) in enumerate(index.intervals(period, first), first):
        if position % BEAT_PACKETS == 0:
            alive(end)
        last = position == len(index) - 1
        while waiting and (waiting[-1].start < end or waiting[-1].start == begin):
            active.append(waiting.pop())
        for sampler in active:
            windows = sampler.push(position, begin, end, last=last)
            if sampler.holds(position) or any(position in window.keys for window in windows):
                needed[index.order[position]] = True
        active = [sampler for sampler in active if sampler.end > end]
        if not active and not waiting:
            break
    return needed


def runs_of(index: Index, needed: np.ndarray, codec: str) -> tuple[PacketRun, ...]:
    """The packets to decode, in runs, each up to the last packet that is needed of it."""
    keyframes = np.flatnonzero(index.keyframe)
    packets = np.flatnonzero(needed)
    group = np.searchsorted(keyframes, packets, side="right") - 1
    # A frame that is shown before the keyframe of its group (which is open) refers to the group before.
    group -= index.pts[packets] < index.pts[keyframes[group]]
    warmed = codec in WARMED and is_open(index, keyframes)
    runs: list[PacketRun] = []
    for number, packet in sorted(zip(group.tolist(), packets.tolist(), strict=True)):
        first = int(keyframes[max(0, number - 1) if warmed else number])
        if runs and first <= runs[-1].after:
            runs[-1] = replace(runs[-1], after=max(runs[-1].after, packet + 1))
        else:
            runs.append(PacketRun(first, int(keyframes[number]), packet + 1))
    return tuple(runs)


def is_open(index: Index, keyframes: np.ndarray) -> bool:
    """Whether some frame is shown before the keyframe that is stored before it."""
    group = np.cumsum(index.keyframe) - 1
    return bool((index.pts < index.pts[keyframes[group]]).any())


def sparse_frames(
    path: str, plan: SparsePlan, index: Index, threads: int, complaints: Callable[[], list[str]]
) -> Iterator[Shown]:
    """The frames of the index in order, from the first that a request sees, decoded where the plan says so.

    Raises:
        DecoderFailed: where the file is not as its index says.
    """
    try:
        container, stream = open_video(path)
    except Unreadable as error:
        raise DecoderFailed(str(error)) from error
    with container:
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        converter = RgbConverter()
        period = frame_period(stream)
        decoded = decode_runs(container, stream, plan, index, complaints)
        last_position = len(index) - 1
        for position, (begin, end) in enumerate(index.intervals(period, plan.first), plan.first):
            packet = index.order[position]
            last = position == last_position
            if not plan.fed[packet]:
                yield Shown(begin, end, None, last, decoded=False)
                continue
            frame = next(decoded, None)
            if frame is None or frame.pts != index.pts[packet]:
                what = "none" if frame is None else f"one of {float((frame.pts or 0) * index.base):.3f} s"
                raise DecoderFailed(f"instead of the frame of {float(begin):.3f} s came {what}")
            if last and (frame.duration or 0) * index.base != end - begin and frame.duration:
                raise DecoderFailed("the last frame is not shown for as long as its packet")
            yield Shown(begin, end, converter.image_of(frame), last)


def decode_runs(
    container: Any, stream: Any, plan: SparsePlan, index: Index, complaints: Callable[[], list[str]]
) -> Iterator[Any]:
    """The frames of all packets that are fed to the decoder, in the order in which they are shown."""
    context = stream.codec_context
    if any(run.first < run.sound for run in plan.runs):
        context.thread_count = 1  # several would complain of what warms them up when it is past
    complaints()
    try:
        for run in plan.runs:
            begin = int(index.pts[run.sound])
            for position, packet in packets_of(container, stream, index, run):
                frames = context.decode(packet)
                if (lines := complaints()) and position >= run.sound:
                    raise DecoderFailed(lines[0])
                yield from sound_frames(frames, begin)
            frames = context.decode(None)
            if lines := complaints():
                raise DecoderFailed(lines[0])
            yield from sound_frames(frames, begin)
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise DecoderFailed((complaints() or [short_reason(error)])[0]) from error


def packets_of(container: Any, stream: Any, index: Index, run: PacketRun) -> Iterator[tuple[int, Any]]:
    """The packets of a run and their positions in the index, without those that are shown before the first."""
    first = int(index.pts[run.first])
    by_dts = container.format.name in BY_DECODING_TIME
    container.seek(int(index.dts[run.first]) if by_dts else first, stream=stream)
    position = run.first
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if position == run.first and packet.pts != first and not (packet.is_keyframe and (packet.pts or 0) > first):
            continue  # the seek has led to somewhere before
        if packet.is_corrupt or packet.pts != index.pts[position] or packet.size != index.size[position]:
            raise DecoderFailed(f"another packet came than that of {float(index.pts[position] * index.base):.3f} s")
        if packet.pts >= first:
            yield position, packet
        position += 1
        if position == run.after:
            return
    raise DecoderFailed("the file ended early")


def sound_frames(frames: Sequence[Any], begin: int) -> Iterator[Any]:
    """The frames that are shown from ``begin`` on, in ticks; raises DecoderFailed where one of them is broken."""
    for frame in frames:
        if frame.pts is None or frame.pts >= begin:
            if frame.is_corrupt:
                raise DecoderFailed("a broken frame")
            yield frame
