"""Extract the rows of one clip in this process, without a store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...errors import AmexError
from ...features import ClipSource, Rows
from ..encoders import ObjectsPlan, WindowPlan
from ..limits import DEADLINE
from .part import ClipTask, Job, PartRun, PartTask, VideoTask, clip_rows, request_of, shared_feeders
from .watch import Watchdog


class InMemoryRun(PartRun):
    """The extraction of a part that is not committed."""

    def write(self, record: dict[str, Any]) -> set[str]:
        """Write nothing."""
        return set()


def extract_rows(
    video: Path, plan: WindowPlan | ObjectsPlan, *, device: str, start: float | None = None, end: float | None = None
) -> Rows:
    """Return the rows of one clip.

    Args:
        video: a file, or a URL in an object store or on a web server.
        plan: the stream, from ``encoders.plan_stream``.
        device: from ``encoders.choose_device``.
        start: seconds on the video's clock; None for the beginning of the video.
        end: seconds, exclusive; None for the end of the video.

    Raises:
        AmexError: if the clip cannot be decoded or encoded.
    """
    clip = ClipTask(clip_id=video.name, video=video.name, start=start, end=end, attempt=1, streams=(0,))
    part = PartTask(index=0, videos=(VideoTask(path=Path(video.name), missing="", clips=(clip,)),))
    job = Job(
        store=Path(), videos=video.parent, streams=(plan,), texts=(), deadline=DEADLINE, feeders=1, decoder=plan.decoder
    )
    device = "cuda:0" if device == "cuda" else device
    # The watchdog is not started, because it would end the caller's process.
    run = InMemoryRun(part, job, device, lambda report: None, shared_feeders(job, device), Watchdog(math.inf), {})
    with torch_settings_restored():
        run.run()
    rows = clip_rows(clip.clip_id, ClipSource(video=video.name), run.rows[0, request_of(clip, plan), 0])
    if isinstance(rows, tuple):
        stage, reason = rows
        raise AmexError(f"{video}: {stage}: {reason}")
    return Rows(rows.arrays)


@contextmanager
def torch_settings_restored() -> Iterator[None]:
    """Restore torch's process-wide settings, which a run changes, on exit."""
    threads = torch.get_num_threads()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
