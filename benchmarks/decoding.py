"""Measure the speed of each decoder, and compare the pixels of a GPU's.

    python benchmarks/decoding.py --videos DIR [--heights 240 480 1080] [--frames 300]

Decodes every video of a folder to RGB arrays with decord and PyAV, with one thread and two, and with NVDEC if there is
a GPU; then encodes the first video again at each height (x264, veryfast, crf 23) and repeats the measurement. Each
measurement has its own process. Output: frames per second, and in brackets frames per second of CPU time.
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
from amex.extract.video.decoders import DecodingRequest, choose_decoder
from amex.extract.video.frames import DecoderFailed, Unreadable

EVERY = SimpleNamespace(start=None, end=None, sampling=Sampling(frames=1, stride=1))
# Values of --decoder, and numbers of threads.
SETTINGS = [("decord", 1), ("decord", 2), ("pyav", 1), ("pyav", 2), ("nvdec", 1)]


def images(path: str, decoder: str, threads: int, most: int) -> tuple[str, Iterator[np.ndarray]]:
    """Return the name of the chosen decoder, and the first ``most`` frames."""
    if decoder == "decord":
        import decord  # noqa: F401 - not part of the measured time
    request = DecodingRequest(
        path=path, requests=[EVERY], longest_frame=Fraction(600), decoder=decoder, threads=threads
    )
    choice = choose_decoder(request, {}, list, lambda reached: None)
    return choice.name, (shown.image() for shown in itertools.islice(choice.frames(), most))


def measure(path: str, decoder: str, threads: int, most: int) -> tuple[str, float, float]:
    """Return the chosen decoder, frames per second, and frames per second of CPU time."""
    name, frames = images(path, decoder, threads, most)
    begin, spent = time.perf_counter(), time.process_time()
    count = sum(1 for _ in frames)
    return name, count / (time.perf_counter() - begin), count / (time.process_time() - spent)


def checksums(path: str, decoder: str, most: int) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(image)) for image in images(path, decoder, 1, most)[1]]


def scaled(source: Path, target: Path, height: int, frames: int) -> Path:
    """Encode the first frames of a video at another height, forwards and backwards until there are enough."""
    with av.open(str(source)) as reader:
        pictures = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(reader.decode(video=0), range(60), strict=False)
        ]
    width = round(pictures[0].shape[1] * height / pictures[0].shape[0] / 2) * 2
    with av.open(str(target), "w") as writer:
        stream = writer.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            at = number % (2 * len(pictures) - 2)  # back and forth, so that there is no cut
            image = pictures[min(at, 2 * len(pictures) - 2 - at)]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(width, height, "yuv420p")
            frame.pts = number
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return target


def compare(path: Path, most: int) -> str:
    """Measure a video with all settings, print a line, and return the decoder that ``auto`` chooses."""

    def alone(function: Callable[..., Any], *arguments: Any) -> Any:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            return process.submit(function, str(path), *arguments, most).result()

    cells = []
    for decoder, threads in SETTINGS:
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
    args = parser.parse_args()
    files = sorted(path for path in args.videos.iterdir() if path.is_file())
    served = [compare(path, args.frames) for path in files]
    print(f"auto: decord serves {served.count('decord')} of {len(served)} files")
    with tempfile.TemporaryDirectory() as folder:
        for height in args.heights:
            compare(scaled(files[0], Path(folder) / f"{height}p.mp4", height, args.frames), args.frames)


if __name__ == "__main__":
    main()
