"""Does a run with several streams cost what its encoders cost? One pass over the videos against the encoders alone.

    python benchmarks/one_pass.py --videos DIR [--clips N] [--device cpu]

Runs clip, frame and object streams with random weights in one pass, in one process, and counts decoded frames. Then
times each encoder alone on the same windows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from amex.extract.encoders.networks import choose_device, choose_precision
from amex.extract.encoders.registry import StreamPlan, plan_stream
from amex.extract.run.part import ClipTask, Job, PartTask, VideoTask, run_part
from amex.extract.video.feeders import Feeders
from amex.extract.video.requests import SamplingRequest, Window
from amex.features import create_store, declare_stream, open_store
from amex.manifests import VideoFinder

STREAMS = {"r2plus1d_18": {}, "clip_vit_b32": {}, "frcnn_r50_coco": {"score": "0"}}


def encoder_seconds(plan: StreamPlan, device: str, root: Path, files: list[Path]) -> float:
    """Seconds that the encoder alone takes for all windows of the videos, once they are ready for it."""
    encoder = plan.encoder(device)
    seconds = 0.0
    feeders = Feeders()
    for file in files:
        windows = [
            torch.from_numpy(event.pixels.copy())[None].to(encoder.device)
            for event in feeders.read(root / file, [SamplingRequest(None, None, plan.sampling, plan.transform)])
            if isinstance(event, Window)
        ]
        encoder(windows[0])
        begin = time.perf_counter()
        for window in windows:
            encoder(window)
        seconds += time.perf_counter() - begin
    feeders.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", required=True, type=Path)
    parser.add_argument("--clips", type=int, default=8, help="how many of the videos")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = choose_device(given.device)
    files = VideoFinder(given.videos).walk()[: given.clips]
    plans = tuple(
        plan_stream(
            name,
            name,
            weights="random:0",
            device=device,
            precision=choose_precision("auto", device),
            options=options,
            batch_size=1,
        )
        for name, options in STREAMS.items()
    )
    with tempfile.TemporaryDirectory() as folder:
        store = create_store(Path(folder) / "s.zarr")
        for plan in plans:
            declare_stream(store, plan.name, plan.spec, {})
        job = Job(store=store, videos=given.videos, streams=plans, texts=(), deadline=60)

        def part(index: int, chosen: list[Path]) -> PartTask:
            everywhere = tuple(range(len(plans)))
            videos = []
            for file in chosen:
                named = {"clip_id": f"{index} {file}", "video": str(file), "start": None, "end": None}
                clip = ClipTask(**named, attempt=1, streams=everywhere)
                videos.append(VideoTask(path=file, missing="", clips=(clip,)))
            return PartTask(index=index, videos=tuple(videos))

        run_part(part(0, files[:1]), job, device)  # models and decoder are up
        before = {plan.name: open_store(store)[plan.name].rows for plan in plans}
        begin = time.perf_counter()
        report = run_part(part(1, files), job, device)
        together = time.perf_counter() - begin
        rows = {plan.name: open_store(store)[plan.name].rows - before[plan.name] for plan in plans}
    alone = {plan.name: encoder_seconds(plan, device, given.videos, files) for plan in plans}
    print(f"{len(files)} videos, {report.frames_decoded} frames decoded, {device}, torch {torch.__version__}")
    for name, seconds in alone.items():
        print(f"  {name:<16}{rows[name]:6} rows {seconds:8.1f} s, its encoder alone")
    print(f"  one pass        {together:20.1f} s, of which encoding {report.seconds['encode']:.1f}")
    print(f"  one pass / sum of the encoders  {together / sum(alone.values()):.3f}")


if __name__ == "__main__":
    main()
