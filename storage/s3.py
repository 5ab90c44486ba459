"""Object stores: S3, and what else fsspec knows.

A file of an object store is written whole or not at all, there is no renaming, and many small files are read at once.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import fnmatch
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from ..errors import first_line
from .base import NoRoom, Storage, StorageError
from .scratch import temporary_folder

# Of S3: what does not answer is asked again, later and later. AWS_ENDPOINT_URL names another server than Amazon's.
# A download holds ten blocks of a file in memory. Clips of a batch are asked for over so many connections at once.
S3_OPTIONS = {
    "default_block_size": 8 << 20,
    "config_kwargs": {
        "retries": {"max_attempts": 8, "mode": "standard"},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 64,
    },
}
# Attempts at a download, further and further apart, besides those of S3's own client.
ATTEMPTS = 3
# Files that are asked for together.
READ_TOGETHER = 128
# Ranges of a file with at most so many bytes between them are one request: to ask again takes longer. A request is for
# at most LARGEST_READ, unless a range is larger.
READ_OVER, LARGEST_READ = 256 << 10, 8 << 20
# Files that one request lists, at most.
PAGE = 1000
# Files of a part that are sent together: each is in memory meanwhile.
SENT_TOGETHER = 8


class ObjectStorage(Storage):
    """A path of universal_pathlib. Many small files are read at once, and nothing is renamed."""

    can_list = must_fetch = True
    can_rename = False
    readers = 32
    errors = (Exception,)  # every kind of file system has its own

    @staticmethod
    def options(scheme: str) -> dict[str, Any]:
        """Of fsspec's file system. Other processes write what is listed here, so it keeps no listing."""
        return {"use_listings_cache": False} | (S3_OPTIONS if scheme == "s3" else {})

    @property
    def system(self) -> Any:
        """The file system, with connections of this process: a fork cannot use its parent's."""
        import fsspec

        return fsspec.filesystem(self.path.protocol, **self.path.storage_options)

    @property
    def address(self) -> str:
        """The path, as the file system takes it."""
        return self.path.path

    @cached_property
    def listing(self) -> dict[str, dict[str, Any]]:
        """All names below the path, and what the server says of each."""
        files = self.system.find(self.address, detail=True)
        return {name.removeprefix(f"{self.address.rstrip('/')}/"): entry for name, entry in files.items()}

    def is_folder(self) -> bool:
        return True  # any prefix is one

    def files(self) -> Iterator[Path]:
        yield from map(Path, self.listing)

    def has_file(self, name: str) -> bool:
        return name in self.listing

    def size_and_time(self, name: Path) -> tuple[int | None, int | None]:
        entry = self.listing.get(name.as_posix(), {})
        modified = entry.get("LastModified")
        return entry.get("size"), None if modified is None else round(modified.timestamp() * 1000) * 10**6

    def sizes(self) -> dict[str, int]:
        return {name: entry["size"] for name, entry in self.listing.items()}

    def size(self) -> int | None:
        return self.system.size(self.address)

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        contents = self._read_there(self.system, names, None)
        if missing := [name for name in names if name not in contents]:
            raise FileNotFoundError(f"{self.path / missing[0]} is missing")
        return contents

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | Exception]:
        from fsspec.utils import merge_offset_ranges

        if not ranges:
            return []
        names, begins, ends = map(list, zip(*ranges, strict=True))
        blocks = merge_offset_ranges(names, begins, ends, max_gap=READ_OVER, max_block=LARGEST_READ)
        paths = [f"{self.address}/{name}" for name in blocks[0]]
        contents = [_within(data) for data in self.system.cat_ranges(paths, *blocks[1:], on_error="return")]
        firsts = list(zip(*blocks[:2], strict=True))  # name and begin of each block, sorted
        parts: list[bytes | Exception] = []
        for name, begin, end in ranges:
            block = next(
                place
                for place in range(bisect.bisect_right(firsts, (name, begin)) - 1, -1, -1)
                if firsts[place][0] == name and blocks[2][place] >= end
            )
            data, first = contents[block], firsts[block][1]
            parts.append(data if isinstance(data, Exception) else data[begin - first : end - first])
        return parts

    def versions(self, pattern: str) -> dict[str, tuple[int, str | None]]:
        """As of a folder: pages of a listing are of different moments."""
        listed, before = self._listed(pattern), None
        while len(listed) >= PAGE and (before is None or not before.keys() <= listed.keys()):
            before, listed = listed, self._listed(pattern)
        return listed

    def _listed(self, pattern: str) -> dict[str, tuple[int, str | None]]:
        try:
            entries = self.system.ls(self.address, detail=True)
        except FileNotFoundError:
            return {}
        files = {}
        for entry in entries:
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if entry["type"] == "file" and fnmatch.fnmatchcase(name, pattern):
                version = entry.get("ETag")  # a digest of the content
                files[name] = (entry["size"], None if version is None else f"{entry['size']} {version}")
        return dict(sorted(files.items()))

    def read_each(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The next ones are fetched while the caller works on some."""
        lists = [names[first : first + READ_TOGETHER] for first in range(0, len(names), READ_TOGETHER)]
        system = self.system  # a thread would make another one
        with ThreadPoolExecutor(1) as pool:
            next_ones = [pool.submit(self._read_there, system, some, 0) for some in lists[:1]]
            for later in [*lists[1:], []]:
                contents = [ahead.result() for ahead in next_ones]
                next_ones = [pool.submit(self._read_there, system, later, 0)] if later else []
                for some in contents:
                    yield from some.items()

    def _read_there(self, system: Any, names: Sequence[str], begin: int | None) -> dict[str, bytes]:
        """The content of those files that are there, by name.

        Args:
            begin: 0 for one request a file; None where large files are to be asked for their size, and read in pieces.
        """
        paths = [f"{self.address}/{name}" for name in names]
        contents = dict(zip(names, map(_within, system.cat_ranges(paths, begin, None, on_error="return")), strict=True))
        for content in contents.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        return {name: content for name, content in contents.items() if isinstance(content, bytes)}

    @contextlib.contextmanager
    def on_disk(self, cancelled: threading.Event | None = None) -> Iterator[Path]:
        import tenacity
        from fsspec.callbacks import Callback

        cancelled = cancelled or threading.Event()

        class Progress(Callback):
            def relative_update(self, inc: int = 1) -> None:
                if cancelled.is_set():
                    raise StorageError("cancelled")

        again = tenacity.retry(
            stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_when_event_set(cancelled),
            wait=tenacity.wait_exponential_jitter(max=20),
            sleep=tenacity.sleep_using_event(cancelled),
            retry=tenacity.retry_if_exception(_is_temporary),
            reraise=True,
        )
        with temporary_folder() as folder:
            copy = folder / self.path.name
            try:
                again(self.system.get_file)(self.address, str(copy), callback=Progress())
            except FileNotFoundError as error:
                raise StorageError(f"no {self.path}") from error
            except Exception as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise NoRoom(f"{folder} has no room for {self.path}: name a larger disk with TMPDIR") from error
                raise StorageError(f"{self.path} cannot be fetched: {first_line(error)}") from error
            yield copy

    def zarr_store(self) -> Any:
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(str(self.path), storage_options=dict(self.path.storage_options))

    def is_damage(self, error: OSError) -> bool:
        return False

    @contextlib.contextmanager
    def write(self, *, once: bool, beside: Path | None) -> Iterator[IO[str]]:
        text = io.StringIO()
        yield text
        with contextlib.suppress(FileExistsError):
            mode = "create" if once else "overwrite"
            self.system.pipe_file(self.address, text.getvalue().encode(), mode=mode)

    def put(self, pieces: Iterable[bytes | memoryview]) -> None:
        self.system.pipe_file(self.address, b"".join(pieces))

    def make_folder(self) -> None:
        """No folder is without files."""

    @contextlib.contextmanager
    def begin_folder(self, name: str) -> Iterator[Path]:
        """Where this machine has room."""
        with temporary_folder() as folder:
            yield folder / name

    def publish(self, begun: Path, is_intact: Callable[[Path], bool]) -> None:
        """File by file, also over what another writer puts there: until the commit a name stands for the same bytes."""
        self.system.put(f"{begun}/", f"{self.address}/", recursive=True, batch_size=SENT_TOGETHER)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.system.rm(self.address, recursive=True)

    def remove_if_empty(self) -> None:
        """No folder is without files."""

    def nearest_folder(self) -> Path:
        return Path.cwd()


def _within(data: bytes | Exception) -> bytes | Exception:
    """What was read of a range; nothing where the file ends before it begins."""
    return b"" if isinstance(data, OSError) and "not satisfiable" in str(data) else data


def _is_temporary(error: BaseException) -> bool:
    """Whether another attempt may succeed: not if the file is absent or forbidden, or the disk here is full."""
    if isinstance(error, (FileNotFoundError, PermissionError)) or getattr(error, "errno", None) == errno.ENOSPC:
        return False
    status = getattr(error, "status", 500)
    return status >= 500 or status == 429
