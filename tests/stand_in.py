"""What workers run in place of the work. They import it by this name, which modules of tests have not always."""

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
from amex.extract.run.stalls import Stall, begin_stalls, note_stalls
from amex.extract.video.sampling import Sampling
from amex.extract.video.transform import Transform

# In place of the up to 20 s that a client of S3 waits before it asks again: what tests are of is that it does.
AT_ONCE = mock.patch("botocore.retries.standard.ExponentialBackoff.delay_amount", return_value=0.01)


def ask_s3_again_at_once(on: bool) -> None:
    """``AT_ONCE`` in a worker."""
    _ = AT_ONCE.start() if on else AT_ONCE.stop()


def note(number: int, task: PartTask, folder: Path, device: str, topic: str) -> Report:
    """In place of the work on a part: what the worker sees, and when."""
    begin = time.time()
    time.sleep(0.3)
    seen = {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "threads": torch.get_num_threads(), "span": [begin, time.time()]}
    (folder / f"{number}.json").write_text(json.dumps(seen | {"device": device}))
    return Report(clips=1)


# Events of each part of ``chatter``.
CHATTER = 300


def chatter(number: int, task: PartTask, job: None, device: str, topic: str) -> Report:
    """In place of the work on a part: reports its progress as fast as it can."""
    for done in range(CHATTER):
        get_worker().log_event(topic, {"part": number, "report": vars(Report(clips=done))})
    return Report(clips=CHATTER, rows=1)


def stalls_of_four(number: int, task: PartTask, job: Job, device: str, topic: str) -> Report:
    """In place of ``work``: what a part of endless videos comes to in Dask's four tries."""
    place = (job.store, "s", task.name(0))
    known = begin_stalls(*place)
    left = [video.path.as_posix() for video in task.videos][len(known) :]
    if not left:
        return Report(clips=len(known), failed=len(known))
    note_stalls(*place, [*known, *(Stall(video=video, stage="encode", limit=0.6) for video in left[:4])])
    raise KilledWorker("task", SimpleNamespace(address="gone"), 3)


def bf16_on_gpu(device: str, precision: str) -> tuple[str, str]:
    """In place of what a worker can do."""
    return "cuda", "bf16"


HEIGHT = 96  # of the videos that are never done


class Endless:
    """An encoder of zeros that does not come back from frames of one height."""

    device = torch.device("cpu")

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        if windows.shape[2] == HEIGHT:
            time.sleep(600)
        return {"values": torch.zeros(len(windows), 128)}


class Prompt(Endless):
    """One that comes back from all."""

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": torch.zeros(len(windows), 128)}


class EndlessPlan(WindowPlan):
    def encoder(self, device: str) -> Endless:
        return Endless()


class PromptPlan(WindowPlan):
    def encoder(self, device: str) -> Prompt:
        return Prompt()


class Brightness(torch.nn.Module):
    """A network of one's own: the mean of each colour of a window, as a vector."""

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
    """A network for which there is memory for two windows at once."""

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
