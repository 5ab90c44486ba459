"""Decoding one video, forwards, once: frames with their true presentation times, from decord or from PyAV.

Runs in a process of its own (``python -m amex.extract.video.decode``), because native decoders hang and crash; the
other end is ``decoder.py``. Imports no torch, so that it starts in a fraction of a second and is small.

decord is the default. It is asked to serve only what it was measured to serve right and within bounds: it decodes a
whole file ahead of its reader (3.9 GB and growing after 9 s of a 900-frame 1080p file whose first frames alone were
read), returns duplicates for frames it could not decode, and knows nothing of edit lists. What it is not asked for,
or fails on, PyAV serves: as fast, streaming, and with an honest report of damage.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np

# decord serves a file of at most so many bytes, and a video of at most so many bytes of decoded frames: its memory is
# the sum of the two.
DECORD_FILE_BYTES = 64 << 20
DECORD_FRAME_BYTES = 512 << 20
# Codecs whose damage decord reports. It returns broken MPEG-4 part 2 and MPEG-2 frames without a word.
DECORD_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1"})
# The containers that are opened, by FFmpeg's names for their readers: those of manifests.videos.EXTENSIONS, and sound,
# to say that it is. Lists of other files (concat, HLS, DASH, SDP, numbered images) are none: what they name would be
# read in their place. Nor are bare streams of a codec, whose times FFmpeg makes up.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,gif,ogg,mxf,mp3,aac,wav,flac"
# Neither may a container name other files: no protocol but that of files, no references out of a QuickTime file.
ISOLATED = {
    "format_whitelist": CONTAINERS,
    "protocol_whitelist": "file",
    "enable_drefs": "0",
    "use_absolute_path": "0",
}
# FFmpeg's complaints at this level and above are damage: 34 undamaged camera files cause none.
LOG_LEVEL = av.logging.ERROR
# What scales and converts decoded frames remarks on files that are whole.
REMARKS = ("[in @", "[swscaler @", "[Parsed_")
# Those of DECORD_CODECS that show frames in the order in which they are stored.
IN_ORDER = frozenset({"vp8", "vp9", "av1"})
# Containers that store no presentation times, only an order: the i-th frame shown has the i-th decoding time.
WITHOUT_PTS = frozenset({"avi"})
# Containers that do not say how long they are: FFmpeg estimates it from the bytes that are there.
ESTIMATED = frozenset({"gif", "mpegts", "mpeg"})
# Tell the other end at least every so many frames, and after so many seconds, that decoding moves on.
BEAT_FRAMES = 16
BEAT_SECONDS = 2.0
BEAT_PACKETS = 4096
# A video whose timestamps exceed the longest that one frame may be shown, and this rate too, is damaged: a screen that
# stands still takes more. Bytes a second.
LEAST_RATE = 2
# A file whose packets add up to so many times its size is read in a circle.
MOST_READ = 16

HEADER = struct.Struct("<II")  # lengths of the JSON text and of the bytes after it


class Unreadable(Exception):
    """A video cannot be decoded, or no further.

    Attributes:
        stage: ``open`` or ``decode``.
        logged: whether FFmpeg's log tells of it, in which several decoding threads write.
    """

    def __init__(self, stage: str, reason: str, *, logged: bool = False) -> None:
        super().__init__(reason)
        self.stage = stage
        self.logged = logged


class DecordFailed(Exception):
    """decord gave up or complained; PyAV has to start over."""


@dataclass(frozen=True)
class Shown:
    """A decoded frame and when it is shown: [begin, end) seconds on the video's own clock."""

    begin: Fraction
    end: Fraction
    image: Callable[[], np.ndarray]  # (height, width, 3) uint8 RGB, upright
    last: bool


@dataclass
class Choice:
    """Which decoder serves a video. ``why`` says what speaks against decord; ``times`` are all frames' intervals."""

    why: str = ""
    times: list[tuple[Fraction, Fraction]] = field(default_factory=list)


def open_video(path: str) -> tuple[Any, Any]:
    """A PyAV container and its video stream; raises Unreadable."""
    try:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise Unreadable("open", "the file is empty")
        container = av.open(path, options=ISOLATED)
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise Unreadable("open", f"not a video file ({_reason(error)})") from error
    except av.error.ArgumentError as error:
        raise Unreadable(
            "open", "not a container of video: amex opens no playlists, no still images, no bare streams"
        ) from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise Unreadable("open", _reason(error)) from error
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:  # a song's cover
        kinds = sorted({other.type for other in container.streams if other is not stream})
        raise Unreadable("open", f"no video in this file, only {', '.join(kinds) or 'a header'}")
    if stream.codec_context is None:
        raise Unreadable("open", "the file does not say, or FFmpeg does not know, by which codec its video was encoded")
    if not stream.time_base:
        raise Unreadable("open", "the file does not say in which unit its times are")
    return container, stream


@dataclass(frozen=True)
class Header:
    """What a file says of its video, on its own clock.

    Attributes:
        begin: seconds.
        end: seconds, None where the file does not say.
        rate: frames per second.
        stated: whether the end is the file's own word, and not what FFmpeg makes of the bytes that are there.
    """

    begin: float
    end: float | None
    rate: float
    stated: bool = True


def read_header(path: str) -> Header:
    """Reads no more of a video than its header; raises Unreadable."""
    container, stream = open_video(path)
    with container:
        begin, end = (container.start_time or 0) / 1e6, None
        if stream.duration:
            begin = float((stream.start_time or 0) * stream.time_base)
            end = begin + float(stream.duration * stream.time_base)
        elif container.duration:
            end = begin + container.duration / 1e6
        stated = end is not None and container.format.name not in ESTIMATED and not is_cut_avi(path)
        return Header(begin, end, float(stream.average_rate or 25), stated)


def is_cut_avi(path: str) -> bool:
    """Whether a file is an AVI that says it is larger than it is; FFmpeg then counts what is there."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and int.from_bytes(head[4:8], "little") + 8 > os.path.getsize(path)


def choose(path: str, longest: Fraction, complaints: Callable[[], list[str]]) -> Choice:
    """Whether decord may serve ``path``: reads headers and packets, decodes nothing. Raises Unreadable.

    Args:
        longest: for so many seconds at most a frame may be shown.
    """
    container, stream = open_video(path)
    with container:
        complaints()  # those of opening
        codec = stream.codec_context.codec.canonical_name
        if os.path.getsize(path) > DECORD_FILE_BYTES:
            return Choice(f"file over {DECORD_FILE_BYTES >> 20} MiB")
        if codec not in DECORD_CODECS:
            return Choice(f"codec {codec}")
        if container.format.name in WITHOUT_PTS:
            return Choice("no presentation times in the container")
        packets = []
        size = 0
        try:
            for packet in container.demux(stream):
                if packet.size:
                    if packet.pts is None or packet.is_discard or packet.is_corrupt:
                        return Choice("edit list or incomplete packets")
                    size += packet.size
                    packets.append((packet.pts, packet.duration or 0, packet.is_keyframe))
        except (av.error.FFmpegError, ValueError) as error:
            return Choice(f"damaged container ({_reason(error)})")
        if complaints():
            return Choice("damaged container")
        if not packets or packets[0][0] != min(packets)[0] or not packets[0][2]:
            return Choice("frames before the first keyframe")
        if stream.frames > len(packets):
            return Choice("fewer packets than announced")
        ordered = sorted(packets)
        if codec in IN_ORDER and ordered != packets:
            return Choice("presentation times run backwards")
        pts = [packet[0] for packet in ordered]
        if any(a >= b for a, b in itertools.pairwise(pts)):
            return Choice("repeated presentation times")
        if stream.codec_context.width * stream.codec_context.height * 3 * len(pts) > DECORD_FRAME_BYTES:
            return Choice(f"over {DECORD_FRAME_BYTES >> 20} MiB decoded")
        base = stream.time_base
        final = pts[-1] + (ordered[-1][1] or _typical_gap(pts))
        edges = [value * base for value in [*pts, final]]
        times = list(itertools.pairwise(edges))
        if max(end - begin for begin, end in times) > longest or edges[-1] - edges[0] > justified(longest, size):
            return Choice("frames that are shown too long")
        return Choice(times=times)


def justified(longest: Fraction, size: int) -> Fraction:
    """How many seconds packets of ``size`` bytes may come to."""
    return longest + Fraction(size, LEAST_RATE)


def decord_frames(path: str, times: list[tuple[Fraction, Fraction]], threads: int) -> Iterator[Shown]:
    """Frames from decord, read one after the other, paired in order with the presentation times of the packets."""
    import decord

    decord.logging.set_level(decord.logging.INFO)  # its FFmpeg says at no higher one that it conceals what is broken
    try:
        # Above zero and below one frame: decord then raises where it would return a duplicate instead.
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=threads, fault_tol=0.5 / len(times))
        if len(reader) != len(times):
            raise DecordFailed(f"decord counts {len(reader)} frames, the container holds {len(times)}")
        for index, (begin, end) in enumerate(times):
            yield Shown(begin, end, reader.next().asnumpy, index == len(times) - 1)
    except DecordFailed:
        raise
    except Exception as error:  # of many kinds, for files of many kinds
        raise DecordFailed(_reason(error)) from error


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
            for number, shown in enumerate(_pyav_pass(path, count, longest, complaints)):
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


def _pyav_pass(path: str, threads: int, longest: Fraction, complaints: Callable[[], list[str]]) -> Iterator[Shown]:
    """``pyav_frames`` with so many threads, of which only one names the place of damage."""
    complaints()  # those of others; of its own, those of opening count too
    container, stream = open_video(path)
    with container:
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        held: tuple[Fraction, Fraction, Any] | None = None  # a frame's end is the next one's beginning
        try:
            for begin, duration, frame in _pyav_timed(path, container, stream, longest, complaints):
                if held is not None:
                    if begin < held[0]:
                        raise Unreadable("decode", f"damaged: presentation times run backwards at {float(begin):.3f} s")
                    yield Shown(held[0], begin, _imager(held[2]), False)
                held = (begin, duration, frame)
            if held is None:
                raise Unreadable("decode", "the video stream has no frames")
            _check_shown(held[0], held[1], longest)
        except Unreadable as error:
            certain = threads == 1 or not error.logged
            if certain and held is not None and held[1] <= longest:  # it came before the damage
                yield Shown(held[0], held[0] + held[1], _imager(held[2]), False)
            raise
        yield Shown(held[0], held[0] + held[1], _imager(held[2]), True)


def _check_shown(begin: Fraction, duration: Fraction, longest: Fraction) -> None:
    if duration > longest:
        raise Unreadable(
            "decode",
            f"damaged at {float(begin):.3f} s: a frame that would be shown for {float(duration):,.0f} s, and "
            f"{float(longest):,g} s is the limit (--longest-frame)",
        )


def video_end(path: str, alive: Callable[[Fraction], None]) -> Fraction:
    """When the last frame ceases to be shown, from the packets, in seconds. Calls ``alive`` with it now and then."""
    container, stream = open_video(path)
    end = 0
    with container, contextlib.suppress(av.error.FFmpegError, ValueError):  # what is damaged shows when it is decoded
        for number, packet in enumerate(container.demux(stream)):
            if number % BEAT_PACKETS == 0:
                alive(end * stream.time_base)
            ticks = packet.dts if container.format.name in WITHOUT_PTS else packet.pts
            if packet.size and ticks is not None and not packet.is_discard:
                end = max(end, ticks + (packet.duration or 0))
    return end * stream.time_base


def _pyav_timed(
    path: str, container: Any, stream: Any, longest: Fraction, complaints: Callable[[], list[str]]
) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """(begin, duration, frame) of every presented frame."""
    base = stream.time_base
    rate = stream.average_rate or stream.guessed_rate
    fallback = 1 / rate if rate else base
    most = MOST_READ * os.path.getsize(path) if os.path.isfile(path) else float("inf")
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
            if said := complaints():
                raise damaged("damaged or truncated", said[0], logged=True)
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
        said = complaints()
        raise damaged("damaged", (said or [_reason(error)])[0], logged=bool(said)) from error
    if packets < stream.frames:
        raise damaged("truncated", f"{packets} of {stream.frames} frames are there")
    if container.format.name == "gif" and not gif_is_whole(path):
        raise damaged("truncated", "the GIF does not end with its trailer")


def gif_is_whole(path: str) -> bool:
    """Whether the blocks of a GIF lead to its trailer; its reader takes the end of the file for one."""
    with open(path, "rb") as file:

        def table(flags: int) -> int:  # of colours
            return 3 << (flags & 7) + 1 if flags & 0x80 else 0

        def skip_blocks() -> None:
            while count := file.read(1)[0]:
                file.seek(count, os.SEEK_CUR)

        try:
            file.seek(table(file.read(13)[10]), os.SEEK_CUR)
            while (kind := file.read(1)[0]) != 0x3B:
                if kind == 0x2C:  # an image: its place, its colours, the size of its codes
                    file.seek(table(file.read(9)[8]) + 1, os.SEEK_CUR)
                elif kind == 0x21:  # an extension: its label
                    file.seek(1, os.SEEK_CUR)
                else:
                    return False
                skip_blocks()
            return True
        except IndexError:  # the file has ended
            return False


def _imager(frame: Any) -> Callable[[], np.ndarray]:
    def image() -> np.ndarray:
        pixels = frame.to_ndarray(format="rgb24")
        # PyAV gives the rotation tag in degrees counter-clockwise, as rot90 counts; decord has applied it already.
        return np.rot90(pixels, round(frame.rotation / 90) % 4) if frame.rotation else pixels

    return image


def _typical_gap(pts: list[int]) -> int:
    return round((pts[-1] - pts[0]) / (len(pts) - 1)) if len(pts) > 1 else 1


def _reason(error: BaseException | str) -> str:
    """An error or a log line in a few words, the same in every run: no clock times, addresses or places."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(
        r"\[\d\d:\d\d:\d\d\] |\S+\.cc:\d+: | @ 0x[0-9a-f]+|\[/[^\]]*\]|Stack trace.*", "", text, flags=re.DOTALL
    )
    return " ".join(text.split())[:120]
