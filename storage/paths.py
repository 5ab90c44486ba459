"""Open a folder or an address such as ``s3://bucket/x.zarr`` as a path, and find its backend."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import AmexError, first_line, needs
from .base import Storage, StorageError
from .local import LocalStorage
from .s3 import ObjectStorage
from .web import WebStorage

WEB = ("http", "https")


def open_path(text: str | os.PathLike[str]) -> Path:
    """Return an address as a path of universal_pathlib, which has the methods of a Path; other text as a Path.

    Raises:
        StorageError: if no installed package supports the address.
    """
    if not isinstance(text, str) or "://" not in text:
        return text if _is_address(text) else Path(text)
    with needs("s3", text):
        from upath import UPath
    scheme = text.partition("://")[0]
    try:
        return UPath(text, **(WebStorage if scheme in WEB else ObjectStorage).options(scheme))
    except (ValueError, ImportError) as error:
        raise StorageError(f"{text}: {first_line(error)}") from error


def storage_at(path: Path) -> Storage:
    """Return the backend of a path that comes from ``open_path``."""
    if not _is_address(path):
        return LocalStorage(path)
    return WebStorage(path) if path.protocol in WEB else ObjectStorage(path)


def _is_address(path: str | os.PathLike[str]) -> bool:
    return hasattr(path, "storage_options") and not isinstance(path, Path)


@contextlib.contextmanager
def reachable(path: Path, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Convert the errors of a disk or server into a StorageError of one line, except the types in ``but``."""
    try:
        yield
    except (AmexError, *but):
        raise
    except storage_at(path).errors as error:
        raise StorageError(f"{path} cannot be read or written: {first_line(error)}") from error
