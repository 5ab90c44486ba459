"""Files that others wrote: whatever a parser raises over one becomes a single line that names the file."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import AmexError, first_line

# Lists and objects within each other. Programs that walk JSON recurse, and Python's stack holds about a thousand calls.
NESTED = 100
# Digits of an integer: more than these and it may be no float.
DIGITS = 300
# Bytes of a line; 64 MiB of features are some 8,000 objects.
LINE = 64 << 20
# Characters of another library's message that are repeated.
QUOTED = 200


@contextmanager
def reading(path: object, kind: type[AmexError], what: str = "cannot be read") -> Iterator[None]:
    """Turns every error that comes of reading a file into a ``kind``: one line with the file's name and the reason.

    Parsers raise nearly anything over a damaged or a hostile file: NumPy a TokenError, zipfile a NotImplementedError,
    h5py a RuntimeError, json a RecursionError, and all of them a MemoryError. An AmexError passes as it is.
    """
    try:
        yield
    except AmexError:
        raise
    except Exception as error:
        raise kind(f"{path} {what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Why a file could not be read, in one short line."""
    text = first_line(error)
    if isinstance(error, OSError) and error.errno:
        text = os.strerror(error.errno)
    elif isinstance(error, KeyError) and error.args:  # h5py's say a sentence
        text = str(error.args[0]) if " " in str(error.args[0]) else f"{text} is missing"
    elif not isinstance(error, (OSError, ValueError)):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


def parse_json(text: str | bytes) -> Any:
    """A JSON value, with ``NaN`` and ``Infinity`` as json takes them; a byte order mark is skipped.

    Raises:
        ValueError: if it is no JSON, is nested more than NESTED deep, or has an integer of more than DIGITS digits.
    """
    try:
        value = json.loads(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"it is nested more than {NESTED} deep") from None
    level, depth = _containers([value]), 0
    while level:
        depth += 1
        if depth > NESTED:
            raise ValueError(f"it is nested more than {NESTED} deep")
        level = _containers(item for entry in level for item in (entry.values() if isinstance(entry, dict) else entry))
    return value


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits is too large")
    return int(digits)


def read_json(path: Path, kind: type[AmexError]) -> Any:
    """The value of a JSON file; raises a ``kind`` that names the file."""
    with reading(path, kind):
        text = path.read_bytes()
    with reading(path, kind, "is not JSON"):
        return parse_json(text)


def read_json_lines(path: Path, kind: type[AmexError]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, one a line, each with its place ``FILE:LINE``; blank lines are skipped.

    Raises a ``kind`` that names the file and the line.
    """
    for where, line in read_lines(path, kind, "is not a JSON object"):
        if not line.strip():
            continue
        with reading(where, kind, "is not a JSON object"):
            record = parse_json(line)
            if not isinstance(record, dict):
                raise ValueError(f"it is {type(record).__name__}")
        yield where, record


def read_lines(path: Path, kind: type[AmexError], what: str = "cannot be read") -> Iterator[tuple[str, bytes]]:
    """The lines of a file, each with its place ``FILE:LINE``.

    Raises a ``kind`` that names the file, or the line that is longer than LINE bytes, and says ``what``.
    """
    with reading(path, kind):
        handle = path.open("rb")
    with handle:
        for number in itertools.count(1):
            where = f"{path}:{number}"
            with reading(where, kind, what):
                line = handle.readline(LINE)
                if len(line) == LINE:
                    raise ValueError(f"the line is longer than {LINE >> 20} MiB")
            if not line:
                return
            yield where, line
