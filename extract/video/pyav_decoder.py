"""Frames from PyAV in a stream, forwards, with an honest report of damage. Serves every video that can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av.error

from .container import MOST_READ, WITHOUT_PTS, frame_period, gif_is_whole, justified, most_read, open_video
from .frames import BEAT_FRAMES, RgbConverter, Shown, Unreadable, short_reason


def pyav_frames(
    path: str,
    threads: int,
    longest: Fraction,
    complaints: Callable[[], list[str]],
    alive: Callable[[Fraction | None], None] = lambda reached: None,
) -> Iterator[Shown]:
    """Frames from PyAV in a stream; raises Unreadable at the first sign of damage, after all frames before it.

    Of several decoding threads any may have logged a complaint, a few frames ahead of the damage; one thread then
    decodes up to it, so the place is the same in every run.

    Args:
        longest: for so many seconds at most a frame may be shown.
        complaints: what FFmpeg has logged since the last call.
        alive: told how far decoding is while no frame comes; None: it starts over.
    """
    given = 0
    for count in dict.fromkeys((threads, 1)):
        try:
            for number, shown in enumerate(forward_pass(path, count, longest, complaints)):
                if number >= given:
                    yield shown
                    given += 1
                elif number % BEAT_FRAMES == 0:
                    alive(shown.end)
            return
        except Unreadable as error:
            if not error.logged or count == 1:
                raise
        alive(None)


def forward_pass(
    path: str, threads: int, longest: Fraction, complaints: Callable[[], list[str]], hwaccel: Any = None
) -> Iterator[Shown]:
    """``pyav_frames`` with so many threads, of which only one names the place of damage.

    Args:
        hwaccel: an ``av.codec.hwaccel.HWAccel`` that decodes; None: the CPU.
    """
    complaints()  # those of others; of its own, those of opening count too
    container, stream = open_video(path, hwaccel)
    with container:
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        converter = RgbConverter()
        held: tuple[Fraction, Fraction, Any] | None = None  # a frame's end is the next one's beginning
        try:
            for begin, duration, frame in _timed_frames(path, container, stream, longest, complaints):
                if held is not None:
                    if begin < held[0]:
                        raise Unreadable("decode", f"damaged: presentation times run backwards at {float(begin):.3f} s")
                    yield Shown(held[0], begin, converter.image_of(held[2]), False)
                held = (begin, duration, frame)
            if held is None:
                raise Unreadable("decode", "the video stream has no frames")
            _check_shown(held[0], held[1], longest)
        except Unreadable as error:
            certain = threads == 1 or not error.logged
            if certain and held is not None and held[1] <= longest:  # it came before the damage
                yield Shown(held[0], held[0] + held[1], converter.image_of(held[2]), False)
            raise
        yield Shown(held[0], held[0] + held[1], converter.image_of(held[2]), True)


def _check_shown(begin: Fraction, duration: Fraction, longest: Fraction) -> None:
    if duration > longest:
        raise Unreadable(
            "decode",
            f"damaged at {float(begin):.3f} s: a frame that would be shown for {float(duration):,.0f} s, and "
            f"{float(longest):,g} s is the limit (--longest-frame)",
        )


def _timed_frames(
    path: str, container: Any, stream: Any, longest: Fraction, complaints: Callable[[], list[str]]
) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """(begin, duration, frame) of every presented frame."""
    base = stream.time_base
    fallback = frame_period(stream)
    most = most_read(path)
    decoding_times: list[int] = []
    packets = frames = size = 0
    first = begin = None

    def damaged(what: str, reason: str, *, logged: bool = False) -> Unreadable:
        where = f"after {float(begin):.3f} s" if begin is not None else "before the first frame"
        return Unreadable("decode", f"{what} {where}: {reason}", logged=logged)

    try:
        for packet in container.demux(stream):
            packets += packet.dts is not None
            size += packet.size
            if packet.is_corrupt:
                raise damaged("damaged or truncated", "an incomplete packet")
            if size > most:
                raise damaged("damaged", f"its packets come to more than {MOST_READ} times the size of the file")
            if container.format.name in WITHOUT_PTS and packet.size and packet.dts is not None:
                decoding_times.append(packet.dts)
            decoded = packet.decode()
            # Some readers and decoders skip, or conceal, what they cannot read, and go on; only the log tells. They say
            # it before they hand out the first frame that it concerns.
            if lines := complaints():
                raise damaged("damaged or truncated", lines[0], logged=True)
            for frame in decoded:
                if frame.is_corrupt:
                    raise damaged("damaged", "a broken frame")
                ticks = decoding_times[frames] if decoding_times else frame.pts
                if ticks is None:
                    raise damaged("damaged", "a frame without a presentation time")
                frames += 1
                if begin is not None:
                    _check_shown(begin, ticks * base - begin, longest)
                begin = ticks * base
                first = begin if first is None else first
                if begin - first > justified(longest, size):
                    raise damaged("damaged", f"{float(begin - first):,.0f} s are more than {size:,} bytes can fill")
                yield begin, (frame.duration or 0) * base or fallback, frame
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        lines = complaints()
        raise damaged("damaged", (lines or [short_reason(error)])[0], logged=bool(lines)) from error
    if packets < stream.frames:
        raise damaged("truncated", f"{packets} of {stream.frames} frames are there")
    if container.format.name == "gif" and not gif_is_whole(path):
        raise damaged("truncated", "the GIF does not end with its trailer")
