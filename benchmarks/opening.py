"""Measure seconds and memory to open a stream of a million clips, with and without its index, and to look clips up.

    python benchmarks/opening.py [--clips 1000000] [--parts 1000 15000] [--against FOLDER]

Only commit records are written, as if all clips were extracted: no array is read. Each figure comes from a separate
process that opens the store once; memory is its peak, with Python and all imports. ``--against`` names a folder that
contains another version of the package ``amex``, whose figures are printed for comparison.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from amex.features import create_store, declare_stream, schema

SPEC = {"output": {"shape": [512], "dtype": "float16"}}
OPEN = """
import json, random, resource, sys, time
import amex.features
path, count = sys.argv[1], int(sys.argv[2])
begin = time.perf_counter()
stream = amex.features.open_store(path)["s"]
seconds = time.perf_counter() - begin
assert len(stream) == count
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
names = [f"video{random.randrange(count):07d}_000_010" for _ in range(64)]
find = stream.index.find if hasattr(stream, "index") else lambda names: [stream.rows_of(name) for name in names]
find(names)
begin = time.perf_counter()
find(names)
print(json.dumps({"open_s": seconds, "peak_mb": peak, "find_64_us": 1e6 * (time.perf_counter() - begin)}))
"""


def write_commits(store: Path, clips: int, parts: int) -> None:
    mark = declare_stream(store, "s", SPEC, {})
    for part in range(parts):
        own = range(clips * part // parts, clips * (part + 1) // parts)
        name = f"{part:06d}-{hashlib.sha256(str(part).encode()).hexdigest()[:12]}"
        entries = [
            {
                "clip_id": f"video{number:07d}_000_010",
                "rows": 20,
                "decoder": "pyav",
                "start": number % 100 * 10.0,
                "end": number % 100 * 10.0 + 10.0,
                "video": f"videos/{number % 100:02d}/video{number:07d}.mp4",
                "bytes": 1_000_000 + number,
                "modified": 1_700_000_000_000_000_000 + number,
            }
            for number in own
        ]
        arrays = ("values", "times", "offsets", "clip_ids")
        files = {f"{array}/{file}": f"{array}{part}" for array in arrays for file in ("zarr.json", "c/0/0")}
        commit = {
            "format": schema.FORMAT,
            "part": name,
            "folder": f"{name}.{'0' * 12}",
            "fingerprint": mark,
            "rows": 20 * len(own),
            "clips": entries,
            "failures": [],
            "files": {f: {"bytes": 1, "sha256": hashlib.sha256(t.encode()).hexdigest()} for f, t in files.items()},
            "run": {"host": "here", "seconds": 1.0},
        }
        (store / "s" / "commits" / f"{name}.json").write_text(schema.sealed(commit))


def opened(store: Path, clips: int, package: Path) -> str:
    """Open the store in a new process and return its figures as text."""
    command = [sys.executable, "-c", OPEN, str(store), str(clips)]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    figures = json.loads(output)
    lookup = f"64 clips found in {figures['find_64_us']:,.0f} us"
    return f"{figures['open_s']:6.2f} s  {figures['peak_mb']:6,.0f} MB  {lookup}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, nargs="+", default=[1000, 15_000])
    parser.add_argument("--against", type=Path)
    args = parser.parse_args()
    ours = Path(schema.__file__).parents[2]
    for parts in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            store = create_store(Path(folder) / "s.zarr")
            write_commits(store, args.clips, parts)
            print(f"{args.clips:,} clips in {parts:,} parts")
            if args.against:
                print(f"  {args.against}: {opened(store, args.clips, args.against.resolve())}")
            print(f"  index built:  {opened(store, args.clips, ours)}")
            size = (store / "s" / schema.INDEX).stat().st_size
            for _ in range(3):
                print(f"  index read:   {opened(store, args.clips, ours)}  ({size / 1e6:,.0f} MB)")


if __name__ == "__main__":
    main()
