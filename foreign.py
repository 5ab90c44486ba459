"""Files that others wrote: whatever a parser raises over one becomes a single line that names the file."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import AmexError, first_line

# Lists and objects within each other. Programs that walk JSON recurse, and Python's stack holds about a thousand calls.
NESTED = 100
# Digits of an integer: more than these and it may be no float.
DIGITS = 300
# Bytes of a line; 64 MiB of features are some 8,000 objects.
LINE = 64 << 20
# Characters that are read of a JSON file at once.
CHUNK = 1 << 20
BLANKS = re.compile(r"[ \t\r\n]*")
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


@contextmanager
def uncollected() -> Iterator[None]:
    """While much is made and nothing is dropped: the collector would look through all of it again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def file_sha256(path: Path, kind: type[AmexError]) -> str:
    """Hexadecimal; raises a ``kind`` that names the file if it cannot be read."""
    with reading(path, kind), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def parse_json(text: str | bytes) -> Any:
    """A JSON value, with ``NaN`` and ``Infinity`` as json takes them; a byte order mark is skipped.

    Raises:
        ValueError: if it is no JSON, is nested more than NESTED deep, or has an integer of more than DIGITS digits.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    try:
        value = _DECODER.decode(data.decode(json.detect_encoding(data), "surrogatepass"))
    except RecursionError:
        raise ValueError(f"it is nested more than {NESTED} deep") from None
    if data.count(b"[") + data.count(b"{") > NESTED:  # most lines have too few brackets to be deep
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level, depth = _containers([value]), 0
    while level:
        depth += 1
        if depth > NESTED:
            raise ValueError(f"it is nested more than {NESTED} deep")
        level = _containers(item for entry in level for item in (entry.values() if isinstance(entry, dict) else entry))


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits is too large")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, dict | list)]


def read_json(path: Path, kind: type[AmexError]) -> Any:
    """The value of a JSON file; raises a ``kind`` that names the file."""
    with reading(path, kind):
        text = path.read_bytes()
    with reading(path, kind, "is not JSON"):
        return parse_json(text)


def read_json_members(path: Path, kind: type[AmexError]) -> Iterator[tuple[str | None, Any]]:
    """What the list or the object in a JSON file has, one member at a time: each with its key, None in a list.

    Raises a ``kind`` that names the file, also for a member that is longer than LINE.
    """
    with reading(path, kind):
        handle = path.open(encoding="utf-8-sig")
    with reading(path, kind, "is not JSON"), handle:
        text = _JsonText(handle)
        opening = text.sign()
        if opening not in ("[", "{"):
            raise ValueError("it is neither a list nor an object")
        closing = "]" if opening == "[" else "}"
        sign = text.sign()
        if sign != closing:
            text.at -= len(sign)
            sign = ","
        while sign == ",":
            key = text.value() if opening == "{" else None
            if key is not None and (not isinstance(key, str) or text.sign() != ":"):
                raise ValueError("a key is expected")
            yield key, text.value()
            sign = text.sign()
        if sign != closing or text.sign():
            raise ValueError(f"{closing!r} is expected" if sign != closing else "it goes on after its end")


class _JsonText:
    """The text of a JSON file, of which no more than a value is in memory."""

    def __init__(self, handle: IO[str]) -> None:
        self._handle = handle
        self._text = ""
        self._ended = False
        self.at = 0

    def _more(self) -> None:
        rest = self._text[self.at :]
        chunk = self._handle.read(max(CHUNK, len(rest)))
        self._text, self.at, self._ended = rest + chunk, 0, not chunk

    def sign(self) -> str:
        """The next character that is not blank, or nothing at the end."""
        while True:
            self.at = BLANKS.match(self._text, self.at).end()
            if self.at < len(self._text):
                self.at += 1
                return self._text[self.at - 1]
            if self._ended:
                return ""
            self._more()

    def value(self) -> Any:
        """The next value; raises ValueError as ``parse_json`` does."""
        sign = self.sign()
        self.at -= len(sign)
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self.at)
            except RecursionError:
                raise ValueError(f"it is nested more than {NESTED} deep") from None
            except json.JSONDecodeError:
                if self._ended:
                    raise
                if len(self._text) - self.at > LINE:
                    raise ValueError(f"a member is longer than {LINE >> 20} MiB") from None
            else:
                if end + 2 < len(self._text) or self._ended:  # else a number may go on, as 0 does in 0.5 and 0e-1
                    break
            self._more()
        if self._text.count("[", self.at, end) + self._text.count("{", self.at, end) > NESTED:
            _check_depth(value)
        self.at = end
        return value


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
