"""Make videos for the other benchmarks: textures that drift over noise, as expensive to code as camera videos."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

SIZES = {"240p": (320, 240), "480p": (640, 480), "1080p": (1920, 1080)}


def film(path: Path, size: str, frames: int, seed: int = 0) -> Path:
    """Encode a video in H.264 with 25 frames a second, unless the file exists."""
    if path.exists():
        return path
    width, height = SIZES[size]
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    texture = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    noise = generator.integers(0, 24, (height, width, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            moved = np.roll(texture, (number, 3 * number), (0, 1)) // 2 + np.roll(noise, 7 * number, 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def films(folder: Path, size: str, files: int, frames: int) -> list[Path]:
    """Make ``files`` different videos."""
    folder.mkdir(parents=True, exist_ok=True)
    return [film(folder / f"{size}-{frames}-{number}.mp4", size, frames, number) for number in range(files)]
