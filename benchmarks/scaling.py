"""Measure how the parts of a run other than encoding grow with the number of clips, up to a million.

    python benchmarks/scaling.py --clips 10000 --clips 100000 --clips 1000000

The manifest, the plan, Dask's scheduler and workers, and the store are real. Instead of decoding and encoding, each
part waits ``--part-seconds`` and writes features of the size of R(2+1)D-18's for ten seconds of video. Prints a column
for each number of clips.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from amex.extract.run import job
from amex.extract.run.cluster import local
from amex.extract.run.display import NoDisplay
from amex.extract.run.part import PartTask, Report
from amex.extract.run.plan import Partition, VideoFiles, existing_stream, plan_parts
from amex.features import ClipRows, ClipSource, create_store, declare_stream, open_store, write_part
from amex.manifests import VideoFinder, read_manifest

ROWS = 4
SPEC = {"network": "none", "output": {"shape": [512], "dtype": "float16"}}
VALUES = np.random.default_rng(0).normal(size=(ROWS, 512)).astype(np.float16)
TIMES = np.stack([np.arange(ROWS), np.arange(ROWS) + 1.0], 1)


def fake_work(number: int, task: PartTask, settings: tuple[Path, float], device: str, topic: str) -> Report:
    """Replacement for ``job.run_task``."""
    store, seconds = settings
    begin = time.monotonic()
    arrays = {"values": VALUES, "times": TIMES}
    rows = []
    for video in task.videos:
        file = {"video": video.path.as_posix(), "bytes": video.bytes, "modified": video.modified}
        for clip in video.clips:
            source = ClipSource(**file, start=clip.start, end=clip.end)
            rows.append(ClipRows(clip_id=clip.clip_id, arrays=arrays, decoder="decord", source=source))
    write_part(store, "s", task.name(0), spec=SPEC, clips=rows, failures=[], run={"host": "simulated"})
    time.sleep(max(0.0, seconds - (time.monotonic() - begin)))
    return Report(clips=len(rows))


def measure(count: int, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything once, with ``count`` clips, ten to a video."""
    videos, manifest = folder / "videos", folder / "m.jsonl"
    names = [f"{number // 1000:04d}/{number:07d}.mp4" for number in range(count // 10)]
    for name in names:
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    with manifest.open("w") as out:
        for number in range(count):
            record = {
                "clip_id": f"clip{number:07d}",
                "video": names[number // 10],
                "start": number % 10,
                "end": number % 10 + 1,
            }
            out.write(json.dumps(record) + "\n")
    results: dict[str, Any] = {"clips": count}

    def clocked(what: str, action: Any) -> Any:
        begin = time.perf_counter()
        result = action()
        results[what] = time.perf_counter() - begin
        return result

    clips = clocked("read the manifest", lambda: read_manifest(manifest))
    finder = clocked("find the videos", lambda: VideoFinder(videos))
    tasks = clocked("plan", lambda: list(plan_parts(clips, VideoFiles(finder), [], [None], part_clips=args.part_clips)))
    store = create_store(folder / "s.zarr")
    declare_stream(store, "s", SPEC, {})
    job.run_task = fake_work
    own = psutil.Process()  # hosts the scheduler and the client
    with local(args.workers) as workers:
        workers.client.wait_for_workers(args.workers)
        before, cpu = own.memory_info().rss, sum(own.cpu_times()[:2])
        settings = (store, args.part_seconds)
        clocked("run", lambda: job.run_tasks(workers, tasks, settings, "cpu", NoDisplay()))
        results["scheduler, MB more"] = (own.memory_info().rss - before) / 1e6
        results["scheduler, ms a part"] = (sum(own.cpu_times()[:2]) - cpu) / len(tasks) * 1e3
    results["parts"] = len(tasks)
    stream = clocked("open the store", lambda: open_store(store)["s"])
    files = VideoFiles(finder)
    absent = clocked(
        "find what is absent",
        lambda: list(plan_parts(clips, files, [], [existing_stream(store, "s")], part_clips=args.part_clips)),
    )
    assert not absent
    assert all(files.state(clip, stream) == "done" for clip in clips)
    clocked("a partition's clips", lambda: Partition(0, 64).clips(clips, args.part_clips))
    results["files"] = sum(1 for path in store.rglob("*") if path.is_file())
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, action="append")
    parser.add_argument("--part-clips", type=int, default=64)
    parser.add_argument("--part-seconds", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    results = []
    for count in args.clips or [10_000]:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(count, Path(folder), args))
        print(json.dumps(results[-1]), flush=True)
    table = Table("", *(f"{result['clips']:,}" for result in results), box=None)
    for name in results[0]:
        table.add_row(
            name,
            *(f"{result[name]:,.3g}" if isinstance(result[name], float) else f"{result[name]:,}" for result in results),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
