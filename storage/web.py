"""Folders behind an http(s) server, which reads files, lists none and takes none."""

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

# Seconds to wait for a server: for a connection, for its next bytes.
CONNECT, READ = 10, 60


class WebStorage(ObjectStorage):
    """An http(s) address. Whether there is a file, and how large it is, is known once it is fetched."""

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
            pass  # the server answers, whatever it says of the folder itself
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = first_line(getattr(error, "reason", None) or error)
            raise StorageError(f"{self.path} cannot be reached: {reason}") from error
        return True

    def has_file(self, name: str) -> bool:
        return True

    def size_and_time(self, name: Path) -> tuple[int | None, int | None]:
        return None, None

    def write(self, *, once: bool, beside: Path | None) -> contextlib.AbstractContextManager[IO[str]]:
        raise self._refusal()

    def put(self, pieces: Iterable[bytes | memoryview]) -> None:
        raise self._refusal()

    def publish(self, begun: Path, is_intact: Callable[[Path], bool]) -> None:
        raise self._refusal()

    def remove(self) -> None:
        raise self._refusal()

    def _refusal(self) -> StorageError:
        return StorageError(f"{self.path} cannot be written: give a folder, or a prefix such as s3://BUCKET/NAME")
