"""A store against the other ways to keep features: reading, writing, files and bytes, in one run.

    python benchmarks/storage.py [--clips 10000] [--rounds 3] [--features FILE] [--json FILE] [--markdown]

The clips have 8 to 40 rows of 512 half-precision numbers, drawn from the distribution that features of a ResNet have
(non-negative, dense, mean 0.5), and a time a row; or rows of FILE (.npy, rows x D). They are kept in a store in parts
of 64 clips and in one in parts of 1,024 (``amex 64``, ``amex 1,024``), as two .npy files a clip (``.npy``), as one .npy
file an array (``large .npy``), and as two datasets a clip in one HDF5 file.

- random: batches of 64 clips, values and times. TensorStore and zarr-python read the files of the store of large parts,
  all of whose arrays are open.
- in order: all rows at once. zarr-python and TensorStore read the store's arrays part by part.
- forked: the batches at random in two processes that are forked from one that has read already, as loaders of data are.
- start: a new process reads 64 clips; files are in the page cache.
- writing: with and without an fsync of each .npy file; a store syncs its files, and reads back what it wrote. Others
  who write to the disk matter much; TMPDIR=/dev/shm leaves the disk out.
- S3: a server on this machine that answers DELAY seconds late, as an object store does.

What is compared takes turns, ``--rounds`` times. Printed are medians, the lowest and the highest in brackets; ratios
are the medians of each round's. Machines differ and are noisy: quote the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from amex.features import ClipRows, Stream, create_store, declare_stream, open_store, write_part

DIM = 512
BATCH = 64
PARTS = (64, 1024)
# Seconds that a reader reads in each round.
EACH = 0.4
# Clips that are written in each round, and that lie in S3.
WRITTEN, IN_S3 = 1024, 1024
# Seconds that S3's server waits before it answers.
DELAY = 0.02

Reader = Callable[[Sequence[int]], object]


def ours(part: int) -> str:
    return f"amex {part:,}"


# The columns of the documentation's table.
KINDS = (*map(ours, reversed(PARTS)), ".npy", "large .npy", "HDF5", "TensorStore", "zarr-python")


# --- What is kept ----------------------------------------------------------------------------------------------------


def draw(count: int, features: Path | None) -> list[ClipRows]:
    """Clips of 8 to 40 rows, of a pool of rows that is longer than what a compressor looks back on."""
    generator = np.random.default_rng(0)
    if features is None:
        pool = (generator.standard_exponential((1 << 16, DIM), np.float32) / 2).astype(np.float16)
    else:
        pool = np.load(features, allow_pickle=False).astype(np.float16)
    clips = []
    for index in range(count):
        rows = int(generator.integers(8, 41))
        starts = np.arange(rows, dtype=np.float64)
        arrays = {"values": pool[generator.integers(len(pool), size=rows)], "times": np.stack([starts, starts + 1], 1)}
        clips.append(ClipRows(clip_id=f"clip{index}", arrays=arrays))
    return clips


def spec_of(clips: Sequence[ClipRows]) -> dict[str, Any]:
    return {"output": {"shape": [clips[0].arrays["values"].shape[1]], "dtype": "float16"}}


def bytes_of(clips: Sequence[ClipRows]) -> int:
    return sum(array.nbytes for clip in clips for array in clip.arrays.values())


def write_store(path: Path | str, clips: Sequence[ClipRows], part: int) -> None:
    store, spec = create_store(path), spec_of(clips)
    declare_stream(store, "s", spec, {})
    for number, first in enumerate(range(0, len(clips), part)):
        some = clips[first : first + part]
        write_part(store, "s", f"{number:06d}", spec=spec, clips=some, failures=[], run={})


def write_npy(folder: Path, clips: Sequence[ClipRows], sync: bool = False) -> None:
    folder.mkdir()
    for clip in clips:
        for name, array in clip.arrays.items():
            with (folder / f"{clip.clip_id}_{name}.npy").open("wb") as file:
                np.save(file, array)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())


def write_hdf5(path: Path, clips: Sequence[ClipRows]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for clip in clips:
            for name, array in clip.arrays.items():
                file[f"{clip.clip_id}/{name}"] = array


def write_large(folder: Path, clips: Sequence[ClipRows]) -> None:
    folder.mkdir()
    for name in clips[0].arrays:
        np.save(folder / f"{name}.npy", np.concatenate([clip.arrays[name] for clip in clips]))


def size(path: Path) -> dict[str, float]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {"files": len(files), "megabytes": sum(file.stat().st_size for file in files) / 1e6}


# --- Readers ---------------------------------------------------------------------------------------------------------


def amex_reader(store: Path | str) -> Reader:
    stream = open_store(store)["s"]
    return lambda indices: stream.read([f"clip{index}" for index in indices])


def npy_reader(folder: Path) -> Reader:
    def read(indices: Sequence[int]) -> object:
        return [
            np.load(folder / f"clip{index}_{name}.npy", allow_pickle=False)
            for index in indices
            for name in ("values", "times")
        ]

    return read


def hdf5_reader(path: Path) -> Reader:
    import h5py

    file = h5py.File(path)
    return lambda indices: [file[f"clip{index}/{name}"][...] for index in indices for name in ("values", "times")]


def folders(stream: Stream) -> dict[str, Path]:
    return {part: stream.path / "parts" / commit["folder"] for part, commit in stream.commits.items()}


def places(stream: Stream) -> list[tuple[str, int, int]]:
    """Of each clip its part, first row and the row after its last."""
    clips: dict[str, tuple[str, int, int]] = {}
    for part, commit in stream.commits.items():
        ends = np.cumsum([0, *(clip["rows"] for clip in commit["clips"])]).tolist()
        for clip, (begin, end) in zip(commit["clips"], itertools.pairwise(ends), strict=True):
            clips[clip["clip_id"]] = (part, begin, end)
    return [clips[f"clip{index}"] for index in range(len(clips))]


def zarr_arrays(store: Path) -> tuple[list[tuple[str, int, int]], dict[str, list[Any]]]:
    import zarr

    stream = open_store(store)["s"]
    names = ("values", "times")
    return places(stream), {
        part: [zarr.open_array(folder / name, mode="r") for name in names] for part, folder in folders(stream).items()
    }


def tensorstore_arrays(store: Path) -> tuple[list[tuple[str, int, int]], dict[str, list[Any]]]:
    import tensorstore

    stream = open_store(store)["s"]
    options: dict[str, Any] = {"open": True, "read": True, "recheck_cached": False}
    return places(stream), {
        part: [
            tensorstore.open(
                {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / name)}}, **options
            ).result()
            for name in ("values", "times")
        ]
        for part, folder in folders(stream).items()
    }


def zarr_reader(store: Path) -> Reader:
    where, arrays = zarr_arrays(store)

    def read(indices: Sequence[int]) -> object:
        return [array[begin:end] for part, begin, end in map(where.__getitem__, indices) for array in arrays[part]]

    return read


def tensorstore_reader(store: Path) -> Reader:
    where, arrays = tensorstore_arrays(store)

    def read(indices: Sequence[int]) -> object:
        wanted = [where[index] for index in indices]
        futures = [array[begin:end].read() for part, begin, end in wanted for array in arrays[part]]
        return [future.result() for future in futures]

    return read


# --- Measuring -------------------------------------------------------------------------------------------------------


def rate(read: Reader, batches: Iterator[Sequence[int]]) -> float:
    """Clips a second in batches."""
    clips, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < EACH:
        batch = next(batches)
        read(batch)
        clips += len(batch)
    return clips / spent


def batches_of(count: int, seed: int) -> Iterator[list[int]]:
    generator = np.random.default_rng(seed)
    while True:
        yield generator.integers(count, size=min(BATCH, count)).tolist()


def take_turns(rounds: int, measures: dict[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """What each measures in each round; every other round in the other order. The first round warms up."""
    results: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name in list(measures)[:: 1 if number % 2 else -1]:
            measured = measures[name](number)
            if number:
                results[name].append(measured)
    return results


def random_rates(readers: dict[str, Reader], count: int, rounds: int) -> dict[str, list[float]]:
    def measure(read: Reader) -> Callable[[int], float]:
        return lambda number: rate(read, batches_of(count, number))

    return take_turns(rounds, {name: measure(read) for name, read in readers.items()})


def forked_rate(read: Reader, count: int, seed: int) -> float:
    """Clips a second of two processes together."""
    context = multiprocessing.get_context("fork")
    ready, rates = context.Barrier(2), context.SimpleQueue()

    def loader(number: int) -> None:
        read(next(batches_of(count, 1000 + number)))  # connections and files of its own
        ready.wait()
        rates.put(rate(read, batches_of(count, 100 * seed + number)))

    read(next(batches_of(count, 0)))
    processes = [context.Process(target=loader, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    total = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    return total


def in_order(rounds: int, root: Path, count: int, megabytes: float) -> dict[str, list[float]]:
    """Gigabytes a second."""

    def seconds(read: Callable[[], object]) -> Callable[[int], float]:
        def measure(_: int) -> float:
            begin = time.perf_counter()
            read()
            return megabytes / 1000 / (time.perf_counter() - begin)

        return measure

    def by_part(arrays: dict[str, list[Any]], some: int, read: Callable[[Any], object]) -> Callable[[int], float]:
        """Of the first so many parts: zarr-python would take most of the run."""

        def measure(_: int) -> float:
            begin, read_bytes = time.perf_counter(), 0
            for part in sorted(arrays)[:some]:
                read_bytes += sum(array.nbytes for array in read(arrays[part]))
            return read_bytes / 1e9 / (time.perf_counter() - begin)

        return measure

    everything = range(count)
    large = root / "large"
    measures: dict[str, Callable[[int], float]] = {
        "large .npy": seconds(lambda: [np.load(path, allow_pickle=False) for path in large.iterdir()])
    }
    for part in PARTS:
        read = amex_reader(root / f"{part}.zarr")
        measures[ours(part)] = seconds(lambda read=read: read(everything))
    loose = npy_reader(root / "npy")
    measures[".npy"] = seconds(lambda: loose(everything))
    if importable("tensorstore"):
        _, arrays = tensorstore_arrays(root / f"{PARTS[-1]}.zarr")
        measures["TensorStore"] = by_part(
            arrays, len(arrays), lambda pair: [future.result() for future in [array.read() for array in pair]]
        )
    _, arrays = zarr_arrays(root / f"{PARTS[-1]}.zarr")
    measures["zarr-python"] = by_part(arrays, 1, lambda pair: [array[:] for array in pair])
    return take_turns(rounds, measures)


START = """
import json, sys, time
sys.path[:0] = json.loads(sys.argv[1])
path, clips = sys.argv[2], [f"clip{{index}}" for index in range(int(sys.argv[3]), int(sys.argv[3]) + 64)]
{imports}
begin = time.perf_counter()
{read}
print(time.perf_counter() - begin)
"""
OURS = ("from amex.features import open_store", "open_store(path)['s'].read(clips)")
FIRST_READS = {
    ".npy": (
        "import numpy",
        "[numpy.load(f'{path}/{clip}_{name}.npy') for clip in clips for name in ('values', 'times')]",
    ),
    **{ours(part): OURS for part in PARTS},
    "HDF5": (
        "import h5py",
        "file = h5py.File(path); [file[f'{clip}/{name}'][...] for clip in clips for name in ('values', 'times')]",
    ),
}


def starts(rounds: int, root: Path, count: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of a new process that reads 64 clips: from its start to its end, and to open and read alone."""
    inside: dict[str, list[float]] = {name: [] for name in FIRST_READS}
    paths = [root / "npy", *(root / f"{part}.zarr" for part in PARTS), root / "all.h5"]

    def measure(name: str, path: Path) -> Callable[[int], float]:
        imports, read = FIRST_READS[name]
        program = START.format(imports=imports, read=read)

        def run(number: int) -> float:
            first = number * BATCH % max(1, count - BATCH)
            command = [sys.executable, "-c", program, json.dumps(sys.path[1:]), path, str(first)]
            begin = time.perf_counter()
            printed = subprocess.run(command, check=True, capture_output=True).stdout
            spent = time.perf_counter() - begin
            if number:
                inside[name].append(float(printed))
            return spent

        return run

    return take_turns(rounds, {n: measure(n, path) for n, path in zip(FIRST_READS, paths, strict=True)}), inside


def writes(rounds: int, root: Path, clips: Sequence[ClipRows]) -> dict[str, list[float]]:
    """Megabytes of rows a second."""
    megabytes, number = bytes_of(clips) / 1e6, itertools.count()

    def measure(write: Callable[[Path], None]) -> Callable[[int], float]:
        def run(_: int) -> float:
            os.sync()  # what others have left to write
            # Nothing is deleted meanwhile: ext4 is slow to make files where others were deleted a moment ago.
            path = root / f"written-{next(number)}"
            begin = time.perf_counter()
            write(path)
            return megabytes / (time.perf_counter() - begin)

        return run

    measures = {".npy": measure(lambda path: write_npy(path, clips))}
    for part in PARTS:
        measures[ours(part)] = measure(lambda path, part=part: write_store(path, clips, part))
    measures[".npy, fsync"] = measure(lambda path: write_npy(path, clips, sync=True))
    return take_turns(rounds, measures)


MEMORY = """
import json, sys
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[1])
import storage
def kilobytes(line):
    (match,) = (text for text in open("/proc/self/status") if text.startswith(line))
    return int(match.split()[1])
clips = storage.draw(int(sys.argv[3]), None)
before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
storage.write_store(sys.argv[2], clips, len(clips))
rows = storage.bytes_of(clips) / 1024
print(json.dumps([rows / 1024, (kilobytes("VmHWM") - before) / 1024]))
"""


def memory(root: Path, count: int) -> tuple[float, float]:
    """MiB of a part's rows, and the most memory that writing it takes besides them, in MiB."""
    paths = json.dumps([str(Path(__file__).parent), *sys.path[1:]])
    command = [sys.executable, "-c", MEMORY, paths, root / "memory", str(count)]
    rows, besides = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return rows, besides


# --- S3 --------------------------------------------------------------------------------------------------------------


def serve(connection: Connection) -> None:
    """A server of S3's API; answers each message with the number of requests since the last one."""
    import logging

    from s3_server import Server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = Server()
    connection.send(server.url)
    while True:
        server.trouble = (lambda request: time.sleep(DELAY)) if connection.recv() else lambda request: None
        connection.send(len(server.seen))
        server.seen.clear()


@contextlib.contextmanager
def s3() -> Iterator[Callable[[bool], int]]:
    """S3 at the address of the environment; what it gives counts requests, and says whether answers are late."""
    mine, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    names = {"ACCESS_KEY_ID": "me", "SECRET_ACCESS_KEY": "mine", "DEFAULT_REGION": "us-east-1"}
    names["ENDPOINT_URL"] = mine.recv()
    os.environ.update({f"AWS_{name}": value for name, value in names.items()})

    def requests(late: bool = True) -> int:
        mine.send(late)
        return mine.recv()

    try:
        yield requests
    finally:
        server.kill()
        server.join()


def from_s3(rounds: int, clips: Sequence[ClipRows]) -> dict[str, Any]:
    """Seconds and requests of 64 clips: of the first read of a stream, and of the next one."""
    import boto3

    results: dict[str, Any] = {}
    generator = np.random.default_rng(0)
    with s3() as requests:
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="x", Body=bytes(1 << 20))
        requests(late=False)
        for part in PARTS:
            write_store(f"s3://bucket/{part}.zarr", clips, part)
        requests(late=True)
        alone = []
        for _ in range(5 * rounds):
            begin = time.perf_counter()
            client.get_object(Bucket="bucket", Key="x", Range="bytes=0-65535")["Body"].read()
            alone.append(time.perf_counter() - begin)
        results |= {"one request": alone, "reads": {}}
        for part, order in itertools.product(PARTS, ("at random", "neighbours")):
            first = {"seconds": [], "requests": []}
            later = {"seconds": [], "requests": []}
            for _ in range(rounds):
                read = amex_reader(f"s3://bucket/{part}.zarr")
                for measured in (first, later):
                    begin = int(generator.integers(len(clips) - BATCH + 1))
                    indices = generator.choice(len(clips), BATCH, replace=False)
                    requests()
                    started = time.perf_counter()
                    read(indices.tolist() if order == "at random" else range(begin, begin + BATCH))
                    measured["seconds"].append(time.perf_counter() - started)
                    measured["requests"].append(requests())
            results["reads"][f"{order}, amex {part:,}"] = first, later
    return results


# --- The report ------------------------------------------------------------------------------------------------------


def importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def compare(results: dict[str, list[float]], against: str, digits: int = 0) -> list[list[str]]:
    """A line each: name, median and spread, and the ratio to another."""
    lines = []
    for name, values in results.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(values, results[against], strict=True))
        numbers = [f"{number:,.{digits}f}" for number in (statistics.median(values), min(values), max(values))]
        between = f" ({numbers[1]} to {numbers[2]})" if len(values) > 1 else ""
        lines.append([name, numbers[0] + between, f"{ratio:.2f}"])
    return lines


def print_markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    print(*(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)), "", sep="\n")


def print_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    widths = [max(len(cells[column]) for cells in (head, *lines)) for column in range(len(head))]
    for cells in (head, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--features", type=Path, help="take rows from a .npy file (rows, D) instead of drawing them")
    parser.add_argument("--json", type=Path, help="write the figures of all rounds")
    parser.add_argument("--markdown", action="store_true", help="also print the tables of the documentation")
    given = parser.parse_args()
    results: dict[str, Any] = {"clips": given.clips, "cores": len(os.sched_getaffinity(0))}
    summary: list[list[str]] = []

    def show(title: str, results: dict[str, list[float]], unit: str, against: str, digits: int = 0) -> None:
        print_table([title, unit, f"/ {against}"], compare(results, against, digits))
        medians = {name: f"{statistics.median(values):,.{digits}f}" for name, values in results.items()}
        summary.append([f"{title}, {unit}", *(medians.get(kind, "") for kind in KINDS)])

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clips = draw(given.clips, given.features)
        megabytes = bytes_of(clips) / 1e6
        write_npy(root / "npy", clips)
        write_large(root / "large", clips)
        write_hdf5(root / "all.h5", clips)
        for part in PARTS:
            write_store(root / f"{part}.zarr", clips, part)
        kept = {ours(part): size(root / f"{part}.zarr") for part in PARTS}
        kept |= {".npy": size(root / "npy"), "large .npy": size(root / "large"), "HDF5": size(root / "all.h5")}
        results["size"] = {"megabytes": megabytes, **kept}
        lines = [[name, f"{one['files']:,}", f"{one['megabytes']:,.1f}"] for name, one in kept.items()]
        print_table([f"{len(clips):,} clips, {megabytes:,.1f} MB", "files", "MB"], lines)

        npy, large = ".npy", f"{PARTS[-1]}.zarr"
        readers = {npy: npy_reader(root / "npy")}
        readers |= {ours(part): amex_reader(root / f"{part}.zarr") for part in PARTS}
        # Before others start threads, which a fork would lack.
        results["forked"] = take_turns(
            given.rounds,
            {name: lambda number, read=read: forked_rate(read, len(clips), number) for name, read in readers.items()},
        )
        readers["HDF5"] = hdf5_reader(root / "all.h5")
        if importable("tensorstore"):
            readers["TensorStore"] = tensorstore_reader(root / large)
        else:
            print("no TensorStore here: its rows are left out (pip install tensorstore)", file=sys.stderr)
        readers["zarr-python"] = zarr_reader(root / large)
        results["random"] = random_rates(readers, len(clips), given.rounds)
        show("64 clips at random", results["random"], "clips/s", npy)
        show("two forked processes", results["forked"], "clips/s", npy)
        results["in_order"] = in_order(given.rounds, root, len(clips), megabytes)
        show("all in order", results["in_order"], "GB/s", "large .npy", 2)
        results["process"], results["first_read"] = starts(given.rounds, root, len(clips))
        show("a new process that reads 64 clips", results["process"], "s", npy, 2)
        show("of which to open and read", results["first_read"], "s", npy, 3)
        results["writing"] = writes(given.rounds, root, clips[:WRITTEN])
        show("writing", results["writing"], "MB/s", npy)
        del clips[IN_S3:]
        if Path("/proc/self/status").exists():
            rows, besides = results["memory"] = memory(root, given.clips)
            print(
                f"writing a part of {rows:,.0f} MiB of rows takes {besides:,.0f} MiB of memory besides them\n",
                flush=True,
            )
        if importable("moto"):
            results["s3"] = from_s3(given.rounds, clips)
            alone = statistics.median(results["s3"]["one request"])
            lines = [["one request", f"{alone:.3f}", "1", "1.0", "", ""]]
            for name, (first, later) in results["s3"]["reads"].items():
                medians = [statistics.median(values) for one in (later, first) for values in one.values()]
                seconds, requests, first_seconds, first_requests = medians
                line = [f"{seconds:.3f}", f"{requests:g}", f"{seconds / alone:.1f}"]
                lines.append([name, *line, f"{first_seconds:.3f}", f"{first_requests:g}"])
            head = ["S3, 64 clips", "s", "requests", "/ one request", "the first read, s", "requests"]
            remote = (head, lines)
            print_table(*remote)
        else:
            print("no moto here: S3 is left out (pip install 'amex[test]')", file=sys.stderr)
    if given.markdown:
        for column, digits in (("files", 0), ("megabytes", 1)):
            counts = {name: f"{one[column]:,.{digits}f}" for name, one in kept.items()}
            summary.append([column, *(counts.get(kind, "") for kind in KINDS)])
        print_markdown(["", *KINDS], summary)
        if "s3" in results:
            print_markdown(*remote)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
