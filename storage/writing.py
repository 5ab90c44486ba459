"""Files that exist whole or not at all, also after a power cut."""

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
def write_whole(path: Path, kind: type[AmexError] = StorageError) -> Iterator[IO[str]]:
    """A text file to write to. It exists once the context ends without an error; raises ``kind`` if it cannot be."""
    try:
        with storage_at(path).write(once=False, beside=None) as handle:
            yield handle
    except OSError as error:
        raise kind(f"cannot write {path}: {error.strerror or first_line(error)}") from error


def write_text(path: Path, text: str, *, once: bool = False, beside: Path | None = None) -> None:
    """Writes a text file. Errors are those of its backend, see ``reachable``.

    Args:
        once: leave the file alone if it exists: of several writers the first counts.
        beside: folder on the same file system where a file begins that is renamed in the end; None: its own. A kill
            leaves it there.
    """
    with storage_at(path).write(once=once, beside=beside) as handle:
        handle.write(text)


def write_json(path: Path, record: Any) -> None:
    """Writes a JSON file; NaN and infinity are a ValueError."""
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A local file to write by its path, which is at ``path`` once it is whole.

    A run that is killed leaves no file there that looks like one. Errors are those of its backend.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(descriptor)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
