"""Compare a store with other ways to keep features: reading, writing, files and bytes, in one run.

    python benchmarks/storage.py [--clips 10000] [--rounds 3] [--features FILE] [--json FILE] [--markdown]

Clips have 8 to 40 rows of 512 half-precision numbers and a time a row. Numbers are drawn like features of a ResNet
(non-negative, dense, mean 0.5), or are rows of FILE (.npy, rows x D). The layouts are: a store with parts of 64 clips
and one with parts of 1,024 (``amex 64``, ``amex 1,024``), two .npy files a clip (``.npy``), one .npy file an array
(``large .npy``), and two datasets a clip in one HDF5 file.

- random: read batches of 64 clips, values and times. TensorStore and zarr-python read the files of the store with large
  parts; all its arrays are open.
- in order: read all rows. zarr-python and TensorStore read the store's arrays part by part.
- forked: read random batches in two processes forked from one that has read before, as a data loader does.
- start: a new process reads 64 clips; files are in the page cache.
- writing: with and without an fsync of each .npy file. A store syncs its files and reads them back. Other writes to the
  disk disturb this; TMPDIR=/dev/shm avoids the disk.
- S3: a server on this machine that answers DELAY seconds late, like an object store.

Measurements alternate for ``--rounds`` rounds. The output has medians, with minimum and maximum in brackets; ratios are
medians of each round's ratio. Machines differ and are noisy: quote the ratios.
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
from layouts import (
    Reader,
    amex_reader,
    bytes_of,
    draw,
    hdf5_reader,
    npy_reader,
    size,
    tensorstore_arrays,
    tensorstore_reader,
    write_hdf5,
    write_large,
    write_npy,
    write_store,
    zarr_arrays,
    zarr_reader,
)

from amex.features import ClipRows

BATCH = 64
PARTS = (64, 1024)
# Seconds of reading in each round.
EACH = 0.4
# Clips to write in each round, and clips in S3.
WRITTEN, IN_S3 = 1024, 1024
# Delay of the S3 server in seconds.
DELAY = 0.02


def store_name(part: int) -> str:
    """Return the name of a store with parts of this size."""
    return f"amex {part:,}"


# The columns of the documentation's table.
KINDS = (*map(store_name, reversed(PARTS)), ".npy", "large .npy", "HDF5", "TensorStore", "zarr-python")


# --- Measuring -------------------------------------------------------------------------------------------------------


def rate(read: Reader, batches: Iterator[Sequence[int]]) -> float:
    """Return clips per second over batches."""
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
    """Measure in alternating order, which reverses every round; the first round is a warm-up."""
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
    """Return clips per second of two processes together."""
    context = multiprocessing.get_context("fork")
    ready, rates = context.Barrier(2), context.SimpleQueue()

    def loader(number: int) -> None:
        read(next(batches_of(count, 1000 + number)))  # open this process's own files
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
    """Measure reading everything, in gigabytes per second."""

    def seconds(read: Callable[[], object]) -> Callable[[int], float]:
        def measure(_: int) -> float:
            begin = time.perf_counter()
            read()
            return megabytes / 1000 / (time.perf_counter() - begin)

        return measure

    def by_part(arrays: dict[str, list[Any]], parts: int, read: Callable[[Any], object]) -> Callable[[int], float]:
        """Read only the first parts, since zarr-python would take most of the run."""

        def measure(_: int) -> float:
            begin, read_bytes = time.perf_counter(), 0
            for part in sorted(arrays)[:parts]:
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
        measures[store_name(part)] = seconds(lambda read=read: read(everything))
    npy_files = npy_reader(root / "npy")
    measures[".npy"] = seconds(lambda: npy_files(everything))
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
    **{store_name(part): OURS for part in PARTS},
    "HDF5": (
        "import h5py",
        "file = h5py.File(path); [file[f'{clip}/{name}'][...] for clip in clips for name in ('values', 'times')]",
    ),
}


def starts(rounds: int, root: Path, count: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Measure a new process that reads 64 clips: its total seconds, and the seconds to open and read."""
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
    """Measure writing, in megabytes of rows per second."""
    megabytes, number = bytes_of(clips) / 1e6, itertools.count()

    def measure(write: Callable[[Path], None]) -> Callable[[int], float]:
        def run(_: int) -> float:
            os.sync()  # flush earlier writes of others
            # Delete nothing meanwhile: ext4 creates files slowly just after a deletion.
            path = root / f"written-{next(number)}"
            begin = time.perf_counter()
            write(path)
            return megabytes / (time.perf_counter() - begin)

        return run

    measures = {".npy": measure(lambda path: write_npy(path, clips))}
    for part in PARTS:
        measures[store_name(part)] = measure(lambda path, part=part: write_store(path, clips, part))
    measures[".npy, fsync"] = measure(lambda path: write_npy(path, clips, sync=True))
    return take_turns(rounds, measures)


MEMORY = """
import json, sys
from pathlib import Path
sys.path[:0] = json.loads(sys.argv[1])
import layouts
def kilobytes(line):
    (match,) = (text for text in open("/proc/self/status") if text.startswith(line))
    return int(match.split()[1])
clips = layouts.draw(int(sys.argv[3]), None)
before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM
layouts.write_store(sys.argv[2], clips, len(clips))
rows = layouts.bytes_of(clips) / 1024
print(json.dumps([rows / 1024, (kilobytes("VmHWM") - before) / 1024]))
"""


def memory(root: Path, count: int) -> tuple[float, float]:
    """Return the size of a part's rows, and the peak memory to write it beyond them, both in MiB."""
    paths = json.dumps([str(Path(__file__).parent), *sys.path[1:]])
    command = [sys.executable, "-c", MEMORY, paths, root / "memory", str(count)]
    rows, besides = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return rows, besides


# --- S3 --------------------------------------------------------------------------------------------------------------


def serve(connection: Connection) -> None:
    """Run an S3 server; answer each message with the number of requests since the last one."""
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
    """Point the environment to an S3 server; yield a function that counts requests and switches the delay."""
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
    """Measure seconds and requests to read 64 clips: the first read of a stream, and the next one."""
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
    """Format a line for each result: name, median with range, and ratio to another result."""
    lines = []
    for name, values in results.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(values, results[against], strict=True))
        numbers = [f"{number:,.{digits}f}" for number in (statistics.median(values), min(values), max(values))]
        limits = f" ({numbers[1]} to {numbers[2]})" if len(values) > 1 else ""
        lines.append([name, numbers[0] + limits, f"{ratio:.2f}"])
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
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements")
    parser.add_argument("--features", type=Path, help="take rows from a .npy file (rows, D) instead of drawing them")
    parser.add_argument("--json", type=Path, help="write the figures of all rounds")
    parser.add_argument("--markdown", action="store_true", help="also print the tables of the documentation")
    args = parser.parse_args()
    results: dict[str, Any] = {"clips": args.clips, "cores": len(os.sched_getaffinity(0))}
    summary: list[list[str]] = []

    def show(title: str, results: dict[str, list[float]], unit: str, against: str, digits: int = 0) -> None:
        print_table([title, unit, f"/ {against}"], compare(results, against, digits))
        medians = {name: f"{statistics.median(values):,.{digits}f}" for name, values in results.items()}
        summary.append([f"{title}, {unit}", *(medians.get(kind, "") for kind in KINDS)])

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clips = draw(args.clips, args.features)
        megabytes = bytes_of(clips) / 1e6
        write_npy(root / "npy", clips)
        write_large(root / "large", clips)
        write_hdf5(root / "all.h5", clips)
        for part in PARTS:
            write_store(root / f"{part}.zarr", clips, part)
        sizes = {store_name(part): size(root / f"{part}.zarr") for part in PARTS}
        sizes |= {".npy": size(root / "npy"), "large .npy": size(root / "large"), "HDF5": size(root / "all.h5")}
        results["size"] = {"megabytes": megabytes, **sizes}
        lines = [[name, f"{entry['files']:,}", f"{entry['megabytes']:,.1f}"] for name, entry in sizes.items()]
        print_table([f"{len(clips):,} clips, {megabytes:,.1f} MB", "files", "MB"], lines)

        npy, large = ".npy", f"{PARTS[-1]}.zarr"
        readers = {npy: npy_reader(root / "npy")}
        readers |= {store_name(part): amex_reader(root / f"{part}.zarr") for part in PARTS}
        # Fork before other readers start threads: a fork would lose them.
        results["forked"] = take_turns(
            args.rounds,
            {name: lambda number, read=read: forked_rate(read, len(clips), number) for name, read in readers.items()},
        )
        readers["HDF5"] = hdf5_reader(root / "all.h5")
        if importable("tensorstore"):
            readers["TensorStore"] = tensorstore_reader(root / large)
        else:
            print("TensorStore is not installed and left out (pip install tensorstore)", file=sys.stderr)
        readers["zarr-python"] = zarr_reader(root / large)
        results["random"] = random_rates(readers, len(clips), args.rounds)
        show("64 clips at random", results["random"], "clips/s", npy)
        show("two forked processes", results["forked"], "clips/s", npy)
        results["in_order"] = in_order(args.rounds, root, len(clips), megabytes)
        show("all in order", results["in_order"], "GB/s", "large .npy", 2)
        results["process"], results["first_read"] = starts(args.rounds, root, len(clips))
        show("a new process that reads 64 clips", results["process"], "s", npy, 2)
        show("of which to open and read", results["first_read"], "s", npy, 3)
        results["writing"] = writes(args.rounds, root, clips[:WRITTEN])
        show("writing", results["writing"], "MB/s", npy)
        del clips[IN_S3:]
        if Path("/proc/self/status").exists():
            rows, extra = results["memory"] = memory(root, args.clips)
            print(
                f"writing a part of {rows:,.0f} MiB of rows takes {extra:,.0f} MiB of memory beyond them\n",
                flush=True,
            )
        if importable("moto"):
            results["s3"] = from_s3(args.rounds, clips)
            alone = statistics.median(results["s3"]["one request"])
            lines = [["one request", f"{alone:.3f}", "1", "1.0", "", ""]]
            for name, (first, later) in results["s3"]["reads"].items():
                medians = [statistics.median(values) for entry in (later, first) for values in entry.values()]
                seconds, requests, first_seconds, first_requests = medians
                line = [f"{seconds:.3f}", f"{requests:g}", f"{seconds / alone:.1f}"]
                lines.append([name, *line, f"{first_seconds:.3f}", f"{first_requests:g}"])
            head = ["S3, 64 clips", "s", "requests", "/ one request", "the first read, s", "requests"]
            remote = (head, lines)
            print_table(*remote)
        else:
            print("moto is not installed, so S3 is left out (pip install 'amex[test]')", file=sys.stderr)
    if args.markdown:
        for column, digits in (("files", 0), ("megabytes", 1)):
            counts = {name: f"{entry[column]:,.{digits}f}" for name, entry in sizes.items()}
            summary.append([column, *(counts.get(kind, "") for kind in KINDS)])
        print_markdown(["", *KINDS], summary)
        if "s3" in results:
            print_markdown(*remote)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
