"""What a backend offers: one path, and how it is read and written where it is."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from ..errors import AmexError

# How a path says that there is nothing.
NOT_THERE = (FileNotFoundError, NotADirectoryError)


class StorageError(AmexError):
    """A file or folder cannot be reached, read or written."""


class NoRoom(AmexError):
    """The disk for temporary files is full."""


class Storage(ABC):
    """A path of one backend. Callers ask what a backend can do, and never which one it is.

    ``files``, ``has_file``, ``size_and_time`` and ``sizes`` may share one listing, which the object keeps: for a new
    listing make a new object.

    Attributes:
        can_list: whether the files below a folder can be listed.
        can_rename: whether a folder can be renamed, in one step for every reader.
        must_fetch: whether other programs can open a file only once it was copied to this machine.
        readers: threads that read files at the same time, at most, for what has many to read.
        errors: what reading and writing raise where the path cannot be reached.
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
        """Whether files can be below the path. Raises StorageError if a server is asked and does not answer."""

    @abstractmethod
    def files(self) -> Iterator[Path]:
        """All files below the path, relative to it, in no order."""

    @abstractmethod
    def has_file(self, name: str) -> bool:
        """Whether there is a file below the path, as far as that is known before it is read."""

    @abstractmethod
    def size_and_time(self, name: Path) -> tuple[int | None, int | None]:
        """Bytes of a file below the path, and when it was modified (nanoseconds); None where nobody can say."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of every file below the path, by name relative to it; none where there is no folder."""

    @abstractmethod
    def size(self) -> int | None:
        """Bytes of the file at the path; None where the server does not say."""

    @abstractmethod
    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """The content of files below the path, by name."""

    @abstractmethod
    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> Sequence[bytes | Exception]:
        """Bytes ``begin : end`` of files below the path, all asked for at once; of each the bytes, or an error.

        Args:
            ranges: of each the file's name, begin and end. There are fewer bytes where a file is shorter.
        """

    @abstractmethod
    def versions(self, pattern: str) -> dict[str, tuple[int, str | None]]:
        """Of the files directly in the folder that match, sorted by name: bytes, and what tells a version of the file.

        A file with other content has another version. It is None where the file is too young for that to be sure.
        """

    @abstractmethod
    def read_each(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Name and content of files below the path, a few of them in memory at a time; files that are gone are not."""

    def read_matching(self, pattern: str) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files directly in the folder that match, sorted by name."""
        return self.read_each(list(self.versions(pattern)))

    @abstractmethod
    def on_disk(self, cancelled: threading.Event | None = None) -> contextlib.AbstractContextManager[Path]:
        """The file at the path as one on this machine: itself, or a copy that exists as long as the context.

        Args:
            cancelled: once set, a download ends early, with a StorageError.

        Raises:
            StorageError: if it does not exist, or cannot be fetched after several attempts.
            NoRoom: if this machine has no room for it.
        """

    @abstractmethod
    def zarr_store(self) -> Any:
        """The path as Zarr wants it."""

    @abstractmethod
    def is_damage(self, error: OSError) -> bool:
        """Whether an error of reading says that the bytes are lost, and not that they are out of reach for now."""

    # Writing.

    @abstractmethod
    def write(self, *, once: bool, beside: Path | None) -> contextlib.AbstractContextManager[IO[str]]:
        """A text file to write, as ``writing.write_whole`` describes."""

    @abstractmethod
    def put(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Writes a file in a folder that is there, whole or not at all. A power cut may damage it."""

    @abstractmethod
    def make_folder(self) -> None:
        """Makes the folder, where folders exist without files in them."""

    @abstractmethod
    def begin_folder(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A local path for a new folder to fill before ``publish``; what is left there goes with the context.

        After a kill it goes with the next one's context (see ``scratch``), or as its part is swept.
        """

    @abstractmethod
    def publish(self, begun: Path, is_intact: Callable[[Path], bool]) -> None:
        """Puts a finished local folder at the path, every byte of it on disk. A commit makes it count.

        Args:
            is_intact: whether a folder that an earlier writer left at the path holds the same bytes.
        """

    @abstractmethod
    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Waits until no other program holds the file at the path, and holds it; where files can be locked, else not.

        A program that is killed lets go of it. The file stays.
        """

    @abstractmethod
    def remove(self) -> None:
        """Removes the file, or the folder with all that is in it, if nobody else has."""

    @abstractmethod
    def remove_if_empty(self) -> None:
        """Removes the folder if nothing is in it."""

    @abstractmethod
    def nearest_folder(self) -> Path:
        """A folder on this machine for what belongs beside the path and other programs must open."""
