"""One part of a text stream: plan its captions, encode them and commit them."""

from __future__ import annotations

import functools
import hashlib
import socket
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...features import ClipRows, Failure, Stream, bytes_of, write_part
from ...features.schema import next_name
from ...manifests import Clip
from .part import ACTIVITIES, THREADS, Job, Report, versions
from .rows import overflow_reason
from .stalls import Stall, delete_stalls, write_stalls
from .watch import Watchdog

# Captions in a part: one or two minutes of BERT on a CPU, some tens of megabytes.
PART_CAPTIONS = 2048


@dataclass(frozen=True, kw_only=True)
class CaptionsTask:
    """The captions that one worker encodes and commits together.

    Attributes:
        index: number of the part in the manifest.
        stream: the text stream, by index.
        attempts: number of this try of each caption, from 1.
        renamed: see ``PartTask``.
    """

    index: int
    stream: int
    captions: tuple[str, ...]
    attempts: tuple[int, ...]
    renamed: int = 0

    @property
    def name(self) -> str:
        """The part's name: its number in the manifest, and a digest of its captions and attempts."""
        entries = [f"{caption}\0{attempt}" for caption, attempt in zip(self.captions, self.attempts, strict=True)]
        name = f"{self.index:06d}-{hashlib.sha256(chr(1).join(entries).encode()).hexdigest()[:12]}"
        return functools.reduce(lambda name, _: next_name(name), range(self.renamed), name)


def captions_of(clips: Iterable[Clip]) -> list[str]:
    """Return the unique captions in manifest order."""
    return list(dict.fromkeys(caption for clip in clips for caption in clip.captions))


def plan_captions(
    captions: list[str], stream: Stream | None, number: int, *, retry_failed: bool
) -> Iterator[CaptionsTask]:
    """Yield the tasks that complete a text stream. Only the manifest decides where the captions are cut into parts."""
    for begin in range(0, len(captions), PART_CAPTIONS):
        attempts = {}
        for caption in captions[begin : begin + PART_CAPTIONS]:
            state = stream.state(caption) if stream is not None else "absent"
            if state == "absent":
                attempts[caption] = 1
            elif state == "failed" and retry_failed:
                attempts[caption] = stream.tries(caption)[1] + 1
        if attempts:
            entries = {"captions": tuple(attempts), "attempts": tuple(attempts.values())}
            task = CaptionsTask(index=begin // PART_CAPTIONS, stream=number, **entries)
            while stream is not None and task.name in stream.replaced:
                task = replace(task, renamed=task.renamed + 1)
            yield task


def run_captions(task: CaptionsTask, job: Job, device: str = "cpu") -> Report:
    """Encode and commit the captions of a task."""
    plan = job.texts[task.stream]
    started = time.monotonic()
    torch.set_num_threads(THREADS)
    encoder = plan.encoder(device)
    part = (job.store, plan.name, task.name)

    def record_stall(stage: str, work: Collection[object]) -> None:
        write_stalls(*part, [Stall(video=None, stage=stage, limit=job.stall)])

    with Watchdog(job.stall, record_stall) as watch:
        watch.step("encode")
        encoded, cut = encoder(task.captions, lambda: watch.step("encode"))
        watch.step("encode", None)
        encoding = time.monotonic() - started
        rows, failures = [], []
        for caption, attempt, arrays in zip(task.captions, task.attempts, encoded, strict=True):
            if reason := overflow_reason(arrays["values"]) or overflow_reason(arrays["sentence"]):
                entry = {"clip_id": caption, "video": "", "attempts": attempt}
                failures.append(Failure(**entry, stage="encode", reason=f"a feature {reason}"))
            else:
                float16 = {name: arrays[name].astype(np.float16) for name in ("values", "sentence")}
                rows.append(ClipRows(clip_id=caption, arrays={**arrays, **float16}))
        run = {"host": socket.gethostname(), "seconds": round(encoding, 3), "captions_cut": cut, "versions": versions()}
        watch.step("write")
        commit = write_part(*part, spec=plan.spec, clips=rows, failures=failures, run=run)
    delete_stalls(*part)
    return Report(
        captions=len(task.captions),
        failed=len(failures),
        rows=commit["rows"],
        bytes=bytes_of(commit),
        seconds=dict.fromkeys(ACTIVITIES, 0.0) | {"encode": encoding, "write": time.monotonic() - started - encoding},
    )
