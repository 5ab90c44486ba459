"""Export features for other programs: NumPy files, HDF5, the layout of HGR. Other formats: ``*_files.py``."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import first_line, needs
from ...storage import write_json
from ..schema import StoreError
from .excerpt import Excerpt
from .hdf5_files import BESIDE, HGR_SPLITS

# Size of a file, for formats that write several files.
SHARD_BYTES = 256 << 20


@contextlib.contextmanager
def staged_output(out: Path, *, folder: bool) -> Iterator[Path]:
    """Yield a temporary folder, or the path of a temporary file, and rename it to ``out`` when the context succeeds.

    So an interrupted export cannot be mistaken for a smaller stream.

    Args:
        folder: whether the export is a folder.

    Raises:
        StoreError: if ``out`` exists and is not an empty folder, is inside a store, or cannot be written.
    """
    if not isinstance(out, Path):
        raise StoreError(f"{out} is not on this machine: export to a folder here, and copy it there")
    path = Path(os.path.abspath(out))
    partial = path.parent / f".{path.name[:40]}.{uuid.uuid4().hex[:12]}.partial"
    try:
        if path.is_dir() and any(path.iterdir()):
            raise StoreError(f"{out} exists and is not empty; choose another --out")
        if os.path.lexists(path) and not (folder and path.is_dir()):
            raise StoreError(f"{out} exists; choose another --out")
        real = Path(os.path.realpath(path))
        if group := next((parent for parent in real.parents if (parent / "zarr.json").is_file()), None):
            raise StoreError(f"{out} is in the store or Zarr group {group}; choose another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            partial.mkdir()
        yield partial
        partial.rename(path)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror or first_line(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            partial.unlink()


def library(name: str, form: str) -> Any:
    """Import a module of the extra ``export``. Raises MissingExtra."""
    with needs("export", f"--format {form}"):
        return importlib.import_module(name)


def spec_record(excerpt: Excerpt) -> dict[str, Any]:
    """Return how the features were made: the metadata that every format contains."""
    return {"stream": excerpt.name, "fingerprint": excerpt.fingerprint, "spec": excerpt.spec}


def metadata(excerpt: Excerpt) -> dict[str, str]:
    """Return ``spec_record`` as texts, for formats with text metadata. The spec is JSON."""
    facts = {**spec_record(excerpt), "spec": json.dumps(excerpt.spec, ensure_ascii=False)}
    return {f"amex_{name}": fact for name, fact in facts.items()}


def export_npy(excerpt: Excerpt, folder: Path) -> None:
    """Export a .npy file per array with all rows end to end, offsets.npy, clip_ids.json and spec.json.

    ``amex features import`` can read them.
    """
    ids: list[str] = []
    offsets = [np.zeros(1, np.int64)]
    counts = dict.fromkeys(excerpt.arrays, 0)
    with staged_output(folder, folder=True) as partial, contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((partial / f"{name}.npy").open("wb")) for name in excerpt.arrays}
        for name, file in files.items():
            _write_header(file, 0, *excerpt.arrays[name])
        for batch in excerpt.batches():
            for name, file in files.items():
                file.write(np.ascontiguousarray(batch.arrays[name]).data)
                counts[name] += len(batch.arrays[name])
            ids += batch.clip_ids
            offsets.append(offsets[-1][-1] + batch.offsets[1:])
        for name, file in files.items():
            file.seek(0)
            _write_header(file, counts[name], *excerpt.arrays[name])
        np.save(partial / "offsets.npy", np.concatenate(offsets))
        (partial / "clip_ids.json").write_text(json.dumps(ids, ensure_ascii=False))
        write_json(partial / "spec.json", spec_record(excerpt))


def _write_header(file: BinaryIO, entries: int, shape: tuple[int, ...], dtype: str) -> None:
    """Write the header of a .npy file. NumPy pads it, so its length does not depend on the number of entries."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": (entries, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


class HDF5File(io.FileIO):
    """A file for h5py that stores the first write error. Without it, HDF5 crashes the process when the disk is full."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        remaining = memoryview(data)
        with self._store_error():
            while remaining:
                remaining = remaining[super().write(remaining) :]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        with self._store_error():
            super().truncate(size)
        return size or 0

    @contextlib.contextmanager
    def _store_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error

    def check(self) -> None:
        """Raise the stored write error, if there is one."""
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def hdf5_file(path: Path) -> Iterator[tuple[Any, HDF5File]]:
    """Yield a new HDF5 file and its ``HDF5File``, to be checked now and then. Raises OSError on write errors."""
    import h5py

    with HDF5File(path, "w+") as raw:
        with h5py.File(raw, "w") as file:
            yield file, raw
        raw.check()


def export_hdf5(excerpt: Excerpt, path: Path) -> None:
    """Export one dataset (rows, D) per clip, or (D,) if pooled, named by the clip id; other arrays in a group."""
    _refuse_text(excerpt, "hdf5")
    with staged_output(path, folder=False) as partial, hdf5_file(partial) as (file, raw):
        file.attrs["amex_spec"] = json.dumps(excerpt.spec)
        file.attrs["amex_stream"] = excerpt.name
        for clip_id, rows in excerpt.each():
            if clip_id.split("/")[0] == BESIDE:
                raise _invalid_name(path, clip_id, f"{BESIDE} is the group of the other arrays")
            for name, array in rows.arrays.items():
                entry = array[0] if excerpt.pooled else array
                _dataset(file, clip_id if name == "values" else f"{BESIDE}/{name}/{clip_id}", entry, path)
            raw.check()


def export_hgr(
    excerpt: Excerpt, folder: Path, splits: Mapping[str, str], captions: Mapping[str, Sequence[str]]
) -> None:
    """Export the folders of HGR: for each split the rows (SA), the means (MP), names and captions; no times or boxes.

    Args:
        splits: ``train``, ``val`` or ``test`` by clip id; other clips are skipped.
        captions: captions by clip id.
    """
    _refuse_text(excerpt, "hgr")
    shorts = {split: short for short, split in HGR_SPLITS.items()}
    names: dict[str, list[str]] = {short: [] for short in HGR_SPLITS}
    pooled: dict[str, list[np.ndarray]] = {short: [] for short in HGR_SPLITS}
    with staged_output(folder, folder=True) as partial:
        ordered, means = (partial / "ordered_feature" / kind / excerpt.name for kind in ("SA", "MP"))
        for part in (ordered, means, partial / "public_split", partial / "annotation" / "RET"):
            part.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            files = {short: stack.enter_context(hdf5_file(ordered / f"{short}_ft.hdf5")) for short in HGR_SPLITS}
            for clip_id, rows in excerpt.each():
                short = shorts.get(splits.get(clip_id, ""))
                if short is None:
                    continue
                file, raw = files[short]
                _dataset(file, clip_id.replace("/", "_"), rows.values, folder)
                raw.check()
                values = rows.values.reshape(len(rows), math.prod(rows.values.shape[1:])).astype(np.float32)
                pooled[short].append(values.mean(axis=0) if len(rows) else np.zeros(values.shape[1], np.float32))
                names[short].append(clip_id)
        for short in HGR_SPLITS:
            np.save(means / f"{short}_ft.npy", np.array(pooled[short], np.float32))
            np.save(partial / "public_split" / f"{short}_names.npy", np.array(names[short], dtype=str))
        chosen = {clip_id: list(captions.get(clip_id, ())) for clip_id in excerpt.ids if clip_id in splits}
        (partial / "annotation" / "RET" / "ref_captions.json").write_text(json.dumps(chosen, ensure_ascii=False))


def _dataset(file: Any, name: str, array: np.ndarray, path: Path) -> None:
    if {"", ".", ".."} & set(name.split("/")):
        raise _invalid_name(path, name, "HDF5 would change it")
    try:
        file.create_dataset(name, data=array)
    except (ValueError, TypeError, OSError) as error:  # TypeError: a dataset exists where the name needs a group
        raise _invalid_name(path, name, str(error)) from error


def _invalid_name(path: Path, name: str, reason: str) -> StoreError:
    return StoreError(f"{path}: {name!r} cannot be the name of a dataset: {reason}; export as npy instead")


def _refuse_text(excerpt: Excerpt, form: str) -> None:
    if excerpt.of_text:
        raise StoreError(
            f"stream {excerpt.name!r} is of text, and its ids are captions; export it as npy, parquet, webdataset or "
            f"safetensors, not as {form}"
        )
