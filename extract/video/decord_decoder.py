"""Frames from decord: for the videos that it was measured to serve right.

decord decodes a whole file ahead of its reader (3.9 GB and growing after 9 s of a 900-frame 1080p file whose first
frames alone were read), returns duplicates for frames it could not decode, and knows nothing of edit lists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from .container import WITHOUT_PTS, Index
from .frames import DecoderFailed, Shown, short_reason

# decord serves a file of at most so many bytes, and a video of at most so many bytes of decoded frames: its memory is
# the sum of the two.
DECORD_FILE_BYTES = 64 << 20
DECORD_FRAME_BYTES = 512 << 20
# Codecs whose damage decord reports. It returns broken MPEG-4 part 2 and MPEG-2 frames without a word.
DECORD_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1"})
# Those of them that show frames in the order in which they are stored.
IN_ORDER = frozenset({"vp8", "vp9", "av1"})


def decord_objection(
    path: str, container: Any, stream: Any, index: Callable[[], Index], longest: Fraction, *, bounded: bool
) -> str:
    """Why decord may not serve an open video; empty if it may.

    Args:
        index: reads the packets; called only where the header allows decord.
        longest: for so many seconds at most a frame may be shown.
        bounded: whether its memory is bounded. What its frames are wrong for is refused either way.
    """
    codec = stream.codec_context.codec.canonical_name
    if bounded and os.path.getsize(path) > DECORD_FILE_BYTES:
        return f"file over {DECORD_FILE_BYTES >> 20} MiB"
    if codec not in DECORD_CODECS:
        return f"codec {codec}"
    if container.format.name in WITHOUT_PTS:
        return "no presentation times in the container"
    packets = index()
    if packets.broken:
        return packets.broken
    if not len(packets) or packets.pts[0] != packets.pts.min() or not packets.keyframe[0]:
        return "frames before the first keyframe"
    if stream.frames > len(packets):
        return "fewer packets than announced"
    pts = packets.pts[packets.order]
    if codec in IN_ORDER and (pts != packets.pts).any():
        return "presentation times run backwards"
    if (pts[1:] == pts[:-1]).any():
        return "repeated presentation times"
    if bounded and stream.codec_context.width * stream.codec_context.height * 3 * len(pts) > DECORD_FRAME_BYTES:
        return f"over {DECORD_FRAME_BYTES >> 20} MiB decoded"
    if packets.too_long(longest):
        return "frames that are shown too long"
    return ""


def decord_frames(path: str, index: Index, threads: int) -> Iterator[Shown]:
    """Frames from decord, read one after the other, paired in order with the presentation times of the packets."""
    import decord

    decord.logging.set_level(decord.logging.INFO)  # its FFmpeg says at no higher one that it conceals what is broken
    count = len(index)
    try:
        # Above zero and below one frame: decord then raises where it would return a duplicate instead.
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=threads, fault_tol=0.5 / count)
        if len(reader) != count:
            raise DecoderFailed(f"decord counts {len(reader)} frames, the container holds {count}")
        for number, (begin, end) in enumerate(index.intervals(index.typical_gap)):
            yield Shown(begin, end, reader.next().asnumpy, number == count - 1)
    except DecoderFailed:
        raise
    except Exception as error:  # of many kinds, for files of many kinds
        raise DecoderFailed(short_reason(error)) from error
