"""Import NumPy files: .npy, .npz, and the folders that ``export_npy`` writes."""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from ...errors import plural
from ...foreign import read_json
from ..schema import clip_arrays, row_arrays
from ..writer import ClipRows
from .source import ImportProblem, Selection, Source, check_array, check_spec, file_spec, with_output

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# The methods that NumPy uses. With other methods, zipfile does not limit the unpacked size.
COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Upper limit of the size of an axis.
LARGEST = 1 << 48


@dataclass(frozen=True)
class StoredArray:
    """An array in a .npy file or a member of an .npz file. The file is large enough for the shape in its header.

    Attributes:
        member: name in the .npz file; None for a .npy file.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, spans: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Yield the entries [begin, end) of each span. The spans must be in ascending order."""
        width = math.prod(self.shape[1:]) * self.dtype.itemsize
        with _opened(self.path, self.member) as (handle, _, _):
            first = handle.tell()
            for begin, end in spans:
                handle.seek(first + begin * width)
                data = handle.read((end - begin) * width)
                if len(data) != (end - begin) * width:
                    raise ImportProblem(f"{self.path}: {self.member or 'the array'} ends early, at entry {begin}")
                yield np.frombuffer(data, self.dtype).reshape(end - begin, *self.shape[1:])

    def read_list(self, kinds: str) -> np.ndarray:
        """Return the full array. Raises ImportProblem unless it has one axis and a dtype of one of ``kinds``."""
        if len(self.shape) != 1 or self.dtype.kind not in kinds:
            raise ImportProblem(
                f"{self.path}: {self.member or 'the array'} is {self.dtype}{list(self.shape)}, not a list"
            )
        return next(self.read([(0, self.shape[0])]))

    def texts(self) -> list[str]:
        """Return the array as a list of names. Numbers are converted to text."""
        names = self.read_list("USiu")
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]


@contextmanager
def _opened(path: Path, member: str | None) -> Iterator[tuple[BinaryIO, tuple[int, ...], np.dtype]]:
    """Open an array. Yield a file positioned at the first entry, the shape and the dtype."""
    with ExitStack() as stack:
        if member is None:
            handle: Any = stack.enter_context(path.open("rb"))
        else:
            handle = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(f"{member}.npy"))
        version = np.lib.format.read_magic(handle)
        if version not in HEADERS:
            raise ImportProblem(
                f"{path}: {member or 'the array'} has version {version} of the format; 1.0 and 2.0 are supported"
            )
        shape, fortran, dtype = HEADERS[version](handle)
        if fortran and len(shape) > 1:
            raise ImportProblem(
                f"{path}: {member or 'the array'} is in Fortran order; save it with np.ascontiguousarray"
            )
        yield handle, shape, dtype


class Entries(Protocol):
    """An array in one or more files, of which any entries can be read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, spans: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Yield the entries [begin, end) of each span. The spans must be in ascending order."""


def stored_array(path: Path, member: str | None, length: int) -> StoredArray:
    """Return the array in a file or member of ``length`` bytes. Raises ImportProblem if its header is invalid."""
    with _opened(path, member) as (handle, shape, dtype):
        array = StoredArray(path, member, shape, dtype)
        name = member or "the array"
        if dtype.hasobject:
            raise ImportProblem(f"{path}: {name} contains Python objects, which are not read")
        if not dtype.itemsize or any(type(size) is not int or not 0 <= size < LARGEST for size in shape):
            raise ImportProblem(f"{path}: {name} has an impossible shape in its header")
        if (available := length - handle.tell()) < array.size:
            raise ImportProblem(
                f"{path}: {name} ends early: {dtype}{list(shape)} needs {array.size:,} bytes, but has {available:,}"
            )
    return array


def npy(path: Path) -> StoredArray:
    """Return the array of a .npy file."""
    return stored_array(path, None, path.stat().st_size)


def _npz(path: Path, selection: Selection) -> dict[str, StoredArray]:
    """Return the arrays of an .npz file, by name. Raises ImportProblem if they are too large or a checksum differs."""
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        selection.check_size(path, sum(info.file_size for info in members), [path])
        arrays: dict[str, StoredArray] = {}
        for info in members:
            name = info.filename.removesuffix(".npy")
            if name in arrays:
                raise ImportProblem(f"{path} has two arrays {name!r}")
            if info.compress_type not in COMPRESSION:
                raise ImportProblem(f"{path}: {name!r} is not compressed like NumPy does it; save it with np.savez")
            with archive.open(info) as handle:  # zipfile compares the checksum at the end of the member
                while handle.read(1 << 20):
                    pass
            arrays[name] = stored_array(path, name, info.file_size)
    return arrays


def from_numpy(path: Path, selection: Selection) -> list[Source]:
    """Return the streams of arrays (clips, D) or (clips, rows, D), or of a folder from ``export_npy``.

    Each array of an npz file is a stream. If there is an array ``offsets``, ``values`` and the other arrays are one
    stream.
    """
    if path.is_dir():
        return [_exported(path, selection)]
    arrays = {path.stem: npy(path)} if path.suffix.lower() == ".npy" else _npz(path, selection)
    clip_ids = arrays.pop("clip_ids", None)
    ids = None if clip_ids is None else clip_ids.texts()
    if {"values", "offsets"} <= arrays.keys():
        offsets = arrays.pop("offsets").read_list("iu")
        return [ragged(path, path.stem, arrays, offsets, selection, ids, file_spec([path], "values"))]
    if unknown := sorted(set(selection.arrays) - arrays.keys()):
        raise ImportProblem(f"{path} has no array {unknown[0]!r}; its arrays are {', '.join(arrays)}")
    chosen = {name: array for name, array in arrays.items() if not selection.arrays or name in selection.arrays}
    if not chosen:
        raise ImportProblem(f"{path} has no array of features")
    return [_stacked(path, name, array, selection, ids) for name, array in chosen.items()]


def _stacked(path: Path, name: str, array: StoredArray, selection: Selection, ids: Sequence[str] | None) -> Source:
    shape, dtype = array.shape, array.dtype
    if len(shape) not in (2, 3) or dtype.kind != "f":
        raise ImportProblem(
            f"{path}: {name} is {dtype}{list(shape)}; features must be floats, (clips, D) or (clips, rows, D)"
        )
    chosen = selection.clips(path, shape[0], ids)

    def clips() -> Iterator[ClipRows]:
        pieces = array.read((row, row + 1) for row, _ in chosen)
        for (_, clip_id), piece in zip(chosen, pieces, strict=True):
            yield ClipRows(clip_id=clip_id, arrays={"values": piece[0] if len(shape) == 3 else piece})

    spec = with_output(file_spec([path], name), {"values": (shape[-1:], dtype)})
    return Source(path=path, name=name, spec=spec, ids=[clip_id for _, clip_id in chosen], clips=clips)


def _exported(folder: Path, selection: Selection) -> Source:
    """Return the stream of a folder that ``export_npy`` wrote."""
    if not (folder / "values.npy").is_file():
        raise ImportProblem(
            f"{folder} is neither an HGR folder (ordered_feature/) nor one of amex features export (values.npy)"
        )
    ids = read_json(folder / "clip_ids.json", ImportProblem)
    if not isinstance(ids, list):
        raise ImportProblem(f"{folder / 'clip_ids.json'} is not a list of ids")
    arrays = {file.stem: npy(file) for file in sorted(folder.glob("*.npy")) if file.is_file()}
    if "offsets" not in arrays:
        raise ImportProblem(f"{folder} has no offsets.npy with the first row of each clip")
    offsets = arrays.pop("offsets").read_list("iu")
    name, spec = folder.name, file_spec([folder / "values.npy"], "values")
    if (folder / "spec.json").is_file():
        record = read_json(folder / "spec.json", ImportProblem)
        try:
            name, spec = record["stream"], record["spec"]
        except (KeyError, TypeError) as error:
            raise ImportProblem(f"{folder / 'spec.json'} lacks stream or spec") from error
        if not isinstance(name, str):
            raise ImportProblem(f"{folder / 'spec.json'}: {name!r} cannot be the name of a stream")
        check_spec(folder / "spec.json", spec)
    return ragged(folder, name, arrays, offsets, selection, ids, spec)


def ragged(
    path: Path,
    name: str,
    arrays: Mapping[str, Entries],
    offsets: np.ndarray,
    selection: Selection,
    ids: Sequence[str] | None,
    spec: dict[str, Any],
) -> Source:
    """Return the stream of arrays with all rows end to end: clip i has the rows ``offsets[i]:offsets[i+1]``."""
    bounds: Sequence[int] = offsets.tolist()
    if not bounds or bounds[0] != 0 or any(end < begin for begin, end in itertools.pairwise(bounds)):
        raise ImportProblem(f"{path}: offsets must begin with 0 and never decrease")
    if "output" not in spec:
        spec = with_output(spec, {array: (stored.shape[1:], stored.dtype) for array, stored in arrays.items()})
        check_spec(path, spec)
    single = clip_arrays(spec)
    for array in (*row_arrays(spec), *single):
        if array not in arrays:
            raise ImportProblem(f"{path}: the array {array!r} is missing")
        shape, entries = arrays[array].shape, len(bounds) - 1 if array in single else bounds[-1]
        check_array(f"{path}: {array}", array, shape, arrays[array].dtype, spec)
        if shape[0] != entries:
            raise ImportProblem(f"{path}: {array} has {plural(shape[0], 'entry')}, but the offsets require {entries}")
    chosen = selection.clips(path, len(bounds) - 1, ids)

    def clips() -> Iterator[ClipRows]:
        row_spans = [(bounds[index], bounds[index + 1]) for index, _ in chosen]
        clip_spans = [(index, index + 1) for index, _ in chosen]
        names = (*row_arrays(spec), *single)
        pieces = [arrays[array].read(clip_spans if array in single else row_spans) for array in names]
        for (_, clip_id), *clip_pieces in zip(chosen, *pieces, strict=True):
            yield ClipRows(clip_id=clip_id, arrays=dict(zip(names, clip_pieces, strict=True)))

    return Source(path=path, name=name, spec=spec, ids=[clip_id for _, clip_id in chosen], clips=clips)
