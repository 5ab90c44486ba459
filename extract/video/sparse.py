"""Sparse decoding with PyAV: if few frames are needed, decode only the groups of pictures that contain them.

The index of a container lists the time of every frame. Sampling runs on these times first and finds the needed frames.
Decoding then seeks to the keyframes before them. Every packet and every decoded frame must match the index; otherwise
DecoderFailed sends the video to the forward pass.
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
from .frames import HEARTBEAT_PACKETS, DecoderFailed, RgbConverter, TimedFrame, Unreadable, short_reason
from .sampling import Sampler, exact

# Maximum share of a forward pass's packets that a sparse pass decodes. Above it, seeking and reading twice cost as much
# as they save. A forward pass ends with the last request.
MAX_DECODED_SHARE = 0.5
# Containers in which a seek lands on or before the keyframe, as measured. FFmpeg's names.
SEEKABLE = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"})
# Containers that seek by decoding time instead of presentation time.
SEEK_BY_DTS = frozenset({"mpegts"})
# Codecs whose decoder reports missing reference frames if it starts at the keyframe of an open group. Decoding starts
# one group earlier for them.
NEEDS_WARMUP = frozenset({"h264"})


@dataclass(frozen=True)
class PacketRun:
    """A half-open range [first, after) of packets, in storage order, that is decoded in one go.

    ``first`` and ``first_valid`` are keyframes. Packets before ``first_valid`` only warm up the decoder: they are
    decoded, but their frames may be broken and are discarded.
    """

    first: int
    first_valid: int
    after: int


@dataclass(frozen=True)
class SparsePlan:
    """The packets that a sparse pass decodes.

    Attributes:
        outputs_frame: (packets,) bool: whether the decoder outputs the packet's frame.
        first: position in presentation order of the first frame that is on screen during a request.
    """

    runs: tuple[PacketRun, ...]
    outputs_frame: np.ndarray
    first: int


def needs_most_frames(header: Header, requests: Sequence[Any]) -> bool:
    """Return whether one request alone needs most frames of a forward pass. The index is not needed then."""
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
        used_share = min(1.0, request.sampling.frames / request.sampling.stride)  # share of samples in windows
        samples = request.sampling.samples(max(0.0, end - begin), header.rate)
        if samples * used_share > MAX_DECODED_SHARE * forward:
            return True
    return False


def plan_sparse(
    container: Any,
    stream: Any,
    index: Index,
    requests: Sequence[Any],
    longest_frame: Fraction,
    heartbeat: Callable[[Fraction], None],
) -> SparsePlan | None:
    """Plan the packets to decode for some requests. Return None if they are too many or the index is inconsistent.

    Args:
        requests: each with ``start``, ``end`` and ``sampling``, see ``Sampler``.
        longest_frame: maximum seconds that a frame may be shown.
        heartbeat: called regularly with the time reached.
    """
    if container.format.name not in SEEKABLE or not is_consistent(index, stream.frames, longest_frame):
        return None
    first = first_shown(index, requests)
    needed = needed_packets(index, requests, first, frame_period(stream), heartbeat)
    runs = runs_of(index, needed, stream.codec_context.codec.canonical_name)
    forward = runs[-1].after if runs else 0  # packets of a forward pass, which ends with the last request
    if sum(run.after - run.first for run in runs) > MAX_DECODED_SHARE * forward:
        return None
    outputs_frame = np.zeros(len(index), bool)
    for run in runs:
        # Frames shown before the run's keyframe refer to the previous group. The run does not need them.
        outputs_frame[run.first : run.after] = index.pts[run.first : run.after] >= index.pts[run.first_valid]
    return SparsePlan(runs, outputs_frame, min([first, *np.flatnonzero(outputs_frame[index.order])[:1]]))


def is_consistent(index: Index, announced: int, longest_frame: Fraction) -> bool:
    """Return whether an index lists every frame once, with unique times, in groups that do not overlap.

    Args:
        announced: number of frames in the header; 0 if unknown.
    """
    if index.broken or not len(index) or not index.keyframe[0] or announced > len(index):
        return False
    pts = index.pts
    if pts[0] != pts.min() or (np.diff(pts[index.order]) <= 0).any():
        return False
    # Every packet stored before a keyframe must be shown before it.
    latest_before = np.maximum.accumulate(pts)[:-1]
    keyframes = np.flatnonzero(index.keyframe)[1:]
    return bool((latest_before[keyframes - 1] < pts[keyframes]).all()) and not index.exceeds_duration(longest_frame)


def first_shown(index: Index, requests: Sequence[Any]) -> int:
    """Return the position, in presentation order, of the frame on screen when the first request starts."""
    starts = [request.start for request in requests]
    if None in starts:
        return 0
    ticks = exact(min(starts)) / index.base
    return max(0, int(np.searchsorted(index.pts[index.order], math.floor(ticks), side="right")) - 1)


def needed_packets(
    index: Index, requests: Sequence[Any], first: int, period: Fraction, heartbeat: Callable[[Fraction], None]
) -> np.ndarray:
    """Return which packets' frames the samplers of the requests use, (packets,) bool. Runs the samplers on times."""
    needed = np.zeros(len(index), bool)
    samplers = [Sampler(request.sampling, request.start, request.end, index.end) for request in requests]
    waiting = sorted(samplers, key=lambda sampler: sampler.start, reverse=True)
    active: list[Sampler] = []
    for position, (begin, end) in enumerate(index.intervals(period, first), first):
        if position % HEARTBEAT_PACKETS == 0:
            heartbeat(end)
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
    """Return the runs of packets to decode. Each run ends with its last needed packet."""
    keyframes = np.flatnonzero(index.keyframe)
    packets = np.flatnonzero(needed)
    group = np.searchsorted(keyframes, packets, side="right") - 1
    # In an open group, a frame shown before the keyframe refers to the previous group.
    group -= index.pts[packets] < index.pts[keyframes[group]]
    warmup = codec in NEEDS_WARMUP and is_open(index, keyframes)
    runs: list[PacketRun] = []
    for number, packet in sorted(zip(group.tolist(), packets.tolist(), strict=True)):
        first = int(keyframes[max(0, number - 1) if warmup else number])
        if runs and first <= runs[-1].after:
            runs[-1] = replace(runs[-1], after=max(runs[-1].after, packet + 1))
        else:
            runs.append(PacketRun(first, int(keyframes[number]), packet + 1))
    return tuple(runs)


def is_open(index: Index, keyframes: np.ndarray) -> bool:
    """Return whether a group is open: one of its frames is shown before its keyframe."""
    group = np.cumsum(index.keyframe) - 1
    return bool((index.pts < index.pts[keyframes[group]]).any())


def sparse_frames(
    path: str, plan: SparsePlan, index: Index, threads: int, read_log: Callable[[], list[str]]
) -> Iterator[TimedFrame]:
    """Yield the frames of the index in presentation order, from ``plan.first``. Decode only those in the plan.

    Raises:
        DecoderFailed: if the file does not match its index.
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
        decoded = decode_runs(container, stream, plan, index, read_log)
        last_position = len(index) - 1
        for position, (begin, end) in enumerate(index.intervals(period, plan.first), plan.first):
            packet = index.order[position]
            last = position == last_position
            if not plan.outputs_frame[packet]:
                yield TimedFrame(begin, end, None, last, decoded=False)
                continue
            frame = next(decoded, None)
            if frame is None or frame.pts != index.pts[packet]:
                actual = "none" if frame is None else f"the frame at {float((frame.pts or 0) * index.base):.3f} s"
                raise DecoderFailed(f"expected the frame at {float(begin):.3f} s, got {actual}")
            if last and (frame.duration or 0) * index.base != end - begin and frame.duration:
                raise DecoderFailed("the last frame and its packet have different durations")
            yield TimedFrame(begin, end, converter.image_of(frame), last)


def decode_runs(
    container: Any, stream: Any, plan: SparsePlan, index: Index, read_log: Callable[[], list[str]]
) -> Iterator[Any]:
    """Yield the frames of all runs in presentation order."""
    context = stream.codec_context
    if any(run.first < run.first_valid for run in plan.runs):
        context.thread_count = 1  # several threads would log errors of the warm-up after it ended
    read_log()
    try:
        for run in plan.runs:
            begin = int(index.pts[run.first_valid])
            for position, packet in packets_of(container, stream, index, run):
                frames = context.decode(packet)
                if (lines := read_log()) and position >= run.first_valid:
                    raise DecoderFailed(lines[0])
                yield from valid_frames(frames, begin)
            frames = context.decode(None)
            if lines := read_log():
                raise DecoderFailed(lines[0])
            yield from valid_frames(frames, begin)
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise DecoderFailed((read_log() or [short_reason(error)])[0]) from error


def packets_of(container: Any, stream: Any, index: Index, run: PacketRun) -> Iterator[tuple[int, Any]]:
    """Yield the packets of a run with their positions in the index, except those shown before its first packet."""
    first = int(index.pts[run.first])
    by_dts = container.format.name in SEEK_BY_DTS
    container.seek(int(index.dts[run.first]) if by_dts else first, stream=stream)
    position = run.first
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if position == run.first and packet.pts != first and not (packet.is_keyframe and (packet.pts or 0) > first):
            continue  # the seek landed before the run
        if packet.is_corrupt or packet.pts != index.pts[position] or packet.size != index.size[position]:
            raise DecoderFailed(f"unexpected packet instead of {float(index.pts[position] * index.base):.3f} s")
        if packet.pts >= first:
            yield position, packet
        position += 1
        if position == run.after:
            return
    raise DecoderFailed("the file ended early")


def valid_frames(frames: Sequence[Any], begin: int) -> Iterator[Any]:
    """Yield the frames shown at or after ``begin``, in ticks. Raise DecoderFailed if one of them is broken."""
    for frame in frames:
        if frame.pts is None or frame.pts >= begin:
            if frame.is_corrupt:
                raise DecoderFailed("a broken frame")
            yield frame
