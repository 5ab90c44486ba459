"""Compare feeders and encoder together, from files to a committed part, with the slower of the two alone.

    python benchmarks/extraction.py [--stream r2plus1d_18] [--feeders 1,4,8,16] [--size 240p] [--json FILE]

Windows a second, for a stream with random weights and each number of feeders:

- encode: the encoder alone, on a batch on its device.
- feed: the feeders alone, without an encoder.
- end to end: both, with writing the part; and the share of time in which the GPU was busy.

``--stand-in RATE`` replaces the encoder by a sleep, like a device that encodes RATE windows per second: it shows the
limit of the feeders on a machine without such a device. Models and processes are started before the measurement.
Quote the ratios: machines differ and are noisy.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from films import SIZES, films

from amex.extract.encoders import choose_device, choose_precision, plan_stream
from amex.extract.run.part import ClipTask, Job, PartTask, VideoTask, run_part
from amex.extract.video import Feeders, SamplingRequest, Video, Window
from amex.features import create_store, declare_stream

FRAMES = {"240p": 1000, "480p": 500, "1080p": 120}


class StandIn:
    """Replaces an encoder; takes as long as one with ``rate`` windows per second."""

    device = torch.device("cpu")

    def __init__(self, rate: float, dim: int) -> None:
        self.rate, self.dim = rate, dim

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        time.sleep(len(windows) / self.rate)
        return {"values": torch.zeros(len(windows), self.dim)}


def encode_only(plan: object, device: str, sample: np.ndarray, seconds: float = 4.0) -> float:
    """Return windows per second of the encoder alone."""
    encoder = plan.encoder(device)
    batch = torch.from_numpy(np.repeat(sample[None], plan.batch_size, 0)).to(encoder.device)

    def once() -> None:
        for array in encoder(batch).values():
            array.cpu()

    for _ in range(3):
        once()
    begin, rounds = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        once()
        rounds += 1
    return rounds * plan.batch_size / (time.perf_counter() - begin)


def feed_only(plan: object, files: list[Path], count: int, decoder: str) -> tuple[float, np.ndarray]:
    """Return windows per second of ``count`` feeders alone, and one window."""
    feeders = Feeders(count, threads=max(1, torch.get_num_threads() // count), decoder=decoder)
    request = SamplingRequest(None, None, plan.sampling, plan.transform)

    def run(paths: list[Path]) -> tuple[int, np.ndarray]:
        windows, sample = 0, None
        for _, event in feeders.run(Video(number, path, (request,)) for number, path in enumerate(paths)):
            if isinstance(event, Window):
                windows += 1
                sample = event.pixels.copy() if sample is None else sample
        return windows, sample

    run(files[:count])
    begin = time.perf_counter()
    windows, sample = run(files)
    rate = windows / (time.perf_counter() - begin)
    feeders.close()
    return rate, sample


@contextmanager
def gpu_utilisation(device: str) -> Iterator[list[float]]:
    """Collect the GPU's utilisation in percent, several times per second."""
    readings: list[float] = []
    if device == "cpu":
        yield readings
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    reader = threading.Thread(target=lambda: readings.extend(float(line) for line in process.stdout), daemon=True)
    reader.start()
    try:
        yield readings
    finally:
        process.terminate()
        reader.join()


def end_to_end(plan: object, files: list[Path], count: int, device: str, decoder: str) -> tuple[float, float, dict]:
    """Return windows per second from files to a committed part, the GPU's busy share of the time, and a report."""
    with tempfile.TemporaryDirectory() as folder:
        store = create_store(Path(folder) / "s.zarr")
        declare_stream(store, plan.name, plan.spec, {})
        job = Job(store=store, videos=Path("/"), streams=(plan,), texts=(), deadline=60, feeders=count, decoder=decoder)

        def part(index: int, chosen: list[Path]) -> PartTask:
            videos = []
            for number, file in enumerate(chosen):
                fields = {"clip_id": f"{index}-{number}", "video": str(file), "start": None, "end": None}
                path = file.absolute().relative_to("/")
                videos.append(VideoTask(path=path, missing="", clips=(ClipTask(**fields, attempt=1, streams=(0,)),)))
            return PartTask(index=index, videos=tuple(videos))

        run_part(part(0, files[:count]), job, device)
        with gpu_utilisation(device) as busy:
            begin = time.perf_counter()
            report = run_part(part(1, files), job, device)
            rate = report.rows / (time.perf_counter() - begin)
        return rate, float(np.mean(busy)) / 100 if busy else float("nan"), report.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", action="append", help="as in `amex extract`: NAME or NAME=NETWORK")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the streams")
    parser.add_argument("--feeders", default="1")
    parser.add_argument("--size", choices=SIZES, default="240p")
    parser.add_argument("--videos", type=Path, help="folder to keep the videos in; they are made if missing")
    parser.add_argument("--files", type=int, default=8, help="videos a feeder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--decoder", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--stand-in", type=float, metavar="RATE")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = choose_device(args.device)
    device = "cuda:0" if device == "cuda" else device
    precision = choose_precision(args.precision, device)
    device_name = torch.cuda.get_device_name(device) if device != "cpu" else platform.processor() or platform.machine()
    print(f"{device_name}, {torch.get_num_threads()} threads, {precision}, torch {torch.__version__}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        videos = films(args.videos or Path(folder), args.size, 4, FRAMES[args.size])
        for stream in args.stream or ["r2plus1d_18"]:
            name, _, network = stream.partition("=")
            options = dict(pair.split("=", 1) for pair in args.set)
            plan = plan_stream(
                name,
                network or name,
                weights="random:0",
                device=device,
                precision=precision,
                options=options,
                batch_size=args.batch_size,
            )
            if args.stand_in:
                encoder = StandIn(args.stand_in, plan.spec["output"]["shape"][-1])
                kind = type("StandInPlan", (type(plan),), {"encoder": lambda self, device, encoder=encoder: encoder})
                plan = kind(**{each.name: getattr(plan, each.name) for each in dataclasses.fields(plan)})
            encode = None
            for count in map(int, args.feeders.split(",")):
                files = (videos * (args.files * count))[: args.files * count]
                feed, sample = feed_only(plan, files, count, args.decoder)
                encode = encode or encode_only(plan, device, sample)
                delivered, busy, seconds = end_to_end(plan, files, count, device, args.decoder)
                ratio = delivered / min(feed, encode)
                row = {"stream": name, "size": args.size, "feeders": count, "encode": encode, "feed": feed}
                row |= {"end_to_end": delivered, "busy": busy, "ratio": ratio, "seconds": seconds}
                row |= {"device": device_name}
                rows.append(row | {"precision": precision, "decoder": args.decoder, "batch_size": plan.batch_size})
                print(
                    f"{name:>14} {args.size} x {count:<3} encode {encode:8.1f}   feed {feed:8.1f}   "
                    f"end to end {delivered:8.1f} windows/s   busy {busy:4.0%}   end to end / slower {ratio:.2f}",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
