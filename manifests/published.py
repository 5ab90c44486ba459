"""Reading the files that data sets are published in: what is not as published is an error that names the file.

Lists of people's own, whose bad rows are left out, are read by ``tables``.
"""

from __future__ import annotations

import csv
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .. import foreign
from .clip import ManifestError


def laid_out(path: Path) -> AbstractContextManager[None]:
    """Turns what comes of an absent value, or one of another type, into a ManifestError that names the file."""
    return foreign.reading(path, ManifestError, "is not laid out as expected")


def read_json(path: Path) -> Any:
    """A JSON file; raises ManifestError that names it."""
    return foreign.read_json(path, ManifestError)


def read_entries(path: Path, kind: type[list] | type[dict]) -> Any:
    """A JSON file whose value is a list or an object that is not empty; raises ManifestError that names it."""
    value = read_json(path)
    if not isinstance(value, kind) or not value:
        expected = {list: "an array", dict: "an object"}[kind]
        raise ManifestError(f"{path} is not laid out as expected: it must be {expected} that is not empty")
    return value


def texts(value: Any) -> list[str]:
    """A list of captions, as it is; raises ValueError for anything else."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"captions must be a list of texts, got {value!r}")
    return value


def read_names(path: Path) -> list[str]:
    """The lines of a list, without those that are blank; raises ManifestError that names a file without any."""
    with foreign.reading(path, ManifestError):
        names = path.read_text(encoding="utf-8-sig").split("\n")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ManifestError(f"{path} is empty: it must name one video a line")
    return names


def read_rows(path: Path, *columns: str, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a CSV file that has at least ``columns``.

    Raises:
        ManifestError: naming the line that has more or fewer cells than the head, or a file without rows.
    """
    rows = []
    with (
        foreign.reading(path, ManifestError, "is not a CSV file"),
        path.open(encoding="utf-8-sig", newline="") as handle,
    ):
        reader = csv.DictReader(handle, strict=True, delimiter=delimiter)
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            raise ManifestError(f"{path} has no column {missing[0]!r}; its columns are {reader.fieldnames}")
        for row in reader:
            if None in row or None in map(row.get, columns):
                raise ManifestError(
                    f"{path}:{reader.line_num}: not the {len(reader.fieldnames or [])} columns of the head"
                )
            rows.append(row)
    if not rows:
        raise ManifestError(f"{path} has no rows")
    return rows


def read_table(path: Path, columns: int) -> list[list[str]]:
    """The rows of a file of tab-separated columns without a head or quotes; blank lines are skipped.

    Raises:
        ManifestError: naming the line that has another number of columns, or a file without rows.
    """
    rows = []
    for where, line in foreign.read_lines(path, ManifestError):
        with foreign.reading(where, ManifestError):
            row = line.decode("utf-8-sig").rstrip().split("\t")
        if row == [""]:
            continue
        if len(row) != columns:
            raise ManifestError(f"{where}: {len(row)} tab-separated columns where {columns} are expected")
        rows.append(row)
    if not rows:
        raise ManifestError(f"{path} has no rows")
    return rows
