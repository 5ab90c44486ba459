"""How fast R(2+1)D-18 features come, against plain inference of the same model in the same run.

    python benchmarks/extraction.py --videos DIR [--clips N] [--compile] [--json]

Prints windows a second of: plain torchvision fp32 inference, batch 1; the encoder alone; decoding, sampling and
transforms alone; and all of it, from files to a committed part. Quote the ratios: machines differ and are noisy.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

from amex.extract.encoders.networks import choose_device, choose_precision
from amex.extract.encoders.presets import WindowPlan
from amex.extract.encoders.registry import plan_stream
from amex.extract.run.part import ClipTask, Job, PartTask, VideoTask, run_part
from amex.extract.video.feeders import Feeders
from amex.extract.video.requests import SamplingRequest, Window
from amex.features import create_store, declare_stream
from amex.manifests import VideoFinder

NAME = "r2plus1d_18"


def rate(call: Callable[[], object], windows: int, repeats: int) -> float:
    """Windows a second, the best of three rounds: the others are the machine's."""
    call()
    best = 0.0
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        best = max(best, windows * repeats / (time.perf_counter() - begin))
    return best


def plain(device: str) -> float:
    network = torchvision.models.video.r2plus1d_18().eval().to(device)
    batch = torch.randn(1, 3, 16, 112, 112, device=device)
    with torch.inference_mode():
        return rate(lambda: network(batch).cpu(), 1, 4)


def encode_only(plan: WindowPlan, device: str) -> float:
    encoder = plan.encoder(device)
    batch = 255 * torch.rand(plan.batch_size, 16, 112, 112, 3, device=device)
    return rate(lambda: encoder(batch)["values"].cpu(), plan.batch_size, 8)


def matmul(dtype: torch.dtype, device: str) -> float:
    """TFLOP/s of a large matrix product: what the device's arithmetic allows in this precision."""
    a = torch.randn(2048, 2048, device=device).to(dtype)
    return 2 * 2048**3 / 1e12 * rate(lambda: (a @ a)[0, 0].item(), 1, 8)


def decode_only(plan: WindowPlan, root: Path, files: list[Path]) -> float:
    feeders = Feeders()
    windows = 0
    begin = 0.0
    for warm in (True, False):
        begin, windows = time.perf_counter(), 0
        for file in files[:1] if warm else files:
            for event in feeders.read(root / file, [SamplingRequest(None, None, plan.sampling, plan.transform)]):
                windows += isinstance(event, Window)
    feeders.close()
    return windows / (time.perf_counter() - begin)


def end_to_end(plan: WindowPlan, root: Path, files: list[Path], device: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        store = create_store(Path(folder) / "s.zarr")
        declare_stream(store, NAME, plan.spec, {})
        job = Job(store=store, videos=root, streams=(plan,), texts=(), deadline=60)

        def part(index: int, chosen: list[Path]) -> PartTask:
            videos = []
            for file in chosen:
                clip = ClipTask(clip_id=str(file), video=str(file), start=None, end=None, attempt=1, streams=(0,))
                videos.append(VideoTask(path=file, missing="", clips=(clip,)))
            return PartTask(index=index, videos=tuple(videos))

        run_part(part(0, files[:1]), job, device)  # the model and the decoder are up
        begin = time.perf_counter()
        report = run_part(part(1, files), job, device)
        return report.rows / (time.perf_counter() - begin)


def device_name(device: str) -> str:
    """What a report calls the device."""
    return torch.cuda.get_device_name(device) if device != "cpu" else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", required=True, type=Path)
    parser.add_argument("--clips", type=int, default=8, help="how many of the videos")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    device = choose_device(given.device)
    files = VideoFinder(given.videos).walk()[: given.clips]
    plan = plan_stream(
        NAME,
        NAME,
        weights="random:0",
        device=device,
        precision=choose_precision("auto", device),
        compiled=given.compile,
        batch_size=given.batch_size,
    )
    found = {"plain": plain(device), "encode": encode_only(plan, device)}
    found["decode"] = decode_only(plan, given.videos, files)
    found["end_to_end"] = end_to_end(plan, given.videos, files, device)
    found["matmul_bf16_over_fp32"] = matmul(torch.bfloat16, device) / matmul(torch.float32, device)
    found["encode_over_plain"] = found["encode"] / found["plain"]
    found["end_to_end_over_slower"] = found["end_to_end"] / min(found["encode"], found["decode"])
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{device_name(device)}, {torch.get_num_threads()} threads, {plan.precision}, torch {torch.__version__}")
    for name in ("plain", "encode", "decode", "end_to_end"):
        print(f"  {name:<12}{found[name]:9.2f} windows/s")
    print(f"  encode / plain                      {found['encode_over_plain']:.2f}")
    print(f"  bf16 / fp32 matrix product          {found['matmul_bf16_over_fp32']:.2f}   (the device's own ceiling)")
    print(f"  end to end / slower of the two      {found['end_to_end_over_slower']:.2f}")


if __name__ == "__main__":
    main()
