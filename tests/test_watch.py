"""An encoder that never returns fails the clips of its video and ends one worker; the rest of the part is done."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed.scheduler import KilledWorker
from stand_in import HEIGHT, EndlessPlan, PromptPlan, stalls_of_four
from videos import encode

from amex.extract.encoders.presets import WindowPlan, plan_windows
from amex.extract.run import job as run
from amex.extract.run import part as parts
from amex.extract.run.cluster import local, remote
from amex.extract.run.display import NoDisplay
from amex.extract.run.part import ClipTask, Job, PartTask, VideoTask, run_part
from amex.extract.run.stalls import Stall, read_stalls
from amex.extract.run.watch import EXIT_STATUS, Watchdog
from amex.features import create_store, declare_stream, open_store, write_part


def part_of(
    folder: Path, heights: Sequence[int] = (64, HEIGHT, 64), kinds: Sequence[type[WindowPlan]] = (EndlessPlan,)
) -> tuple[PartTask, Job]:
    """Make a part of videos. Those of HEIGHT stall the encoder of an EndlessPlan. Streams are called s, t."""
    videos = []
    for name, height in zip("abcdef", heights, strict=False):
        encode(folder / f"{name}.mp4", frames=20, width=192, height=height, options={"preset": "ultrafast"})
        clip = ClipTask(clip_id=name, video=name, start=None, end=None, attempt=1, streams=tuple(range(len(kinds))))
        videos.append(VideoTask(path=Path(f"{name}.mp4"), missing="", clips=(clip,)))
    store = create_store(folder / "s.zarr")
    plans = []
    for name, kind in zip("st", kinds, strict=False):
        planned = plan_windows(name, network="r2plus1d_tiny", weights="default", precision="fp32")
        own_size = dataclasses.replace(planned.transform, resize=None, crop=None)
        planned = dataclasses.replace(planned, transform=own_size)
        plans.append(kind(**{field.name: getattr(planned, field.name) for field in dataclasses.fields(planned)}))
        declare_stream(store, name, plans[-1].spec, {})
    job = Job(store=store, videos=folder, streams=tuple(plans), texts=(), deadline=29.0, stall=0.6)
    return PartTask(index=0, videos=tuple(videos)), job


def exit_status(target: Callable[..., object], *given: object) -> int | None:
    """Run a function in a process; return how the process ends."""
    process = multiprocessing.get_context("fork").Process(target=target, args=given)
    process.start()
    process.join(60)
    return process.exitcode


def test_each_stream_gets_the_full_time_limit_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, job = part_of(tmp_path, heights=(64,), kinds=(PromptPlan, PromptPlan))

    def slow(*given: Any, **more: Any) -> dict[str, Any]:
        time.sleep(0.9)
        return write_part(*given, **more)

    monkeypatch.setattr(parts, "write_part", slow)
    assert exit_status(run_part, part, dataclasses.replace(job, stall=1.5)) == 0


def test_a_stalled_encoder_is_ended_and_its_video_named(tmp_path: Path) -> None:
    part, job = part_of(tmp_path)
    assert exit_status(run_part, part, job) == EXIT_STATUS
    report = run_part(part, job)  # as when Dask repeats it
    assert (report.clips, report.failed) == (3, 1)
    stream = open_store(job.store)["s"]
    assert sorted(stream) == ["a", "c"]
    assert stream.failures["b"].stage == "encode"
    assert stream.failures["b"].reason == "no progress for 0.6 s on this video, so its worker was ended (--stall)"
    assert {path.name for path in (job.store / "s").iterdir()} == {"commits", "parts", "spec.json", "zarr.json"}


def test_a_stall_of_one_stream_fails_no_clip_of_another_stream(tmp_path: Path) -> None:
    part, job = part_of(tmp_path, heights=(64, HEIGHT), kinds=(EndlessPlan, PromptPlan))
    assert exit_status(run_part, part, job) == EXIT_STATUS
    only_b = (dataclasses.replace(part.videos[1], clips=(dataclasses.replace(part.videos[1].clips[0], streams=(0,)),)),)
    alone = dataclasses.replace(job, streams=(job.streams[1],))  # the second stream is the first of another run
    assert run_part(PartTask(index=0, videos=only_b), alone).failed == 0
    assert (job.store / "s" / "stalled").exists()
    report = run_part(part, job)
    assert (report.clips, report.failed) == (2, 1)
    store = open_store(job.store)
    assert (sorted(store["s"]), sorted(store["t"])) == (["a"], ["a", "b"])
    assert not store["t"].failures


def test_a_repetition_with_a_longer_limit_tries_again(tmp_path: Path) -> None:
    part, job = part_of(tmp_path, heights=(HEIGHT,))
    assert exit_status(run_part, part, job) == EXIT_STATUS
    planned = {field.name: getattr(job.streams[0], field.name) for field in dataclasses.fields(job.streams[0])}
    patient = dataclasses.replace(job, streams=(PromptPlan(**planned),), stall=60.0)
    assert run_part(part, patient).failed == 0
    assert sorted(open_store(job.store)["s"]) == ["a"]
    assert not (job.store / "s" / "stalled").exists()


def test_a_stalled_write_blames_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, job = part_of(tmp_path, heights=(64,), kinds=(PromptPlan,))
    with monkeypatch.context() as patched:
        patched.setattr(parts, "write_part", lambda *given, **kept: time.sleep(600))
        assert exit_status(run_part, part, job) == EXIT_STATUS
    (stall,) = stalls = read_stalls(job.store, "s", part.name(0))
    assert stall == Stall(video=None, stage="write", limit=0.6)
    killed = KilledWorker("task", SimpleNamespace(address="gone"), 3)
    assert run.break_reason(killed, stalls) == "repeatedly no progress for 0.6 s in writing it (--stall)"
    assert "out of memory?" in run.break_reason(killed, [])
    assert run_part(part, job).failed == 0
    assert not (job.store / "s" / "stalled").exists()


def test_a_part_is_retried_while_each_try_finds_more_videos_at_fault(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job = part_of(tmp_path, heights=())
    job = dataclasses.replace(job, streams=(SimpleNamespace(name="s"),))  # a type that a worker can import
    clip = ClipTask(clip_id="x", video="x", start=None, end=None, attempt=1, streams=(0,))
    videos = tuple(VideoTask(path=Path(f"{number}.mp4"), missing="", clips=(clip,)) for number in range(10))
    monkeypatch.setattr(run, "run_task", stalls_of_four)
    with remote(cluster) as workers:
        report, broken = run.run_tasks(workers, [PartTask(index=0, videos=videos)], job, "cpu", NoDisplay())
    assert (report.failed, broken) == (10, {})


def progress_now_and_then() -> None:
    with Watchdog(0.3) as watch:
        for _ in range(4):
            time.sleep(0.15)
            watch.step("encode", (1,))
        watch.step("encode", None)  # waits for a decoder, which has its own deadline
        time.sleep(0.6)
    advancing = Watchdog(0.3, advanced=time.monotonic)
    advancing.step("decode", (1,))
    with advancing:
        time.sleep(0.6)


def stand_still() -> None:
    with Watchdog(0.3) as watch:
        watch.step("encode", (1,))
        time.sleep(30)


def test_a_worker_without_progress_is_ended_and_others_are_not() -> None:
    assert exit_status(progress_now_and_then) == 0
    assert exit_status(stand_still) == EXIT_STATUS


def be_suspended() -> None:
    with Watchdog(1.0) as watch:
        watch.step("encode", (1,))
        if not os.fork():  # a child that resumes this process
            time.sleep(2)
            os.kill(os.getppid(), signal.SIGCONT)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.3)


def test_a_suspended_worker_has_not_stalled() -> None:
    assert exit_status(be_suspended) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_video_that_stalls_is_in_the_ledger_even_if_there_are_more_than_dasks_tries(tmp_path: Path) -> None:
    part, job = part_of(tmp_path, heights=(HEIGHT,) * 6)
    with local(1) as workers:
        report, broken = run.run_tasks(workers, [part], job, "cpu", NoDisplay())
    assert (report.failed, broken) == (6, {})
    assert sorted(open_store(job.store)["s"].failures) == list("abcdef")


@pytest.mark.slow
def test_dask_repeats_the_part_in_a_new_process(tmp_path: Path, cluster: str) -> None:
    from distributed import Client

    part, job = part_of(tmp_path)
    with Client(cluster) as client:
        report = client.submit(run_part, part, job).result(timeout=300)
    assert (report.clips, report.failed) == (3, 1)
    assert sorted(open_store(job.store)["s"]) == ["a", "c"]
