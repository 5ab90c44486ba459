"""Replacements of functions and networks, in a module that workers can import; they cannot import test modules."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from distributed import get_worker
from distributed.scheduler import KilledWorker

from amex.extract.encoders.windows import WindowPlan
from amex.extract.run.part import Job, PartTask, Report
from amex.extract.run.stalls import Stall, take_video_stalls, write_stalls
from amex.extract.video.sampling import Sampling
from amex.extract.video.transform import Transform

# Replaces the delays of up to 20 s between retries of the S3 client. Tests only check that it retries.
AT_ONCE = mock.patch("botocore.retries.standard.ExponentialBackoff.delay_amount", return_value=0.01)


def ask_s3_again_at_once(on: bool) -> None:
    """Apply ``AT_ONCE`` in a worker."""
    _ = AT_ONCE.start() if on else AT_ONCE.stop()


def note(number: int, task: PartTask, folder: Path, device: str, topic: str) -> Report:
    """Replaces the work on a part: writes the worker's GPU, threads and times to a file."""
    begin = time.time()
    time.sleep(0.3)
    report = {
        "gpu": os.environ["CUDA_VISIBLE_DEVICES"],
        "threads": torch.get_num_threads(),
        "span": [begin, time.time()],
    }
    (folder / f"{number}.json").write_text(json.dumps(report | {"device": device}))
    return Report(clips=1)


# Number of events per part of ``chatter``.
CHATTER = 300


def chatter(number: int, task: PartTask, job: None, device: str, topic: str) -> Report:
    """Replaces the work on a part: reports progress as fast as possible."""
    for done in range(CHATTER):
        get_worker().log_event(topic, {"part": number, "report": vars(Report(clips=done))})
    return Report(clips=CHATTER, rows=1)


def stalls_of_four(number: int, task: PartTask, job: Job, device: str, topic: str) -> Report:
    """Replaces ``run_task``: records the stalls of Dask's four tries of a part with endless videos."""
    place = (job.store, "s", task.name(0))
    video_stalls = take_video_stalls(*place)
    left = [video.path.as_posix() for video in task.videos][len(video_stalls) :]
    if not left:
        return Report(clips=len(video_stalls), failed=len(video_stalls))
    write_stalls(*place, [*video_stalls, *(Stall(video=video, stage="encode", limit=0.6) for video in left[:4])])
    raise KilledWorker("task", SimpleNamespace(address="gone"), 3)


def bf16_on_gpu(device: str, precision: str) -> tuple[str, str]:
    """Replaces ``worker_choice``."""
    return "cuda", "bf16"


HEIGHT = 96  # height of the videos that stall the encoder


class Endless:
    """An encoder that returns zeros, and never returns for frames of HEIGHT."""

    device = torch.device("cpu")

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        if windows.shape[2] == HEIGHT:
            time.sleep(600)
        return {"values": torch.zeros(len(windows), 128)}


class Prompt(Endless):
    """An encoder that always returns."""

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": torch.zeros(len(windows), 128)}


class EndlessPlan(WindowPlan):
    def encoder(self, device: str) -> Endless:
        return Endless()


class PromptPlan(WindowPlan):
    def encoder(self, device: str) -> Prompt:
        return Prompt()


class Brightness(torch.nn.Module):
    """A user's network: the mean of each colour channel of a window."""

    sampling = Sampling(frames=2, stride=8)
    transform = Transform(resize=(24, 32), antialias=True, crop=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(3))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return windows.mean((2, 3, 4)) * self.gain


def brightness() -> Brightness:
    return Brightness()


def untouched() -> Brightness:
    network = Brightness()
    network.transform = None
    return network


def drawn_anew() -> Brightness:
    network = Brightness()
    torch.nn.init.uniform_(network.gain)
    return network


def without_transform() -> torch.nn.Module:
    network = torch.nn.Linear(3, 3)
    network.sampling, network.dim = Brightness.sampling, 3
    return network


def wrong_dim() -> Brightness:
    network = Brightness()
    network.dim = 4
    return network


def no_tensor() -> Brightness:
    network = Brightness()
    network.forward = lambda windows: [windows]
    return network


def no_network() -> str:
    return "network"


def leaves() -> None:
    sys.exit(0)


def in_bfloat16() -> Brightness:
    network = Brightness()
    network.register_buffer("scale", torch.ones(3, dtype=torch.bfloat16))
    return network


def sparse() -> Brightness:
    network = Brightness()
    network.register_buffer("matrix", torch.eye(3).to_sparse())
    return network


def fails() -> None:
    raise RuntimeError("no weights here\nsecond line")


def short_of_memory() -> Brightness:
    """A network with memory for at most two windows at a time."""

    def forward(windows: torch.Tensor) -> torch.Tensor:
        if len(windows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return windows.mean((2, 3, 4))

    network = Brightness()
    network.forward = forward
    return network


def fails_on_windows() -> Brightness:
    network = Brightness()
    network.forward = lambda windows: windows.nonsense
    return network
