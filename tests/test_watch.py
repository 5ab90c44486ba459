"""An encoder that never returns costs the clips of its video and one worker process; the rest of the part is done."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from videos import encode

from amex.extract.part import ClipTask, Job, PartTask, VideoTask, run_part
from amex.extract.presets import WindowPlan, plan_windows
from amex.extract.watch import EXIT_STATUS, Watch
from amex.features import create_store, declare_stream, open_store

HEIGHT = 96  # of the videos that are never done


class Endless:
    """An encoder of zeros that does not come back from frames of one height."""

    def prepare(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def __call__(self, windows: Sequence[tuple[torch.Tensor, ...]]) -> dict[str, np.ndarray]:
        if windows[0][0].shape[0] == HEIGHT:
            time.sleep(600)
        return {"values": np.zeros((len(windows), 128), np.float32)}


class EndlessPlan(WindowPlan):
    def encoder(self, device: str) -> Endless:
        return Endless()


def part_of(folder: Path) -> tuple[PartTask, Job]:
    """A part of three videos, the second of which stalls its encoder."""
    videos = []
    for name, height in (("a", 64), ("b", HEIGHT), ("c", 64)):
        encode(folder / f"{name}.mp4", frames=20, width=192, height=height, options={"preset": "ultrafast"})
        clip = ClipTask(clip_id=name, video=name, start=None, end=None, attempt=1, streams=(0,))
        videos.append(VideoTask(path=Path(f"{name}.mp4"), missing="", clips=(clip,)))
    planned = plan_windows("s", network="r2plus1d_tiny", weights="default", precision="fp32")
    plan = EndlessPlan(**{field.name: getattr(planned, field.name) for field in dataclasses.fields(planned)})
    store = create_store(folder / "s.zarr")
    declare_stream(store, "s", plan.spec, {})
    job = Job(store=store, videos=folder, streams=(plan,), texts=(), deadline=29.0, stall=0.6)
    return PartTask(index=0, videos=tuple(videos)), job


def test_an_encoder_that_stands_still_is_ended_and_its_video_named(tmp_path: Path) -> None:
    part, job = part_of(tmp_path)
    worker = multiprocessing.get_context("fork").Process(target=run_part, args=(part, job))
    worker.start()
    worker.join(60)
    assert worker.exitcode == EXIT_STATUS
    report = run_part(part, job)  # as Dask has it done again
    assert (report.clips, report.failed) == (3, 1)
    stream = open_store(job.store)["s"]
    assert sorted(stream) == ["a", "c"]
    assert stream.failures["b"].stage == "encode"
    assert stream.failures["b"].reason == "no progress for 0.6 s on this video, so its worker was ended (--stall)"
    assert not list((job.store / "stalled").iterdir())


def test_what_progresses_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stalls: list[str] = []
    with Watch(0.3, lambda step, videos: stalls.append(step)) as watch:
        for _ in range(4):
            time.sleep(0.15)
            watch.on("encode", (1,))
        watch.on("encode", None)  # waits for a decoder, which has a deadline of its own
        time.sleep(0.6)
    advancing = Watch(0.3, lambda step, videos: stalls.append(step), advanced=time.monotonic)
    advancing.on("decode", (1,))
    with advancing:
        time.sleep(0.6)
    assert not stalls


@pytest.mark.slow
def test_dask_has_the_part_done_again_by_a_new_process(tmp_path: Path, cluster: str) -> None:
    from distributed import Client

    part, job = part_of(tmp_path)
    with Client(cluster) as client:
        report = client.submit(run_part, part, job).result(timeout=300)
    assert (report.clips, report.failed) == (3, 1)
    assert sorted(open_store(job.store)["s"]) == ["a", "c"]
