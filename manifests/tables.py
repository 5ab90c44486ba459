"""Read lists row by row: csv, tsv, JSON, JSON lines and parquet.

An unreadable row is a Problem; the following rows are still read. This module does not interpret the columns.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import needs, plural
from ..foreign import LINE, parse_json, read_json_members, reading
from .clip import ManifestError, Problem

# A row: its line (or its number, if the file has no lines), and the values of the requested columns.
Row = tuple[int, Sequence[Any]]

SEPARATORS = ",;\t"
# Rows of a JSON file to search for columns.
HEAD = 1000
# Maximal lines of a quoted text. If it is longer, the opening quote is a mistake.
QUOTED_LINES = 1000
# Rows of a parquet file in memory at a time.
BATCH = 4096


@dataclass(frozen=True)
class Table:
    """A list of rows.

    Attributes:
        columns: names of the columns, as in the file.
        rows: yields the values of the named columns; None for a missing value.
    """

    path: Path
    columns: list[str]
    rows: Callable[[Sequence[str]], Iterator[Row | Problem]]


def open_table(path: Path, *, head: int | None = HEAD) -> Table:
    """Open a list. The extension of its name decides the format.

    A JSON file is a list of objects, or one object: then the keys are the column ``video``, and each value is an object
    or a list of objects with the other columns.

    Args:
        head: rows of a JSON file to search for columns; None: all.

    Raises:
        ManifestError: if the file cannot be read, or has another format; ``rows`` raises it too.
    """
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    extension = path.suffix.lower()
    if extension in readers:
        return readers[extension](path)
    if extension in (".jsonl", ".json"):
        return _of_records(path, _json_lines if extension == ".jsonl" else _json, head)
    raise ManifestError(f"{path}: a list is a .csv, .tsv, .jsonl, .json or .parquet file")


class _Lines:
    """The lines of a file for ``csv.reader``. After an unreadable row, reading can restart at its second line."""

    def __init__(self, handle: Iterable[str]) -> None:
        self._handle = iter(handle)
        self._pushed_back: deque[str] = deque()
        self._row: list[str] = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if len(self._row) == QUOTED_LINES:
            raise csv.Error("unexpected end of data")
        line = self._pushed_back.popleft() if self._pushed_back else next(self._handle)
        self._row.append(line)
        return line

    def start_row(self) -> int:
        """Begin a new row. Return the number of its first line."""
        self.number += len(self._row)
        self._row.clear()
        return self.number + 1

    def rewind_to_first(self) -> str:
        """Return the first line of the current row, and push back its other lines."""
        self._pushed_back.extendleft(reversed(self._row[1:]))
        del self._row[1:]
        return self._row[0]


def _csv(path: Path) -> Table:
    with reading(path, ManifestError), _text(path) as handle:
        lines = _Lines(handle)
        first = next((line for line in lines if line.strip()), "")
        separator = "\t" if path.suffix.lower() == ".tsv" else max(SEPARATORS, key=first.count)
        columns = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    if not any(columns):
        raise ManifestError(f"{path} is empty: its first line must name the columns; fill it or delete it")
    if duplicate := next((name for name in columns if name and columns.count(name) > 1), None):
        raise ManifestError(f"{path} has two columns {duplicate!r}")

    def rows(names: Sequence[str]) -> Iterator[Row | Problem]:
        places = [columns.index(name) for name in names]
        with reading(path, ManifestError), _text(path) as handle:
            lines = _Lines(handle)
            reader = csv.reader(lines, delimiter=separator, strict=True)
            head = True
            while True:
                number = lines.start_row()
                limit = csv.field_size_limit(LINE)  # global, so it is restored below
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    cells = lines.rewind_to_first().rstrip("\r\n").split(separator)
                    # With tabs, quotes are not needed, so a quote may be a normal character.
                    if separator != "\t" or len(cells) != len(columns):
                        yield Problem(file=path.name, line=number, reason=f"{error}: is a quote not closed?")
                        continue
                finally:
                    csv.field_size_limit(limit)
                if not any(cells) or head:  # skip the header, and rows that have only separators
                    head = head and not any(map(str.strip, cells))
                    continue
                while len(cells) > len(columns) and not cells[-1]:
                    cells.pop()
                if len(cells) != len(columns):
                    quotes = f"; a text with {separator!r} in it must be in quotes" if len(cells) > len(columns) else ""
                    reason = f"{plural(len(cells), 'cell')} for {plural(len(columns), 'column')}{quotes}"
                    yield Problem(file=path.name, line=number, reason=reason)
                    continue
                if not all(map(str.isascii, cells)) and not _is_utf8("".join(cells)):
                    yield Problem(file=path.name, line=number, reason="it is not UTF-8: save the list as UTF-8")
                    continue
                yield number, [cells[place] for place in places]

    return Table(path, columns, rows)


def _text(path: Path) -> IO[str]:
    """Open a text file: UTF-16 if it has a byte order mark (from spreadsheets), else UTF-8 with surrogate escapes."""
    handle = path.open("rb")
    byte_order_mark = handle.read(2)
    handle.seek(0)
    encoding = "utf-16" if byte_order_mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return io.TextIOWrapper(handle, encoding, "surrogateescape", newline="")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


Record = tuple[int, Mapping[str, Any]]


def _of_records(path: Path, read: Callable[[Path], Iterator[Record | Problem]], head: int | None) -> Table:
    records = (item[1] for item in itertools.islice(read(path), head) if not isinstance(item, Problem))
    columns = list(dict.fromkeys(name for record in records for name in record))

    def rows(names: Sequence[str]) -> Iterator[Row | Problem]:
        for item in read(path):
            yield item if isinstance(item, Problem) else (item[0], [item[1].get(name) for name in names])

    return Table(path, columns, rows)


def _json_lines(path: Path) -> Iterator[Record | Problem]:
    with reading(path, ManifestError), path.open("rb") as handle:
        for number in itertools.count(1):
            line = handle.readline(LINE)
            if not line:
                return
            if not line.strip():
                continue
            try:
                record = parse_json(line)
                if not isinstance(record, dict):
                    raise ValueError(f"it is {type(record).__name__}")
            except ValueError as error:
                yield Problem(file=path.name, line=number, reason=f"not a JSON object: {error}")
                continue
            yield number, record


def _json(path: Path) -> Iterator[Record | Problem]:
    number = 0
    for video, value in read_json_members(path, ManifestError):
        for record in value if video is not None and isinstance(value, list) else [value]:
            number += 1
            if isinstance(record, dict):
                yield number, record if video is None else {"video": video, **record}
            else:
                yield Problem(file=path.name, line=number, reason=f"not an object: it is {type(record).__name__}")


def _parquet(path: Path) -> Table:
    with needs("export", f"{path}: a parquet file"):
        from pyarrow.parquet import ParquetFile
    with reading(path, ManifestError, "is not a parquet file"), ParquetFile(path) as file:
        columns = file.schema_arrow.names

    def rows(names: Sequence[str]) -> Iterator[Row | Problem]:
        with reading(path, ManifestError, "is not a parquet file"), ParquetFile(path) as file:
            first = 1
            for batch in file.iter_batches(BATCH, columns=list(dict.fromkeys(names))):
                values = batch.to_pydict()
                yield from enumerate(zip(*(values[name] for name in names), strict=True), start=first)
                first += batch.num_rows

    return Table(path, columns, rows)
