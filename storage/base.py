"""The interface of a storage backend, and its errors."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from ..errors import AmexError

# Errors that mean that a path does not exist.
MISSING_ERRORS = (FileNotFoundError, NotADirectoryError)


class StorageError(AmexError):
    """A file or folder cannot be reached, read or written."""


class DiskFull(AmexError):
    """The disk for temporary files is full."""


class Storage(ABC):
    """A path in one backend. Callers ask what the backend can do, not which backend it is.

    ``files``, ``has_file``, ``size_and_time`` and ``sizes`` may share one listing, which the object caches. Make a new
    object for a new listing.

    Attributes:
        can_list: whether the files below a folder can be listed.
        can_rename: whether a folder can be renamed atomically.
        must_fetch: whether a file must be copied to this machine before other programs can open it.
        readers: maximal number of threads that read files at the same time.
        errors: exception types of reading and writing when the path cannot be reached.
    """

    can_list: ClassVar[bool]
    can_rename: ClassVar[bool]
    must_fetch: ClassVar[bool]
    readers: ClassVar[int]
    errors: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, path: Path) -> None:
        self.path = path

    # Reading.

    @abstractmethod
    def is_folder(self) -> bool:
        """Return whether the path can contain files. Raises StorageError if a server does not answer."""

    @abstractmethod
    def files(self) -> Iterator[Path]:
        """Yield all files below the path, relative to it, in no particular order."""

    @abstractmethod
    def has_file(self, name: str) -> bool:
        """Return whether the file ``name`` exists below the path. A backend that cannot tell returns True."""

    @abstractmethod
    def size_and_time(self, name: Path) -> tuple[int | None, int | None]:
        """Return size (bytes) and modification time (nanoseconds) of a file below the path; None if unknown."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file below the path, by relative name; empty if there is no folder."""

    @abstractmethod
    def size(self) -> int | None:
        """Return the size in bytes of the file at the path; None if the server does not report it."""

    @abstractmethod
    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the content of files below the path, by name."""

    @abstractmethod
    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> Sequence[bytes | Exception]:
        """Read byte ranges of files below the path in parallel. Return the bytes, or the error, of each range.

        Args:
            ranges: (file name, begin, end) of each range. A range that ends behind the file returns fewer bytes.
        """

    @abstractmethod
    def versions(self, pattern: str) -> dict[str, tuple[int, str | None]]:
        """Return size and version of the files directly in the folder that match ``pattern``, sorted by name.

        The version changes when the content changes. It is None if the file is too new to be sure of that.
        """

    @abstractmethod
    def read_each(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of files below the path; only a few are in memory. Missing files are skipped."""

    def read_matching(self, pattern: str) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of the files directly in the folder that match ``pattern``, sorted by name."""
        return self.read_each(list(self.versions(pattern)))

    @abstractmethod
    def local_copy(self, cancelled: threading.Event | None = None) -> contextlib.AbstractContextManager[Path]:
        """Yield a local path to the file: the file itself, or a copy that is deleted when the context ends.

        Args:
            cancelled: set this event to stop the download, which then raises StorageError.

        Raises:
            StorageError: if the file does not exist, or the download fails after several attempts.
            DiskFull: if the disk of this machine is too full for the copy.
        """

    @abstractmethod
    def zarr_store(self) -> Any:
        """Return the path as a Zarr store."""

    @abstractmethod
    def is_damage(self, error: OSError) -> bool:
        """Return whether a read error means that the bytes are lost, not that they are temporarily unreachable."""

    # Writing.

    @abstractmethod
    def write(self, *, once: bool, beside: Path | None) -> contextlib.AbstractContextManager[IO[str]]:
        """Open a text file for an atomic write. See ``writing.write_text`` for the arguments."""

    @abstractmethod
    def put(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a file atomically into an existing folder. The file is not synced: a power cut may damage it."""

    @abstractmethod
    def make_folder(self) -> None:
        """Create the folder, if the backend has empty folders."""

    @abstractmethod
    def staging_folder(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Yield a local path for a new folder, to fill it before ``publish``. The folder is deleted with the context.

        If the process is killed, the next process that uses ``scratch``, or ``remove_leftovers``, deletes it.
        """

    @abstractmethod
    def publish(self, staged: Path, is_intact: Callable[[Path], bool]) -> None:
        """Move or upload a complete local folder to the path and sync it. The folder does not count before its commit.

        Args:
            staged: the local folder.
            is_intact: returns whether a folder that an earlier writer left at the path has the same bytes.
        """

    @abstractmethod
    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold a lock on the file at the path, if the backend can lock files. Wait while another program holds it.

        The lock ends with the context or with the process. The file is not deleted.
        """

    @abstractmethod
    def remove(self) -> None:
        """Delete the file, or the folder with its content. Do nothing if it does not exist."""

    @abstractmethod
    def remove_if_empty(self) -> None:
        """Delete the folder if it is empty."""

    @abstractmethod
    def nearest_folder(self) -> Path:
        """Return a local folder for files that belong beside the path and that other programs must open."""
