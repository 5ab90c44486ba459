"""Import bottom-up-attention features from TSV files: an image becomes a clip with one row of objects."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ...errors import plural
from ...foreign import read_lines, reading
from ..writer import ClipRows
from .source import ImportProblem, Selection, Source, file_spec, with_output

# The original columns (Anderson et al., CVPR 2018), and the columns of LXMERT's release with classes and attributes.
BUTD = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT = (
    "image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf",
    "num_boxes", "boxes", "features",
)  # fmt: skip
# The column and the number type of each array of objects.
COLUMNS = {"values": ("features", "f4"), "boxes": ("boxes", "f4")}
CLASSES = {
    "scores": ("objects_conf", "f4"),
    "labels": ("objects_id", "i8"),
    "attributes": ("attrs_id", "i8"),
    "attribute_scores": ("attrs_conf", "f4"),
}


def from_butd(path: Path, selection: Selection) -> list[Source]:
    """Return the images of a file with six or ten columns. The file is read twice: for the widths, for the import."""
    ids: list[str] = []
    most, widths = 0, set()
    for clip_id, objects in _images(path):
        count, width = objects["values"].shape
        ids.append(clip_id)
        most = max(most, count)
        widths |= {width} if count else set()
        names = tuple(objects)
    if len(widths) != 1:
        raise ImportProblem(f"{path}: features have the lengths {sorted(widths)}, but must have one length")
    real, number = np.dtype("float32"), np.dtype("int32")
    form: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        "values": ((most, widths.pop()), real),
        "boxes": ((most, 4), real),
        "counts": ((), number),
        "frame_size": ((2,), number),
    }
    if "labels" in names:
        form |= {"scores": ((most,), real), "labels": ((most,), number)}
        form |= {"attributes": ((most,), number), "attribute_scores": ((most,), real)}
    padded = sum(math.prod(shape) * dtype.itemsize for shape, dtype in form.values())
    chosen = dict(selection.select(path, ids))
    selection.check_size(path, padded * len(chosen), [path])

    def clips() -> Iterator[ClipRows]:
        for place, (clip_id, objects) in enumerate(_images(path)):
            if place in chosen:
                yield ClipRows(clip_id=clip_id, arrays={name: _padded(objects[name], *form[name]) for name in form})

    spec = with_output(file_spec([path], path.stem), form)
    return [Source(path=path, name=path.stem, spec=spec, ids=list(chosen.values()), clips=clips)]


def _images(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield id and arrays of each image: ``counts`` (), ``frame_size`` (2,), and others with one entry per object."""
    columns: tuple[str, ...] = ()
    for where, line in read_lines(path, ImportProblem):
        with reading(where, ImportProblem):
            fields = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
            layout = {len(BUTD): BUTD, len(LXMERT): LXMERT}.get(len(fields))
            if layout is None:
                raise ValueError(f"{plural(len(fields), 'column')}; bottom-up-attention files have 6 or 10")
            if layout != (columns or layout):
                raise ValueError(f"{plural(len(layout), 'column')} after lines of {len(columns)}")
            columns = layout
            image = _image(dict(zip(columns, fields, strict=True)))
        yield fields[0], image


def _image(record: Mapping[str, str]) -> dict[str, np.ndarray]:
    count = _number(record, "num_boxes")
    arrays = {
        "counts": np.array(count, np.int32),
        "frame_size": np.array([_number(record, "image_w"), _number(record, "image_h")], np.int32),
    }
    for name, (column, kind) in (COLUMNS if len(record) == len(BUTD) else COLUMNS | CLASSES).items():
        numbers = np.frombuffer(base64.b64decode(record[column], validate=True), kind)
        width = {"values": len(numbers) // max(1, count), "boxes": 4}.get(name, 1)
        if len(numbers) != count * width:
            raise ValueError(f"{column} has {len(numbers)} numbers for {plural(count, 'box')}")
        if kind == "i8":
            numbers = _narrow(column, numbers)
        arrays[name] = numbers.reshape(count, width) if name in COLUMNS else numbers
    return arrays


def _number(record: Mapping[str, str], column: str) -> int:
    text = record[column]
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"{column} is {text[:20]!r}, but must be a count")
    return int(text)


def _narrow(column: str, numbers: np.ndarray) -> np.ndarray:
    narrow = numbers.astype(np.int32)
    if (narrow != numbers).any():
        raise ValueError(f"{column} has numbers that do not fit into 32 bits")
    return narrow


def _padded(array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the row of an image, padded to ``shape`` like unused boxes of a detector: floats with 0, ints with -1."""
    row = array
    if array.shape != shape:
        row = np.full(shape, -1 if dtype.kind == "i" else 0, dtype)
        if len(array):
            row[: len(array)] = array
    return row[None]
