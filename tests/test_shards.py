"""A batch is read from few ranges of bytes, and chunks are compressed if that saves enough."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from amex.features import (
    ClipRows,
    DamagedPart,
    StoreError,
    create_store,
    declare_stream,
    open_store,
    shards,
    write_part,
)
from amex.features.shards import ConcatenatedArray, Layout, write_array
from amex.storage import storage_at

# Values, an array with one entry per clip, and an array of single numbers.
SPEC = {
    "output": {
        "shape": [5, 3],
        "dtype": "float32",
        "arrays": {"counts": {"shape": [], "dtype": "int32"}},
        "clip_arrays": {"sentence": {"shape": [4], "dtype": "float16"}},
    }
}


def clip_of(name: str, rows: int, generator: np.random.Generator, zeros: bool) -> ClipRows:
    arrays = {
        "values": generator.normal(size=(rows, 5, 3)).astype("float32") * (not zeros),
        "counts": generator.integers(0, 9, rows, dtype="int32"),
        "sentence": generator.normal(size=4).astype("float16"),
        "times": np.sort(generator.uniform(0, 9, (rows, 2))),
    }
    return ClipRows(clip_id=name, arrays=arrays)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(0, 30), max_size=6), min_size=1, max_size=3),
    sizes=st.tuples(*[st.integers(1, 2000)] * 4, st.integers(1, 9)),
    large=st.sampled_from((1, 10**6)),
    zeros=st.booleans(),
    data=st.data(),
)
def test_clips_are_read_back_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[list[int]],
    sizes: tuple[int, ...],
    large: int,
    zeros: bool,
    data: st.DataObject,
) -> None:
    generator, written = np.random.default_rng(0), {}
    store = create_store(tmp_path_factory.mktemp("store") / "s.zarr")
    declare_stream(store, "s", SPEC, {})
    with pytest.MonkeyPatch.context() as patched:
        names = ("CHUNK_BYTES", "SHARD_BYTES", "PIECE_BYTES", "ASKED_BYTES", "ASKED")
        for name, size in zip(names, sizes, strict=True):
            patched.setattr(shards, name, size)
        patched.setattr(shards, "LARGE_ENTRY", large)  # smaller entries are not compressed
        for part, rows in enumerate(counts):
            clips = [clip_of(f"{part}-{index}", count, generator, zeros) for index, count in enumerate(rows)]
            write_part(store, "s", str(part), spec=SPEC, clips=clips, failures=[], run={})
            written |= {clip.clip_id: clip for clip in clips}
        stream = open_store(store)["s"]
        wanted = data.draw(st.lists(st.sampled_from(sorted(written)), max_size=12) if written else st.just([]))
        batch = stream.read(wanted)
        for clip_id, rows in zip(wanted, batch, strict=True):
            assert {name: array.tobytes() for name, array in rows.arrays.items()} == {
                name: array.tobytes() for name, array in written[clip_id].arrays.items()
            }


def test_chunks_are_compressed_where_that_saves_a_quarter_and_entries_are_large(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    dense = np.abs(generator.normal(size=(300, 512))).astype("float16")
    sparse = dense * (generator.random((300, 512)) < 0.4).astype("float16")
    for name, array, zstd in (("dense", dense, False), ("sparse", sparse, True), ("times", np.zeros((300, 2)), False)):
        layout, files = write_array(tmp_path, name, ConcatenatedArray(array.shape[1:], array.dtype, [array]))
        assert layout.zstd == zstd
        assert (files[f"{name}/c/0/0"]["bytes"] < 0.75 * array.nbytes) == zstd
        read = zarr.open_array(tmp_path / name, mode="r")
        assert read[:].tobytes() == array.tobytes()
        assert read.chunks == (layout.chunk, *array.shape[1:])


def test_a_chunk_is_about_as_large_as_a_clip_and_a_shard_is_a_file_of_16_mb(tmp_path: Path) -> None:
    array = np.zeros((40_000, 512), "float16")
    array += np.random.default_rng(0).integers(0, 2**11, array.shape).astype("float16")
    layout, files = write_array(tmp_path, "values", ConcatenatedArray((512,), array.dtype, [array[:7], array[7:]]))
    assert layout == Layout(shape=(40_000, 512), dtype="float16", chunk=16, shard=16_384, zstd=False)
    assert sorted(files) == ["values/c/0/0", "values/c/1/0", "values/c/2/0", "values/zarr.json"]
    assert storage_at(tmp_path).sizes() == {name: file["bytes"] for name, file in files.items()}


def test_a_file_that_reads_back_differently_stops_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: original(path, data + b"0"))
    with pytest.raises(StoreError, match="x does not read back as it was written"):
        shards.write_file(tmp_path / "x", b"1" * shards.PIECE_BYTES)


def test_a_batch_may_span_more_parts_than_the_limit_of_open_files(tmp_path: Path) -> None:
    spec = {"output": {"shape": [1], "dtype": "int64", "times": False}}
    store, limits = create_store(tmp_path / "s.zarr"), resource.getrlimit(resource.RLIMIT_NOFILE)
    declare_stream(store, "s", spec, {})
    for part in range(120):
        clip = ClipRows(clip_id=str(part), arrays={"values": np.full((2, 1), part)})
        write_part(store, "s", f"p{part}", spec=spec, clips=[clip], failures=[], run={})
    stream = open_store(store)["s"]
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 90, limits[1]))
    try:
        read = stream.read([str(part) for part in range(120)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert read.values[:, 0].tolist() == np.repeat(np.arange(120), 2).tolist()


def test_threads_can_clear_the_cache_of_shard_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"output": {"shape": [512], "dtype": "float32", "times": False}}
    store = create_store(tmp_path / "s.zarr")
    declare_stream(store, "s", spec, {})
    clips = [ClipRows(clip_id="a", arrays={"values": np.ones((9, 512), "float32")})]
    assert write_part(store, "s", "p", spec=spec, clips=clips, failures=[], run={})["arrays"]["values"]["zstd"]

    class Cleared(dict):
        def __contains__(self, file: object) -> bool:
            present = super().__contains__(file)
            self.clear()
            return present

    stream = open_store(store)["s"]
    monkeypatch.setattr(stream._parts._shards, "_indexes", Cleared())
    for _ in range(2):
        assert (stream["a"].values == 1).all()


@pytest.mark.parametrize("place", [(2**64 - 1, 2**64 - 1), (2**63, 100), (10**15, 100), (0, 2**62), (0, 3)])
def test_an_index_that_points_outside_its_shard_is_damage(tmp_path: Path, place: tuple[int, int]) -> None:
    spec = {"output": {"shape": [5000], "dtype": "float32", "times": False}}
    store = create_store(tmp_path / "s.zarr")
    declare_stream(store, "s", spec, {})
    clips = [ClipRows(clip_id=name, arrays={"values": np.zeros((1, 5000), "float32")}) for name in "ab"]
    write_part(store, "s", "p", spec=spec, clips=clips, failures=[], run={})
    (shard,) = (store / "s/parts").glob("*/values/c/0/0")
    index = np.array([place, place], "<u8").tobytes()
    shard.write_bytes(shard.read_bytes()[:-36] + index + google_crc32c.value(index).to_bytes(4, "little"))
    with pytest.raises(DamagedPart, match="lacks chunks"):
        open_store(store)["s"]["a"]
