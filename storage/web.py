"""The backend for http(s) servers: files can be read, but not listed or written."""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from ..errors import first_line
from .base import StorageError
from .s3 import ObjectStorage

# Seconds to wait for a connection, and for the next bytes.
CONNECT, READ = 10, 60


class WebStorage(ObjectStorage):
    """An http(s) address. Whether a file exists, and its size, are known only after the download."""

    can_list = False

    @staticmethod
    def options(scheme: str) -> dict[str, Any]:
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=CONNECT, sock_read=READ)
        return ObjectStorage.options(scheme) | {"client_kwargs": {"timeout": timeout}}

    @property
    def address(self) -> str:
        return str(self.path)

    def is_folder(self) -> bool:
        try:
            urllib.request.urlopen(str(self.path), timeout=CONNECT).close()
        except urllib.error.HTTPError:
            pass  # the server answers; it may refuse the folder itself
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = first_line(getattr(error, "reason", None) or error)
            raise StorageError(f"{self.path} cannot be reached: {reason}") from error
        return True

    def has_file(self, name: str) -> bool:
        return True

    def size_and_time(self, name: Path) -> tuple[int | None, int | None]:
        return None, None

    def write(self, *, once: bool, beside: Path | None) -> contextlib.AbstractContextManager[IO[str]]:
        raise self._read_only_error()

    def put(self, pieces: Iterable[bytes | memoryview]) -> None:
        raise self._read_only_error()

    def publish(self, staged: Path, is_intact: Callable[[Path], bool]) -> None:
        raise self._read_only_error()

    def remove(self) -> None:
        raise self._read_only_error()

    def _read_only_error(self) -> StorageError:
        return StorageError(f"{self.path} cannot be written: give a folder, or a prefix such as s3://BUCKET/NAME")
