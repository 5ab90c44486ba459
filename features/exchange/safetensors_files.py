"""Features as tensors in safetensors files."""

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
from .exporting import SHARD_BYTES, about, begun, library, metadata
from .numpy_files import ragged
from .source import ImportProblem, Source, Wanted, check_spec

# A file is made in memory.
LARGEST = 2 << 30
# Bytes of ids in a file's metadata. Of a header with more than 100 MB safetensors reads nothing.
IDS_BYTES = 32 << 20
INDEX = "features.safetensors.index.json"
DTYPES = {
    **{"BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64"},
    **{f"{sign}{bits}": f"{kind}int{bits}" for sign, kind in (("I", ""), ("U", "u")) for bits in (8, 16, 32, 64)},
}


def export_safetensors(excerpt: Excerpt, out: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """A folder of files that each hold clips end to end, or one file if ``out`` ends in .safetensors.

    A file's tensors are ``values`` (rows, D), ``times`` (rows, 2), ``offsets`` (clips + 1,) and what else the stream
    has; its metadata has ``clip_ids`` in JSON, and amex_stream, amex_fingerprint and amex_spec. Beside the files,
    ``features.safetensors.index.json`` says which file a clip is in.

    Raises:
        StoreError: if one file would be too large.
    """
    numpy = library("safetensors.numpy", "safetensors")
    one = out.suffix == ".safetensors"
    ids_bytes = sum(len(clip_id.encode()) for clip_id in excerpt.ids)
    if one and (excerpt.size > LARGEST or ids_bytes > IDS_BYTES):
        raise StoreError(
            f"{out} would hold {excerpt.size / 1e9:,.1f} GB of {plural(len(excerpt.ids), 'clip')}, too much for one "
            "file: let --out be a folder"
        )
    with begun(out, folder=not one) as partial:
        if one:
            _write(numpy, partial, excerpt, list(excerpt.batches()))
            return
        held: list[Batch] = []
        size = number = 0
        files: dict[str, str] = {}

        def write() -> None:
            nonlocal size, number
            name = f"features-{number:05d}.safetensors"
            files.update((clip_id, name) for batch in held for clip_id in batch.clip_ids)
            _write(numpy, partial / name, excerpt, held)
            held.clear()
            size, number = 0, number + 1

        for batch in excerpt.batches():
            held.append(batch)
            size += sum(array.nbytes for array in batch.arrays.values())
            if size >= shard_bytes or _ids_bytes(held) >= IDS_BYTES:
                write()
        if held or not number:
            write()
        write_json(partial / INDEX, {"metadata": about(excerpt), "clip_map": files})


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


def from_safetensors(path: Path, wanted: Wanted) -> list[Source]:
    """A file that ``export_safetensors`` wrote, or a folder of them."""
    files = [path / name for name in _indexed(path)] if path.is_dir() else [path]
    described = [_described(file) for file in files]
    first = described[0]
    for file, other in zip(files, described, strict=True):
        if other.spec != first.spec or other.tensors.keys() != first.tensors.keys():
            raise ImportProblem(f"{file} has other tensors or another spec than {files[0]}")
    arrays = {
        name: Tensors(tuple(zip(files, (other.tensors[name] for other in described), strict=True)), name)
        for name in first.tensors
    }
    offsets = arrays.pop("offsets")
    bounds, rows = [np.zeros(1, np.int64)], 0
    for file, other in zip(files, described, strict=True):
        (length,), dtype = other.tensors["offsets"]
        if dtype != "int64" or length != len(other.ids) + 1:
            raise ImportProblem(f"{file}: offsets are {dtype}[{length}] for {plural(len(other.ids), 'clip')}")
        (inner,) = offsets.of(file).read([(0, length)])
        if inner[0] != 0 or inner[-1] != other.tensors["values"][0][0]:
            raise ImportProblem(f"{file}: offsets do not begin with 0 and end with the number of rows")
        bounds.append(rows + inner[1:])
        rows += int(inner[-1])
    ids = [clip_id for other in described for clip_id in other.ids]
    if path.is_dir() and ids != list(_clip_map(path)):
        raise ImportProblem(f"{path / INDEX} names other clips than the files beside it")
    return [ragged(path, first.name, arrays, np.concatenate(bounds), wanted, ids, first.spec)]


def _clip_map(folder: Path) -> dict[str, str]:
    index = read_json(folder / INDEX, ImportProblem)
    clips = index.get("clip_map") if isinstance(index, dict) else None
    plain = r"features-\d{5,}\.safetensors"
    if not isinstance(clips, dict) or not all(isinstance(f, str) and re.fullmatch(plain, f) for f in clips.values()):
        raise ImportProblem(f"{folder / INDEX} is not an index of amex: clip_map names the file of each clip")
    return clips


def _indexed(folder: Path) -> list[str]:
    """The names of the files in a folder; of a stream without clips its one file."""
    return list(dict.fromkeys(_clip_map(folder).values())) or ["features-00000.safetensors"]


@dataclass(frozen=True)
class Described:
    """What the header of a file says.

    Attributes:
        name: of the stream.
        tensors: shape and dtype by name.
    """

    name: str
    spec: dict[str, Any]
    ids: list[str]
    tensors: dict[str, tuple[tuple[int, ...], str]]


def _described(file: Path) -> Described:
    with library("safetensors", "safetensors").safe_open(file, "np") as opened:
        facts = opened.metadata() or {}
        tensors = {}
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            piece = opened.get_slice(name)
            if piece.get_dtype() not in DTYPES:
                raise ImportProblem(f"{file}: {name} is {piece.get_dtype()}, which NumPy has not")
            tensors[name] = (tuple(piece.get_shape()), DTYPES[piece.get_dtype()])
    if not {"amex_stream", "amex_spec", "clip_ids"} <= facts.keys() or not {"values", "offsets"} <= tensors.keys():
        raise ImportProblem(
            f"{file} is not an export of amex: it lacks values, offsets, or what they are in its metadata"
        )
    spec, ids = parse_json(facts["amex_spec"]), parse_json(facts["clip_ids"])
    check_spec(file, spec)
    if not isinstance(ids, list) or not tensors["values"][0] or len(tensors["offsets"][0]) != 1:
        raise ImportProblem(f"{file}: clip_ids or offsets are no list, or values are a single number")
    return Described(facts["amex_stream"], spec, ids, tensors)


@dataclass(frozen=True)
class Tensors:
    """A tensor of several files, end to end. See ``numpy_files.Entries``.

    Attributes:
        files: each with its shape and dtype there.
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

    def of(self, file: Path) -> Tensors:
        """What is in one file."""
        return Tensors(tuple(entry for entry in self.files if entry[0] == file), self.name)

    def read(self, spans: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
        from safetensors import safe_open

        begins = [0, *accumulate(shape[0] for _, (shape, _) in self.files)]
        number, piece = -1, None
        for begin, end in spans:
            # No clip lies in two files. One without rows may begin where the last file ends.
            at = min(bisect.bisect_right(begins, begin) - 1, len(self.files) - 1)
            if at != number:
                number, piece = at, safe_open(self.files[at][0], "np").get_slice(self.name)
            yield np.ascontiguousarray(piece[begin - begins[at] : end - begins[at]], self.dtype)
