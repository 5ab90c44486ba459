"""Video containers: open a file safely, read its header and the index of its packets, and detect damage."""

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

from .frames import HEARTBEAT_PACKETS, Unreadable, short_reason

# The allowed containers, by FFmpeg's names: those of manifests.videos.EXTENSIONS, and audio files, for a clear error.
# Playlists (concat, HLS, DASH, SDP, numbered images) are not allowed, because FFmpeg would read the files that they
# name. Raw codec streams are not allowed, because they have no timestamps.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,gif,ogg,mxf,mp3,aac,wav,flac"
# A container may not refer to other files: only local files are opened, and references in QuickTime files are ignored.
ISOLATED = {
    "format_whitelist": CONTAINERS,
    "protocol_whitelist": "file",
    "enable_drefs": "0",
    "use_absolute_path": "0",
}
# Containers without presentation times: the i-th frame in presentation order has the i-th decoding time.
WITHOUT_PTS = frozenset({"avi"})
# Containers that do not store their duration. FFmpeg estimates it from the size.
ESTIMATED = frozenset({"gif", "mpegts", "mpeg"})
# Minimum bytes per second of an undamaged video. Even a static screen needs more. Fewer bytes mean that the timestamps
# are damaged, unless the video is no longer than one frame may be shown.
MIN_BYTE_RATE = 2
# If the packets add up to more than this many times the size of the file, the reader is in a loop.
MAX_READ_FACTOR = 16


def open_video(path: str, hwaccel: Any = None) -> tuple[Any, Any]:
    """Open a file; return the PyAV container and its video stream.

    Args:
        hwaccel: ``av.codec.hwaccel.HWAccel`` to decode with; None decodes on the CPU.

    Raises:
        Unreadable: if the file is not a video.
    """
    try:
        if os.path.isfile(path) and os.path.getsize(path) == 0:
            raise Unreadable("open", "the file is empty")
        container = av.open(path, options=ISOLATED, hwaccel=hwaccel)
    except (av.error.InvalidDataError, av.error.EOFError) as error:
        raise Unreadable("open", f"not a video file, or an incomplete one ({short_reason(error)})") from error
    except av.error.ArgumentError as error:
        raise Unreadable(
            "open", "not a video container: amex does not open playlists, still images or raw codec streams"
        ) from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise Unreadable("open", short_reason(error)) from error
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:  # a song's cover
        kinds = sorted({other.type for other in container.streams if other is not stream})
        raise Unreadable("open", f"no video in this file, only {', '.join(kinds) or 'a header'}")
    if stream.codec_context is None:
        raise Unreadable("open", "the codec of the video is missing in the file, or FFmpeg does not support it")
    if not stream.time_base:
        raise Unreadable("open", "the file does not store the unit of its timestamps")
    return container, stream


@dataclass(frozen=True)
class Header:
    """The header of a video, in seconds on the video's own clock.

    Attributes:
        begin: start of the first frame.
        end: end of the last frame; None if the file does not store it.
        rate: frames per second.
        stated: whether the file stores the end; otherwise FFmpeg estimates it from the size of the file.
    """

    begin: float
    end: float | None
    rate: float
    stated: bool = True


def read_header(path: str) -> Header:
    """Read the header of a video file. Raise Unreadable if it is not a video."""
    container, stream = open_video(path)
    with container:
        return header_of(path, container, stream)


def header_of(path: str, container: Any, stream: Any) -> Header:
    """Return the header of an open video."""
    begin, end = (container.start_time or 0) / 1e6, None
    if stream.duration:
        begin = float((stream.start_time or 0) * stream.time_base)
        end = begin + float(stream.duration * stream.time_base)
    elif container.duration:
        end = begin + container.duration / 1e6
    stated = end is not None and container.format.name not in ESTIMATED and not is_truncated_avi(path)
    return Header(begin, end, float(stream.average_rate or 25), stated)


def is_truncated_avi(path: str) -> bool:
    """Return whether a file is an AVI that is shorter than its header says. FFmpeg then estimates the duration."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and int.from_bytes(head[4:8], "little") + 8 > os.path.getsize(path)


@dataclass(frozen=True)
class Index:
    """The packets of a video in storage order, without their data.

    Attributes:
        pts: presentation times in ticks, int64. Invalid if ``broken``, and for containers in WITHOUT_PTS.
        dts: decoding times in ticks, int64; the presentation time if the container does not store one.
        duration: ticks, int64; 0 if the container does not store it.
        size: bytes, int32.
        keyframe: bool.
        base: seconds per tick.
        end: end of the last frame in seconds, as far as the container is readable.
        broken: why the presentation times are not reliable; empty if they are.
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
        """Indices of the packets in presentation order, int64."""
        return np.argsort(self.pts, kind="stable")

    def intervals(self, last_duration: Fraction, first: int = 0) -> Iterator[tuple[Fraction, Fraction]]:
        """Yield begin and end of each frame in presentation order. A frame ends when the next one begins.

        Args:
            last_duration: seconds for the last frame if the container does not store its duration.
            first: number of frames to skip.
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
        """The mean time between frames in seconds, rounded to a tick."""
        first, last = int(self.pts[self.order[0]]), int(self.pts[self.order[-1]])
        return (round((last - first) / (len(self) - 1)) if len(self) > 1 else 1) * self.base

    def exceeds_duration(self, longest_frame: Fraction) -> bool:
        """Return whether a frame is longer than ``longest_frame`` seconds, or the video is too long for its size."""
        pts = self.pts[self.order]
        last = int(self.duration[self.order[-1]]) * self.base or self.typical_gap
        longest_gap = max(int(np.diff(pts).max(initial=0)) * self.base, last)
        span = int(pts[-1] - pts[0]) * self.base + last
        return longest_gap > longest_frame or span > plausible_seconds(longest_frame, int(self.size.sum()))


def read_index(
    path: str, container: Any, stream: Any, read_log: Callable[[], list[str]], heartbeat: Callable[[Fraction], None]
) -> Index:
    """Read all packets of an open video without decoding.

    Args:
        read_log: returns the lines that FFmpeg logged since the last call.
        heartbeat: called regularly with the time reached.
    """
    pts, dts, duration, size, keyframe = array("q"), array("q"), array("q"), array("i"), array("b")
    without_pts = container.format.name in WITHOUT_PTS
    most = max_packet_bytes(path)
    end = total = 0
    broken = ""
    try:
        for number, packet in enumerate(container.demux(stream)):
            if number % HEARTBEAT_PACKETS == 0:
                heartbeat(end * stream.time_base)
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
    except (av.error.FFmpegError, ValueError, IndexError) as error:  # decoding reports the damage
        broken = broken or f"damaged container ({short_reason(error)})"
    if read_log():
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


def max_packet_bytes(path: str) -> float:
    """Return the maximum total size of a file's packets in bytes."""
    return MAX_READ_FACTOR * os.path.getsize(path) if os.path.isfile(path) else float("inf")


def plausible_seconds(longest_frame: Fraction, size: int) -> Fraction:
    """Return the maximum plausible length in seconds of packets with ``size`` bytes."""
    return longest_frame + Fraction(size, MIN_BYTE_RATE)


def frame_period(stream: Any) -> Fraction:
    """Return the seconds that a frame is shown if the container does not store its duration."""
    rate = stream.average_rate or stream.guessed_rate
    return 1 / rate if rate else stream.time_base


def gif_is_complete(path: str) -> bool:
    """Return whether a GIF ends with its trailer. FFmpeg does not report a truncated GIF."""
    with open(path, "rb") as file:

        def colour_table_size(flags: int) -> int:
            return 3 << (flags & 7) + 1 if flags & 0x80 else 0

        def skip_blocks() -> None:
            while count := file.read(1)[0]:
                file.seek(count, os.SEEK_CUR)

        try:
            file.seek(colour_table_size(file.read(13)[10]), os.SEEK_CUR)
            while (kind := file.read(1)[0]) != 0x3B:
                if kind == 0x2C:  # image: skip the position, the colour table and the code size
                    file.seek(colour_table_size(file.read(9)[8]) + 1, os.SEEK_CUR)
                elif kind == 0x21:  # extension: skip the label
                    file.seek(1, os.SEEK_CUR)
                else:
                    return False
                skip_blocks()
            return True
        except IndexError:  # end of file
            return False
