"""Features from elsewhere into a store: NumPy files, HDF5, the layout of HGR, bottom-up-attention TSV.

Files are read piece by piece, and nothing in them is executed. Values keep their dtype, so that nothing is lost.
Headers and ids are checked before anything is written; then each clip is, before the part that it belongs to.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..foreign import reading
from .butd_files import from_butd
from .hdf5_files import from_hdf5, from_hgr
from .numpy_files import from_numpy
from .reader import Stream
from .source import ImportProblem, Names, Source, Wanted
from .writer import ClipRows, create_store, declare_stream, write_part

# What a part of imported features holds, roughly: few files, little memory.
PART_BYTES = 64 << 20
FORMATS: dict[str, Callable[[Path, Wanted], list[Source]]] = {
    "npy": from_numpy,
    "hdf5": from_hdf5,
    "hgr": from_hgr,
    "butd": from_butd,
}


def import_stream(
    source: Source,
    store: Path,
    name: str,
    *,
    origin: Path,
    allow_nan: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, int]:
    """Writes what the store does not hold yet; returns how many clips were written and how many were there.

    Args:
        allow_nan: take values that are NaN or infinite; times never are.

    Raises:
        SpecMismatch: if the stream holds other features.
        ImportProblem: if the file breaks off, or at a clip whose numbers are none; it says how many clips before it
            are imported.
    """
    store = create_store(store)
    provenance = {"weights": "imported", "imported_from": str(origin.resolve()), "host": socket.gethostname()}
    declare_stream(store, name, source.spec, provenance)
    there = Stream(store, name)
    written = known = size = 0
    held: list[ClipRows] = []

    def flush() -> None:
        nonlocal size, written
        digest = hashlib.sha256("\0".join(clip.clip_id for clip in held).encode()).hexdigest()[:12]
        part = f"{written:06d}-{digest}"
        run = {"host": socket.gethostname(), "imported_from": origin.name}
        write_part(store, name, part, spec=source.spec, clips=held, failures=[], run=run)
        written += len(held)
        held.clear()
        size = 0

    try:
        for clip in _read(source, allow_nan):
            progress(1)
            if clip.clip_id in there:
                known += 1
                continue
            held.append(clip)
            size += sum(array.nbytes for array in clip.arrays.values())
            if size >= PART_BYTES:
                flush()
    except ImportProblem as problem:
        before = f"{written + known:,} clips before it are" if written + known else "nothing is"
        raise ImportProblem(f"{problem}; {before} imported") from problem
    if held:
        flush()
    return written, known


def _read(source: Source, allow_nan: bool) -> Iterator[ClipRows]:
    with reading(source.path, ImportProblem):
        yield from source.checked(allow_nan=allow_nan)


def find_sources(
    path: Path, form: str, names: Names | None, arrays: Sequence[str] = (), max_gb: float | None = None
) -> list[Source]:
    """The streams in a file or folder.

    Args:
        form: ``auto``, or one of FORMATS.
        names: clip ids in the order of the rows, or by row, for NumPy files that do not name them.
        arrays: of an npz file, those to take; all by default.
        max_gb: how much the source may hold once it is unpacked; by default ten times its files, and 1 GB at least.

    Raises:
        ImportProblem: if there are none, or they cannot be read.
    """
    with reading(path, ImportProblem):
        if not path.exists():
            raise ImportProblem(f"{path} does not exist")
        if not path.is_dir() and not path.is_file():
            raise ImportProblem(f"{path} is neither a file nor a folder")
        form = guess(path) if form == "auto" else form
    with reading(path, ImportProblem, f"cannot be read as {form}"):
        return FORMATS[form](path, Wanted(names=names, arrays=arrays, max_gb=max_gb))


def guess(path: Path) -> str:
    """The format of a file or folder, by its name and layout."""
    if path.is_dir():
        return "hgr" if (path / "ordered_feature").is_dir() else "npy"
    forms = {".npy": "npy", ".npz": "npy", ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5", ".tsv": "butd"}
    if path.suffix.lower() not in forms:
        raise ImportProblem(f"{path}: its name does not tell the format; say --format {'|'.join(FORMATS)}")
    return forms[path.suffix.lower()]
