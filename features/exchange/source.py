"""The common interface of all import formats, and the checks of every import before anything is written."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import check_text, plural
from ..schema import StoreError, canonical, clip_arrays, row_arrays
from ..writer import ClipRows

# The array names that a stream can have.
ROW_ARRAYS = (
    *("times", "probabilities", "boxes", "scores", "labels", "counts", "frame_size"),
    *("tokens", "attributes", "attribute_scores"),
)
CLIP_ARRAYS = ("sentence",)
FLOATS = frozenset({"float16", "float32", "float64"})
NUMBERS = FLOATS | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {"bool"}
# Default limit of the unpacked size: EXPANSION times the size of the files, at least AT_LEAST bytes.
AT_LEAST, EXPANSION = 10**9, 10
# Maximal number of ids in an error message.
NAMED = 5

# Clip ids in the order of the rows of an array, or by row number: then only these rows are imported.
Names = Sequence[str] | Mapping[int, str]


class ImportProblem(StoreError):
    """A file of features cannot be read, or does not match its format."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The part of a file or folder to import.

    Attributes:
        names: for files without clip ids, the ids of the rows; for other files, the clips to import, all by default.
        arrays: names of the arrays of an npz file or an HGR folder to import; all if empty.
        max_gb: maximal unpacked size; None for ``EXPANSION`` times the size of the files.
    """

    names: Names | None = None
    arrays: Sequence[str] = ()
    max_gb: float | None = None

    def clips(self, path: Path, count: int, ids: Sequence[str] | None = None) -> list[tuple[int, str]]:
        """Return the rows to import, of ``count`` rows: (row, clip id), in order.

        Args:
            ids: the ids of the rows, if the source has them.
        """
        if ids is not None:
            if len(ids) != count:
                raise ImportProblem(f"{path} has {plural(count, 'row')} for {plural(len(ids), 'clip')}")
            return self.select(path, ids)
        if self.names is None:
            raise ImportProblem(f"{path} has no clip ids for its rows: name the clips with --captions FILE")
        if not isinstance(self.names, Mapping):
            if len(self.names) != count:
                raise ImportProblem(
                    f"{path} has {plural(count, 'row')} for {plural(len(self.names), 'clip')}: to import some of them, "
                    "--captions needs the field row"
                )
            return list(enumerate(self.names))
        chosen = sorted(self.names.items())
        if outside := [entry for entry in chosen if not 0 <= entry[0] < count]:
            row, clip_id = outside[0]
            raise ImportProblem(
                f"{path} has {plural(count, 'row')}, 0 to {count - 1}; --captions has clip {clip_id!r} in row {row}"
            )
        return chosen

    def select(self, path: Path, ids: Sequence[str]) -> list[tuple[int, str]]:
        """Return the clips to import from a source with the ids ``ids``: (position, clip id), in its order."""
        if self.names is None:
            return list(enumerate(ids))
        if isinstance(self.names, Mapping):
            raise ImportProblem(f"{path} has its own clip ids: remove the field row from --captions")
        chosen, available = set(self.names), set(ids)
        if unknown := [clip_id for clip_id in self.names if clip_id not in available]:
            raise ImportProblem(f"{path} lacks {plural(len(unknown), 'clip')} of --captions: {format_ids(unknown)}")
        return [(place, clip_id) for place, clip_id in enumerate(ids) if clip_id in chosen]

    def check_size(self, path: Path, size: int, files: Iterable[Path]) -> None:
        """Raise ImportProblem if the unpacked size is above the limit. Before this check only headers are read.

        Args:
            size: unpacked bytes according to the headers of ``files``.
        """
        packed = sum(file.stat().st_size for file in files)
        limit = max(AT_LEAST, EXPANSION * packed) if self.max_gb is None else self.max_gb * 1e9
        if size > limit:
            raise ImportProblem(
                f"{path} unpacks to {size / 1e9:,.1f} GB from {packed / 1e9:,.3f} GB of files; the limit is "
                f"{limit / 1e9:,.1f} GB: if the size is right, use --max-gb {math.ceil(size / 1e9)}"
            )


@dataclass(frozen=True, kw_only=True)
class Source:
    """A stream in a file or folder, ready to be read once, clip by clip.

    Attributes:
        path: the file or folder, for error messages.
        name: default name of the stream.
        spec: the spec for ``declare_stream``.
        ids: clip ids, in order.
        clips: yields the clips in that order.
        splits, captions: by clip id, if the format has them.

    Raises:
        ImportProblem: if an id cannot be stored, two ids are equal, or the spec is invalid.
    """

    path: Path
    name: str
    spec: dict[str, Any]
    ids: Sequence[str]
    clips: Callable[[], Iterator[ClipRows]]
    splits: Mapping[str, str] = field(default_factory=dict)
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ids(self.path, self.ids)
        check_spec(self.path, self.spec)

    def checked(self, *, allow_nan: bool) -> Iterator[ClipRows]:
        """Yield the clips. Raises ImportProblem at the first clip with invalid times or values."""
        for clip in self.clips():
            for name, array in clip.arrays.items():
                if array.dtype.kind != "f" or (allow_nan and name != "times"):
                    continue
                finite = np.isfinite(array)
                if not finite.all():
                    place = tuple(np.argwhere(~finite)[0])
                    remedy = "" if name == "times" else "; --allow-nan imports it"
                    where = f"row {place[0]} of {name}"
                    raise ImportProblem(f"{self.path}: clip {clip.clip_id!r} has {array[place]} in {where}{remedy}")
            times = clip.arrays.get("times")
            if times is not None and (backward := times[:, 1] < times[:, 0]).any():
                row = int(backward.argmax())
                raise ImportProblem(
                    f"{self.path}: clip {clip.clip_id!r} has a row that ends before it starts: row {row}, {times[row]}"
                )
            yield clip


def check_ids(path: Path, ids: Sequence[Any]) -> None:
    """Raise ImportProblem unless all ids are different texts that a store can hold."""
    for clip_id in ids:
        if not isinstance(clip_id, str) or not clip_id:
            raise ImportProblem(f"{path}: {clip_id!r} cannot be the id of a clip: ids must be texts and not empty")
        try:
            check_text("it", clip_id)
        except ValueError as error:
            raise ImportProblem(f"{path}: {clip_id!r} cannot be the id of a clip: {error}") from error
    if len(set(ids)) < len(ids):
        duplicates = [clip_id for clip_id, count in Counter(ids).items() if count > 1]
        raise ImportProblem(f"{path}: clip ids must be unique; duplicates: {format_ids(duplicates)}")


def format_ids(ids: Sequence[str]) -> str:
    """Return the first few ids as a text for an error message."""
    more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
    return ", ".join(map(repr, ids[:NAMED])) + more


def check_spec(path: Path, spec: Any) -> None:
    """Raise ImportProblem unless an imported spec describes valid arrays."""
    if not isinstance(spec, dict) or not isinstance(spec.get("output"), dict):
        raise ImportProblem(f"{path}: its spec does not describe a stream")
    canonical(spec)
    rows, single = row_arrays(spec), clip_arrays(spec)
    if unknown := sorted((rows.keys() - {"values", *ROW_ARRAYS}) | (single.keys() - set(CLIP_ARRAYS))):
        raise ImportProblem(f"{path}: unknown array {unknown[0]!r}; a stream can have {', '.join(ROW_ARRAYS)}")
    for name, (shape, dtype) in {**rows, **single}.items():
        valid_shape = all(type(size) is int and size >= (name == "values") for size in shape)
        valid_dtype = dtype in (FLOATS if name in ("values", "times") else NUMBERS)
        if not valid_shape or not valid_dtype or (name == "values" and not shape):
            raise ImportProblem(
                f"{path}: {name} has rows of {dtype}{list(shape)}, which a stream cannot store: features must be "
                "float16, float32 or float64 with at least one number per row, and other arrays must be numbers"
            )


def check_array(where: str, name: str, shape: tuple[int, ...], dtype: np.dtype, spec: dict[str, Any]) -> None:
    """Raise ImportProblem unless an array (entries, ...) has the shape and dtype of the spec.

    Times may have any real dtype.

    Args:
        where: description of the array for the error message.
        name: name of the array in the stream.
    """
    entry_shape, expected_dtype = {**row_arrays(spec), **clip_arrays(spec)}[name]
    fits = dtype.name == expected_dtype or (name == "times" and dtype.kind in "fiu")
    if not shape or shape[1:] != entry_shape or not fits:
        expected = ", ".join(map(str, ("entries", *entry_shape)))
        raise ImportProblem(f"{where} is {dtype}{list(shape)}, but must be {expected_dtype}[{expected}]")


def file_spec(files: Sequence[Path], array: str) -> dict[str, Any]:
    """Return the spec of features whose production is unknown: the digest of the imported files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return {"network": "imported", "source": {"sha256": digest.hexdigest(), "array": array}}


def with_output(spec: dict[str, Any], form: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, Any]:
    """Return a spec with an output.

    Args:
        form: name -> (shape of an entry, dtype) of all arrays, including ``values``.
    """
    described = {name: {"shape": list(shape), "dtype": np.dtype(dtype).name} for name, (shape, dtype) in form.items()}
    values, timed = described.pop("values"), described.pop("times", None) is not None
    return {**spec, "output": {**values, "arrays": described, "times": timed}}
