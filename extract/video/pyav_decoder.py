"""Decoding with PyAV in a forward pass, with reliable reports of damage. Works for every readable video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av.error

from ...errors import plural
from .container import (
    MAX_READ_FACTOR,
    WITHOUT_PTS,
    frame_period,
    gif_is_complete,
    max_packet_bytes,
    open_video,
    plausible_seconds,
)
from .frames import HEARTBEAT_FRAMES, RgbConverter, TimedFrame, Unreadable, short_reason


def pyav_frames(
    path: str,
    threads: int,
    longest_frame: Fraction,
    read_log: Callable[[], list[str]],
    heartbeat: Callable[[Fraction | None], None] = lambda reached: None,
) -> Iterator[TimedFrame]:
    """Yield the frames of a video in order.

    Several decoding threads log damage up to a few frames too early. In that case a single thread decodes the video
    again up to the damage, so that its position is equal in every run.

    Args:
        threads: decoding threads; 0 leaves the number to the library.
        longest_frame: maximum seconds that a frame may be shown.
        read_log: returns the lines that FFmpeg logged since the last call.
        heartbeat: called with the time reached while no frame is yielded; with None if it starts from the beginning.

    Raises:
        Unreadable: at the first damage, after all frames before it.
    """
    yielded = 0
    for count in dict.fromkeys((threads, 1)):
        try:
            for number, frame in enumerate(forward_pass(path, count, longest_frame, read_log)):
                if number >= yielded:
                    yield frame
                    yielded += 1
                elif number % HEARTBEAT_FRAMES == 0:
                    heartbeat(frame.end)
            return
        except Unreadable as error:
            if not error.logged or count == 1:
                raise
        heartbeat(None)


def forward_pass(
    path: str, threads: int, longest_frame: Fraction, read_log: Callable[[], list[str]], hwaccel: Any = None
) -> Iterator[TimedFrame]:
    """Yield the frames of one pass, like ``pyav_frames``. Only a single thread gives the exact position of damage.

    Args:
        hwaccel: ``av.codec.hwaccel.HWAccel`` to decode with; None decodes on the CPU.
    """
    read_log()  # discards earlier messages; messages from opening this file count
    container, stream = open_video(path, hwaccel)
    with container:
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        converter = RgbConverter()
        # A frame is yielded when the next one is known, because it ends where the next one begins.
        previous: tuple[Fraction, Fraction, Any] | None = None
        try:
            for begin, duration, frame in _timed_frames(path, container, stream, longest_frame, read_log):
                if previous is not None:
                    if begin < previous[0]:
                        raise Unreadable("decode", f"damaged: presentation times run backwards at {float(begin):.3f} s")
                    yield TimedFrame(previous[0], begin, converter.image_of(previous[2]), False)
                previous = (begin, duration, frame)
            if previous is None:
                raise Unreadable("decode", "the video stream has no frames")
            _check_duration(previous[0], previous[1], longest_frame)
        except Unreadable as error:
            exact_position = threads == 1 or not error.logged
            if (
                exact_position and previous is not None and previous[1] <= longest_frame
            ):  # this frame precedes the damage
                yield TimedFrame(previous[0], previous[0] + previous[1], converter.image_of(previous[2]), False)
            raise
        yield TimedFrame(previous[0], previous[0] + previous[1], converter.image_of(previous[2]), True)


def _check_duration(begin: Fraction, duration: Fraction, longest_frame: Fraction) -> None:
    if duration > longest_frame:
        raise Unreadable(
            "decode",
            f"damaged at {float(begin):.3f} s: a frame is shown for {float(duration):,.0f} s, longer than "
            f"--longest-frame {float(longest_frame):g}",
        )


def _timed_frames(
    path: str, container: Any, stream: Any, longest_frame: Fraction, read_log: Callable[[], list[str]]
) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """Yield (begin, duration, frame) of every frame in presentation order. Raise Unreadable at damage."""
    base = stream.time_base
    fallback = frame_period(stream)
    most = max_packet_bytes(path)
    decoding_times: list[int] = []
    packets = frames = size = 0
    first = begin = None

    def damaged(kind: str, reason: str, *, logged: bool = False) -> Unreadable:
        position = f"after {float(begin):.3f} s" if begin is not None else "before the first frame"
        return Unreadable("decode", f"{kind} {position}: {reason}", logged=logged)

    try:
        for packet in container.demux(stream):
            packets += packet.dts is not None
            size += packet.size
            if packet.is_corrupt:
                raise damaged("damaged or truncated", "an incomplete packet")
            if size > most:
                raise damaged("damaged", f"the packets add up to more than {MAX_READ_FACTOR} times the file size")
            if container.format.name in WITHOUT_PTS and packet.size and packet.dts is not None:
                decoding_times.append(packet.dts)
            decoded = packet.decode()
            # Some readers and decoders skip or conceal damage and continue. They only log it, before they return the
            # first affected frame.
            if lines := read_log():
                raise damaged("damaged or truncated", lines[0], logged=True)
            for frame in decoded:
                if frame.is_corrupt:
                    raise damaged("damaged", "a broken frame")
                ticks = decoding_times[frames] if decoding_times else frame.pts
                if ticks is None:
                    raise damaged("damaged", "a frame without a presentation time")
                frames += 1
                if begin is not None:
                    _check_duration(begin, ticks * base - begin, longest_frame)
                begin = ticks * base
                first = begin if first is None else first
                if begin - first > plausible_seconds(longest_frame, size):
                    raise damaged("damaged", f"{float(begin - first):,.0f} s are too long for {size:,} bytes")
                yield begin, (frame.duration or 0) * base or fallback, frame
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        lines = read_log()
        raise damaged("damaged", (lines or [short_reason(error)])[0], logged=bool(lines)) from error
    if packets < stream.frames:
        raise damaged("truncated", f"the file has {packets:,} of {plural(stream.frames, 'frame')}")
    if container.format.name == "gif" and not gif_is_complete(path):
        raise damaged("truncated", "the GIF does not end with its trailer")
