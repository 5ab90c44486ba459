"""How fast is each decoder, and does a GPU's give the same pixels?

    python benchmarks/decoding.py --videos DIR [--heights 240 480 1080] [--frames 300]

Decodes every video of a folder with decord and PyAV, one thread and two, and with NVDEC where there is a GPU, to RGB
arrays; then encodes the first of them again at each height (x264, veryfast, crf 23) and does the same. Each measurement
is a process of its own: frames a second, and in brackets frames a second of CPU time.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np

from amex.extract.video import Sampling, nvdec_missing
from amex.extract.video.decoders import DecodingRequest, choose
from amex.extract.video.frames import DecoderFailed, Unreadable

EVERY = SimpleNamespace(start=None, end=None, sampling=Sampling(frames=1, stride=1))
# What --decoder takes, and the number of threads.
WAYS = [("decord", 1), ("decord", 2), ("pyav", 1), ("pyav", 2), ("nvdec", 1)]


def images(path: str, decoder: str, threads: int, most: int) -> tuple[str, Iterator[np.ndarray]]:
    """Which decoder serves, and the first ``most`` frames."""
    if decoder == "decord":
        import decord  # noqa: F401 - a process imports it once
    request = DecodingRequest(path=path, requests=[EVERY], longest=Fraction(600), decoder=decoder, threads=threads)
    choice = choose(request, {}, list, lambda reached: None)
    return choice.name, (shown.image() for shown in itertools.islice(choice.frames(), most))


def measure(path: str, decoder: str, threads: int, most: int) -> tuple[str, float, float]:
    """The decoder that served, frames a second, and frames a second of CPU time."""
    name, frames = images(path, decoder, threads, most)
    begin, spent = time.perf_counter(), time.process_time()
    count = sum(1 for _ in frames)
    return name, count / (time.perf_counter() - begin), count / (time.process_time() - spent)


def checksums(path: str, decoder: str, most: int) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(image)) for image in images(path, decoder, 1, most)[1]]


def scaled(source: Path, target: Path, height: int, frames: int) -> Path:
    """The first frames of a video, again from its beginning where they end, at another height."""
    with av.open(str(source)) as reader:
        pictures = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(reader.decode(video=0), range(60), strict=False)
        ]
    width = round(pictures[0].shape[1] * height / pictures[0].shape[0] / 2) * 2
    with av.open(str(target), "w") as writer:
        stream = writer.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            at = number % (2 * len(pictures) - 2)  # there and back: no cut
            image = pictures[min(at, 2 * len(pictures) - 2 - at)]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(width, height, "yuv420p")
            frame.pts = number
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return target


def compare(path: Path, most: int) -> str:
    """Measures a video in all ways, prints a line, and returns the decoder that ``auto`` takes."""

    def alone(function: Callable[..., Any], *arguments: Any) -> Any:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            return process.submit(function, str(path), *arguments, most).result()

    cells = []
    for decoder, threads in WAYS:
        if decoder == "nvdec" and nvdec_missing():
            continue
        try:
            name, wall, processor = alone(measure, decoder, threads)
            cells.append(f"{name} x{threads} {wall:.0f} ({processor:.0f})")
            if name == "nvdec":
                cells.append("same pixels" if alone(checksums, "nvdec") == alone(checksums, "pyav") else "OTHER PIXELS")
        except (DecoderFailed, Unreadable) as error:
            cells.append(f"{decoder} x{threads}: {error}")
    served = alone(measure, "auto", 1)[0]
    print(f"{path.name}, auto is {served}: {', '.join(cells)}", flush=True)
    return served.partition(" ")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--heights", type=int, nargs="*", default=[240, 480, 1080])
    parser.add_argument("--frames", type=int, default=300)
    given = parser.parse_args()
    files = sorted(path for path in given.videos.iterdir() if path.is_file())
    served = [compare(path, given.frames) for path in files]
    print(f"auto: decord serves {served.count('decord')} of {len(served)} files")
    with tempfile.TemporaryDirectory() as folder:
        for height in given.heights:
            compare(scaled(files[0], Path(folder) / f"{height}p.mp4", height, given.frames), given.frames)


if __name__ == "__main__":
    main()
