"""Reading files of other programs: every error of a parser becomes one line that names the file."""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import AmexError, first_line

# Maximum nesting of JSON. Programs that walk it recurse, and Python's stack holds about a thousand calls.
NESTED = 100
# Maximum digits of an integer; a larger one may not fit a float.
DIGITS = 300
# Maximum bytes of a line; 64 MiB hold the features of some 8,000 objects.
LINE = 64 << 20
# Characters of a JSON file that are read at once.
CHUNK = 1 << 20
BLANKS = re.compile(r"[ \t\r\n]*")
# Maximum characters of another library's message in an error.
QUOTED = 200


@contextmanager
def reading(path: object, kind: type[AmexError], what: str = "cannot be read") -> Iterator[None]:
    """Convert every error while a file is read into a ``kind``: one line with the file's name and the reason.

    Parsers raise many types over damaged or hostile files: NumPy a TokenError, zipfile a NotImplementedError, h5py a
    RuntimeError, json a RecursionError, all of them a MemoryError. An AmexError passes unchanged.
    """
    try:
        yield
    except AmexError:
        raise
    except Exception as error:
        raise kind(f"{path} {what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return in one short line why a file could not be read."""
    text = first_line(error)
    if isinstance(error, OSError) and error.errno:
        text = os.strerror(error.errno)
    elif isinstance(error, KeyError) and error.args:  # h5py's are sentences
        text = str(error.args[0]) if " " in str(error.args[0]) else f"{text} is missing"
    elif not isinstance(error, (OSError, ValueError)):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the garbage collector while many objects are created: it would traverse all of them repeatedly."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def import_name(name: str) -> Any:
    """Import what ``python:MODULE:NAME`` names in a module of the user.

    Raises:
        AmexError: if the name has another form, the module cannot be imported, or it has no such attribute.
    """
    module, _, attribute = name.removeprefix("python:").partition(":")
    if not module or not attribute:
        raise AmexError(f"{name} is not python:MODULE:NAME")
    try:
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except AmexError:
        raise
    except ModuleNotFoundError as error:
        raise AmexError(f"cannot import {module} ({error}): put the folder that it is in on PYTHONPATH") from error
    except (Exception, SystemExit) as error:  # of any kind: it is the user's code
        raise AmexError(f"{name} failed: {type(error).__name__}: {first_line(error)}") from error


def file_sha256(path: Path, kind: type[AmexError]) -> str:
    """Return the sha256 of a file in hexadecimal; raise a ``kind`` that names the file if it cannot be read."""
    with reading(path, kind), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON value; accept ``NaN`` and ``Infinity``, and skip a byte order mark.

    Raises:
        ValueError: if it is not JSON, nested more than NESTED deep, or has an integer of more than DIGITS digits.
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
    """Return the value of a JSON file; raise a ``kind`` that names the file."""
    with reading(path, kind):
        text = path.read_bytes()
    with reading(path, kind, "is not JSON"):
        return parse_json(text)


def read_json_members(path: Path, kind: type[AmexError]) -> Iterator[tuple[str | None, Any]]:
    """Yield the members of the list or object in a JSON file, each with its key (None in a list).

    Only one member is in memory at a time. Raise a ``kind`` that names the file, also for a member longer than LINE.
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
    """The text of a JSON file, read in pieces: only the current value is in memory."""

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
        """Return the next character that is not blank; empty at the end."""
        while True:
            self.at = BLANKS.match(self._text, self.at).end()
            if self.at < len(self._text):
                self.at += 1
                return self._text[self.at - 1]
            if self._ended:
                return ""
            self._more()

    def value(self) -> Any:
        """Return the next value; raise ValueError as ``parse_json`` does."""
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
    """Yield the JSON objects of a file, one a line, each with its place ``FILE:LINE``; skip blank lines.

    Raise a ``kind`` that names the file and the line.
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
    """Yield the lines of a file, each with its place ``FILE:LINE``.

    Raise a ``kind`` that names the file, or the line if it is longer than LINE bytes.
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
