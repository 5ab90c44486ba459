"""What workers run in place of the work. They import it by this name, which modules of tests have not always."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from distributed import get_worker

from amex.extract.part import PartTask, Report


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


def bf16_on_gpu(device: str, precision: str) -> tuple[str, str]:
    """In place of what a worker can do."""
    return "cuda", "bf16"
