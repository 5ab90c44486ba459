"""What every format of imported features provides, and what is checked of all of them before anything is written."""

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

# Arrays of a stream that have a name of their own, in files that amex exports and in such as are made by hand.
ROW_ARRAYS = (
    *("times", "probabilities", "boxes", "scores", "labels", "counts", "frame_size"),
    *("tokens", "attributes", "attribute_scores"),
)
CLIP_ARRAYS = ("sentence",)
FLOATS = frozenset({"float16", "float32", "float64"})
NUMBERS = FLOATS | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {"bool"}
# By default a source may hold at least so many bytes, and so many times what its files do.
AT_LEAST, EXPANSION = 10**9, 10
# Ids that an error names.
NAMED = 5

# Clip ids in the order of the rows of an array, or by row: then only these rows are imported.
Names = Sequence[str] | Mapping[int, str]


class ImportProblem(StoreError):
    """A file of features cannot be read, or does not hold what its format says."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to take of a file or folder.

    Attributes:
        names: of the rows of files that do not name their clips; of others the clips to take, all by default.
        arrays: of an npz file or HGR's folder, those to take; all if there are none here.
        max_gb: how much the source may hold once it is unpacked; None for ``EXPANSION`` times its files.
    """

    names: Names | None = None
    arrays: Sequence[str] = ()
    max_gb: float | None = None

    def clips(self, path: Path, count: int, ids: Sequence[str] | None = None) -> list[tuple[int, str]]:
        """Which of ``count`` rows to take, in order, each with the id of its clip.

        Args:
            ids: of the rows, if the source names them itself.
        """
        if ids is not None:
            if len(ids) != count:
                raise ImportProblem(f"{path} has {plural(count, 'row')} for {plural(len(ids), 'clip')}")
            return self.among(path, ids)
        if self.names is None:
            raise ImportProblem(f"{path} does not say which clip each row is of: name them with --captions FILE")
        if not isinstance(self.names, Mapping):
            if len(self.names) != count:
                raise ImportProblem(
                    f"{path} has {count} rows for {len(self.names)} clips: only lines of --captions that say their row "
                    "can name some of them"
                )
            return list(enumerate(self.names))
        chosen = sorted(self.names.items())
        if outside := [entry for entry in chosen if not 0 <= entry[0] < count]:
            row, clip_id = outside[0]
            raise ImportProblem(f"{path} has {count} rows, 0 to {count - 1}; clip {clip_id!r} is said to be row {row}")
        return chosen

    def among(self, path: Path, ids: Sequence[str]) -> list[tuple[int, str]]:
        """Which clips to take of a source that names them itself, ``ids``, in its order, each with its place."""
        if self.names is None:
            return list(enumerate(ids))
        if isinstance(self.names, Mapping):
            raise ImportProblem(f"{path} names its clips itself: leave out the field row in --captions")
        chosen, there = set(self.names), set(ids)
        if unknown := [clip_id for clip_id in self.names if clip_id not in there]:
            raise ImportProblem(f"{path} lacks {plural(len(unknown), 'clip')} of --captions: {some(unknown)}")
        return [(place, clip_id) for place, clip_id in enumerate(ids) if clip_id in chosen]

    def check_size(self, path: Path, size: int, files: Iterable[Path]) -> None:
        """Raises ImportProblem if ``files`` claim to hold more bytes than they may. Only headers are read before."""
        packed = sum(file.stat().st_size for file in files)
        most = max(AT_LEAST, EXPANSION * packed) if self.max_gb is None else self.max_gb * 1e9
        if size > most:
            raise ImportProblem(
                f"{path} holds {size / 1e9:,.1f} GB in {packed / 1e9:,.3f} GB of files, and up to {most / 1e9:,.1f} GB "
                f"are read: if that is right, say --max-gb {math.ceil(size / 1e9)}"
            )


@dataclass(frozen=True, kw_only=True)
class Source:
    """Features of one stream in a file or folder, ready to be read once, clip by clip.

    Attributes:
        path: the file or folder, as errors name it.
        name: what the stream is called unless told otherwise.
        spec: as ``declare_stream`` takes it.
        ids: of the clips, in order.
        clips: yields them in that order.
        splits, captions: by clip id, where the format knows them.

    Raises:
        ImportProblem: if an id cannot be stored or two are equal, or the spec is not one.
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
        """The clips; raises ImportProblem at the first whose times or values are no numbers to work with."""
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
    """Raises ImportProblem unless all are different texts that a store can hold."""
    for clip_id in ids:
        if not isinstance(clip_id, str) or not clip_id:
            raise ImportProblem(f"{path}: {clip_id!r} cannot be the id of a clip: ids are texts that are not empty")
        try:
            check_text("it", clip_id)
        except ValueError as error:
            raise ImportProblem(f"{path}: {clip_id!r} cannot be the id of a clip: {error}") from error
    if len(set(ids)) < len(ids):
        twice = [clip_id for clip_id, count in Counter(ids).items() if count > 1]
        raise ImportProblem(f"{path}: every clip needs an id of its own; there more than once: {some(twice)}")


def some(ids: Sequence[str]) -> str:
    """The first few of ids, as an error names them."""
    more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
    return ", ".join(map(repr, ids[:NAMED])) + more


def check_spec(path: Path, spec: Any) -> None:
    """Raises ImportProblem unless a spec that came in a file describes arrays that a stream can have."""
    if not isinstance(spec, dict) or not isinstance(spec.get("output"), dict):
        raise ImportProblem(f"{path}: its spec does not describe a stream")
    canonical(spec)
    rows, single = row_arrays(spec), clip_arrays(spec)
    if unknown := sorted((rows.keys() - {"values", *ROW_ARRAYS}) | (single.keys() - set(CLIP_ARRAYS))):
        raise ImportProblem(f"{path}: no array of rows is called {unknown[0]!r}; known are {', '.join(ROW_ARRAYS)}")
    for name, (shape, dtype) in {**rows, **single}.items():
        sizes = all(type(size) is int and size >= (name == "values") for size in shape)
        known = dtype in (FLOATS if name in ("values", "times") else NUMBERS)
        if not sizes or not known or (name == "values" and not shape):
            raise ImportProblem(
                f"{path}: {name} has rows of {dtype}{list(shape)}, which no stream can hold: features are float16, "
                "float32 or float64, one number or more a row, and what is beside them is numbers"
            )


def check_array(where: str, name: str, shape: tuple[int, ...], dtype: np.dtype, spec: dict[str, Any]) -> None:
    """Raises ImportProblem unless the entries of an array (entries, ...) have the shape and dtype that a spec says.

    Times may come in any real numbers.

    Args:
        where: the array as the error calls it.
        name: which array of the stream it is.
    """
    size, kind = {**row_arrays(spec), **clip_arrays(spec)}[name]
    fits = dtype.name == kind or (name == "times" and dtype.kind in "fiu")
    if not shape or shape[1:] != size or not fits:
        expected = ", ".join(map(str, ("entries", *size)))
        raise ImportProblem(f"{where} is {dtype}{list(shape)}; {kind}[{expected}] is expected")


def file_spec(files: Sequence[Path], array: str) -> dict[str, Any]:
    """What is known of how imported features were made: the bytes they came in."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return {"network": "imported", "source": {"sha256": digest.hexdigest(), "array": array}}


def with_output(spec: dict[str, Any], form: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, Any]:
    """A spec with the arrays there are: name -> (shape of an entry, dtype), ``values`` among them."""
    described = {name: {"shape": list(shape), "dtype": np.dtype(dtype).name} for name, (shape, dtype) in form.items()}
    values, timed = described.pop("values"), described.pop("times", None) is not None
    return {**spec, "output": {**values, "arrays": described, "times": timed}}
