"""Folders of this machine, and those that it shares with others."""

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

from .base import NOT_THERE, Storage

# Files that are synced at the same time: a disk syncs several in about the time of one.
SYNCED_TOGETHER = 8
# Ranges that are asked for at the same time: each may need a file of its own, and a process may often open 1,024.
ASKED_TOGETHER = 64
# Nanoseconds for which a file may change and its time of modification may not: some file systems round that to 2 s.
YOUNG = 2_000_000_000


class LocalStorage(Storage):
    """A path in a file system. A finished file or folder appears by a rename."""

    can_list = can_rename = True
    must_fetch = False
    readers = min(8, os.cpu_count() or 1)
    errors = (OSError,)

    def is_folder(self) -> bool:
        return os.path.isdir(self.path)

    def files(self) -> Iterator[Path]:
        """Each folder is read once, however many links lead to it; folders that cannot be read are passed over.

        So a file below the path has its own path, and a link is followed where its folder lies elsewhere: links to
        folders are followed last, the shortest first. A link to a file is a file.
        """
        folders, links, read = [Path()], list[tuple[int, Path]](), set[str]()
        while folders or links:
            folder = folders.pop() if folders else heapq.heappop(links)[1]
            real = os.path.realpath(self.path / folder)
            if real in read:
                continue
            read.add(real)
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
            with contextlib.suppress(*NOT_THERE), os.scandir(os.path.join(self.path, folder)) as entries:
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
        slices = (ranges[first : first + ASKED_TOGETHER] for first in range(0, len(ranges), ASKED_TOGETHER))
        return [data for some in slices for data in self._read_together(some)]

    def _read_together(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        files: dict[str, int | OSError] = {}
        try:
            for name, begin, end in ranges:
                if name not in files:
                    files[name] = _opened(os.path.join(self.path, name))
                if len(ranges) > 1 and isinstance(file := files[name], int):  # so the disk has many to choose from
                    os.posix_fadvise(file, begin, end - begin, os.POSIX_FADV_WILLNEED)
            return [_range(files[name], begin, end) for name, begin, end in ranges]
        finally:
            for file in files.values():
                if isinstance(file, int):
                    os.close(file)

    def versions(self, pattern: str) -> dict[str, tuple[int, str | None]]:
        """A listing can miss both a file that is added and then one that is removed.

        So it is one that lacks no file of the listing before it. That files are added all the time does not matter.
        """
        before = None
        while True:
            changed = self._changed()
            listed = self._listed(pattern)
            if changed == self._changed() and changed < time.time_ns() - YOUNG:
                return listed
            if before is not None and before.keys() <= listed.keys():
                return listed
            before = listed

    def _changed(self) -> int:
        """When files were last added to the folder or removed (nanoseconds); 0 where there is none."""
        try:
            return self.path.stat().st_mtime_ns
        except NOT_THERE:
            return 0

    def _listed(self, pattern: str) -> dict[str, tuple[int, str | None]]:
        youngest = time.time_ns() - YOUNG
        files = {}
        try:
            entries = os.scandir(self.path)
        except NOT_THERE:
            return {}
        with entries:
            for entry in entries:
                if fnmatch.fnmatchcase(entry.name, pattern):
                    try:
                        status = entry.stat()
                    except FileNotFoundError:
                        if entry.is_symlink():  # to what is elsewhere, and not here yet
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
    def on_disk(self, cancelled: threading.Event | None = None) -> Iterator[Path]:
        yield self.path

    def zarr_store(self) -> Path:
        return self.path

    def is_damage(self, error: OSError) -> bool:
        return error.errno == errno.EIO

    @contextlib.contextmanager
    def write(self, *, once: bool, beside: Path | None) -> Iterator[IO[str]]:
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file's name says whose leftover it is; 60 characters, since names have at most 255 bytes.
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
                except OSError:  # a file system without links
                    os.replace(temporary, path)
                Path(temporary).unlink(missing_ok=True)
            else:
                os.replace(temporary, path)
        except BaseException:
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
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def make_folder(self) -> None:
        self.path.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def begin_folder(self, name: str) -> Iterator[Path]:
        """Beside the finished ones: a rename does not leave a file system."""
        try:
            yield self.path / name
        finally:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def publish(self, begun: Path, is_intact: Callable[[Path], bool]) -> None:
        if self.path.exists() and not is_intact(self.path):
            self.remove()
        _sync_files(self.path if self.path.exists() else begun)
        if not self.path.exists():
            begun.rename(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # a folder that nobody can write to, a file system without locks
                fcntl.flock(held.enter_context(self.path.open("ab")), fcntl.LOCK_EX)
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


def _opened(path: str) -> int | OSError:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error


def _range(file: int | OSError, begin: int, end: int) -> bytes | Exception:
    if isinstance(file, OSError):
        return file
    try:
        return os.pread(file, end - begin, begin)
    except OSError as error:
        return error


def _sync_files(folder: Path) -> None:
    """Returns once every byte of the files below a folder is on disk."""
    with ThreadPoolExecutor(SYNCED_TOGETHER) as pool:
        list(pool.map(_sync, (os.path.join(folder, name) for name in LocalStorage(folder).sizes())))


def _sync(file: str) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
