"""Decoding with decord, for the videos that it decodes correctly as measured.

decord decodes the whole file ahead of its reader: reading only the first frames of a 900-frame 1080p file used 3.9 GB
after 9 s. It returns duplicates for frames that it cannot decode, and it ignores edit lists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from ...errors import plural
from .container import WITHOUT_PTS, Index
from .frames import DecoderFailed, TimedFrame, short_reason

# Maximum bytes of a file and of its decoded frames for decord. Its memory is the sum of the two.
DECORD_FILE_BYTES = 64 << 20
DECORD_FRAME_BYTES = 512 << 20
# Codecs for which decord reports damage. It returns broken MPEG-4 part 2 and MPEG-2 frames without an error.
DECORD_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1"})
# Codecs whose storage order is the presentation order.
IN_ORDER = frozenset({"vp8", "vp9", "av1"})


def decord_rejection(
    path: str, container: Any, stream: Any, index: Callable[[], Index], longest_frame: Fraction, *, bounded: bool
) -> str:
    """Return why decord cannot be used for an open video; empty if it can.

    Args:
        index: reads the packets; called only if the header allows decord.
        longest_frame: maximum seconds that a frame may be shown.
        bounded: whether to reject videos that need too much memory. Videos with wrong frames are always rejected.
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
    if packets.exceeds_duration(longest_frame):
        return "frames shown for too long"
    return ""


def decord_frames(path: str, index: Index, threads: int) -> Iterator[TimedFrame]:
    """Yield the frames of decord with the presentation times of the packets.

    Raises:
        DecoderFailed: if decord fails, or counts other frames than the container.
    """
    import decord

    decord.logging.set_level(decord.logging.INFO)  # FFmpeg reports concealed errors only at this level
    count = len(index)
    try:
        # Less than one frame, but not zero: decord then raises an error instead of returning a duplicate.
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=threads, fault_tol=0.5 / count)
        if len(reader) != count:
            raise DecoderFailed(f"decord counts {plural(len(reader), 'frame')}, the container holds {count:,}")
        for number, (begin, end) in enumerate(index.intervals(index.typical_gap)):
            frame = reader.next()
            # For some widths, such as 96 pixels, decord returns the padding of lines as additional channels.
            if frame.shape[2] != 3:
                raise DecoderFailed(f"decord returns frames of {frame.shape[2]} channels")
            yield TimedFrame(begin, end, frame.asnumpy, number == count - 1)
    except DecoderFailed:
        raise
    except Exception as error:  # decord raises many types
        raise DecoderFailed(short_reason(error)) from error
