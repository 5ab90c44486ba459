"""Files and bytes of a store of 10,000 clips, and the time to read clips at random, against one .npy a clip.

    python benchmarks/storage.py [--clips 10000]

Features are drawn, not extracted: half-precision normal noise compresses about as badly as real features do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from amex.features import ClipRows, create_store, declare_stream, open_store, write_part

DIM = 512
PART = 64


def size(folder: Path) -> tuple[int, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=10_000)
    given = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = create_store(Path(folder) / "s.zarr")
        spec = {"output": {"shape": [DIM], "dtype": "float16"}}
        declare_stream(store, "s", spec, {})
        loose = Path(folder) / "npy"
        loose.mkdir()
        seconds = {"store": 0.0, "npy": 0.0}
        for first in range(0, given.clips, PART):
            clips = []
            for index in range(first, min(first + PART, given.clips)):
                rows = int(generator.integers(5, 60))
                values = generator.normal(size=(rows, DIM)).astype(np.float16)
                times = np.arange(rows)[:, None] + np.array([0.0, 1.0])
                clips.append(ClipRows(clip_id=f"clip{index}", arrays={"values": values, "times": times}))
            begin = time.perf_counter()
            write_part(store, "s", f"{first // PART:06d}", spec=spec, clips=clips, failures=[], run={})
            seconds["store"] += time.perf_counter() - begin
            begin = time.perf_counter()
            for clip in clips:
                np.save(loose / f"{clip.clip_id}.npy", clip.values)
                np.save(loose / f"{clip.clip_id}_times.npy", clip.times)
            seconds["npy"] += time.perf_counter() - begin
        for name, path in (("store", store), ("npy", loose)):
            files, count = size(path)
            print(f"{name:<6} {files:7,} files  {count / 1e6:8.1f} MB  written in {seconds[name]:.1f} s")
        begin = time.perf_counter()
        stream = open_store(store)["s"]
        opened = time.perf_counter() - begin
        wanted = [f"clip{index}" for index in generator.integers(0, given.clips, 500)]
        begin = time.perf_counter()
        for clip_id in wanted:
            stream[clip_id]
        ours = (time.perf_counter() - begin) / len(wanted)
        begin = time.perf_counter()
        for clip_id in wanted:
            np.load(loose / f"{clip_id}.npy", allow_pickle=False)
            np.load(loose / f"{clip_id}_times.npy", allow_pickle=False)
        theirs = (time.perf_counter() - begin) / len(wanted)
        print(
            f"opened in {opened:.2f} s; a clip at random: {ours * 1e3:.2f} ms from the store, {theirs * 1e3:.2f} ms npy"
        )
        begin = time.perf_counter()
        rows = len(stream.read(list(stream)))
        print(f"all {rows:,} rows in order in {time.perf_counter() - begin:.2f} s")


if __name__ == "__main__":
    main()
