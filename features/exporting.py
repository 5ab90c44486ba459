"""Features out of a store, for other programs: NumPy files, HDF5, the layout of HGR. A clip or a part at a time."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..storage import write_json
from .hdf5_files import BESIDE, HGR_SPLITS
from .reader import Rows, Stream
from .schema import StoreError, clip_arrays, row_arrays

# Clips read at a time.
SOME = 64


def export_npy(stream: Stream, folder: Path, progress: Callable[[int], None] = lambda done: None) -> None:
    """One .npy a row array, rows end to end, offsets.npy, clip_ids.json, spec.json; ``import`` reads them back."""
    _fresh(folder)
    ids = list(stream)
    single = clip_arrays(stream.spec)
    shapes = {**row_arrays(stream.spec), **single}
    offsets = np.cumsum([0, *(stream.rows_of(clip_id) for clip_id in ids)], dtype=np.int64)
    files = {}
    for name, (shape, dtype) in shapes.items():
        entries = len(ids) if name in single else int(offsets[-1])
        if entries:
            whole = {"dtype": dtype, "shape": (entries, *shape)}
            files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", **whole)
        else:
            np.save(folder / f"{name}.npy", np.empty((0, *shape), dtype))  # nothing cannot be mapped
    for begin in range(0, len(ids), SOME):
        batch = stream.read(ids[begin : begin + SOME])
        for name, file in files.items():
            at = begin if name in single else int(offsets[begin])
            file[at : at + len(batch.arrays[name])] = batch.arrays[name]
        progress(len(batch.clip_ids))
    for file in files.values():
        file.flush()
    np.save(folder / "offsets.npy", offsets)
    (folder / "clip_ids.json").write_text(json.dumps(ids, ensure_ascii=False))
    write_json(folder / "spec.json", {"stream": stream.name, "fingerprint": stream.fingerprint, "spec": stream.spec})


def export_hdf5(stream: Stream, path: Path, progress: Callable[[int], None] = lambda done: None) -> None:
    """One dataset (rows, D) a clip, named by its id; times, boxes and the like in a group beside them."""
    import h5py

    _no_text(stream, "hdf5")
    if path.exists():
        raise StoreError(f"{path} exists; choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")  # which would read as a smaller stream
    try:
        with h5py.File(begun, "w") as file:
            file.attrs["amex_spec"] = json.dumps(stream.spec)
            file.attrs["amex_stream"] = stream.name
            for clip_id, rows in _clips(stream, list(stream)):
                if clip_id.split("/")[0] == BESIDE:
                    raise _no_dataset(path, clip_id, f"{BESIDE} is the group of what is beside the features")
                for name, array in rows.arrays.items():
                    _dataset(file, clip_id if name == "values" else f"{BESIDE}/{name}/{clip_id}", array, path)
                progress(1)
        begun.rename(path)
    finally:
        begun.unlink(missing_ok=True)


def export_hgr(
    stream: Stream,
    folder: Path,
    splits: Mapping[str, str],
    captions: Mapping[str, Sequence[str]],
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """HGR's folders: per split the features in order (SA) and their means (MP), names and captions. No times, no boxes.

    Args:
        splits: ``train``, ``val`` or ``test`` by clip id; other clips are left out.
        captions: by clip id.
    """
    import h5py

    _no_text(stream, "hgr")
    _fresh(folder)
    ordered, means = (folder / "ordered_feature" / kind / stream.name for kind in ("SA", "MP"))
    for part in (ordered, means, folder / "public_split", folder / "annotation" / "RET"):
        part.mkdir(parents=True, exist_ok=True)
    for short, split in HGR_SPLITS.items():
        ids = [clip_id for clip_id in stream if splits.get(clip_id) == split]
        pooled = []
        with h5py.File(ordered / f"{short}_ft.hdf5", "w") as file:
            for clip_id, rows in _clips(stream, ids):
                _dataset(file, clip_id.replace("/", "_"), rows.values, ordered)
                values = rows.values.reshape(len(rows), -1)
                pooled.append(
                    values.astype(np.float32).mean(axis=0) if len(rows) else np.zeros(values.shape[1], np.float32)
                )
                progress(1)
        np.save(means / f"{short}_ft.npy", np.array(pooled, np.float32))
        np.save(folder / "public_split" / f"{short}_names.npy", np.array(ids, dtype=str))
    chosen = {clip_id: list(captions.get(clip_id, ())) for clip_id in stream if clip_id in splits}
    (folder / "annotation" / "RET" / "ref_captions.json").write_text(json.dumps(chosen, ensure_ascii=False))


def _clips(stream: Stream, ids: Sequence[str]) -> Iterator[tuple[str, Rows]]:
    for begin in range(0, len(ids), SOME):
        some = ids[begin : begin + SOME]
        yield from zip(some, stream.read(some), strict=True)


def _dataset(file: Any, name: str, array: np.ndarray, path: Path) -> None:
    if {"", ".", ".."} & set(name.split("/")):
        raise _no_dataset(path, name, "HDF5 would give it another")
    try:
        file.create_dataset(name, data=array)
    except (ValueError, OSError) as error:
        raise _no_dataset(path, name, str(error)) from error


def _no_dataset(path: Path, name: str, reason: str) -> StoreError:
    return StoreError(f"{path}: {name!r} cannot be the name of a dataset: {reason}; export as npy instead")


def _no_text(stream: Stream, form: str) -> None:
    if stream.spec["output"].get("of") == "captions":
        raise StoreError(f"stream {stream.name!r} is of text, whose keys are captions; export it as npy, not as {form}")


def _fresh(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} exists and is not empty; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
