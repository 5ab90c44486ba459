"""An extraction run: plan the missing parts, send them to Dask workers, and collect the reports."""

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
from ...features import Failure, create_store, declare_stream, remove_leftovers, repair_metadata, verify, write_problems
from ...features.care.verify import part_of
from ...manifests import Clip, Problem, VideoFinder
from ...storage import reachable, remove_stale_files, storage_at
from ..encoders import StreamPlan, TextPlan, choose_device, choose_precision, split_plans
from ..limits import DEADLINE, LONGEST_FRAME, STALL, part_bounds
from ..video import nvdec_missing
from .batch import Jobs, batch, jobs_folder
from .captions import CaptionsTask, captions_of, run_captions
from .cluster import Workers, allocation, local, remote
from .part import Job, PartTask, Report, run_part
from .plan import Partition, VideoFiles, changed_text, existing_stream, plan_tasks
from .stalls import Stall, read_stalls

# Parts submitted per worker. With two, a worker has its next part before it finishes the current one.
QUEUED_PARTS = 2
# Stop the run after this many consecutive broken parts. A full disk, for example, breaks every part.
BROKEN_IN_A_ROW = 5
# How often to submit a part whose workers die before they start it.
TRIES_UNBEGUN = 5
# Stop the run after this many seconds without a worker.
WITHOUT_WORKERS = 120.0
# Seconds between checks of the connected workers.
LOOK_INTERVAL = 1.0


class Display(Protocol):
    """Shows the progress of a run. Only the thread of ``run_tasks`` calls it."""

    def note(self, text: str) -> None:
        """Show a line before the work starts."""

    def begin(self, parts: int, clips: int, captions: int) -> None:
        """Start to show a run of this size."""

    def workers(self, count: int, logs: Path | None) -> None:
        """Show the number of connected workers. ``logs`` is the folder of their logs."""

    def update(self, part: int, report: Report) -> None:
        """Replace the progress of task number ``part`` by ``report``."""

    def end(self) -> None:
        """Stop the display."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a run.

    Attributes:
        report: the work of this run.
        states: stream -> number of clips (or captions) in the state ``done``, ``empty``, ``failed`` and ``absent``
            after the run. A partition counts only its own.
        problems: invalid manifest lines.
        broken: part -> error, for parts that failed for a reason other than their videos.
        repaired: ``stream/part`` of the damaged parts that were discarded and computed again.
        notes: lines about the manifest and the work, for the user.
        absent: stream -> the first absent clip or caption; no entry if none is absent.
        changed: ``times`` or ``video`` -> number of clips whose stored features have other times or another file.
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
        """0: complete. 3: finished, but some clips failed. 1: some parts broke, or some clips are absent."""
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
    """Extract the missing features of the clips; skip existing ones.

    Args:
        items: clips and problems from ``manifests.scan_manifest``.
        plans: streams from ``encoders.plan_stream``.
        store: the store to create or extend.
        videos: folder of the video files; None if all streams are of text.
        device: from ``encoders.choose_device`` or ``choose_on_workers``.
        workers: worker processes on this machine; ignored for batch jobs and for a scheduler's address.
        display: shows the progress.
        cluster: ``local``, ``runner`` (this process is the first task of an allocation), a scheduler's address, batch
            jobs, or running workers.
        feeders: decoding processes per worker; None chooses by the number of cores.
        deterministic: on a GPU, use deterministic kernels instead of the fastest; part of the streams' specs.
        part_clips: minimum number of clips in a group. Groups are cut into parts; the clips of one video stay in one
            part. None uses ``limits.part_bounds``.
        part_minutes: maximum expected minutes of video in a part. None uses ``limits.part_bounds``.
        partition: which share of the manifest this run extracts; None for all of it.
        deadline: seconds without a later frame after which a decoder is killed.
        longest_frame: maximum seconds that a frame may be shown; a longer frame counts as damage.
        keep_damaged: keep the windows before damage instead of failing the clip.
        decoder: a key of ``limits.DECODERS``; part of the streams' specs, except ``auto``.
        stall: seconds without progress after which a worker is ended.
        retry_failed: extract clips that failed before again.
        keep_changed: keep the features of clips whose times or video file changed since their extraction.
        digest: record the sha256 of video files, to recognise a file whose modification time changed.
        repair: verify every byte of the streams first, and extract damaged parts again.

    Raises:
        AmexError: if the run cannot start, or if every further part would break too.
    """
    remove_stale_files(Path(tempfile.gettempdir()))
    if decoder == "nvdec":
        require_nvdec(device, cluster)
    plans = [plan if isinstance(plan, TextPlan) else replace(plan, decoder=decoder) for plan in plans]
    clips = [item for item in items if isinstance(item, Clip)]
    problems = [item for item in items if isinstance(item, Problem)]
    if deterministic:  # text streams have no convolutions
        plans = [plan if isinstance(plan, TextPlan) else replace(plan, deterministic=True) for plan in plans]
    video_plans, text_plans = split_plans(plans)
    files = VideoFiles(VideoFinder(videos), keep_changed=keep_changed) if video_plans else None
    with reachable(store):
        repaired = repair_metadata(store) if repair else []
        store = create_store(store).absolute()
        for plan in plans:
            declare_stream(store, plan.name, plan.spec, provenance(plan), repair=repair)
        repaired += [name for plan in plans for name in discard_damaged(store, plan.name)] if repair else []
        write_problems(store, [ledger_entry(problem) for problem in problems])

    streams = {plan.name: existing_stream(store, plan.name) for plan in plans}
    part_clips, part_minutes = part_bounds(device, part_clips, part_minutes, partitioned=partition is not None)
    bounds = {"part_clips": part_clips, "part_minutes": part_minutes, "partition": partition}
    tasks = plan_tasks(clips, files, plans, streams, **bounds, retry_failed=retry_failed)
    changed = dict(Counter(files.changed.values())) if files is not None else {}
    if changed:
        display.note(changed_text(changed, keep_changed))
    job = Job(
        store=store,
        videos=None if videos is None else videos.absolute(),
        streams=video_plans,
        texts=text_plans,
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
    states, absent, partition = {}, {}, partition or Partition()
    own_clips, captions = partition.clips(clips, part_clips), partition.captions(captions_of(clips))
    for plan in plans:
        stream = existing_stream(store, plan.name)
        if stream is None:
            raise AmexError(f"the store {store} is gone: it was deleted during the run; run the same command again")
        remove_leftovers(stream)
        by_key = (
            {caption: stream.state(caption) for caption in captions}
            if isinstance(plan, TextPlan)
            else {clip.clip_id: files.state(clip, stream) for clip in own_clips}
        )
        counts = Counter(by_key.values())
        states[plan.name] = {state: counts[state] for state in ("done", "empty", "failed", "absent")}
        if counts["absent"]:
            absent[plan.name] = next(key for key, state in by_key.items() if state == "absent")
    return Outcome(
        report=report,
        states=states,
        problems=problems,
        broken=broken,
        repaired=repaired,
        notes=[*(files.finder.notes() if files is not None else ()), *report.notes],
        absent=absent,
        changed=changed,
    )


def provenance(plan: StreamPlan) -> dict[str, Any]:
    """Return facts about a stream that do not decide its numbers: the weights' name and the versions."""
    weights = plan.weights
    if not weights.startswith("random:"):
        path = Path(weights)
        # The last three parts of a directory: in a hub's cache they hold the model's name and revision.
        weights = "/".join(path.parts[-3:]) if path.is_dir() else path.name
    return {"weights": weights, "amex": __version__, "torch": torch.__version__}


def ledger_entry(problem: Problem) -> Failure:
    """Return the ledger entry of an invalid manifest line."""
    return Failure(clip_id=problem.place, video="", stage="manifest", reason=problem.reason)


def discard_damaged(store: Path, name: str) -> list[str]:
    """Delete the damaged parts of a stream, so that their clips are absent. Return their names, ``stream/part``."""
    stream = existing_stream(store, name, skip_damaged=True, afresh=True)
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
    """Start or join the workers; close them on exit.

    Args:
        where: ``local``, ``runner``, a scheduler's address, batch jobs, or running workers, which stay open on exit.
        workers: number of processes on this machine, for ``local`` and ``runner``.
        device: ``cpu``, ``cuda`` or ``cuda:INDEX``.
        folder: shared folder of all nodes, for the scheduler's address and the logs.

    Raises:
        AmexError: if the scheduler cannot be reached.
    """
    if isinstance(where, Workers):
        return contextlib.nullcontext(where)
    if isinstance(where, Jobs):
        return batch(where, folder)
    if where == "runner":
        return local(workers, device, address_file=allocation(folder)[1])
    return local(workers, device) if where == "local" else remote(where)


def choose_on_workers(address: str, device: str, precision: str) -> tuple[str, str]:
    """Return the device and precision that the workers of a scheduler choose.

    Args:
        device: for ``encoders.choose_device``. An index is ignored: each worker uses the GPU that it sees.
        precision: for ``encoders.choose_precision``.

    Raises:
        AmexError: if there are no workers, if none has the device, or if they choose differently.
    """
    with remote(address) as workers, scheduler_errors():
        try:
            workers.client.wait_for_workers(1, timeout=WITHOUT_WORKERS)
        except TimeoutError as error:
            raise NoWorkers from error
        answers = workers.client.run(worker_choice, device.partition(":")[0], precision, on_error="return")
    return common_choice(address, list(answers.values()))


def worker_choice(device: str, precision: str) -> tuple[str, str]:
    """Return the device and precision that this worker chooses. Runs on a worker."""
    device = choose_device(device)
    return device, choose_precision(precision, device)


def common_choice(address: str, answers: Sequence[tuple[str, str] | Exception]) -> tuple[str, str]:
    """Return the choice that all capable workers agree on; see ``choose_on_workers``."""
    choices = Counter(answer for answer in answers if not isinstance(answer, Exception))
    if not choices:
        raise AmexError(f"no worker at {address} can run this: {first_line(answers[0])}")
    if len(choices) > 1:
        listing = ", ".join(
            f"{count:,} would use {device} in {precision}" for (device, precision), count in choices.items()
        )
        raise AmexError(f"the workers at {address} differ: {listing}; set --device and --precision")
    return next(iter(choices))


def require_nvdec(device: str, cluster: str | Jobs | Workers) -> None:
    """Raise AmexError if no worker can decode on a GPU. Batch jobs are not checked; their commits name the decoder."""
    if device == "cpu":
        raise AmexError("--decoder nvdec needs workers with a GPU (--device cuda); use --decoder auto")
    if isinstance(cluster, Jobs):
        return
    if isinstance(cluster, str) and "://" in cluster:
        with remote(cluster) as workers, scheduler_errors():
            subject, missing = "the workers lack", list(workers.client.run(nvdec_missing).values())
    else:
        subject, missing = "this machine lacks", [nvdec_missing()]
    if missing and all(missing):
        raise AmexError(f"--decoder nvdec: {subject} {missing[0]}; use --decoder auto")


def run_tasks(
    workers: Workers, tasks: Sequence[PartTask | CaptionsTask], job: Job, device: str, display: Display
) -> tuple[Report, dict[str, str]]:
    """Submit tasks until all are committed or broken.

    Returns:
        The sum of all reports, and part -> error of the broken parts.

    Raises:
        AmexError: if too many parts in a row break, no worker is connected for too long, or the scheduler is lost.
    """
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    topic = f"amex-{uuid.uuid4().hex}"
    events: deque[dict[str, Any]] = deque()  # the client's thread appends, this thread removes
    workers.client.subscribe_topic(topic, lambda event: events.append(event[1]))
    total, broken = Report(), {}
    waiting = deque(enumerate(tasks))
    by_key: dict[str, int] = {}  # key of a submitted task -> its number
    begun: set[int] = set()  # numbers of the tasks that a worker has started
    tries: Counter[int] = Counter()
    blamed_videos: Counter[int] = Counter()  # task -> number of videos on which its workers stalled
    running = as_completed(loop=workers.client.loop)
    resources: dict[str, int] = {}
    in_a_row = 0

    def show_progress() -> None:
        submitted = set(by_key.values())
        for event in [events.popleft() for _ in range(len(events))]:
            begun.add(event["part"])
            if event["part"] in submitted:  # a late event must not replace the report of a finished part
                display.update(event["part"], Report(**event["report"]))

    def submit(worker_count: int) -> None:
        while waiting and len(by_key) < QUEUED_PARTS * worker_count:
            number, task = waiting.popleft()
            tries[number] += 1
            by_key[key := f"{topic}-{number}-{tries[number]}"] = number
            options = {"key": key, "pure": False, "resources": resources}
            running.add(workers.client.submit(run_task, number, task, job, device, topic, **options))

    with sigterm_as_interrupt(), scheduler_errors():
        last_seen = time.monotonic()
        while waiting or by_key:
            connected = workers.connected()
            display.workers(len(connected), workers.logs)
            now = time.monotonic()
            if connected:
                last_seen = now
                if device == "cuda" and any("GPU" in worker["resources"] for worker in connected.values()):
                    resources = {"GPU": 1}
            elif not workers.may_wait and now - last_seen > WITHOUT_WORKERS:
                raise NoWorkers
            workers.replace()
            submit(len(connected))
            while (waiting or by_key) and time.monotonic() < now + LOOK_INTERVAL:
                show_progress()
                if not running.has_ready():
                    time.sleep(0.05)
                    continue
                future = next(running)
                if future.status == "lost":  # the worker left with the result: Dask runs the task again
                    running.add(future)
                    continue
                number = by_key.pop(future.key)
                if future.status == "finished":
                    report = future.result()
                    display.update(number, report)
                    total.add(report)
                    in_a_row = 0
                elif future.status == "cancelled":
                    raise ConnectionError(f"it lost part {part_label(tasks[number], job)}")
                else:
                    error, stalls = future.exception(), []
                    retry = False
                    if isinstance(error, KilledWorker):  # Dask gave up; the next try skips the videos that stalled
                        show_progress()
                        stalls = stalls_of(tasks[number], job)
                        blamed = sum(stall.video is not None for stall in stalls)
                        # Dask also blames tasks that only waited on the worker that was ended.
                        unbegun = number not in begun and tries[number] < TRIES_UNBEGUN
                        retry = blamed > blamed_videos[number] or unbegun
                        blamed_videos[number] = blamed
                    if retry:
                        waiting.append((number, tasks[number]))
                    else:
                        reason = break_reason(error, stalls)
                        broken[part_label(tasks[number], job)] = reason
                        in_a_row += 1
                        if in_a_row == BROKEN_IN_A_ROW:
                            raise AmexError(
                                f"parts broke {in_a_row} times in a row, the last with {reason}; fix the cause and run "
                                "the same command again"
                            )
                future.release()
                submit(len(connected))
    return total, broken


def stalls_of(task: PartTask | CaptionsTask, job: Job) -> list[Stall]:
    """Return the stalls of a task's workers in all its streams."""
    if isinstance(task, CaptionsTask):
        return read_stalls(job.store, job.texts[task.stream].name, task.name)
    return [
        stall
        for stream in task.streams
        for stall in read_stalls(job.store, job.streams[stream].name, task.name(stream))
    ]


def break_reason(error: BaseException, stalls: Sequence[Stall]) -> str:
    """Return in one line why a part broke."""
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        for stall in stalls:
            if stall.video is None:
                return stall.reason
        return "its worker process died repeatedly (out of memory?)"
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def scheduler_errors() -> Iterator[None]:
    """Convert a lost scheduler (OSError) into an AmexError."""
    try:
        yield
    except OSError as error:
        raise AmexError(
            f"lost the scheduler: {first_line(error)}. Committed parts are kept; run the same command to continue"
        ) from error


class NoWorkers(AmexError):
    """A scheduler had no worker for WITHOUT_WORKERS seconds."""

    def __init__(self) -> None:
        super().__init__(
            f"the scheduler answers, but had no worker for {WITHOUT_WORKERS:g} seconds: start its workers. "
            "Committed parts are kept; run the same command to continue"
        )


def part_label(task: PartTask | CaptionsTask, job: Job) -> str:
    """Return ``stream/part`` of a task, for its first stream."""
    if isinstance(task, CaptionsTask):
        return f"{job.texts[task.stream].name}/{task.name}"
    stream = task.videos[0].clips[0].streams[0]
    return f"{job.streams[stream].name}/{task.name(stream)}"


# Locked while a task runs. A worker may have several threads, but its networks and feeders serve one task at a time.
_task_lock = threading.Lock()


def run_task(number: int, task: PartTask | CaptionsTask, job: Job, device: str, topic: str) -> Report:
    """Run a task on a Dask worker and send its progress to ``topic``. Uses the GPU that the worker sees."""
    from distributed import get_worker

    worker = get_worker()

    def progress(report: Report) -> None:
        worker.log_event(topic, {"part": number, "report": vars(report)})

    with _task_lock:
        progress(Report())  # tells the run that the task has started
        if isinstance(task, CaptionsTask):
            return run_captions(task, job, device)
        return run_part(task, job, device, progress)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM, which batch systems send to pre-empt a job, like Ctrl-C. Committed parts are kept."""

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
