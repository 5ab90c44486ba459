"""Compare training speed from a store larger than its page cache with features in memory.

    python benchmarks/training.py [--gb 5] [--share 10] [--seconds 5] [--rounds 5] [--models clip_mean global amenet]

The store has random features: clips of 8 to 40 rows of 512 halves, a thousand captions. One process for each model
trains alternately from memory and from the store, so that other work on the machine slows both. The page cache holds at
most one part in ``--share`` of the store: the control group of the process is limited to its own memory plus that size,
which needs root and version 1 of control groups. Otherwise the store is dropped from the page cache before the first
step, and the output says so. Quote the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from amex.features import ClipRows, create_store, declare_stream, open_store, write_part

DIM, PART, CAPTIONS = 512, 1024, 1000
GROUPS = Path("/sys/fs/cgroup/memory")
MODELS = {
    "clip_mean": ["model.text=text"],
    "global": ["model.text=text"],
    "amenet": ["model.text=text", "model.relation_branch=false", "objective.adversary=off"],
}
# Freed memory stays with the process; otherwise the page cache would get it too.
KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
# Steps before the measurement, and the minimum steps of a turn: workers have prefetched few of them.
WARM, LEAST = 10, 30


def make(folder: Path, gigabytes: float) -> None:
    """Make a store of this size in GB, and its manifest."""
    rng = np.random.default_rng(0)
    features = np.abs(rng.standard_normal((1 << 16, DIM))).astype(np.float16)
    store, spec = create_store(folder / "s.zarr"), {"output": {"shape": [DIM], "dtype": "float16"}}
    declare_stream(store, "motion", spec, {})
    text = {"of": "captions", "shape": [DIM], "dtype": "float16"}
    text |= {"clip_arrays": {"sentence": {"shape": [DIM], "dtype": "float16"}}}
    declare_stream(store, "text", {"output": text}, {})
    captions = [f"caption number {i}" for i in range(CAPTIONS)]
    of_captions = [
        ClipRows(clip_id=caption, arrays={"values": features[i : i + 8], "sentence": features[i]})
        for i, caption in enumerate(captions)
    ]
    write_part(store, "text", "0", spec={"output": text}, clips=of_captions, failures=[], run={"host": ""})
    written = number = 0
    with (folder / "m.jsonl").open("w") as manifest:
        while written < gigabytes * 1e9:
            clips = []
            for rows in map(int, rng.integers(8, 41, PART)):
                first = int(rng.integers(0, len(features) - rows))
                times = np.arange(rows)[:, None] + np.array([0.0, 1.0])
                arrays = {"values": features[first : first + rows], "times": times}
                clips.append(ClipRows(clip_id=f"c{number}", arrays=arrays))
                line = {"clip_id": f"c{number}", "video": f"v{number // 20}.mp4", "split": "train"}
                manifest.write(json.dumps(line | {"captions": [captions[number % CAPTIONS]]}) + "\n")
                number += 1
                written += sum(array.nbytes for array in arrays.values())
            part = f"{number // PART:06d}"
            write_part(store, "motion", part, spec=spec, clips=clips, failures=[], run={"host": ""})
    os.sync()


def drop(folder: Path) -> None:
    """Remove the files below a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Group:
    """A control group that limits the memory of the processes in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _bytes(self, name: str) -> int:
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        return int(stat[name])

    def limit_cache(self, size: int) -> None:
        """Limit the page cache to ``size`` bytes, in addition to the memory used otherwise."""
        used = int((self.path / "memory.usage_in_bytes").read_text())
        (self.path / "memory.limit_in_bytes").write_text(str(used - self.cache + size))

    @property
    def cache(self) -> int:
        """Bytes of files in the page cache. The kernel counts shared memory as a file too, so it is subtracted."""
        return self._bytes("total_cache") - self._bytes("total_shmem")


@contextlib.contextmanager
def new_group() -> Iterator[Group | None]:
    """Create a control group without a limit; yield None if this process may not."""
    path = GROUPS / f"amex-{os.getpid()}"
    try:
        path.mkdir()
    except OSError:
        yield None
        return
    try:
        yield Group(path)
    finally:
        path.rmdir()


def read_bytes() -> int:
    """Return the bytes that this process and its children have read from disks."""
    process = psutil.Process()
    return sum(each.io_counters().read_bytes for each in (process, *process.children()))


def train(model_name: str, group: Group | None, args: argparse.Namespace) -> None:
    """Train in this process, in turns, and print a row for each source of features."""
    import torch

    from amex.manifests import read_manifest
    from amex.train.captions import make_text
    from amex.train.config import load_config
    from amex.train.data import Split, inputs
    from amex.train.fitting import convert_worker_errors, fast_matmul, make_loader, make_optimizer
    from amex.train.learner import Learner
    from amex.train.models import build_model
    from amex.train.objective import Objective
    from amex.train.schedule import resolve_auto

    config = load_config(model_name, ["model.streams=[motion]", *MODELS[model_name]])
    store, clips = open_store(args.folder / "s.zarr"), read_manifest(args.folder / "m.jsonl")
    text = make_text(store, config, clips, args.folder / "m.jsonl")
    # With the schedule for this many clips, but batches of 64.
    config, _ = resolve_auto(config, pairs=len(clips), an_epoch=len(clips), to_choose=0)
    config = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 64, "similar": 1})})
    in_memory, from_store = (Split(store, clips, config.model, config.data, text) for _ in range(2))
    in_memory.load()
    from_store.texts.load()
    torch.manual_seed(0)
    built_for = inputs(store, config, text)
    model = build_model(config.model, built_for)
    learner = Learner(model, Objective(config.objective, model, built_for.concepts)).train()
    optimizer = make_optimizer(config, learner, on_gpu=torch.cuda.is_available())
    loaders = {"in memory": make_loader(config, in_memory, 1)}
    for seed, workers in enumerate(args.workers):
        # A separate order; otherwise a loader would find in the page cache what another has just read.
        changes = {"train": config.train.model_copy(update={"seed": seed})}
        changes |= {"data": config.data.model_copy(update={"workers": workers})}
        loaders[f"read, {workers} workers"] = make_loader(config.model_copy(update=changes), from_store, 1)

    def batches(loader: torch.utils.data.DataLoader) -> Iterator[dict]:
        for epoch in itertools.count():
            loader.batch_sampler.sampler.set_epoch(epoch)
            yield from loader

    with contextlib.ExitStack() as stack:
        stack.enter_context(fast_matmul())
        for loader in loaders.values():
            stack.enter_context(convert_worker_errors(loader))
        sources = {source_name: batches(loader) for source_name, loader in loaders.items()}
        for source in sources.values():
            for batch in itertools.islice(source, WARM):
                learner.train_step(batch, optimizer)
        drop(args.folder / "s.zarr")
        if group is not None:
            group.limit_cache(int(from_store.bytes / args.share))
        rates: dict[str, list[float]] = {source_name: [] for source_name in sources}
        amounts: dict[str, list[float]] = {source_name: [] for source_name in sources}
        for _ in range(args.rounds):
            for source_name, source in sources.items():
                amount, begin, done = read_bytes(), time.perf_counter(), 0
                while done < LEAST or time.perf_counter() - begin < args.seconds:
                    learner.train_step(next(source), optimizer)
                    done += 1
                rates[source_name].append(done / (time.perf_counter() - begin))
                amounts[source_name].append((read_bytes() - amount) / done / 1e6)
    cached = f", {group.cache / 1e6:.0f} MB of {from_store.bytes / 1e6:,.0f} MB cached" if group else ""
    for source_name, each in rates.items():
        ratio = statistics.median(rate / base for rate, base in zip(each, rates["in memory"], strict=True))
        print(
            f"{model_name:<10} {source_name:<16} {statistics.median(each):7.1f} steps/s, ratio {ratio:.2f}, "
            f"{statistics.median(amounts[source_name]):.2f} MB from the disk a step{cached}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=5.0, help="size of the store")
    parser.add_argument("--share", type=float, default=10.0, help="size of the store as a multiple of the page cache")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="folder to make the store in and to keep it for the next run")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # for a child process: its model and control group
    args = parser.parse_args()
    if args.one:
        model, path = args.one
        group = Group(Path(path)) if path else None
        if group is not None:
            (group.path / "cgroup.procs").write_text(str(os.getpid()))
        train(model, group, args)
        return
    with tempfile.TemporaryDirectory() if args.folder is None else contextlib.nullcontext(args.folder) as folder:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "m.jsonl").exists():
            make(folder, args.gb)
        for model in args.models:
            with new_group() as group:
                if group is None:
                    print("no control group: the page cache is dropped first, but not limited")
                command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder)]
                command += ["--one", model, str(group.path) if group else ""]
                subprocess.run(command, check=True, env=os.environ | KEEPING)


if __name__ == "__main__":
    main()
