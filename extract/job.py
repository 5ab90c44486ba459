"""The run around the parts: what is there, what is left, and a Dask cluster to do it. Dask is the only engine."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import dask
import torch

from .. import __version__
from ..errors import AmexError
from ..features import Failure, create_store, declare_stream, verify
from ..features.schema import write_json
from ..manifests import Clip, Problem, VideoFinder
from .captions import CaptionsTask, captions_of, run_captions
from .part import Job, PartTask, Report, run_part
from .plan import Partition, existing, plan_tasks, states
from .streams import StreamPlan, by_kind
from .text import TextPlan

# Parts that each worker has waiting, so that none idles while the next is sent.
QUEUED_PARTS = 2
# A run stops when so many parts in a row break for reasons that are not the videos': a full disk breaks all of them.
BROKEN_IN_A_ROW = 5
# A run stops when for so many seconds there was nobody to do the work.
WITHOUT_WORKERS = 120.0


class Display(Protocol):
    """Shows a run as it goes."""

    def begin(self, parts: int, clips: int, captions: int) -> None: ...

    def update(self, part: int, report: Report) -> None:
        """``report`` is what the task with the number ``part`` has come to so far."""

    def end(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        report: what this run did.
        states: stream -> how many clips of the manifest, or of its captions, are done, empty, failed, absent now; of a
            partition its own alone.
        problems: manifest lines that are not usable clips.
        broken: part -> error, for parts that broke for another reason than their videos.
        repaired: ``stream/part`` of the parts that were found damaged and computed again.
    """

    report: Report
    states: dict[str, dict[str, int]]
    problems: list[Problem] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0: all there. 3: finished, but some clips failed. 1: some parts broke."""
        if self.broken:
            return 1
        return 3 if self.problems or any(count["failed"] for count in self.states.values()) else 0


def extract(
    items: Sequence[Clip | Problem],
    plans: Sequence[StreamPlan],
    *,
    store: Path,
    videos: Path | None,
    device: str,
    workers: int,
    display: Display,
    cluster: str = "local",
    part_clips: int = 64,
    partition: Partition | None = None,
    deadline: float = 60.0,
    retry_failed: bool = False,
    repair: bool = False,
) -> Outcome:
    """Computes what ``store`` lacks of the clips, and only that.

    Args:
        items: from ``manifests.scan_manifest``.
        plans: from ``streams.plan_stream``.
        videos: the folder they are in; None if all streams are of text.
        device: from ``encoders.choose_device``.
        workers: processes on this machine; not used with a scheduler's address.
        cluster: ``local`` or a scheduler's address.
        part_clips: clips a part, at least; the clips of one video are never parted.
        partition: which of several runs that share the manifest this is; None: the only one.
        deadline: seconds without a frame after which a decoder is killed.

    Raises:
        AmexError: if the run cannot begin, or broke in a way that the next part would too.
    """
    clips = [item for item in items if isinstance(item, Clip)]
    problems = [item for item in items if isinstance(item, Problem)]
    seeing, texts = by_kind(plans)
    finder = VideoFinder(videos) if seeing else None
    store = create_store(store).absolute()
    for plan in plans:
        declare_stream(store, plan.name, plan.spec, provenance(plan))
    repaired = [name for plan in plans for name in discard_damaged(store, plan.name)] if repair else []
    write_json(store / "problems.json", [ledger_entry(problem) for problem in problems])

    streams = {plan.name: existing(store, plan.name) for plan in plans}
    for stream in streams.values():
        if stream is not None and stream.damaged:
            raise AmexError(next(iter(stream.damaged.values())))
    kept = {"part_clips": part_clips, "retry_failed": retry_failed, "partition": partition}
    tasks = plan_tasks(clips, finder, plans, streams, **kept)
    count = min(workers, max(1, len(tasks))) if cluster == "local" else 1
    job = Job(
        store=store,
        videos=videos and videos.absolute(),
        streams=seeing,
        texts=texts,
        deadline=deadline,
        threads=max(1, (os.cpu_count() or 1) // count) if cluster == "local" else 0,
    )
    report, broken = Report(), dict[str, str]()
    if tasks:
        clip_count = sum(len(v.clips) for task in tasks if isinstance(task, PartTask) for v in task.videos)
        display.begin(len(tasks), clip_count, sum(len(t.captions) for t in tasks if isinstance(t, CaptionsTask)))
        try:
            with connect(cluster, count) as client:
                report, broken = run_tasks(client, tasks, job, device, display)
        finally:
            display.end()
    after, mine = {}, partition or Partition()
    own, said = mine.clips(clips, part_clips), mine.captions(captions_of(clips))
    for plan in plans:
        keys = said if isinstance(plan, TextPlan) else [clip.clip_id for clip in own]
        counts = states(keys, existing(store, plan.name))
        after[plan.name] = {state: counts[state] for state in ("done", "empty", "failed", "absent")}
    return Outcome(report=report, states=after, problems=problems, broken=broken, repaired=repaired)


def provenance(plan: StreamPlan) -> dict[str, Any]:
    """What a reader of the store wants to know of a stream beyond its spec."""
    weights = plan.weights
    if not weights.startswith("random:"):
        path = Path(weights)
        # Of a directory the last parts: a hub's cache has the model's name and its revision there.
        weights = "/".join(path.parts[-3:]) if path.is_dir() else path.name
    return {"weights": weights, "amex": __version__, "torch": torch.__version__}


def ledger_entry(problem: Problem) -> dict[str, Any]:
    """A manifest problem as an entry of the quarantine ledger."""
    place = f"{problem.file}:{problem.line}"
    return vars(Failure(clip_id=place, video="", stage="manifest", reason=problem.reason))


def discard_damaged(store: Path, name: str) -> list[str]:
    """Removes the damaged parts of a stream and nothing else; their clips are absent then. Returns ``stream/part``."""
    stream = existing(store, name)
    discarded = []
    for damage in verify(stream) if stream is not None else ():
        if damage is not None and damage.committed:
            (store / name / "commits" / f"{damage.part}.json").unlink()
            shutil.rmtree(store / name / "parts" / damage.part, ignore_errors=True)
            discarded.append(f"{name}/{damage.part}")
    return discarded


@contextlib.contextmanager
def connect(cluster: str, workers: int) -> Iterator[Any]:
    """A Dask client: of a cluster on this machine that ends with the run, or of the scheduler at an address."""
    from distributed import Client, LocalCluster

    if cluster != "local":
        try:
            client = Client(cluster, timeout="20s", set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise AmexError(f"no Dask scheduler answers at {cluster}: {error}") from error
        with client:
            yield client
        return
    settings = {
        # In place of Dask's own settings, which have the allocator hand memory back at every chance: a network asks for
        # it again with every layer. Few arenas instead: each thread's keeps what the others could use.
        "distributed.nanny.pre-spawn-environ": {"MALLOC_ARENA_MAX": 2},
        "distributed.worker.profile.enabled": False,
        # A worker that dies is started again by its nanny. Dask ends that nanny too if the worker is not there so long
        # after its death: also one that is still starting, or has died again. Nobody would then do what is left.
        "distributed.deploy.lost-worker-timeout": "365 days",
    }
    with dask.config.set(settings):
        with LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # Dask's own limit would pause workers; a model and its frames are bounded by design
            silence_logs=logging.CRITICAL,
        ) as local:
            with Client(local, set_as_default=False) as client:
                yield client


def run_tasks(
    client: Any, tasks: Sequence[PartTask | CaptionsTask], job: Job, device: str, display: Display
) -> tuple[Report, dict[str, str]]:
    """Keeps every worker busy until all tasks are committed or broken; returns the sum of their reports."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    try:
        client.wait_for_workers(1, timeout=WITHOUT_WORKERS)
    except TimeoutError as error:
        raise NoWorkers from error
    topic = f"amex-{uuid.uuid4().hex}"
    client.subscribe_topic(topic, lambda event: display.update(event[1]["part"], Report(**event[1]["report"])))
    total, broken = Report(), {}
    waiting = iter(enumerate(tasks))
    by_key: dict[str, int] = {}
    in_a_row = 0

    def submit() -> Any:
        number, task = next(waiting, (None, None))
        if task is None:
            return None
        key = f"{topic}-{number}"
        by_key[key] = number
        return client.submit(work, number, task, job, device, topic, key=key, pure=False)

    bound = QUEUED_PARTS * max(1, len(client.ncores()))
    first = [future for future in (submit() for _ in range(bound)) if future is not None]
    running = as_completed(first, loop=client.loop)
    with on_sigterm():
        for future in as_they_end(running, client):
            number = by_key[future.key]
            if future.status == "finished":
                report = future.result()
                display.update(number, report)
                total.add(report)
                in_a_row = 0
            else:
                error = future.exception()
                if isinstance(error, KilledWorker):
                    error = AmexError("it ended its worker process again and again (out of memory?)")
                broken[describe(tasks[number], job)] = f"{type(error).__name__}: {error}"
                in_a_row += 1
                if in_a_row == BROKEN_IN_A_ROW:
                    raise AmexError(f"{in_a_row} parts in a row broke, the last with {type(error).__name__}: {error}")
            future.release()
            if (following := submit()) is not None:
                running.add(following)
    return total, broken


class NoWorkers(AmexError):
    """Nobody does the work."""

    def __init__(self) -> None:
        super().__init__(
            f"the scheduler answers, but has had no worker for {WITHOUT_WORKERS:g} seconds; "
            "what is committed stays, and the same command goes on from there"
        )


def as_they_end(running: Any, client: Any) -> Iterator[Any]:
    """The futures of Dask's ``as_completed`` in its order; raises NoWorkers instead of waiting for ever."""
    looked = seen = time.monotonic()
    while not running.is_empty():
        if running.has_ready():
            yield next(running)
            seen = time.monotonic()
            continue
        time.sleep(0.05)
        if (now := time.monotonic()) - looked < WITHOUT_WORKERS / 10:
            continue
        looked = now
        if client.ncores():
            seen = now
        elif now - seen > WITHOUT_WORKERS:
            raise NoWorkers


def describe(task: PartTask | CaptionsTask, job: Job) -> str:
    """A task's part as a person finds it in the store."""
    return f"{job.texts[task.stream].name}/{task.name}" if isinstance(task, CaptionsTask) else f"{task.index:06d}"


def work(number: int, task: PartTask | CaptionsTask, job: Job, device: str, topic: str) -> Report:
    """A task, on a Dask worker: picks the device that is this worker's and reports progress."""
    from distributed import get_worker

    worker = get_worker()
    if device == "cuda":  # any: the workers of a machine take turns
        device = f"cuda:{(worker.name if isinstance(worker.name, int) else 0) % torch.cuda.device_count()}"

    def progress(report: Report) -> None:
        worker.log_event(topic, {"part": number, "report": vars(report)})

    if isinstance(task, CaptionsTask):
        return run_captions(task, job, device)
    return run_part(task, job, device, progress)


@contextlib.contextmanager
def on_sigterm() -> Iterator[None]:
    """Makes SIGTERM, which is how schedulers pre-empt, end a run as Ctrl-C does: what is committed stays."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
