"""Shapes, the embedded data set: short real H.264 clips of moving shapes with captions, drawn from a seed.

For trying amex without downloading anything. Knows how to draw; what to do with the clips is told by their manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from .clip import Clip, write_manifest

SIZE = 160  # pixels, both sides
FPS = 25
SECONDS = 2.0
COLOURS = {"red": (214, 48, 49), "green": (39, 174, 96), "blue": (41, 98, 255), "yellow": (241, 196, 15)}
SHAPES = ("circle", "square", "triangle")
# Where a shape is at time t in [0, 1], relative to the middle, in units of a third of the frame.
MOTIONS = {
    "moves right": lambda t: (2 * t - 1, 0.0),
    "moves left": lambda t: (1 - 2 * t, 0.0),
    "moves up": lambda t: (0.0, 1 - 2 * t),
    "moves down": lambda t: (0.0, 2 * t - 1),
    "circles": lambda t: (np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)),
    "stands still": lambda t: (0.0, 0.0),
}


def make_shapes(folder: Path, *, clips: int, seed: int = 0) -> Path:
    """Writes ``clips`` videos below ``folder/videos`` and ``folder/manifest.jsonl``; returns the manifest's path.

    The same arguments give the same frames and captions. Files that are there already are kept.
    """
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    made = []
    for index in range(clips):
        colour = str(generator.choice(list(COLOURS)))
        shape = str(generator.choice(SHAPES))
        motion = str(generator.choice(list(MOTIONS)))
        radius = float(generator.uniform(12, 26))
        background = generator.normal(110, 12, (SIZE, SIZE, 1)).repeat(3, axis=2)
        name = f"shapes_{seed}_{index:04d}.mp4"
        if not (videos / name).exists():
            encode(videos / name, draw(colour, shape, motion, radius, background))
        split = "test" if index % 4 == 3 else "train"
        made.append(Clip(clip_id=name, video=name, split=split, captions=(f"a {colour} {shape} {motion}",)))
    write_manifest(made, folder / "manifest.jsonl")
    return folder / "manifest.jsonl"


def draw(colour: str, shape: str, motion: str, radius: float, background: np.ndarray) -> Iterator[np.ndarray]:
    """The frames of one clip, (SIZE, SIZE, 3) uint8."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + 0.5
    frames = round(FPS * SECONDS)
    for frame in range(frames):
        dx, dy = (SIZE / 3 * offset for offset in MOTIONS[motion](frame / (frames - 1)))
        across, down = x - dx, y - dy
        if shape == "circle":
            inside = across**2 + down**2 <= radius**2
        elif shape == "square":
            inside = np.maximum(abs(across), abs(down)) <= radius * 0.9
        else:
            inside = (down <= radius * 0.8) & (abs(across) * 1.6 <= down + radius)
        yield np.where(inside[..., None], COLOURS[colour], background).clip(0, 255).astype(np.uint8)


def encode(path: Path, frames: Iterator[np.ndarray]) -> None:
    """Writes an H.264 file, under its name only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "23", "preset": "veryfast"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    partial.replace(path)
