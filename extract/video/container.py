"""Video files as containers: opening them safely, what their headers say, the index of their packets, their damage."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import av
import av.error
import numpy as np

from .frames import BEAT_PACKETS, Unreadable, short_reason

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
# Containers that store no presentation times, only an order: the i-th frame shown has the i-th decoding time.
WITHOUT_PTS = frozenset({"avi"})
# Containers that do not say how long they are: FFmpeg estimates it from the bytes that are there.
ESTIMATED = frozenset({"gif", "mpegts", "mpeg"})
# A video whose timestamps exceed the longest that one frame may be shown, and this rate too, is damaged: a screen that
# stands still takes more. Bytes a second.
LEAST_RATE = 2
# A file whose packets add up to so many times its size is read in a circle.
MOST_READ = 16


def open_video(path: str, hwaccel: Any = None) -> tuple[Any, Any]:
    """A PyAV container and its video stream; raises Unreadable.

    Args:
        hwaccel: an ``av.codec.hwaccel.HWAccel`` that decodes; None: the CPU.
    """
    try:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise Unreadable("open", "the file is empty")
        container = av.open(path, options=ISOLATED, hwaccel=hwaccel)
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise Unreadable("open", f"not a video file, or an incomplete one ({short_reason(error)})") from error
    except av.error.ArgumentError as error:
        raise Unreadable(
            "open", "not a container of video: amex opens no playlists, no still images, no bare streams"
        ) from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise Unreadable("open", short_reason(error)) from error
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
        return header_of(path, container, stream)


def header_of(path: str, container: Any, stream: Any) -> Header:
    """The header of an open video."""
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


@dataclass(frozen=True)
class Index:
    """The packets of a video in the order in which they are stored, without their data.

    Attributes:
        pts: presentation times in ticks, int64. Of ``broken`` containers, and of those WITHOUT_PTS, of no use.
        dts: decoding times in ticks, int64; those of presentation where the container does not say.
        duration: ticks, int64, 0 where the container does not say.
        size: bytes, int32.
        keyframe: bool.
        base: seconds a tick.
        end: when the last frame ceases to be shown, seconds, as far as the container could be read.
        broken: why the times of presentation cannot be had from here; empty if they can.
    """

    pts: np.ndarray
    dts: np.ndarray
    duration: np.ndarray
    size: np.ndarray
    keyframe: np.ndarray
    base: Fraction
    end: Fraction
    broken: str

    def __len__(self) -> int:
        return len(self.pts)

    @cached_property
    def order(self) -> np.ndarray:
        """The packets in the order in which their frames are shown: positions in the arrays, int64."""
        return np.argsort(self.pts, kind="stable")

    def intervals(self, last_duration: Fraction, first: int = 0) -> Iterator[tuple[Fraction, Fraction]]:
        """When each frame is shown, in order: its own time and the next one's; the last one for its duration.

        Args:
            last_duration: in seconds, of a last packet whose container does not say how long it is shown.
            first: leave out so many frames.
        """
        begin = None
        for packet in self.order[first:]:
            next_begin = int(self.pts[packet]) * self.base
            if begin is not None:
                yield begin, next_begin
            begin = next_begin
        yield begin, begin + (int(self.duration[self.order[-1]]) * self.base or last_duration)

    @cached_property
    def typical_gap(self) -> Fraction:
        """The mean time from a frame to the next, to a tick, in seconds."""
        first, last = int(self.pts[self.order[0]]), int(self.pts[self.order[-1]])
        return (round((last - first) / (len(self) - 1)) if len(self) > 1 else 1) * self.base

    def too_long(self, longest: Fraction) -> bool:
        """Whether a frame is shown for longer than ``longest`` seconds, or all for longer than their bytes justify."""
        pts = self.pts[self.order]
        last = int(self.duration[self.order[-1]]) * self.base or self.typical_gap
        longest_gap = max(int(np.diff(pts).max(initial=0)) * self.base, last)
        span = int(pts[-1] - pts[0]) * self.base + last
        return longest_gap > longest or span > justified(longest, int(self.size.sum()))


def read_index(
    path: str, container: Any, stream: Any, complaints: Callable[[], list[str]], alive: Callable[[Fraction], None]
) -> Index:
    """Reads all packets of an open video and decodes none. Calls ``alive`` now and then with the time it is at."""
    pts, dts, duration, size, keyframe = array("q"), array("q"), array("q"), array("i"), array("b")
    without_pts = container.format.name in WITHOUT_PTS
    most = most_read(path)
    end = total = 0
    broken = ""
    try:
        for number, packet in enumerate(container.demux(stream)):
            if number % BEAT_PACKETS == 0:
                alive(end * stream.time_base)
            if not packet.size:
                continue
            total += packet.size
            if total > most:
                broken = broken or "damaged container"
                break
            ticks = packet.dts if without_pts else packet.pts
            if packet.pts is None or packet.is_discard or packet.is_corrupt:
                broken = broken or "edit list or incomplete packets"
            if ticks is not None and not packet.is_discard:
                end = max(end, ticks + (packet.duration or 0))
            pts.append(packet.pts or 0)
            dts.append(pts[-1] if packet.dts is None else packet.dts)
            duration.append(packet.duration or 0)
            size.append(packet.size)
            keyframe.append(packet.is_keyframe)
    except (av.error.FFmpegError, ValueError, IndexError) as error:  # what is damaged shows when it is decoded
        broken = broken or f"damaged container ({short_reason(error)})"
    if complaints():
        broken = broken or "damaged container"
    return Index(
        pts=np.asarray(pts),
        dts=np.asarray(dts),
        duration=np.asarray(duration),
        size=np.asarray(size),
        keyframe=np.asarray(keyframe).view(bool),
        base=stream.time_base,
        end=end * stream.time_base,
        broken=broken,
    )


def most_read(path: str) -> float:
    """How many bytes the packets of a file may come to."""
    return MOST_READ * os.path.getsize(path) if os.path.isfile(path) else float("inf")


def justified(longest: Fraction, size: int) -> Fraction:
    """How many seconds packets of ``size`` bytes may come to."""
    return longest + Fraction(size, LEAST_RATE)


def frame_period(stream: Any) -> Fraction:
    """Seconds for which a frame is shown whose container does not say."""
    rate = stream.average_rate or stream.guessed_rate
    return 1 / rate if rate else stream.time_base


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
