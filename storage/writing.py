"""Write files atomically: after a crash or a power cut a file is complete or does not exist."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import AmexError, first_line
from .base import StorageError
from .paths import storage_at


@contextlib.contextmanager
def write_atomic(path: Path, kind: type[AmexError] = StorageError) -> Iterator[IO[str]]:
    """Open a text file to write. It appears when the context ends without an error. Raises ``kind`` on an OSError."""
    try:
        with storage_at(path).write(once=False, beside=None) as handle:
            yield handle
    except OSError as error:
        raise kind(f"cannot write {path}: {error.strerror or first_line(error)}") from error


def write_text(path: Path, text: str, *, once: bool = False, beside: Path | None = None) -> None:
    """Write a text file atomically. Raises the errors of the backend, see ``reachable``.

    Args:
        once: do not replace an existing file: the first of several writers wins.
        beside: folder on the same file system for the temporary file, which stays there if the process is killed;
            None: the folder of ``path``.
    """
    with storage_at(path).write(once=once, beside=beside) as handle:
        handle.write(text)


def write_json(path: Path, record: Any) -> None:
    """Write a JSON file atomically. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, and rename it to ``path`` when the context ends without an error.

    For libraries that write to a path. A killed run leaves no incomplete file at ``path``. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(descriptor)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:  # also an interrupt must not leave the temporary file
        os.unlink(temporary)
        raise
