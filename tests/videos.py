"""Real video files whose frames contain their own numbers, painted as black and white blocks.

Tests encode them with PyAV, decode them with amex and read the numbers. The pixels, not an index, thus prove that a
frame is the right one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 12
BLOCK = 16  # pixels: survives chroma subsampling and coarse quantisation


def paint(number: int, width: int = 320, height: int = 240) -> np.ndarray:
    """Return an RGB frame (height, width, 3) uint8: a moving gradient with ``number`` in the top two rows of blocks."""
    x = (np.arange(width) + 3 * number).astype(np.uint8)[None, :]  # modulo 256
    y = np.arange(height).astype(np.uint8)[:, None]
    image = np.stack(np.broadcast_arrays(x, y, x + y), axis=-1) // 2 + 64
    for bit in range(BITS):
        value = 235 if number >> bit & 1 else 20
        image[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = value
        image[BLOCK : 2 * BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 - value  # the complement detects errors
    return image


def read_number(image: np.ndarray) -> int:
    """Return the number painted into ``image``; raise AssertionError if the blocks contradict each other."""
    number = 0
    for bit in range(BITS):
        column = slice(bit * BLOCK + 4, (bit + 1) * BLOCK - 4)
        upper = image[4 : BLOCK - 4, column].mean()
        lower = image[BLOCK + 4 : 2 * BLOCK - 4, column].mean()
        assert abs(upper - lower) > 80, f"bit {bit} is unreadable: {upper:.0f} against {lower:.0f}"
        number |= int(upper > lower) << bit
    return number


_encoded: dict[tuple[object, ...], bytes] = {}


@contextlib.contextmanager
def usual_scheduling() -> Iterator[None]:
    """Undo the real-time scheduling that SVT-AV1 sets as root on the calling thread; it starves other processes."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def encode(
    path: Path,
    *,
    frames: int = 60,
    codec: str = "libx264",
    fps: int | Fraction = 30,
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    pix_fmt: str = "yuv420p",
    width: int = 320,
    height: int = 240,
    first: int = 0,
) -> Path:
    """Write ``frames`` numbered frames. ``pts`` (in 1/1000 s) makes the rate variable or the start non-zero.

    Files of one session that are to hold the same are encoded once.
    """
    settings = (frames, codec, fps, tuple((options or {}).items()), pts and tuple(pts), pix_fmt, width, height, first)
    key = (path.suffix, *settings)
    if key in _encoded:
        path.write_bytes(_encoded[key])
        return path
    with usual_scheduling(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        else:
            stream.codec_context.time_base = 1 / Fraction(fps)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(paint(first + index, width, height), format="rgb24")
            frame.pts = index if pts is None else pts[index]
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if path.stat().st_size < 1 << 20:
        _encoded[key] = path.read_bytes()
    return path


def one_empty(folder: Path, count: int, frames: int) -> Path:
    """Write ``count`` videos to a folder; the last is an empty file."""
    for index in range(count - 1):
        encode(folder / f"v{index}.mp4", frames=frames, options={"preset": "ultrafast"}, first=index)
    (folder / "v9.mp4").write_bytes(b"")
    return folder


def remux(source: Path, target: Path, *, cut: float = 0.0, offset: float = 0.0) -> Path:
    """Copy packets without decoding. ``cut`` starts the presentation inside a GOP, like ``ffmpeg -ss T -c copy``: the
    packets from the previous keyframe on stay in the file, with negative times and an edit list."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        out = writer.add_stream_from_template(stream)
        shift = round((offset - cut) / stream.time_base)
        if cut:
            reader.seek(round(cut / stream.time_base), stream=stream, backward=True)
        for packet in reader.demux(stream):
            if packet.dts is None:
                continue
            packet.pts += shift
            packet.dts += shift
            packet.stream = out
            writer.mux(packet)
    return target


def rotate(path: Path, degrees: int) -> Path:
    """Rotate an MP4 file clockwise by the display matrix of its track header, as phones do."""
    data = bytearray(path.read_bytes())
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    at = data.index(b"tkhd") + 4 + 40
    identity = [1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]
    assert data[at : at + 36] == b"".join(value.to_bytes(4, "big") for value in identity)
    a, b, c, d = (value << 16 for value in matrix)
    turned = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join((value % (1 << 32)).to_bytes(4, "big") for value in turned)
    path.write_bytes(data)
    return path
