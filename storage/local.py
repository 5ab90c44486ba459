"""The backend for file systems: local disks and network file systems."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import heapq
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from .base import MISSING_ERRORS, Storage

# Files to sync in parallel: a disk syncs several in about the time of one.
SYNCED_TOGETHER = 8
# Ranges to read in parallel. Each may need its own file, and many systems limit a process to 1,024 open files.
ASKED_TOGETHER = 64
# Nanoseconds in which a file can change without a new modification time: some file systems round it to 2 s.
YOUNG = 2_000_000_000


class LocalStorage(Storage):
    """A path in a file system. A rename makes a complete file or folder visible."""

    can_list = can_rename = True
    must_fetch = False
    readers = min(8, os.cpu_count() or 1)
    errors = (OSError,)

    def is_folder(self) -> bool:
        return os.path.isdir(self.path)

    def files(self) -> Iterator[Path]:
        """Yield all files below the path. Read each folder once, even if several links lead to it.

        Links to folders are followed after all real folders, the shortest path first. So a file below the path keeps
        its real path, and links lead only to folders outside. A link to a file counts as a file. Folders that cannot
        be read are skipped.
        """
        folders, links, visited = [Path()], list[tuple[int, Path]](), set[str]()
        while folders or links:
            folder = folders.pop() if folders else heapq.heappop(links)[1]
            real = os.path.realpath(self.path / folder)
            if real in visited:
                continue
            visited.add(real)
            try:
                entries = list(os.scandir(self.path / folder))
            except OSError:
                continue
            for entry in entries:
                path = folder / entry.name
                if entry.is_symlink() and os.path.isdir(entry.path):
                    heapq.heappush(links, (len(path.parts), path))
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                else:
                    yield path

    def has_file(self, name: str) -> bool:
        return os.path.lexists(self.path / name) and not (self.path / name).is_dir()

    def size_and_time(self, name: Path) -> tuple[int | None, int | None]:
        try:
            status = (self.path / name).stat()
        except OSError:
            return None, None
        return status.st_size, status.st_mtime_ns

    def sizes(self) -> dict[str, int]:
        sizes, folders = {}, [""]
        while folders:
            folder = folders.pop()
            with contextlib.suppress(*MISSING_ERRORS), os.scandir(os.path.join(self.path, folder)) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{folder}{entry.name}/")
                    elif entry.is_file():
                        sizes[folder + entry.name] = entry.stat().st_size
        return sizes

    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        return {name: (self.path / name).read_bytes() for name in names}

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        groups = (ranges[first : first + ASKED_TOGETHER] for first in range(0, len(ranges), ASKED_TOGETHER))
        return [data for group in groups for data in self._read_together(group)]

    def _read_together(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        files: dict[str, int | OSError] = {}
        try:
            for name, begin, end in ranges:
                if name not in files:
                    files[name] = _open(os.path.join(self.path, name))
                if len(ranges) > 1 and isinstance(file := files[name], int):  # the disk can reorder the requests
                    os.posix_fadvise(file, begin, end - begin, os.POSIX_FADV_WILLNEED)
            return [_read_range(files[name], begin, end) for name, begin, end in ranges]
        finally:
            for file in files.values():
                if isinstance(file, int):
                    os.close(file)

    def versions(self, pattern: str) -> dict[str, tuple[int, str | None]]:
        """List the folder until the listing is consistent. See ``Storage.versions``.

        If another program adds a file and then removes an older one, one listing can miss both. So list again until the
        folder has not changed meanwhile, or no file of the previous listing is missing.
        """
        previous = None
        while True:
            changed = self._changed()
            listed = self._listed(pattern)
            if changed == self._changed() and changed < time.time_ns() - YOUNG:
                return listed
            if previous is not None and previous.keys() <= listed.keys():
                return listed
            previous = listed

    def _changed(self) -> int:
        """Return when a file was last added or removed (nanoseconds); 0 if there is no folder."""
        try:
            return self.path.stat().st_mtime_ns
        except MISSING_ERRORS:
            return 0

    def _listed(self, pattern: str) -> dict[str, tuple[int, str | None]]:
        youngest = time.time_ns() - YOUNG
        files = {}
        try:
            entries = os.scandir(self.path)
        except MISSING_ERRORS:
            return {}
        with entries:
            for entry in entries:
                if fnmatch.fnmatchcase(entry.name, pattern):
                    try:
                        status = entry.stat()
                    except FileNotFoundError:
                        if entry.is_symlink():  # its target may arrive later
                            raise
                        continue
                    version = None if status.st_mtime_ns > youngest else f"{status.st_size} {status.st_mtime_ns}"
                    files[entry.name] = (status.st_size, version)
        return dict(sorted(files.items()))

    def read_each(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield name, (self.path / name).read_bytes()

    @contextlib.contextmanager
    def local_copy(self, cancelled: threading.Event | None = None) -> Iterator[Path]:
        yield self.path

    def zarr_store(self) -> Path:
        return self.path

    def is_damage(self, error: OSError) -> bool:
        return error.errno == errno.EIO

    @contextlib.contextmanager
    def write(self, *, once: bool, beside: Path | None) -> Iterator[IO[str]]:
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Leftovers keep the name of their file; 60 characters, because a file name has at most 255 bytes.
        descriptor, temporary = tempfile.mkstemp(dir=beside or path.parent, prefix=f".{path.name[:60]}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.chmod(temporary, 0o644)
            if once:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    pass
                except OSError:  # a file system without hard links
                    os.replace(temporary, path)
                Path(temporary).unlink(missing_ok=True)
            else:
                os.replace(temporary, path)
        except BaseException:  # also an interrupt must not leave the temporary file
            Path(temporary).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def put(self, pieces: Iterable[bytes | memoryview]) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name[:60]}.")
        try:
            with os.fdopen(descriptor, "wb") as handle:
                for piece in pieces:
                    handle.write(piece)
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.path)
        except BaseException:  # also an interrupt must not leave the temporary file
            Path(temporary).unlink(missing_ok=True)
            raise

    def make_folder(self) -> None:
        self.path.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def staging_folder(self, name: str) -> Iterator[Path]:
        """Yield a folder beside the committed ones: a rename works only within one file system."""
        try:
            yield self.path / name
        finally:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def publish(self, staged: Path, is_intact: Callable[[Path], bool]) -> None:
        if self.path.exists() and not is_intact(self.path):
            self.remove()
        _sync_files(self.path if self.path.exists() else staged)
        if not self.path.exists():
            staged.rename(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a read-only folder, or a file system without locks
                fcntl.flock(stack.enter_context(self.path.open("ab")), fcntl.LOCK_EX)
            yield

    def remove(self) -> None:
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)

    def remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def nearest_folder(self) -> Path:
        return self.path.absolute().parent


def _open(path: str) -> int | OSError:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error


def _read_range(file: int | OSError, begin: int, end: int) -> bytes | Exception:
    if isinstance(file, OSError):
        return file
    try:
        return os.pread(file, end - begin, begin)
    except OSError as error:
        return error


def _sync_files(folder: Path) -> None:
    """Sync all files below a folder to disk."""
    with ThreadPoolExecutor(SYNCED_TOGETHER) as pool:
        list(pool.map(_sync, (os.path.join(folder, name) for name in LocalStorage(folder).sizes())))


def _sync(file: str) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
