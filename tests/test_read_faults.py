"""Damaged shards, threads, forks and failing object stores give correct rows or an error that names the place.

A clip that cannot be read is never zeros, another clip's rows, or half of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import operator
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import Server

from amex.errors import AmexError
from amex.features import (
    ClipRows,
    DamagedPart,
    Stream,
    create_store,
    declare_stream,
    open_store,
    schema,
    shards,
    verify,
    write_part,
)
from amex.storage.s3 import S3_OPTIONS

SPEC = {"network": "test", "output": {"shape": [64], "dtype": "float32"}}
PARTS = {"000000-x": range(0, 6), "000001-x": range(6, 12)}
CLIPS = [f"clip{number}" for number in range(12)]


def rows_of(number: int, values: str = "dense", width: int = 64, rows: int | None = None) -> ClipRows:
    """Return clips of 0, 7, 14, ... 35 rows, so both parts have equally many. Sparse values are compressed."""
    generator = np.random.default_rng([number, width])
    rows = number % 6 * 7 if rows is None else rows
    dense = generator.standard_normal((rows, width), np.float32)
    array = dense if values == "dense" else np.float32(np.abs(dense) > 2.5) * np.float32(number)
    times = np.arange(rows, dtype=np.float64)[:, None] + [0, 1]
    return ClipRows(clip_id=f"clip{number}", arrays={"values": array, "times": times})


def write(path: Path | str, parts: Mapping[str, Sequence[ClipRows]]) -> Any:
    store = create_store(path)
    spec = {**SPEC, "output": {**SPEC["output"], "shape": [next(iter(parts.values()))[0].arrays["values"].shape[1]]}}
    declare_stream(store, "s", spec, {})
    for part, clips in parts.items():
        write_part(store, "s", part, spec=spec, clips=clips, failures=[], run={})
    return store


def is_right(stream: Stream, clip: ClipRows) -> bool:
    rows = stream[clip.clip_id]
    return all(rows[name].tobytes() == array.tobytes() for name, array in clip.arrays.items())


def right_or_error(check: Callable[[], bool]) -> str:
    """Read rows and compare them. Return the error text if reading fails; an empty text if the rows are correct."""
    try:
        assert check()
    except AmexError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module", params=["dense", "rare"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, ClipRows]]:
    """Return a store with two parts of several files per array, and its content. Dense values are not compressed."""
    clips = {part: [rows_of(number, request.param) for number in numbers] for part, numbers in PARTS.items()}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "CHUNK_BYTES", 2 << 10)
        patched.setattr(shards, "SHARD_BYTES", 8 << 10)
        store = write(tmp_path_factory.mktemp("made") / "s.zarr", clips)
    compressed = [commit["arrays"]["values"]["zstd"] for commit in open_store(store)["s"].commits.values()]
    assert compressed == [request.param == "rare"] * 2
    return store, {clip.clip_id: clip for some in clips.values() for clip in some}


def files_of(store: Path, part: str) -> list[Path]:
    """Return the shards of a part's rows."""
    return sorted(
        file
        for name in ("values", "times")
        for file in (store / "s" / "parts").glob(f"{part}.*/{name}/c/**/*")
        if file.is_file()
    )


@contextlib.contextmanager
def changed(file: Path, data: bytes | None) -> Iterator[None]:
    """Replace the content of a file in this context; None: the file is missing."""
    good = file.read_bytes()
    try:
        file.unlink() if data is None else file.write_bytes(data)
        yield
    finally:
        file.write_bytes(good)


def assert_right_or_named(store: Path, truth: Mapping[str, ClipRows], part: str) -> set[str]:
    """Read all clips singly, in batches and through Dask, from new and open streams. Return the refused reads."""
    stream = open_store(store)["s"]
    refused = set()
    for clip_id, clip in truth.items():
        if error := right_or_error(lambda clip=clip: is_right(stream, clip)):
            assert f"part {part} of stream 's'" in error
            assert "\n" not in error
            refused.add(clip_id)
            with pytest.raises(DamagedPart, match=part):  # a second read raises again
                is_right(stream, clip)
    assert not refused & {f"clip{number}" for name, numbers in PARTS.items() if name != part for number in numbers}
    fine = [clip_id for clip_id in truth if clip_id not in refused]
    for clip_id, rows in zip(fine, open_store(store)["s"].read(fine), strict=True):
        assert rows.values.tobytes() == truth[clip_id].arrays["values"].tobytes()
    if refused:
        with pytest.raises(DamagedPart, match=part):
            open_store(store)["s"].read(list(truth))
        if any(len(truth[clip_id]) for clip_id in refused):
            with pytest.raises(DamagedPart, match=part):
                stream.to_dask().compute(), stream.to_dask("times").compute()
    else:
        complete = np.concatenate([clip.arrays["values"] for clip in truth.values()])
        assert open_store(store)["s"].read(list(truth)).values.tobytes() == complete.tobytes()
    assert {damage.part for damage in verify(open_store(store)["s"]) if damage} == {part}
    return refused


# --- Damaged shards --------------------------------------------------------------------------------------------------

REGIONS = ("chunk", "checksum of a chunk", "index", "checksum of the index")


def region(data: bytes, chunks: int, name: str, pick: int) -> int:
    """Return a position in a region of a shard, from the index at its end."""
    index = np.frombuffer(data[-16 * chunks - 4 : -4], "<u8").reshape(chunks, 2)
    begin, length = index[index[:, 0] < 2**63][pick % int((index[:, 0] < 2**63).sum())].tolist()
    spans = {
        "chunk": (begin, length - 4),
        "checksum of a chunk": (begin + length - 4, 4),
        "index": (len(data) - 16 * chunks - 4, 16 * chunks),
        "checksum of the index": (len(data) - 4, 4),
    }
    first, size = spans[name]
    return first + pick % size


@settings(max_examples=40)
@given(where=st.sampled_from(REGIONS), which=st.integers(0, 99), pick=st.integers(0, 10**6), bits=st.integers(1, 255))
def test_a_flipped_bit_anywhere_in_a_shard_is_an_error_or_harmless(
    made: tuple[Path, dict[str, ClipRows]], where: str, which: int, pick: int, bits: int
) -> None:
    store, truth = made
    part = "000001-x"
    files = files_of(store, part)
    file = files[which % len(files)]
    layout = open_store(store)["s"].commits[part]["arrays"][file.parts[file.parts.index("c") - 1]]
    data = bytearray(file.read_bytes())
    data[region(bytes(data), layout["shard"] // layout["chunk"], where, pick)] ^= bits
    with changed(file, bytes(data)):
        refused = assert_right_or_named(store, truth, part)
    if "index" not in where:  # an index that is not read cannot cause an error
        assert refused


@settings(max_examples=15)
@given(which=st.integers(0, 99), size=st.floats(0, 1), more=st.sampled_from([b"", b"\0", bytes(9999)]))
def test_a_shard_that_is_cut_off_overwritten_or_longer_is_an_error_or_harmless(
    made: tuple[Path, dict[str, ClipRows]], which: int, size: float, more: bytes
) -> None:
    store, truth = made
    part = "000001-x"
    files = files_of(store, part)
    file = files[which % len(files)]
    good = file.read_bytes()
    kept = good[: int(size * len(good))]
    for data in (kept, kept + more, kept + bytes(len(good) - len(kept)), good + more):
        if data != good:
            with changed(file, data):
                assert_right_or_named(store, truth, part)


@pytest.mark.parametrize("what", ["empty", "missing", "of zeros", "JSON"])
def test_a_missing_shard_is_an_error(made: tuple[Path, dict[str, ClipRows]], what: str) -> None:
    store, truth = made
    for file in files_of(store, "000000-x"):
        data = {"empty": b"", "of zeros": bytes(file.stat().st_size), "JSON": b"{}"}.get(what)
        with changed(file, data):
            assert assert_right_or_named(store, truth, "000000-x")
    assert not [damage for damage in verify(open_store(store)["s"]) if damage]


def test_a_swapped_shard_is_an_error_or_detected_by_verify(tmp_path: Path) -> None:
    """A shard with other sizes is an error. A shard with equal sizes has valid checksums: only the sha256 in the
    commit record shows that it is wrong, and ``verify`` compares it."""
    clips = {part: [rows_of(number) for number in numbers] for part, numbers in PARTS.items()}
    clips["000002-x"] = [rows_of(12, rows=1)]
    store = write(tmp_path / "s.zarr", clips)
    truth = {clip.clip_id: clip for some in clips.values() for clip in some}
    mine, alike, other = (files_of(store, part)[-1] for part in ("000001-x", "000000-x", "000002-x"))
    assert "values" in str(mine)
    with changed(mine, other.read_bytes()):
        assert assert_right_or_named(store, truth, "000001-x")
    assert mine.stat().st_size == alike.stat().st_size
    with changed(mine, alike.read_bytes()):
        assert [damage.part for damage in verify(open_store(store)["s"]) if damage] == ["000001-x"]
    assert not [damage for damage in verify(open_store(store)["s"]) if damage]


def test_damage_of_an_open_stream_is_an_error(made: tuple[Path, dict[str, ClipRows]]) -> None:
    """Every read checks its bytes, whatever was read before."""
    store, truth = made
    stream = open_store(store)["s"]
    assert all(is_right(stream, clip) for clip in truth.values())
    for file in files_of(store, "000001-x"):
        good = file.read_bytes()
        for data in (None, b"", good[: len(good) // 3], bytes(len(good))):
            with changed(file, data), pytest.raises(DamagedPart, match="000001-x"):
                stream.read(list(truth))
    assert all(is_right(stream, clip) for clip in truth.values())


LAYOUTS = [
    {"chunk": 0},
    {"chunk": -1},
    {"shard": 0},
    {"shard": 3},
    {"chunk": 10**15, "shard": 10**15},
    {"chunk": 1, "shard": 1},
    {"shape": [2, 64]},
    {"shape": []},
    {"dtype": "float64"},
    {"dtype": "object"},
    {"zstd": "other"},
    {"more": 1},
    {"chunk": "1"},
    [],
    None,
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_crafted_commit_record_with_a_valid_checksum_is_checked(
    made: tuple[Path, dict[str, ClipRows]], layout: dict[str, Any] | list[None] | None
) -> None:
    """Another program or a later version may have written it. Its layouts never lead to wrong rows."""
    store, truth = made
    file = store / "s" / "commits" / "000001-x.json"
    record = json.loads(file.read_bytes())
    del record["sha256"]
    for array in ("values", "times"):
        lies = record["arrays"][array]
        changes = {"zstd": not lies["zstd"]} if layout == {"zstd": "other"} else layout
        changed_arrays = {**record["arrays"], array: {**lies, **changes}} if changes else layout
        text = schema.sealed({**record, "arrays": changed_arrays})
        with changed(file, text.encode()):
            for clip in truth.values():
                error = right_or_error(lambda clip=clip: is_right(open_store(store)["s"], clip))
                assert not error or "000001-x" in error


def test_a_commit_record_with_negative_rows_is_damaged(made: tuple[Path, dict[str, ClipRows]]) -> None:
    store, _ = made
    file = store / "s" / "commits" / "000001-x.json"
    record = json.loads(file.read_bytes())
    del record["sha256"]
    record["clips"][0]["rows"] -= 7
    record["clips"][1]["rows"] += 7
    with changed(file, schema.sealed(record).encode()), pytest.raises(DamagedPart, match="000001-x"):
        _ = open_store(store)["s"]


# --- Threads and processes -------------------------------------------------------------------------------------------


def mixed(seed: int) -> list[str]:
    return random.Random(seed).choices(CLIPS, k=30)


def bytes_of(batch: Any) -> list[bytes]:
    return [batch.values.tobytes(), batch.times.tobytes(), batch.offsets.tobytes()]


def expected(truth: Mapping[str, ClipRows], clip_ids: Sequence[str]) -> list[bytes]:
    arrays = [np.concatenate([truth[clip_id].arrays[name] for clip_id in clip_ids]) for name in ("values", "times")]
    offsets = np.cumsum([0, *(len(truth[clip_id]) for clip_id in clip_ids)], dtype=np.int64)
    return [*(array.tobytes() for array in arrays), offsets.tobytes()]


def test_eight_threads_read_one_stream_concurrently(made: tuple[Path, dict[str, ClipRows]]) -> None:
    """The threads start before any part is open."""
    store, truth = made
    for _ in range(10):
        stream, begin = open_store(store)["s"], threading.Barrier(8)

        def read(seed: int, stream: Stream = stream, begin: threading.Barrier = begin) -> bool:
            begin.wait()
            return all(bytes_of(stream.read(ids)) == expected(truth, ids) for ids in map(mixed, range(seed, seed + 5)))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(8)))


def test_a_process_forked_during_reads_can_read(made: tuple[Path, dict[str, ClipRows]]) -> None:
    """Fork many times during the reads, like data loaders."""
    store, truth = made
    stream, done = open_store(store)["s"], threading.Event()
    wrong: list[int] = []

    def read() -> None:
        for seed in itertools.count():
            if done.is_set():
                return
            if bytes_of(stream.read(mixed(seed))) != expected(truth, mixed(seed)):
                wrong.append(seed)

    def child(seed: int) -> None:
        right = bytes_of(stream.read(mixed(seed))) == expected(truth, mixed(seed))
        os._exit(0 if right else 1)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        processes = [multiprocessing.get_context("fork").Process(target=child, args=(seed,)) for seed in range(20)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
            if process.is_alive():
                process.kill()
        assert [process.exitcode for process in processes] == [0] * 20
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert not wrong


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_stream_can_be_sent_to_processes_of_any_start_method(
    made: tuple[Path, dict[str, ClipRows]], method: str
) -> None:
    store, truth = made
    stream = open_store(store)["s"]
    assert is_right(stream, truth["clip5"])
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        reads = [pool.submit(operator.methodcaller("read", mixed(seed)), stream) for seed in range(4)]
        assert [bytes_of(read.result(60)) for read in reads] == [expected(truth, mixed(seed)) for seed in range(4)]


# --- S3 --------------------------------------------------------------------------------------------------------------


def gets(server: Server) -> list[str]:
    return [path for method, path in server.seen if method == "GET" and "/parts/" in path]


@pytest.fixture
def remote(s3: str, server: Server) -> Callable[[int, int], tuple[Stream, list[ClipRows]]]:
    """Write a store to S3 with clips of 24 kB in several parts. Return its stream, newly opened."""

    def make(count: int, part: int) -> tuple[Stream, list[ClipRows]]:
        clips = [rows_of(number, width=256, rows=24) for number in range(count)]
        parts = {f"{first:06d}": clips[first : first + part] for first in range(0, count, part)}
        stream = open_store(write(f"{s3}/s.zarr", parts))["s"]
        server.seen.clear()
        return stream, clips

    return make


def test_adjacent_clips_in_s3_need_one_request_per_array(
    remote: Callable[[int, int], tuple[Stream, list[ClipRows]]], server: Server
) -> None:
    stream, clips = remote(128, 128)
    truth = {clip.clip_id: clip for clip in clips}
    ids = [clip.clip_id for clip in clips[30:94]]
    assert bytes_of(stream.read(ids)) == expected(truth, ids)
    assert len(gets(server)) <= 3  # one request verifies the identity of the part
    server.seen.clear()
    shuffled = random.Random(0).sample(ids, 64)
    assert bytes_of(stream.read(shuffled)) == expected(truth, shuffled)
    assert [path.rsplit("/c/")[0].rpartition("/")[2] for path in sorted(gets(server))] == ["times", "values"]
    assert len(server.seen) == 2  # no other request


def test_clips_of_many_parts_in_s3_are_requested_in_parallel(
    remote: Callable[[int, int], tuple[Stream, list[ClipRows]]], server: Server
) -> None:
    stream, clips = remote(64, 8)
    truth, lock, under_way = {clip.clip_id: clip for clip in clips}, threading.Lock(), [0, 0]

    def slow(request: dict[str, Any]) -> None:
        with lock:
            under_way[0] += 1
            under_way[1] = max(under_way)
        threading.Event().wait(0.3)
        with lock:
            under_way[0] -= 1

    ids = random.Random(0).sample(sorted(truth), 64)
    assert bytes_of(stream.read(ids)) == expected(truth, ids)
    assert len(gets(server)) <= 3 * 8
    server.seen.clear()
    server.trouble = slow
    assert bytes_of(stream.read(ids)) == expected(truth, ids)
    assert len(server.seen) == 2 * 8
    assert under_way[1] > 12


@pytest.mark.parametrize("status", [500, 503, 403, 404])
def test_an_error_during_a_batch_from_s3_is_retried_or_raised(
    remote: Callable[[int, int], tuple[Stream, list[ClipRows]]], server: Server, status: int
) -> None:
    stream, clips = remote(12, 4)
    truth = {clip.clip_id: clip for clip in clips}
    ids = random.Random(0).sample(sorted(truth), 12)
    assert bytes_of(stream.read(ids)) == expected(truth, ids)
    once = iter([status] * 3)
    server.trouble = lambda request: next(once, None) if "/parts/000004." in request["PATH_INFO"] else None
    if status >= 500:
        assert bytes_of(stream.read(ids)) == expected(truth, ids)
        assert next(once, None) is None
        return
    with pytest.raises(AmexError) as refused:
        stream.read(ids)
    assert "000004" in str(refused.value) if status == 404 else "/s.zarr" in str(refused.value)
    assert "\n" not in str(refused.value)
    server.trouble = lambda request: None
    assert bytes_of(stream.read(ids)) == expected(truth, ids)  # errors are not cached


@pytest.mark.parametrize("harm", ["cut off", "shorter", "a flipped bit", "zeros", "another range", "empty", "late"])
def test_a_wrong_answer_from_s3_is_never_returned_as_rows(
    remote: Callable[[int, int], tuple[Stream, list[ClipRows]]],
    server: Server,
    harm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy returns a wrong answer once, or always."""
    monkeypatch.setitem(S3_OPTIONS["config_kwargs"], "read_timeout", 1)
    stream, clips = remote(12, 4)
    truth = {clip.clip_id: clip for clip in clips}
    ids = random.Random(0).sample(sorted(truth), 12)
    assert bytes_of(stream.read(ids)) == expected(truth, ids)

    def harmed(body: bytes) -> tuple[bytes, int]:
        """Return the bytes to send and the announced length."""
        if harm == "late":
            threading.Event().wait(2)
        middle = len(body) // 2
        flipped = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        sent = {
            "cut off": body[:middle],
            "shorter": body[:middle],
            "a flipped bit": flipped,
            "zeros": bytes(len(body)),
            "another range": body[-4:] + body[:-4],
            "empty": b"",
        }.get(harm, body)
        return sent, len(body) if harm == "cut off" else len(sent)

    for times in (1,) if harm == "late" else (1, 10**6):  # a server that is always late takes minutes
        left = itertools.repeat(harmed, times)
        server.harm = lambda request, left=left: next(left, None) if "/parts/000004." in request["PATH_INFO"] else None
        error = right_or_error(lambda: bytes_of(stream.read(ids)) == expected(truth, ids))
        assert "/s.zarr" in error or times == 1
        assert "\n" not in error
        server.harm = lambda request: None
        assert bytes_of(stream.read(ids)) == expected(truth, ids)
