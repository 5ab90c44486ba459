"""Compare the windows that feeders deliver with loops that only decode and transform.

    python benchmarks/feed.py [--feeders 1,2] [--size 240p] [--decoder pyav] [--json FILE]

For each size of video and number of processes, windows of R(2+1)D-18 a second, with start-up:

- pure: loops that only decode; frames per second.
- loops: N processes that decode with PyAV, convert to RGB and transform. Their results stay inside.
- feeders: N feeders that deliver windows to this process, without an encoder.

Quote the ratios: machines differ and are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from films import SIZES, films

from amex.extract.video import Feeders, Sampling, SamplingRequest, Transform, Video, Window

# Those of the preset r2plus1d_18; the preset itself would import torch.
SAMPLING = Sampling(frames=16, stride=16)
TRANSFORM = Transform(
    resize=(128, 171), crop=(112, 112), mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989)
)
# Number of frames of a video.
FRAMES = {"240p": 1000, "480p": 500, "1080p": 120}


def loop(paths: list[str], transform: bool) -> None:
    """The loop to compare with: decode, convert, transform."""
    frames = 0
    for path in paths:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if transform:
                    TRANSFORM(frame.to_ndarray(format="rgb24"))
                frames += 1
    print(frames)


def loops(paths: list[Path], count: int, transform: bool = True) -> float:
    """Return frames per second of ``count`` processes together, each with a share of the files."""
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--loop", "transform" if transform else "pure"]
    processes = [
        subprocess.Popen([*command, *map(str, paths[index::count])], stdout=subprocess.PIPE) for index in range(count)
    ]
    frames = sum(int(process.communicate()[0]) for process in processes)
    return frames / (time.perf_counter() - begin)


def feeders(paths: list[Path], count: int, decoder: str) -> tuple[float, dict[str, float]]:
    """Return frames per second of ``count`` feeders together, as windows; and shares of their time."""
    begin = time.perf_counter()
    pool = Feeders(count, threads=1, decoder=decoder)
    requests = (SamplingRequest(None, None, SAMPLING, TRANSFORM),)
    windows = 0
    batch = np.empty((SAMPLING.frames, *TRANSFORM.crop, 3), np.float32)
    seconds: dict[str, float] = {}
    for _, event in pool.run(Video(number, path, requests) for number, path in enumerate(paths)):
        if isinstance(event, Window):
            windows += 1
            batch[...] = event.pixels  # copied, as into a batch
        for activity, spent in getattr(event, "seconds", {}).items():
            seconds[activity] = seconds.get(activity, 0.0) + spent
    pool.close()
    rate = SAMPLING.frames * windows / (time.perf_counter() - begin)
    return rate, {name: spent / sum(seconds.values()) for name, spent in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--feeders", default=",".join(str(n) for n in sorted({1, cores})), help="numbers of processes")
    parser.add_argument("--size", choices=SIZES, action="append", help="sizes of videos; default: all")
    parser.add_argument("--decoder", default="pyav")
    parser.add_argument("--each", type=int, default=8, help="videos that each process decodes")
    parser.add_argument("--rounds", type=int, default=1, help="number of measurements; the output is their median")
    parser.add_argument("--videos", type=Path, help="folder to keep the videos in; they are made if missing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--loop", choices=["transform", "pure"], help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        return loop(args.paths, args.loop == "transform")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.size or SIZES:
            for count in map(int, args.feeders.split(",")):
                paths = films(args.videos or Path(folder), size, 2, FRAMES[size]) * (args.each * count // 2)
                measured = []
                for _ in range(args.rounds):
                    plain = loops(paths, count)
                    fed, shares = feeders(paths, count, args.decoder)
                    measured.append((fed / plain, plain, fed, shares))
                ratio, plain, fed, shares = sorted(measured, key=lambda each: each[0])[len(measured) // 2]
                row = {"size": size, "processes": count, "loops": plain / 16, "feeders": fed / 16, "ratio": ratio}
                row |= {"pure_frames": loops(paths, count, transform=False), "shares": shares, "cores": cores}
                rows.append(row | {"decoder": args.decoder})
                spent = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
                print(
                    f"{size:>6} x {count:<3} pure {row['pure_frames']:8.0f} frames/s   loops {row['loops']:7.1f}   "
                    f"feeders {row['feeders']:7.1f} windows/s   ratio {ratio:.2f}   ({spent})",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
