"""Download files one after the other for local use. Threads prefetch the next files."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from .base import DiskFull, StorageError
from .paths import storage_at

# Maximal size of the prefetched copies, in bytes.
BYTES_AHEAD = 4 << 30
# Seconds to wait for cancelled downloads. A download that ends later deletes its copy too.
CANCEL_SECONDS = 5.0


class FetchedFile:
    """A file of a ``Fetcher``. ``with`` waits for the download; the end of the block deletes the copy.

    Attributes:
        name: path relative to the root.
        future: the local path, or the error. Callers that must not wait use ``future.done()`` and
            ``future.add_done_callback``.
    """

    future: Future[Path]

    def __init__(self, name: Path, fetcher: Fetcher) -> None:
        self.name = name
        self._fetcher = fetcher
        self._copy = contextlib.ExitStack()
        self._closed = threading.Event()
        # The following attributes are protected by the lock of the fetcher.
        self._taken = False  # a caller has taken it from the iterator
        self._started = False  # the download runs or is complete
        self._size: int | None = None  # bytes, once known
        self._refused: int | None = None  # number of files closed when the disk was too full for this file

    def __enter__(self) -> Path:
        """Wait for the download and return the local path.

        Raises:
            StorageError: if the download fails.
            DiskFull: if the disk of this machine is too full for the file.
        """
        try:
            return self.future.result()
        except BaseException:  # also an interrupt must not leave the copy
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the copy, or cancel the download. May be called from any thread and more than once."""
        self._closed.set()
        self._copy.close()
        self._fetcher._note_closed(self)


class Fetcher:
    """Iterates over the files ``names`` below ``root``, in order, and prefetches the next ones in threads.

        with Fetcher(root, names, ahead=4) as files:
            for file in files:  # does not wait
                with file as path:  # waits for this file; a StorageError concerns only this file
                    ...  # use path; the end of this block deletes the copy

    Several threads may iterate. Files may be closed in any order. The end of the outer block closes all open files.
    Files of a local folder are returned without a copy.

    Args:
        ahead: number of files to prefetch, and of parallel downloads.
        bytes_ahead: bytes to prefetch. A file is downloaded only when the caller takes it if it exceeds this limit or
            the free disk space, or if the server does not report its size.
    """

    def __init__(self, root: Path, names: Iterable[Path], *, ahead: int = 4, bytes_ahead: int = BYTES_AHEAD) -> None:
        self._root = root
        self._names = iter(names)
        self._ahead, self._bytes_ahead = ahead, bytes_ahead
        self._changed = threading.Condition()
        self._next: deque[FetchedFile] = deque()  # not taken yet
        self._in_use: list[FetchedFile] = []
        self._closes = self._refusals = 0
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Fetcher:
        if storage_at(self._root).must_fetch:
            self._pool = ThreadPoolExecutor(self._ahead, thread_name_prefix="fetch")
        with self._changed:
            for _ in range(self._ahead):
                self._start_next()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            files = [*self._in_use, *self._next]
            self._names = iter(())
            self._next.clear()
        for file in files:
            file.close()
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            wait([file.future for file in files], CANCEL_SECONDS)

    def __iter__(self) -> Iterator[FetchedFile]:
        return self

    def __next__(self) -> FetchedFile:
        with self._changed:
            if not self._next:
                raise StopIteration
            file = self._next.popleft()
            file._taken = True
            self._in_use = [*(other for other in self._in_use if not other._closed.is_set()), file]
            self._start_next()
            self._changed.notify_all()
        return file

    def _start_next(self) -> None:
        """Start to fetch the next file, if there is one."""
        if (name := next(self._names, None)) is None:
            return
        file = FetchedFile(name, self)
        if self._pool is not None:
            file.future = self._pool.submit(self._fetch, file)
        else:
            file.future = Future()
            file.future.set_result(self._root / name)
        self._next.append(file)

    def _fetch(self, file: FetchedFile) -> Path:
        storage = storage_at(self._root / file.name.as_posix())
        with contextlib.suppress(Exception):  # the download below raises the same error, with a message
            file._size = storage.size()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: file._closed.is_set() or self._may_start(file))
                file._started = not file._closed.is_set()
                freed = self._closes + self._refusals
                self._changed.notify_all()
            if file._closed.is_set():
                raise StorageError(f"{file.name} was closed before it was fetched")
            try:
                path = file._copy.enter_context(storage.local_copy(file._closed))
            except BaseException as error:  # also an interrupt: waiting threads must learn that the download ended
                with self._changed:
                    file._started = False
                    self._changed.notify_all()
                    if not isinstance(error, DiskFull):
                        raise
                    if freed == self._closes + self._refusals:  # otherwise another file may have freed space
                        if file._taken and not self._others_in_use(file):
                            raise
                        file._refused = self._closes
                    self._refusals += 1
                continue
            if file._closed.is_set():  # closed during the last step of the download
                file._copy.close()
            return path

    def _may_start(self, file: FetchedFile) -> bool:
        """Return whether a download may start: at once if the file is taken, otherwise in order and within the limits.

        After a DiskFull, the file waits until another file is closed, unless no other file is in use.
        """
        if file._taken:
            return file._refused is None or file._refused < self._closes or not self._others_in_use(file)
        before = list(itertools.takewhile(lambda other: other is not file, self._next))
        if file._size is None or file._refused is not None or not all(other._started for other in before):
            return False
        in_progress = (other for other in (*self._in_use, *before) if other._started and not other.future.done())
        free = shutil.disk_usage(tempfile.gettempdir()).free - sum(other._size or 0 for other in in_progress)
        return file._size <= min(free, self._bytes_ahead - sum(other._size or 0 for other in before))

    def _others_in_use(self, file: FetchedFile) -> bool:
        return any(other._started for other in self._in_use if other is not file)

    def _note_closed(self, file: FetchedFile) -> None:
        with self._changed:
            file._started = False
            self._closes += 1
            self._changed.notify_all()
