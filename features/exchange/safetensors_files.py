"""Export and import features as safetensors files."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import first_line, plural
from ...foreign import parse_json, read_json
from ...storage import write_json
from ..rows import Batch
from ..schema import StoreError
from .excerpt import Excerpt
from .exporting import SHARD_BYTES, library, metadata, spec_record, staged_output
from .numpy_files import ragged
from .source import ImportProblem, Selection, Source, check_spec

# Maximal bytes of a file, which is built in memory.
LARGEST = 2 << 30
# Maximal bytes of ids in a file's metadata: safetensors refuses headers above 100 MB.
IDS_BYTES = 32 << 20
INDEX = "features.safetensors.index.json"
DTYPES = {
    **{"BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64"},
    **{f"{sign}{bits}": f"{kind}int{bits}" for sign, kind in (("I", ""), ("U", "u")) for bits in (8, 16, 32, 64)},
}


def export_safetensors(excerpt: Excerpt, out: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Export a folder of files with clips end to end, or one file if ``out`` ends in .safetensors.

    Tensors of a file: ``values`` (rows, D), ``times`` (rows, 2), ``offsets`` (clips + 1,) and the other arrays of the
    stream. Metadata: ``clip_ids`` as JSON, amex_stream, amex_fingerprint and amex_spec. In a folder,
    ``features.safetensors.index.json`` maps clip ids to files.

    Raises:
        StoreError: if a single file would be too large.
    """
    numpy = library("safetensors.numpy", "safetensors")
    single_file = out.suffix == ".safetensors"
    ids_bytes = sum(len(clip_id.encode()) for clip_id in excerpt.ids)
    if single_file and (excerpt.size > LARGEST or ids_bytes > IDS_BYTES):
        raise StoreError(
            f"{out} would have {excerpt.size / 1e9:,.1f} GB of {plural(len(excerpt.ids), 'clip')}, too much for one "
            "file: make --out a folder"
        )
    with staged_output(out, folder=not single_file) as partial:
        if single_file:
            _write(numpy, partial, excerpt, list(excerpt.batches()))
            return
        buffer: list[Batch] = []
        size = number = 0
        files: dict[str, str] = {}

        def write() -> None:
            nonlocal size, number
            name = f"features-{number:05d}.safetensors"
            files.update((clip_id, name) for batch in buffer for clip_id in batch.clip_ids)
            _write(numpy, partial / name, excerpt, buffer)
            buffer.clear()
            size, number = 0, number + 1

        for batch in excerpt.batches():
            buffer.append(batch)
            size += sum(array.nbytes for array in batch.arrays.values())
            if size >= shard_bytes or _ids_bytes(buffer) >= IDS_BYTES:
                write()
        if buffer or not number:
            write()
        write_json(partial / INDEX, {"metadata": spec_record(excerpt), "clip_map": files})


def _ids_bytes(batches: Sequence[Batch]) -> int:
    return sum(len(clip_id.encode()) for batch in batches for clip_id in batch.clip_ids)


def _write(numpy: Any, path: Path, excerpt: Excerpt, batches: Sequence[Batch]) -> None:
    from safetensors import SafetensorError

    tensors = {
        name: np.concatenate([np.empty((0, *shape), dtype), *(batch.arrays[name] for batch in batches)])
        for name, (shape, dtype) in excerpt.arrays.items()
    }
    counts = [np.diff(batch.offsets) for batch in batches]
    tensors["offsets"] = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]), dtype=np.int64)
    ids = [clip_id for batch in batches for clip_id in batch.clip_ids]
    try:
        numpy.save_file(tensors, path, {**metadata(excerpt), "clip_ids": json.dumps(ids, ensure_ascii=False)})
    except SafetensorError as error:
        raise OSError(first_line(error)) from error


def from_safetensors(path: Path, selection: Selection) -> list[Source]:
    """Return the stream of a file, or of a folder of files, that ``export_safetensors`` wrote."""
    files = [path / name for name in _indexed(path)] if path.is_dir() else [path]
    headers = [_header(file) for file in files]
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        if header.spec != first.spec or header.tensors.keys() != first.tensors.keys():
            raise ImportProblem(f"{file} has other tensors or another spec than {files[0]}")
    arrays = {
        name: JoinedTensor(tuple(zip(files, (header.tensors[name] for header in headers), strict=True)), name)
        for name in first.tensors
    }
    offsets = arrays.pop("offsets")
    bounds, rows = [np.zeros(1, np.int64)], 0
    for file, header in zip(files, headers, strict=True):
        (length,), dtype = header.tensors["offsets"]
        if dtype != "int64" or length != len(header.ids) + 1:
            raise ImportProblem(f"{file}: offsets are {dtype}[{length}] for {plural(len(header.ids), 'clip')}")
        (file_offsets,) = offsets.of(file).read([(0, length)])
        if file_offsets[0] != 0 or file_offsets[-1] != header.tensors["values"][0][0]:
            raise ImportProblem(f"{file}: offsets do not begin with 0 and end with the number of rows")
        bounds.append(rows + file_offsets[1:])
        rows += int(file_offsets[-1])
    ids = [clip_id for header in headers for clip_id in header.ids]
    if path.is_dir() and ids != list(_clip_map(path)):
        raise ImportProblem(f"{path / INDEX} names other clips than the files beside it")
    return [ragged(path, first.name, arrays, np.concatenate(bounds), selection, ids, first.spec)]


def _clip_map(folder: Path) -> dict[str, str]:
    index = read_json(folder / INDEX, ImportProblem)
    clips = index.get("clip_map") if isinstance(index, dict) else None
    pattern = r"features-\d{5,}\.safetensors"
    if not isinstance(clips, dict) or not all(isinstance(f, str) and re.fullmatch(pattern, f) for f in clips.values()):
        raise ImportProblem(f"{folder / INDEX} is not an index of amex: its clip_map must name the file of each clip")
    return clips


def _indexed(folder: Path) -> list[str]:
    """Return the names of the files in a folder. A stream without clips has one file."""
    return list(dict.fromkeys(_clip_map(folder).values())) or ["features-00000.safetensors"]


@dataclass(frozen=True)
class FileHeader:
    """The header of a file.

    Attributes:
        name: name of the stream.
        spec: spec of the stream.
        ids: clip ids in the file.
        tensors: shape and dtype of each tensor, by name.
    """

    name: str
    spec: dict[str, Any]
    ids: list[str]
    tensors: dict[str, tuple[tuple[int, ...], str]]


def _header(file: Path) -> FileHeader:
    with library("safetensors", "safetensors").safe_open(file, "np") as opened:
        facts = opened.metadata() or {}
        tensors = {}
        for name in opened.keys():  # noqa: SIM118 - it is not a mapping
            piece = opened.get_slice(name)
            if piece.get_dtype() not in DTYPES:
                raise ImportProblem(f"{file}: {name} is {piece.get_dtype()}, which NumPy does not support")
            tensors[name] = (tuple(piece.get_shape()), DTYPES[piece.get_dtype()])
    if not {"amex_stream", "amex_spec", "clip_ids"} <= facts.keys() or not {"values", "offsets"} <= tensors.keys():
        raise ImportProblem(f"{file} is not an export of amex: it lacks values, offsets, or the metadata of amex")
    spec, ids = parse_json(facts["amex_spec"]), parse_json(facts["clip_ids"])
    check_spec(file, spec)
    if not isinstance(ids, list) or not tensors["values"][0] or len(tensors["offsets"][0]) != 1:
        raise ImportProblem(f"{file}: clip_ids or offsets are not a list, or values are a single number")
    return FileHeader(facts["amex_stream"], spec, ids, tensors)


@dataclass(frozen=True)
class JoinedTensor:
    """A tensor whose entries are in several files, end to end. Implements ``numpy_files.Entries``.

    Attributes:
        files: each file with the shape and dtype of its part of the tensor.
        name: name of the tensor in the files.
    """

    files: tuple[tuple[Path, tuple[tuple[int, ...], str]], ...]
    name: str

    def __post_init__(self) -> None:
        for file, (shape, dtype) in self.files:
            if not shape or (shape[1:], dtype) != (self.shape[1:], self.dtype):
                raise ImportProblem(
                    f"{file}: the entries of {self.name} have another shape or dtype than in the other files"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.files[0][1][0]
        return (sum(shape[0] if shape else 0 for _, (shape, _) in self.files), *first[1:])

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.files[0][1][1])

    def of(self, file: Path) -> JoinedTensor:
        """Return the part of the tensor that is in one file."""
        return JoinedTensor(tuple(entry for entry in self.files if entry[0] == file), self.name)

    def read(self, spans: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        from safetensors import safe_open

        begins = [0, *accumulate(shape[0] for _, (shape, _) in self.files)]
        number, piece = -1, None
        for begin, end in spans:
            # Each clip is in one file. An empty clip may begin at the end of the last file.
            at = min(bisect.bisect_right(begins, begin) - 1, len(self.files) - 1)
            if at != number:
                number, piece = at, safe_open(self.files[at][0], "np").get_slice(self.name)
            yield np.ascontiguousarray(piece[begin - begins[at] : end - begins[at]], self.dtype)
