"""How long `amex extract` takes from the command to the first decoded frame, and what it does meanwhile.

    python benchmarks/startup.py [--runs N] [--json] [-- more options of amex extract]

Draws a short video, extracts it with R(2+1)D-18 of random weights on one worker of this machine, and watches the
processes from outside: what is measured is the command as users run it. The first frame is decoded some hundredths of
a second after a feeder opens the video. Beside it: a command that cannot work, and one that has nothing to do.
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

# Seconds between looks at the processes.
INTERVAL = 0.01


def draw(path: Path, frames: int = 64) -> None:
    """A video of noise, 320x240."""
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
    """Seconds from the start of the command until each thing is there."""
    begin = time.perf_counter()
    run = subprocess.Popen(command(videos, store, more), stdout=subprocess.DEVNULL)
    seen: dict[str, float] = {}
    stream = store / "r2plus1d_18"
    while run.poll() is None:
        for child in psutil.Process(run.pid).children(recursive=True):
            try:
                words = " ".join(child.cmdline())
                if "spawn_main" in words:
                    seen.setdefault("worker process", time.perf_counter() - begin)
                elif "amex.extract.video" in words:
                    seen.setdefault("feeder process", time.perf_counter() - begin)
                    if any(Path(file.path).parent == videos for file in child.open_files()):
                        seen.setdefault("video opened by a feeder", time.perf_counter() - begin)
            except psutil.Error:  # it has ended
                continue
        if stream.exists():
            seen.setdefault("plan made", time.perf_counter() - begin)
        if any((stream / "commits").glob("*.json")):
            seen.setdefault("part committed", time.perf_counter() - begin)
        time.sleep(INTERVAL)
    if run.returncode:
        sys.exit(f"the run ended with {run.returncode}")
    return seen | {"end": time.perf_counter() - begin}


def seconds(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("more", nargs="*", help="further options of amex extract, after --")
    given = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder).resolve() / "videos"
        videos.mkdir()
        draw(videos / "a.mp4")
        for number in range(given.runs + 1):  # the first one reads the libraries from the disk
            store = videos.parent / f"{number}.zarr"
            measured = phases(videos, store, given.more)
            measured["nothing to do"] = seconds(command(videos, store, given.more))
            measured["no such folder"] = seconds(command(videos / "none", store, given.more))
            rounds.append(measured)
    medians = {name: statistics.median(each[name] for each in rounds[1:]) for name in rounds[-1]}
    if given.json:
        print(json.dumps(medians, indent=1))
        return
    print(f"seconds from the command on, the median of {given.runs} runs")
    for name, value in medians.items():
        print(f"  {name:<26}{value:6.2f}")


if __name__ == "__main__":
    main()
