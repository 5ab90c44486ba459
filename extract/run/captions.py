"""One task of text: captions, from a manifest to a committed part of one stream."""

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
from .stalls import Stall, forget_stalls, note_stalls
from .watch import Watch

# Captions a part: a minute or two of a BERT on a CPU, some tens of megabytes.
PART_CAPTIONS = 2048


@dataclass(frozen=True, kw_only=True)
class CaptionsTask:
    """The captions that one worker encodes and commits together, in one stream of text (by index)."""

    index: int
    stream: int
    captions: tuple[str, ...]
    attempts: tuple[int, ...]
    renamed: int = 0  # as of a PartTask

    @property
    def name(self) -> str:
        """The part's name: its place in the manifest, and a digest of the captions and attempts in it."""
        tried = [f"{caption}\0{attempt}" for caption, attempt in zip(self.captions, self.attempts, strict=True)]
        name = f"{self.index:06d}-{hashlib.sha256(chr(1).join(tried).encode()).hexdigest()[:12]}"
        return functools.reduce(lambda name, _: next_name(name), range(self.renamed), name)


def captions_of(clips: Iterable[Clip]) -> list[str]:
    """All captions, each once, in manifest order."""
    return list(dict.fromkeys(caption for clip in clips for caption in clip.captions))


def plan_captions(
    captions: list[str], stream: Stream | None, number: int, *, retry_failed: bool
) -> Iterator[CaptionsTask]:
    """Yields the tasks that hold what a stream of text lacks. As with clips, the manifest decides where it is cut."""
    for begin in range(0, len(captions), PART_CAPTIONS):
        attempts = {}
        for caption in captions[begin : begin + PART_CAPTIONS]:
            state = stream.state(caption) if stream is not None else "absent"
            if state == "absent":
                attempts[caption] = 1
            elif state == "failed" and retry_failed:
                attempts[caption] = stream.tries(caption)[1] + 1
        if attempts:
            tried = {"captions": tuple(attempts), "attempts": tuple(attempts.values())}
            task = CaptionsTask(index=begin // PART_CAPTIONS, stream=number, **tried)
            while stream is not None and task.name in stream.replaced:
                task = replace(task, renamed=task.renamed + 1)
            yield task


def run_captions(task: CaptionsTask, job: Job, device: str = "cpu") -> Report:
    """Encodes and commits the captions of a task."""
    plan = job.texts[task.stream]
    started = time.monotonic()
    torch.set_num_threads(THREADS)
    encoder = plan.encoder(device)
    place = (job.store, plan.name, task.name)

    def remember(stage: str, work: Collection[object]) -> None:
        note_stalls(*place, [Stall(video=None, stage=stage, limit=job.stall)])

    with Watch(job.stall, remember) as watch:
        watch.on("encode")
        encoded, cut = encoder(task.captions, lambda: watch.on("encode"))
        watch.on("encode", None)
        encoding = time.monotonic() - started
        rows, failures = [], []
        for caption, attempt, arrays in zip(task.captions, task.attempts, encoded, strict=True):
            if reason := overflow_reason(arrays["values"]) or overflow_reason(arrays["sentence"]):
                entry = {"clip_id": caption, "video": "", "attempts": attempt}
                failures.append(Failure(**entry, stage="encode", reason=f"a feature {reason}"))
            else:
                halves = {name: arrays[name].astype(np.float16) for name in ("values", "sentence")}
                rows.append(ClipRows(clip_id=caption, arrays={**arrays, **halves}))
        run = {"host": socket.gethostname(), "seconds": round(encoding, 3), "captions_cut": cut, "versions": versions()}
        watch.on("write")
        commit = write_part(*place, spec=plan.spec, clips=rows, failures=failures, run=run)
    forget_stalls(*place)
    return Report(
        captions=len(task.captions),
        failed=len(failures),
        rows=commit["rows"],
        bytes=bytes_of(commit),
        seconds=dict.fromkeys(ACTIVITIES, 0.0) | {"encode": encoding, "write": time.monotonic() - started - encoding},
    )
