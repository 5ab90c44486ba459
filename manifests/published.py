"""Read the published files of data sets. Any deviation is an error that names the file.

``tables`` reads the lists of users, where bad rows are skipped.
"""

from __future__ import annotations

import csv
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from .. import foreign
from ..errors import plural
from .clip import ManifestError


def checked_layout(path: Path) -> AbstractContextManager[None]:
    """Convert errors from missing values or wrong types into a ManifestError that names the file."""
    return foreign.reading(path, ManifestError, "is not laid out as expected")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ManifestError that names it."""
    return foreign.read_json(path, ManifestError)


def read_entries(path: Path, kind: type[list] | type[dict]) -> Any:
    """Read a JSON file with a non-empty list or object. Raises ManifestError that names it."""
    value = read_json(path)
    if not isinstance(value, kind) or not value:
        expected = {list: "an array", dict: "an object"}[kind]
        raise ManifestError(f"{path} is not laid out as expected: it must be {expected} that is not empty")
    return value


def texts(value: Any) -> list[str]:
    """Return a list of captions unchanged. Raises ValueError for anything else."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"captions must be a list of texts, got {value!r}")
    return value


def read_names(path: Path) -> list[str]:
    """Return the lines of a file that are not blank. Raises ManifestError if there are none."""
    with foreign.reading(path, ManifestError):
        names = path.read_text(encoding="utf-8-sig").split("\n")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ManifestError(f"{path} is empty: it must have one video per line")
    return names


def read_rows(path: Path, *columns: str, delimiter: str = ",") -> list[dict[str, str]]:
    """Return the rows of a CSV file that has at least these columns.

    Raises:
        ManifestError: naming the line, if it has another number of cells than the header; or if there are no rows.
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
                    f"{path}:{reader.line_num}: not {plural(len(reader.fieldnames or []), 'cell')} as in the header"
                )
            rows.append(row)
    if not rows:
        raise ManifestError(f"{path} has no rows")
    return rows


def read_table(path: Path, columns: int) -> list[list[str]]:
    """Return the rows of a file with tab-separated columns, without header and quotes. Blank lines are skipped.

    Raises:
        ManifestError: naming the line, if it has another number of columns; or if there are no rows.
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
