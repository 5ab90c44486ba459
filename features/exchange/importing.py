"""Import features into a store: NumPy files, HDF5, HGR's layout, bottom-up-attention TSV, safetensors.

Files are read piece by piece, and no code in them is executed. Values keep their dtype. Headers and ids are checked
before anything is written, and each clip before its part is written.
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
from .source import ImportProblem, Names, Selection, Source

# Approximate size of a part of imported features: few files and little memory.
PART_BYTES = 64 << 20
# Size of a group of existing clips that is compared at a time.
COMPARED_BYTES = 16 << 20
FORMATS: dict[str, Callable[[Path, Selection], list[Source]]] = {
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
    """Import the clips that the store does not have yet. Return how many were written and how many existed already.

    Args:
        source: the stream to import, see ``find_sources``.
        name: name of the stream in the store.
        origin: the imported file or folder, for the provenance.
        allow_nan: accept values that are NaN or infinite; times must always be finite.
        progress: called with the number of clips read.

    Raises:
        SpecMismatch: if the stream has another spec.
        ImportProblem: if the file ends early or a clip has invalid numbers; the message says how many clips were
            imported before. Also if existing clips have other values.
    """
    store = create_store(store)
    provenance = {"weights": "imported", "imported_from": str(origin.resolve()), "host": socket.gethostname()}
    existing: Stream | None = None
    stream_path(store, name)  # raises if the name is invalid

    def declare() -> None:
        declare_stream(store, name, source.spec, provenance)

    if has_commits(store, name):
        declare()
        existing = Stream(store, name)
    written = unchanged = 0
    new, repeated = ClipBuffer(), ClipBuffer()
    different: list[str] = []

    def write() -> None:
        nonlocal written
        if not written and existing is None:  # declared late: a source with an invalid first clip leaves no stream
            declare()
        clips = new.take()
        digest = hashlib.sha256("\0".join(clip.clip_id for clip in clips).encode()).hexdigest()[:12]
        part = free_name(f"{written:06d}-{digest}", existing.replaced if existing is not None else ())
        run = {"host": socket.gethostname(), "imported_from": origin.name}
        with reachable(store):
            write_part(store, name, part, spec=source.spec, clips=clips, failures=[], run=run)
        written += len(clips)

    def compare() -> None:
        nonlocal unchanged
        clips = repeated.take()
        unchanged += len(clips)
        rows = existing.read([clip.clip_id for clip in clips])
        different.extend(clip.clip_id for clip, stored in zip(clips, rows, strict=True) if not _equal(clip, stored))

    try:
        for clip in _read(source, allow_nan):
            progress(1)
            if existing is not None and clip.clip_id in existing:
                if repeated.add(clip) >= COMPARED_BYTES:
                    compare()
            elif not different and new.add(clip) >= PART_BYTES:
                write()
    except ImportProblem as problem:
        count = written + unchanged + len(repeated.clips)
        progress_text = f"{plural(count, 'clip')} before it {'is' if count == 1 else 'are'}" if count else "nothing is"
        raise ImportProblem(f"{problem}; {progress_text} imported") from problem
    if repeated.clips:
        compare()
    if different:
        raise ImportProblem(
            f"{source.path}: clip {different[0]!r} is in the store with other values "
            f"({plural(len(different), 'such clip')}): amex features rm {store} {name} and import again"
        )
    if new.clips:
        write()
    elif existing is None and not written:  # a source without clips
        declare()
    return written, unchanged


@dataclass
class ClipBuffer:
    """Clips in memory, and their size in bytes."""

    clips: list[ClipRows] = field(default_factory=list)
    size: int = 0

    def add(self, clip: ClipRows) -> int:
        """Add a clip. Return the new size."""
        self.clips.append(clip)
        self.size += sum(array.nbytes for array in clip.arrays.values())
        return self.size

    def take(self) -> list[ClipRows]:
        """Return all clips and empty the buffer."""
        clips, self.clips, self.size = self.clips, [], 0
        return clips


def _equal(clip: ClipRows, stored: Rows) -> bool:
    """Return whether a clip of a source has the same values as in the store."""
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
    """Find the streams in a file or folder.

    Args:
        form: ``auto``, or one of FORMATS.
        names: clip ids in the order of the rows, or by row number, for NumPy files without ids.
        arrays: names of the arrays of an npz file to import; all by default.
        max_gb: maximal unpacked size; by default ten times the size of the files, at least 1 GB.

    Raises:
        ImportProblem: if no stream is found, or the files cannot be read.
    """
    with reading(path, ImportProblem):
        if not path.exists():
            raise ImportProblem(f"{path} does not exist")
        if not path.is_dir() and not path.is_file():
            raise ImportProblem(f"{path} is neither a file nor a folder")
        form = guess_format(path) if form == "auto" else form
    with reading(path, ImportProblem, f"cannot be read as {form}"):
        return FORMATS[form](path, Selection(names=names, arrays=arrays, max_gb=max_gb))


def guess_format(path: Path) -> str:
    """Return the format of a file or folder, from its name and layout."""
    if path.is_dir():
        marks = {"hgr": path / "ordered_feature", "safetensors": path / INDEX}
        return next((form for form, mark in marks.items() if mark.exists()), "npy")
    forms = {".npy": "npy", ".npz": "npy", ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5", ".tsv": "butd"}
    forms[".safetensors"] = "safetensors"
    if path.suffix.lower() not in forms:
        raise ImportProblem(f"{path}: the format is not clear from the name; use --format {'|'.join(FORMATS)}")
    return forms[path.suffix.lower()]
