"""Every reader of Zarr v3 reads a store's arrays, and all read the same bits."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from other_readers import by_tensorstore, by_xarray, by_zarr

from amex.features import (
    ClipRows,
    clip_arrays,
    create_store,
    declare_stream,
    open_store,
    row_arrays,
    shards,
    verify,
    write_part,
)

Read = Callable[[str, Sequence[str]], dict[str, np.ndarray]]
BOXES = {"shape": [3, 4], "dtype": "float32"}
COUNTS = {"shape": [], "dtype": "int32"}
OUTPUTS: dict[str, dict[str, Any]] = {
    "float16": {"shape": [6], "dtype": "float16"},
    "float32": {"shape": [5], "dtype": "float32"},
    "float64": {"shape": [2], "dtype": "float64"},
    "int32 without times": {"shape": [3], "dtype": "int32", "times": False},
    "scalars": {"shape": [], "dtype": "float32"},
    "3-D values": {"shape": [2, 3, 2], "dtype": "float16"},
    "objects": {"shape": [3, 7], "dtype": "float16", "arrays": {"boxes": BOXES, "counts": COUNTS}},
    "probabilities": {
        "shape": [6],
        "dtype": "float16",
        "labels": ["a", "b"],
        "arrays": {"probabilities": {"shape": [2], "dtype": "float16"}},
    },
    "text": {
        "of": "captions",
        "shape": [6],
        "dtype": "float16",
        "arrays": {"tokens": COUNTS},
        "clip_arrays": {"sentence": {"shape": [4], "dtype": "float32"}},
    },
}


def random_bits(shape: tuple[int, ...], dtype: str, generator: np.random.Generator) -> np.ndarray:
    """Return random bits: floats include NaN with payload, infinities, -0 and subnormal numbers."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(generator.bytes(size), dtype).reshape(shape)


def clip_of(clip_id: str, rows: int, spec: Mapping[str, Any], generator: np.random.Generator) -> ClipRows:
    arrays = {name: random_bits((rows, *shape), dtype, generator) for name, (shape, dtype) in row_arrays(spec).items()}
    arrays |= {name: random_bits(shape, dtype, generator) for name, (shape, dtype) in clip_arrays(spec).items()}
    return ClipRows(clip_id=clip_id, arrays=arrays)


def make(path: Path | str, output: Mapping[str, Any], parts: Sequence[Sequence[int]]) -> tuple[Any, list[ClipRows]]:
    """Return a store with one stream whose parts have clips with these numbers of rows."""
    store, spec, generator = create_store(path), {"network": "test", "output": output}, np.random.default_rng(0)
    declare_stream(store, "s", spec, {})
    clips = []
    for number, counts in enumerate(parts):
        subset = [clip_of(f"clip ü{number}-{place}", rows, spec, generator) for place, rows in enumerate(counts)]
        write_part(store, "s", f"{number:06d}", spec=spec, clips=subset, failures=[], run={})
        clips += subset
    return store, clips


def assert_all_agree(store: Path, clips: Sequence[ClipRows], readers: Mapping[str, Read]) -> None:
    """Assert that amex and each other reader return the written clips bit for bit."""
    stream = open_store(store)["s"]
    of_rows, of_clips = row_arrays(stream.spec), clip_arrays(stream.spec)
    truth = {clip.clip_id: clip.arrays for clip in clips}
    for clip_id, rows in zip(truth, stream.read(list(truth)), strict=True):
        for name, array in truth[clip_id].items():
            assert rows[name].tobytes() == array.tobytes(), (clip_id, name)
            assert (rows[name].dtype, rows[name].shape) == (array.dtype, array.shape)
    for part, commit in stream.commits.items():
        folder = str(stream.path / "parts" / commit["folder"])
        names = [*of_rows, *of_clips, "offsets"]
        for reader, read in readers.items():
            arrays = read(folder, names)
            for place, clip in enumerate(commit["clips"]):
                begin, end = arrays["offsets"][place : place + 2]
                for name, array in truth[clip["clip_id"]].items():
                    entries = arrays[name][begin:end] if name in of_rows else arrays[name][place]
                    assert entries.tobytes() == array.tobytes(), (reader, part, clip["clip_id"], name)
                    assert entries.dtype == array.dtype
        for read in (by_zarr, by_xarray):
            ids = read(folder, ["clip_ids"])["clip_ids"]
            assert list(ids) == [clip["clip_id"] for clip in commit["clips"]]


@pytest.fixture(scope="module")
def readers() -> Iterator[dict[str, Read]]:
    """Run TensorStore in a separate process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:

        def elsewhere(folder: str, names: Sequence[str]) -> dict[str, np.ndarray]:
            return pool.submit(by_tensorstore, folder, names).result(60)

        yield {"zarr-python": by_zarr, "xarray": by_xarray, "TensorStore": elsewhere}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_four_readers_agree_bit_for_bit(kind: str, tmp_path: Path, readers: dict[str, Read]) -> None:
    store, clips = make(tmp_path / "s.zarr", OUTPUTS[kind], [[3, 0, 8], [40], [0, 0], [], [1] * 20])
    assert_all_agree(store, clips, readers)


@settings(max_examples=15)
@given(
    kind=st.sampled_from(sorted(OUTPUTS)),
    parts=st.lists(st.lists(st.integers(0, 30), max_size=5), max_size=3),
    chunk=st.integers(1, 400),
    shard=st.integers(1, 1200),
)
def test_four_readers_agree_for_any_chunk_and_file_sizes(
    tmp_path_factory: pytest.TempPathFactory,
    readers: dict[str, Read],
    kind: str,
    parts: list[list[int]],
    chunk: int,
    shard: int,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "CHUNK_BYTES", chunk)
        patched.setattr(shards, "SHARD_BYTES", shard)
        store, clips = make(tmp_path_factory.mktemp("store") / "s.zarr", OUTPUTS[kind], parts)
    assert_all_agree(store, clips, readers)


def test_four_readers_agree_on_rows_larger_than_a_chunk_and_arrays_of_several_files(
    tmp_path: Path, readers: dict[str, Read]
) -> None:
    """With the default sizes: a row of 36 objects has 147 kB."""
    output = {"shape": [36, 2048], "dtype": "float16", "arrays": {"boxes": {"shape": [36, 4], "dtype": "float32"}}}
    store, clips = make(tmp_path / "s.zarr", output, [[100, 0, 40]])
    assert len(list((store / "s").glob("parts/*/values/c/*/0/0"))) == 2
    assert_all_agree(store, clips, readers)


@pytest.mark.parametrize("values", ["zeros", "few numbers"])
def test_four_readers_agree_on_compressed_arrays(values: str, tmp_path: Path, readers: dict[str, Read]) -> None:
    """These arrays are compressed, and each clip is in several chunks and files."""
    spec = {"network": "test", "output": {"shape": [256], "dtype": "float32"}}
    store, generator = create_store(tmp_path / "s.zarr"), np.random.default_rng(0)
    declare_stream(store, "s", spec, {})
    clips = [clip_of(f"c{place}", rows, spec, generator) for place, rows in enumerate([50, 0, 7])]
    for clip in clips:
        drawn = generator.integers(0, 3, clip.arrays["values"].shape) if values == "few numbers" else 0
        clip.arrays["values"] = np.zeros_like(clip.arrays["values"]) + np.float32(drawn)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "SHARD_BYTES", 32 << 10)
        write_part(store, "s", "p", spec=spec, clips=clips, failures=[], run={})
    written = sum(file.stat().st_size for file in (store / "s").glob("parts/*/values/c/*/0"))
    assert written < sum(clip.arrays["values"].nbytes for clip in clips) / 2
    assert_all_agree(store, clips, readers)
    assert not [damage for damage in verify(open_store(store)["s"]) if damage]


def test_four_readers_agree_on_a_store_in_s3(s3: str) -> None:
    """TensorStore has its own S3 client, so its process starts here, with the address of the server."""
    store, clips = make(f"{s3}/a/s.zarr", OUTPUTS["objects"], [[3, 0, 8], [40]])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:

        def elsewhere(folder: str, names: Sequence[str]) -> dict[str, np.ndarray]:
            return pool.submit(by_tensorstore, folder, names).result(60)

        readers = {"zarr-python": by_zarr, "xarray": by_xarray, "TensorStore": elsewhere}
        assert_all_agree(store, clips, readers)
