"""The run around the parts: what is there, what is left, and a Dask cluster to do it. Dask is the only engine."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ... import __version__
from ...errors import AmexError, first_line
from ...features import Failure, create_store, declare_stream, mend, sweep, verify, write_problems
from ...features.care.verify import part_of
from ...manifests import Clip, Problem, VideoFinder
from ...storage import reachable, storage_at, sweep_folder
from ..encoders import StreamPlan, TextPlan, by_kind, choose_device, choose_precision
from ..limits import DEADLINE, LONGEST_FRAME, STALL, part_bounds
from ..video import nvdec_missing
from .batch import Jobs, batch, jobs_folder
from .captions import CaptionsTask, captions_of, run_captions
from .cluster import Workers, allocation, local, remote
from .part import Job, PartTask, Report, run_part
from .plan import Partition, VideoFiles, changed_text, existing, plan_tasks
from .stalls import Stall, read_stalls

# Parts that each worker has waiting, so that none idles while the next is sent.
QUEUED_PARTS = 2
# A run stops when so many parts in a row break for reasons that are not the videos': a full disk breaks all of them.
BROKEN_IN_A_ROW = 5
# So often a part is handed out whose workers died before they began it.
TRIES_UNBEGUN = 5
# A run stops when for so many seconds there was nobody to do the work.
WITHOUT_WORKERS = 120.0
# Seconds between looks at who is there.
LOOK_INTERVAL = 1.0


class Display(Protocol):
    """Shows a run as it goes. One thread calls it: that of ``run_tasks``."""

    def note(self, text: str) -> None:
        """A line that the user should read before the work begins."""

    def begin(self, parts: int, clips: int, captions: int) -> None: ...

    def workers(self, count: int, logs: Path | None) -> None:
        """``logs`` is where to look if none come."""

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
        notes: lines about how the manifest was understood, and how the work went.
        absent: stream -> the first clip or caption that is neither there nor failed, where there is one.
        changed: ``times`` or ``video`` -> for how many clips that was another when they were computed.
    """

    report: Report
    states: dict[str, dict[str, int]]
    problems: list[Problem] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0: all there. 3: finished, but some clips failed. 1: some parts broke, or clips are absent."""
        if self.broken or self.absent:
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
    cluster: str | Jobs | Workers = "local",
    feeders: int | None = None,
    deterministic: bool = False,
    part_clips: int | None = None,
    part_minutes: float | None = None,
    partition: Partition | None = None,
    deadline: float = DEADLINE,
    longest_frame: float = LONGEST_FRAME,
    keep_damaged: bool = False,
    decoder: str = "auto",
    stall: float = STALL,
    retry_failed: bool = False,
    keep_changed: bool = False,
    digest: bool = False,
    repair: bool = False,
) -> Outcome:
    """Computes what ``store`` lacks of the clips, and only that.

    Args:
        items: from ``manifests.scan_manifest``.
        plans: from ``encoders.plan_stream``.
        videos: the folder they are in; None if all streams are of text.
        device: from ``encoders.choose_device`` or ``choose_with_workers``.
        workers: processes on this machine; not used with jobs or a scheduler's address.
        cluster: ``local``, ``runner`` (this is the first task of an allocation), a scheduler's address, batch jobs, or
            workers that were started before.
        feeders: processes a worker that decode; None for what suits its cores.
        deterministic: on a GPU, choose kernels by their repeatability, not by speed; part of the streams' specs.
        part_clips: clips of a group, at least, which is then cut into parts; the clips of one video are never parted.
            None: as ``limits.part_bounds`` says.
        part_minutes: expected minutes of video a part, at most; None likewise.
        partition: which of several runs that share the manifest this is; None: the only one.
        deadline: seconds without a later frame after which a decoder is killed.
        longest_frame: seconds for which a frame is shown at most; more is damage.
        keep_damaged: keep the windows of a clip that come before damage, instead of failing it.
        decoder: a key of ``limits.DECODERS``; part of the streams' specs, unless it is ``auto``.
        stall: seconds without progress after which a worker is ended.
        retry_failed: try clips again that failed before.
        keep_changed: leave clips that were computed from other times or from another file than they would be now.
        digest: record the sha256 of video files, so that one whose time of modification changed can be told the same.
        repair: read every byte of the streams first, and compute damaged parts again.

    Raises:
        AmexError: if the run cannot begin, or broke in a way that the next part would too.
    """
    sweep_folder(Path(tempfile.gettempdir()))
    if decoder == "nvdec":
        require_nvdec(device, cluster)
    plans = [plan if isinstance(plan, TextPlan) else replace(plan, decoder=decoder) for plan in plans]
    clips = [item for item in items if isinstance(item, Clip)]
    problems = [item for item in items if isinstance(item, Problem)]
    if deterministic:  # text has no convolutions, whose kernels differ
        plans = [plan if isinstance(plan, TextPlan) else replace(plan, deterministic=True) for plan in plans]
    seeing, texts = by_kind(plans)
    files = VideoFiles(VideoFinder(videos), keep=keep_changed) if seeing else None
    with reachable(store):
        repaired = mend(store) if repair else []
        store = create_store(store).absolute()
        for plan in plans:
            declare_stream(store, plan.name, plan.spec, provenance(plan), repair=repair)
        repaired += [name for plan in plans for name in discard_damaged(store, plan.name)] if repair else []
        write_problems(store, [ledger_entry(problem) for problem in problems])

    streams = {plan.name: existing(store, plan.name) for plan in plans}
    part_clips, part_minutes = part_bounds(device, part_clips, part_minutes, partitioned=partition is not None)
    cut = {"part_clips": part_clips, "part_minutes": part_minutes, "partition": partition}
    tasks = plan_tasks(clips, files, plans, streams, **cut, retry_failed=retry_failed)
    changed = dict(Counter(files.changed.values())) if files is not None else {}
    if changed:
        display.note(changed_text(changed, keep_changed))
    job = Job(
        store=store,
        videos=None if videos is None else videos.absolute(),
        streams=seeing,
        texts=texts,
        deadline=deadline,
        longest_frame=longest_frame,
        keep_damaged=keep_damaged,
        decoder=decoder,
        stall=stall,
        digest=digest,
        feeders=feeders,
        deterministic=deterministic,
    )
    report, broken = Report(), dict[str, str]()
    if tasks:
        clip_count = sum(len(v.clips) for task in tasks if isinstance(task, PartTask) for v in task.videos)
        display.begin(len(tasks), clip_count, sum(len(t.captions) for t in tasks if isinstance(t, CaptionsTask)))
        try:
            with connect(cluster, min(workers, len(tasks)), device, jobs_folder(store)) as running:
                report, broken = run_tasks(running, tasks, job, device.partition(":")[0], display)
        finally:
            display.end()
    after, absent, mine = {}, {}, partition or Partition()
    own, captions = mine.clips(clips, part_clips), mine.captions(captions_of(clips))
    for plan in plans:
        stream = existing(store, plan.name)
        if stream is None:
            raise AmexError(f"the store {store} is gone; the same command makes it again")
        sweep(stream)
        now = (
            {caption: stream.state(caption) for caption in captions}
            if isinstance(plan, TextPlan)
            else {clip.clip_id: files.state(clip, stream) for clip in own}
        )
        counts = Counter(now.values())
        after[plan.name] = {state: counts[state] for state in ("done", "empty", "failed", "absent")}
        if counts["absent"]:
            absent[plan.name] = next(key for key, state in now.items() if state == "absent")
    return Outcome(
        report=report,
        states=after,
        problems=problems,
        broken=broken,
        repaired=repaired,
        notes=[*(files.finder.notes() if files is not None else ()), *report.notes],
        absent=absent,
        changed=changed,
    )


def provenance(plan: StreamPlan) -> dict[str, Any]:
    """What a reader of the store wants to know of a stream beyond its spec."""
    weights = plan.weights
    if not weights.startswith("random:"):
        path = Path(weights)
        # Of a directory the last parts: a hub's cache has the model's name and its revision there.
        weights = "/".join(path.parts[-3:]) if path.is_dir() else path.name
    return {"weights": weights, "amex": __version__, "torch": torch.__version__}


def ledger_entry(problem: Problem) -> Failure:
    """A manifest problem as an entry of the quarantine ledger."""
    return Failure(clip_id=problem.place, video="", stage="manifest", reason=problem.reason)


def discard_damaged(store: Path, name: str) -> list[str]:
    """Removes the damaged parts of a stream and nothing else; their clips are absent then. Returns ``stream/part``."""
    stream = existing(store, name, skip_damaged=True, afresh=True)
    discarded = []
    for damage in verify(stream) if stream is not None else ():
        if damage is not None and damage.kind == "part":
            (store / name / "commits" / f"{damage.part}.json").unlink()
            for path in (store / name / "parts").iterdir():
                if part_of(path.name) == damage.part:
                    storage_at(path).remove()
            discarded.append(f"{name}/{damage.part}")
    return discarded


def connect(
    where: str | Jobs | Workers, workers: int, device: str, folder: Path
) -> contextlib.AbstractContextManager[Workers]:
    """Starts the workers, or joins those of a scheduler. What it started ends with the context.

    Args:
        where: ``local``, ``runner``, a scheduler's address, batch jobs, or workers, which outlive the context.
        workers: how many on this machine, with the first two.
        device: ``cpu``, ``cuda`` or ``cuda:INDEX``.
        folder: where tasks of a cluster meet and leave their logs, for every node to read.

    Raises:
        AmexError: if nobody can be reached.
    """
    if isinstance(where, Workers):
        return contextlib.nullcontext(where)
    if isinstance(where, Jobs):
        return batch(where, folder)
    if where == "runner":
        return local(workers, device, listed=allocation(folder)[1])
    return local(workers, device) if where == "local" else remote(where)


def choose_with_workers(address: str, device: str, precision: str) -> tuple[str, str]:
    """The device and the precision of a run: what the workers of a scheduler can do counts, not this machine.

    Args:
        device: for ``encoders.choose_device``; an index is ignored, since each worker takes the GPU that it sees.
        precision: for ``encoders.choose_precision``.

    Raises:
        AmexError: if there are no workers, none of them has the device, or they would choose differently.
    """
    with remote(address) as workers, scheduler_lasts():
        try:
            workers.client.wait_for_workers(1, timeout=WITHOUT_WORKERS)
        except TimeoutError as error:
            raise NoWorkers from error
        answers = workers.client.run(abilities, device.partition(":")[0], precision, on_error="return")
    return agreed(address, list(answers.values()))


def abilities(device: str, precision: str) -> tuple[str, str]:
    """On a worker: the device and the precision it would choose."""
    device = choose_device(device)
    return device, choose_precision(precision, device)


def agreed(address: str, answers: Sequence[tuple[str, str] | Exception]) -> tuple[str, str]:
    """What all workers chose that could; see ``choose_with_workers``."""
    able = Counter(answer for answer in answers if not isinstance(answer, Exception))
    if not able:
        raise AmexError(f"no worker at {address} can do this: {first_line(answers[0])}")
    if len(able) > 1:
        sorts = ", ".join(f"{count:,} would use {device} in {precision}" for (device, precision), count in able.items())
        raise AmexError(f"the workers at {address} differ: {sorts}; say --device and --precision")
    return next(iter(able))


def require_nvdec(device: str, cluster: str | Jobs | Workers) -> None:
    """Raises AmexError where no worker can decode on a GPU. Batch jobs cannot be asked: their commits tell."""
    if device == "cpu":
        raise AmexError("--decoder nvdec needs workers with a GPU (--device cuda); use --decoder auto")
    if isinstance(cluster, Jobs):
        return
    if isinstance(cluster, str) and "://" in cluster:
        with remote(cluster) as workers, scheduler_lasts():
            where, missing = "the workers lack", list(workers.client.run(nvdec_missing).values())
    else:
        where, missing = "this machine lacks", [nvdec_missing()]
    if missing and all(missing):
        raise AmexError(f"--decoder nvdec: {where} {missing[0]}; use --decoder auto")


def run_tasks(
    workers: Workers, tasks: Sequence[PartTask | CaptionsTask], job: Job, device: str, display: Display
) -> tuple[Report, dict[str, str]]:
    """Keeps every worker busy until all tasks are committed or broken; returns the sum of their reports."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    topic = f"amex-{uuid.uuid4().hex}"
    events: deque[dict[str, Any]] = deque()  # the client's thread appends, this one takes
    workers.client.subscribe_topic(topic, lambda event: events.append(event[1]))
    total, broken = Report(), {}
    waiting = deque(enumerate(tasks))
    by_key: dict[str, int] = {}  # of the tasks that are out
    begun: set[int] = set()  # those of which a worker has said so
    tries: Counter[int] = Counter()
    at_fault: Counter[int] = Counter()  # by task: the videos over which its workers were ended
    running = as_completed(loop=workers.client.loop)
    resources: dict[str, int] = {}
    in_a_row = 0

    def show_progress() -> None:
        out = set(by_key.values())
        for event in [events.popleft() for _ in range(len(events))]:
            begun.add(event["part"])
            if event["part"] in out:  # a late event must not replace the report of a finished part
                display.update(event["part"], Report(**event["report"]))

    def hand_out(count: int) -> None:
        while waiting and len(by_key) < QUEUED_PARTS * count:
            number, task = waiting.popleft()
            tries[number] += 1
            by_key[key := f"{topic}-{number}-{tries[number]}"] = number
            options = {"key": key, "pure": False, "resources": resources}
            running.add(workers.client.submit(work, number, task, job, device, topic, **options))

    with on_sigterm(), scheduler_lasts():
        last_seen = time.monotonic()
        while waiting or by_key:
            present = workers.present()
            display.workers(len(present), workers.logs)
            now = time.monotonic()
            if present:
                last_seen = now
                if device == "cuda" and any("GPU" in worker["resources"] for worker in present.values()):
                    resources = {"GPU": 1}
            elif not workers.patient and now - last_seen > WITHOUT_WORKERS:
                raise NoWorkers
            workers.replace()
            hand_out(len(present))
            while (waiting or by_key) and time.monotonic() < now + LOOK_INTERVAL:
                show_progress()
                if not running.has_ready():
                    time.sleep(0.05)
                    continue
                future = next(running)
                if future.status == "lost":  # it was done, and its worker left with the report: it is asked for again
                    running.add(future)
                    continue
                number = by_key.pop(future.key)
                if future.status == "finished":
                    report = future.result()
                    display.update(number, report)
                    total.add(report)
                    in_a_row = 0
                elif future.status == "cancelled":
                    raise ConnectionError(f"it has lost part {describe(tasks[number], job)}")
                else:
                    error, stalls = future.exception(), []
                    again = False
                    if isinstance(error, KilledWorker):  # Dask does so few tries: the next ones leave the culprits out
                        show_progress()
                        stalls = stalls_of(tasks[number], job)
                        blamed = sum(stall.video is not None for stall in stalls)
                        # What only waited at a worker that was ended is blamed by Dask like what it worked on.
                        again = blamed > at_fault[number] or (number not in begun and tries[number] < TRIES_UNBEGUN)
                        at_fault[number] = blamed
                    if again:
                        waiting.append((number, tasks[number]))
                    else:
                        reason = why(error, stalls)
                        broken[describe(tasks[number], job)] = reason
                        in_a_row += 1
                        if in_a_row == BROKEN_IN_A_ROW:
                            raise AmexError(f"{in_a_row} parts in a row broke, the last with {reason}")
                future.release()
                hand_out(len(present))
    return total, broken


def stalls_of(task: PartTask | CaptionsTask, job: Job) -> list[Stall]:
    """What its workers were ended over, in all its streams; see ``stalls``."""
    if isinstance(task, CaptionsTask):
        return read_stalls(job.store, job.texts[task.stream].name, task.name)
    return [
        stall
        for stream in task.streams
        for stall in read_stalls(job.store, job.streams[stream].name, task.name(stream))
    ]


def why(error: BaseException, stalls: Sequence[Stall]) -> str:
    """Why a part broke, in a line."""
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        for stall in stalls:
            if stall.video is None:
                return stall.reason
        return "it ended its worker process again and again (out of memory?)"
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def scheduler_lasts() -> Iterator[None]:
    """Raises AmexError in place of the OSError of a scheduler that is gone."""
    try:
        yield
    except OSError as error:
        raise AmexError(
            f"the scheduler is gone: {first_line(error)}. What is committed stays, "
            "and the same command goes on from there"
        ) from error


class NoWorkers(AmexError):
    """A scheduler has had no worker for too long."""

    def __init__(self) -> None:
        super().__init__(
            f"the scheduler answers, but has had no worker for {WITHOUT_WORKERS:g} seconds; "
            "what is committed stays, and the same command goes on from there"
        )


def describe(task: PartTask | CaptionsTask, job: Job) -> str:
    """A task's part as a person finds it in the store, in one of the streams."""
    if isinstance(task, CaptionsTask):
        return f"{job.texts[task.stream].name}/{task.name}"
    stream = task.videos[0].clips[0].streams[0]
    return f"{job.streams[stream].name}/{task.name(stream)}"


# Held while a task runs: also in a worker of several threads, one task at a time has the networks and the feeders.
_one_task = threading.Lock()


def work(number: int, task: PartTask | CaptionsTask, job: Job, device: str, topic: str) -> Report:
    """A task, on a Dask worker, which reports its progress. Of the GPUs it takes the one that the worker sees."""
    from distributed import get_worker

    worker = get_worker()

    def progress(report: Report) -> None:
        worker.log_event(topic, {"part": number, "report": vars(report)})

    with _one_task:
        progress(Report())  # it has begun
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
