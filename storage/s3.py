"""The backend for object stores: S3 and the other file systems of fsspec.

Object stores write files atomically and cannot rename them. Many small files are read in parallel.
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
from .base import DiskFull, Storage, StorageError
from .scratch import temporary_folder

# Settings of S3: retries with growing delays. AWS_ENDPOINT_URL names a server other than Amazon's. A download has ten
# blocks in memory. The clips of a batch are read over max_pool_connections connections.
S3_OPTIONS = {
    "default_block_size": 8 << 20,
    "config_kwargs": {
        "retries": {"max_attempts": 8, "mode": "standard"},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 64,
    },
}
# Attempts at a download, with growing delays, in addition to the retries of the S3 client.
ATTEMPTS = 3
# Files to read in parallel.
READ_TOGETHER = 128
# Ranges of a file with a gap of at most READ_OVER bytes are read in one request, which is faster than two. A request
# reads at most LARGEST_READ bytes, unless a single range is larger.
READ_OVER, LARGEST_READ = 256 << 10, 8 << 20
# Maximal number of files in one page of a listing.
PAGE = 1000
# Files of a part to upload in parallel. Each is in memory during its upload.
SENT_TOGETHER = 8


class ObjectStorage(Storage):
    """A path in an object store, as universal_pathlib represents it."""

    can_list = must_fetch = True
    can_rename = False
    readers = 32
    errors = (Exception,)  # each file system of fsspec has its own types

    @staticmethod
    def options(scheme: str) -> dict[str, Any]:
        """Return the options of fsspec's file system. Listings are not cached: other processes write files too."""
        return {"use_listings_cache": False} | (S3_OPTIONS if scheme == "s3" else {})

    @property
    def system(self) -> Any:
        """The file system, with connections of this process: a fork cannot use those of its parent."""
        import fsspec

        return fsspec.filesystem(self.path.protocol, **self.path.storage_options)

    @property
    def address(self) -> str:
        """The path as a text for the file system."""
        return self.path.path

    @cached_property
    def listing(self) -> dict[str, dict[str, Any]]:
        """The server's entry for each file below the path, by relative name."""
        files = self.system.find(self.address, detail=True)
        return {name.removeprefix(f"{self.address.rstrip('/')}/"): entry for name, entry in files.items()}

    def is_folder(self) -> bool:
        return True  # any prefix is a folder

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
        contents = self._read_existing(self.system, names, None)
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
        contents = [_empty_past_end(data) for data in self.system.cat_ranges(paths, *blocks[1:], on_error="return")]
        firsts = list(zip(*blocks[:2], strict=True))  # name and begin of each block, sorted
        parts: list[bytes | Exception] = []
        for name, begin, end in ranges:
            block = next(
                number
                for number in range(bisect.bisect_right(firsts, (name, begin)) - 1, -1, -1)
                if firsts[number][0] == name and blocks[2][number] >= end
            )
            data, first = contents[block], firsts[block][1]
            parts.append(data if isinstance(data, Exception) else data[begin - first : end - first])
        return parts

    def versions(self, pattern: str) -> dict[str, tuple[int, str | None]]:
        """List again until the listing is consistent, because its pages are read at different times.

        See ``LocalStorage.versions``.
        """
        listed, previous = self._listed(pattern), None
        while len(listed) >= PAGE and (previous is None or not previous.keys() <= listed.keys()):
            previous, listed = listed, self._listed(pattern)
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
        """Yield name and content of files. Read the next group while the caller uses the current one."""
        groups = [names[first : first + READ_TOGETHER] for first in range(0, len(names), READ_TOGETHER)]
        system = self.system  # a thread would open its own connections
        with ThreadPoolExecutor(1) as pool:
            pending = [pool.submit(self._read_existing, system, group, 0) for group in groups[:1]]
            for following in [*groups[1:], []]:
                finished = [future.result() for future in pending]
                pending = [pool.submit(self._read_existing, system, following, 0)] if following else []
                for contents in finished:
                    yield from contents.items()

    def _read_existing(self, system: Any, names: Sequence[str], begin: int | None) -> dict[str, bytes]:
        """Return the content of the files that exist, by name.

        Args:
            begin: 0 for one request per file; None to ask for the size first and read large files in pieces.
        """
        paths = [f"{self.address}/{name}" for name in names]
        results = map(_empty_past_end, system.cat_ranges(paths, begin, None, on_error="return"))
        contents = dict(zip(names, results, strict=True))
        for content in contents.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        return {name: content for name, content in contents.items() if isinstance(content, bytes)}

    @contextlib.contextmanager
    def local_copy(self, cancelled: threading.Event | None = None) -> Iterator[Path]:
        import tenacity
        from fsspec.callbacks import Callback

        cancelled = cancelled or threading.Event()

        class Progress(Callback):
            def relative_update(self, inc: int = 1) -> None:
                if cancelled.is_set():
                    raise StorageError("cancelled")

        retry = tenacity.retry(
            stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_when_event_set(cancelled),
            wait=tenacity.wait_exponential_jitter(max=20),
            sleep=tenacity.sleep_using_event(cancelled),
            retry=tenacity.retry_if_exception(_is_temporary),
            reraise=True,
        )
        with temporary_folder() as folder:
            copy = folder / self.path.name
            try:
                retry(self.system.get_file)(self.address, str(copy), callback=Progress())
            except FileNotFoundError as error:
                raise StorageError(f"no {self.path}") from error
            except Exception as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise DiskFull(f"{folder} has no room for {self.path}: name a larger disk with TMPDIR") from error
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
        """Do nothing: object stores have no empty folders."""

    @contextlib.contextmanager
    def staging_folder(self, name: str) -> Iterator[Path]:
        """Yield a folder in the temporary folder of this machine."""
        with temporary_folder() as folder:
            yield folder / name

    def publish(self, staged: Path, is_intact: Callable[[Path], bool]) -> None:
        """Upload file by file. Overwriting the files of another writer is safe: equal names have equal content."""
        self.system.put(f"{staged}/", f"{self.address}/", recursive=True, batch_size=SENT_TOGETHER)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.system.rm(self.address, recursive=True)

    def remove_if_empty(self) -> None:
        """Do nothing: object stores have no empty folders."""

    def nearest_folder(self) -> Path:
        return Path.cwd()


def _empty_past_end(data: bytes | Exception) -> bytes | Exception:
    """Return ``b""`` for a range that begins behind the end of its file, which the server refuses; other data as is."""
    return b"" if isinstance(data, OSError) and "not satisfiable" in str(data) else data


def _is_temporary(error: BaseException) -> bool:
    """Return whether a retry may succeed: not if the file is missing or forbidden, or the local disk is full."""
    if isinstance(error, (FileNotFoundError, PermissionError)) or getattr(error, "errno", None) == errno.ENOSPC:
        return False
    status = getattr(error, "status", 500)
    return status >= 500 or status == 429
