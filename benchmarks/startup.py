"""Measure the time of `amex extract` from the command to the first decoded frame, by phases.

    python benchmarks/startup.py [--runs N] [--json] [-- more options of amex extract]

Makes a short video, extracts it with R(2+1)D-18 and random weights on one local worker, and watches the processes from
outside, so the measured command is that of users. The first frame is decoded some hundredths of a second after a feeder
opens the video. For comparison: a command with an error, and one with nothing to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import psutil

# Seconds between checks of the processes.
INTERVAL = 0.01


def draw(path: Path, frames: int = 64) -> None:
    """Make a video of noise, 320x240."""
    pictures = np.random.default_rng(0).integers(0, 255, (frames, 240, 320, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30, width=320, height=240, pix_fmt="yuv420p")
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())


def command(videos: Path, store: Path, more: list[str]) -> list[str]:
    options = ["--dataset", "folder", "--videos", str(videos), "--store", str(store), "--json"]
    return [sys.executable, "-m", "amex.cli", "extract", *options, "--weights", "r2plus1d_18=random:0", *more]


def phases(videos: Path, store: Path, more: list[str]) -> dict[str, float]:
    """Return seconds from the start of the command to each event."""
    begin = time.perf_counter()
    run = subprocess.Popen(command(videos, store, more), stdout=subprocess.DEVNULL)
    times: dict[str, float] = {}
    stream = store / "r2plus1d_18"
    while run.poll() is None:
        for child in psutil.Process(run.pid).children(recursive=True):
            try:
                words = " ".join(child.cmdline())
                if "spawn_main" in words:
                    times.setdefault("worker process", time.perf_counter() - begin)
                elif "amex.extract.video" in words:
                    times.setdefault("feeder process", time.perf_counter() - begin)
                    if any(Path(file.path).parent == videos for file in child.open_files()):
                        times.setdefault("video opened by a feeder", time.perf_counter() - begin)
            except psutil.Error:  # the process has ended
                continue
        if stream.exists():
            times.setdefault("plan made", time.perf_counter() - begin)
        if any((stream / "commits").glob("*.json")):
            times.setdefault("part committed", time.perf_counter() - begin)
        time.sleep(INTERVAL)
    if run.returncode:
        sys.exit(f"the run ended with {run.returncode}")
    return times | {"end": time.perf_counter() - begin}


def seconds(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("more", nargs="*", help="further options of amex extract, after --")
    args = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder).resolve() / "videos"
        videos.mkdir()
        draw(videos / "a.mp4")
        for number in range(args.runs + 1):  # the first one reads the libraries from the disk
            store = videos.parent / f"{number}.zarr"
            measured = phases(videos, store, args.more)
            measured["nothing to do"] = seconds(command(videos, store, args.more))
            measured["no such folder"] = seconds(command(videos / "none", store, args.more))
            rounds.append(measured)
    medians = {name: statistics.median(each[name] for each in rounds[1:]) for name in rounds[-1]}
    if args.json:
        print(json.dumps(medians, indent=1))
        return
    print(f"seconds from the command on, the median of {args.runs} runs")
    for name, value in medians.items():
        print(f"  {name:<26}{value:6.2f}")


if __name__ == "__main__":
    main()
