"""Layouts of features that benchmarks/storage.py compares: writers and readers of each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amex.features import ClipRows, Stream, create_store, declare_stream, open_store, write_part

DIM = 512

Reader = Callable[[Sequence[int]], object]


def draw(count: int, features: Path | None) -> list[ClipRows]:
    """Draw clips of 8 to 40 rows from a pool of rows that exceeds the window of a compressor."""
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
    """Return the spec of a stream of these clips."""
    return {"output": {"shape": [clips[0].arrays["values"].shape[1]], "dtype": "float16"}}


def bytes_of(clips: Sequence[ClipRows]) -> int:
    """Return the size of all arrays in bytes."""
    return sum(array.nbytes for clip in clips for array in clip.arrays.values())


def write_store(path: Path | str, clips: Sequence[ClipRows], part: int) -> None:
    store, spec = create_store(path), spec_of(clips)
    declare_stream(store, "s", spec, {})
    for number, first in enumerate(range(0, len(clips), part)):
        write_part(store, "s", f"{number:06d}", spec=spec, clips=clips[first : first + part], failures=[], run={})


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
    """Count the files of a layout and their megabytes."""
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
    """Return each clip's part, first row, and the row after its last."""
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
        requested = [where[index] for index in indices]
        futures = [array[begin:end].read() for part, begin, end in requested for array in arrays[part]]
        return [future.result() for future in futures]

    return read
