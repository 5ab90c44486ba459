"""Files below a folder, one after the other, on this machine: the next ones are fetched while some are in use."""

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

from .base import NoRoom, StorageError
from .paths import storage_at

# Bytes of the copies that nobody has taken yet.
BYTES_AHEAD = 4 << 30
# Seconds for downloads to end after they are cancelled. A later end removes its copy just the same.
CANCEL_SECONDS = 5.0


class Fetched:
    """A file that a ``Fetcher`` gives out. ``with`` waits for it, and removes its copy in the end.

    Attributes:
        name: its path below the root.
        future: its path on this machine, or the error. For callers that must not wait: ``future.done()`` and
            ``future.add_done_callback``.
    """

    future: Future[Path]

    def __init__(self, name: Path, fetcher: Fetcher) -> None:
        self.name = name
        self._fetcher = fetcher
        self._copy = contextlib.ExitStack()
        self._closed = threading.Event()
        # The fetcher's lock guards these.
        self._taken = False
        self._begun = False  # it downloads, or has its copy
        self._size: int | None = None  # bytes, once known
        self._refused: int | None = None  # the disk had no room for it after so many files were closed

    def __enter__(self) -> Path:
        """The path of the file on this machine.

        Raises:
            StorageError: if this file cannot be had.
            NoRoom: if this machine has no room for it.
        """
        try:
            return self.future.result()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the copy, or cancels its download. Any thread may do so, also more than once."""
        self._closed.set()
        self._copy.close()
        self._fetcher._note_closed(self)


class Fetcher:
    """Files below ``root``, in the order of ``names``; while some are in use, threads fetch the next ones.

        with Fetcher(root, names, ahead=4) as files:
            for file in files:  # does not wait
                with file as path:  # waits for this file; raises StorageError, which costs this file alone
                    ...  # use path; its copy is removed at the end of this block

    Several threads may iterate, and files may be closed in any order. The end of the outer block closes what is still
    open. The files of a local folder are given out as they are, without a thread.

    Args:
        ahead: how many files are fetched before they are taken, and how many downloads run at the same time.
        bytes_ahead: how many bytes are fetched before they are taken. A file that does not fit, here or on the disk, or
            whose size no server tells, is fetched once it is taken.
    """

    def __init__(self, root: Path, names: Iterable[Path], *, ahead: int = 4, bytes_ahead: int = BYTES_AHEAD) -> None:
        self._root = root
        self._names = iter(names)
        self._ahead, self._bytes_ahead = ahead, bytes_ahead
        self._changed = threading.Condition()
        self._next: deque[Fetched] = deque()  # not taken yet
        self._in_use: list[Fetched] = []
        self._closes = self._refusals = 0
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Fetcher:
        if storage_at(self._root).must_fetch:
            self._pool = ThreadPoolExecutor(self._ahead, thread_name_prefix="fetch")
        with self._changed:
            for _ in range(self._ahead):
                self._begin()
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

    def __iter__(self) -> Iterator[Fetched]:
        return self

    def __next__(self) -> Fetched:
        with self._changed:
            if not self._next:
                raise StopIteration
            file = self._next.popleft()
            file._taken = True
            self._in_use = [*(other for other in self._in_use if not other._closed.is_set()), file]
            self._begin()
            self._changed.notify_all()
        return file

    def _begin(self) -> None:
        """Starts to fetch one more file, if there is one."""
        if (name := next(self._names, None)) is None:
            return
        file = Fetched(name, self)
        if self._pool is not None:
            file.future = self._pool.submit(self._fetch, file)
        else:
            file.future = Future()
            file.future.set_result(self._root / name)
        self._next.append(file)

    def _fetch(self, file: Fetched) -> Path:
        storage = storage_at(self._root / file.name.as_posix())
        with contextlib.suppress(Exception):  # the download tells what is wrong
            file._size = storage.size()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: file._closed.is_set() or self._may_begin(file))
                file._begun = not file._closed.is_set()
                freed = self._closes + self._refusals
                self._changed.notify_all()
            if file._closed.is_set():
                raise StorageError(f"{file.name} was closed before it was fetched")
            try:
                path = file._copy.enter_context(storage.on_disk(file._closed))
            except BaseException as error:
                with self._changed:
                    file._begun = False
                    self._changed.notify_all()
                    if not isinstance(error, NoRoom):
                        raise
                    if freed == self._closes + self._refusals:  # else there may be room by now
                        if file._taken and not self._others_in_use(file):
                            raise
                        file._refused = self._closes
                    self._refusals += 1
                continue
            if file._closed.is_set():  # while its copy was completed
                file._copy.close()
            return path

    def _may_begin(self, file: Fetched) -> bool:
        """Whether a download may begin: at once if the file is taken, else in order and within the limits.

        A file for which the disk had no room waits until another one is closed, as long as there is one to be closed.
        """
        if file._taken:
            return file._refused is None or file._refused < self._closes or not self._others_in_use(file)
        before = list(itertools.takewhile(lambda other: other is not file, self._next))
        if file._size is None or file._refused is not None or not all(other._begun for other in before):
            return False
        in_progress = (other for other in (*self._in_use, *before) if other._begun and not other.future.done())
        free = shutil.disk_usage(tempfile.gettempdir()).free - sum(other._size or 0 for other in in_progress)
        return file._size <= min(free, self._bytes_ahead - sum(other._size or 0 for other in before))

    def _others_in_use(self, file: Fetched) -> bool:
        return any(other._begun for other in self._in_use if other is not file)

    def _note_closed(self, file: Fetched) -> None:
        with self._changed:
            file._begun = False
            self._closes += 1
            self._changed.notify_all()
