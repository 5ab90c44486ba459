"""Features from elsewhere into a store: NumPy files, HDF5, HGR's layout, bottom-up-attention TSV, safetensors.

Files are read piece by piece, and nothing in them is executed. Values keep their dtype, so that nothing is lost.
Headers and ids are checked before anything is written; then each clip is, before the part that it belongs to.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import plural
from ...foreign import reading
from ...storage import reachable
from ..reader import Stream
from ..rows import Rows
from ..schema import free_name, stream_path
from ..writer import ClipRows, create_store, declare_stream, has_commits, write_part
from .butd_files import from_butd
from .hdf5_files import from_hdf5, from_hgr
from .numpy_files import from_numpy
from .safetensors_files import INDEX, from_safetensors
from .source import ImportProblem, Names, Source, Wanted

# What a part of imported features holds, roughly: few files, little memory.
PART_BYTES = 64 << 20
# What is compared at a time of clips that are there.
COMPARED_BYTES = 16 << 20
FORMATS: dict[str, Callable[[Path, Wanted], list[Source]]] = {
    "npy": from_numpy,
    "hdf5": from_hdf5,
    "hgr": from_hgr,
    "butd": from_butd,
    "safetensors": from_safetensors,
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
            are imported. If clips that were there have other values.
    """
    store = create_store(store)
    provenance = {"weights": "imported", "imported_from": str(origin.resolve()), "host": socket.gethostname()}
    there: Stream | None = None
    stream_path(store, name)  # or raises

    def declare() -> None:
        declare_stream(store, name, source.spec, provenance)

    if has_commits(store, name):
        declare()
        there = Stream(store, name)
    written = known = 0
    held, compared = Held(), Held()
    others: list[str] = []

    def write() -> None:
        nonlocal written
        if not written and there is None:  # a source that is refused at its first clips leaves no empty stream
            declare()
        clips = held.take()
        digest = hashlib.sha256("\0".join(clip.clip_id for clip in clips).encode()).hexdigest()[:12]
        part = free_name(f"{written:06d}-{digest}", there.replaced if there is not None else ())
        run = {"host": socket.gethostname(), "imported_from": origin.name}
        with reachable(store):
            write_part(store, name, part, spec=source.spec, clips=clips, failures=[], run=run)
        written += len(clips)

    def compare() -> None:
        nonlocal known
        clips = compared.take()
        known += len(clips)
        rows = there.read([clip.clip_id for clip in clips])
        others.extend(clip.clip_id for clip, stored in zip(clips, rows, strict=True) if not _is(clip, stored))

    try:
        for clip in _read(source, allow_nan):
            progress(1)
            if there is not None and clip.clip_id in there:
                if compared.add(clip) >= COMPARED_BYTES:
                    compare()
            elif not others and held.add(clip) >= PART_BYTES:
                write()
    except ImportProblem as problem:
        before = written + known + len(compared.clips)
        told = f"{plural(before, 'clip')} before it {'is' if before == 1 else 'are'}" if before else "nothing is"
        raise ImportProblem(f"{problem}; {told} imported") from problem
    if compared.clips:
        compare()
    if others:
        such = plural(len(others), "such clip")
        raise ImportProblem(
            f"{source.path}: clip {others[0]!r} is in the store with other values ({such}): "
            f"amex features rm {store} {name} and import again"
        )
    if held.clips:
        write()
    elif there is None and not written:  # a source without clips
        declare()
    return written, known


@dataclass
class Held:
    """Clips in memory."""

    clips: list[ClipRows] = field(default_factory=list)
    size: int = 0

    def add(self, clip: ClipRows) -> int:
        """Returns how many bytes there are now."""
        self.clips.append(clip)
        self.size += sum(array.nbytes for array in clip.arrays.values())
        return self.size

    def take(self) -> list[ClipRows]:
        """All of them; none are held afterwards."""
        clips, self.clips, self.size = self.clips, [], 0
        return clips


def _is(clip: ClipRows, stored: Rows) -> bool:
    """Whether a clip of a source has the values that it has in the store."""
    for name, array in stored.arrays.items():
        new = clip.arrays[name].astype(array.dtype)
        if new.size != array.size or not np.array_equal(new.ravel(), array.ravel(), equal_nan=array.dtype.kind == "f"):
            return False
    return True


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
        marks = {"hgr": path / "ordered_feature", "safetensors": path / INDEX}
        return next((form for form, mark in marks.items() if mark.exists()), "npy")
    forms = {".npy": "npy", ".npz": "npy", ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5", ".tsv": "butd"}
    forms[".safetensors"] = "safetensors"
    if path.suffix.lower() not in forms:
        raise ImportProblem(f"{path}: its name does not tell the format; say --format {'|'.join(FORMATS)}")
    return forms[path.suffix.lower()]
