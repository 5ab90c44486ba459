"""Files below a folder as files on this machine: themselves, or copies that are fetched while others are in use."""

from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from ..errors import AmexError, first_line
from .places import StorageError, files_of, is_remote
from .scratch import temporary_folder

# Attempts at a file, further and further apart, besides those of S3's own client.
ATTEMPTS = 3
# Bytes of the copies that nobody has taken yet.
BYTES_AHEAD = 4 << 30
# Seconds for downloads to end after they are cancelled. A later end removes its copy just the same.
CANCEL_SECONDS = 5.0


class NoRoom(AmexError):
    """The disk for temporary files is full."""


@contextlib.contextmanager
def on_disk(root: Path, name: Path, cancelled: threading.Event | None = None) -> Iterator[Path]:
    """A file below ``root`` as one on this machine: itself, or a copy that exists as long as the context.

    Args:
        cancelled: once set, a download ends early, with a StorageError.

    Raises:
        StorageError: if it does not exist, or cannot be fetched after several attempts.
        NoRoom: if this machine has no room for it.
    """
    if not is_remote(root):
        yield root / name
        return
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
    remote = root / name.as_posix()
    with temporary_folder() as folder:
        copy = folder / name.name
        try:
            again(files_of(remote).get_file)(_address(remote), str(copy), callback=Progress())
        except FileNotFoundError as error:
            raise StorageError(f"no {remote}") from error
        except Exception as error:  # every kind of file system has its own
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise NoRoom(f"{folder} has no room for {remote}: name a larger disk with TMPDIR") from error
            raise StorageError(f"{remote} cannot be fetched: {first_line(error)}") from error
        yield copy


def _address(remote: Path) -> str:
    return remote.path if remote.protocol == "s3" else str(remote)


def _is_temporary(error: BaseException) -> bool:
    """Whether another attempt may succeed: not if the file is absent or forbidden, or the disk here is full."""
    if isinstance(error, (FileNotFoundError, PermissionError)) or getattr(error, "errno", None) == errno.ENOSPC:
        return False
    status = getattr(error, "status", 500)
    return status >= 500 or status == 429


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
        self._size = 0  # bytes of its copy, as far as known
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
        bytes_ahead: how many bytes are fetched before they are taken, where sizes are known in advance. A file that
            does not fit, here or on the disk, is fetched once it is taken.
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
        if is_remote(self._root):
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
        with contextlib.suppress(Exception):  # the download tells what is wrong
            remote = self._root / file.name.as_posix()
            file._size = files_of(remote).size(_address(remote)) or 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: file._closed.is_set() or self._may_begin(file))
                file._begun = not file._closed.is_set()
                freed = self._closes + self._refusals
                self._changed.notify_all()
            if file._closed.is_set():
                raise StorageError(f"{file.name} was closed before it was fetched")
            try:
                path = file._copy.enter_context(on_disk(self._root, file.name, file._closed))
            except NoRoom:
                with self._changed:
                    file._begun = False
                    if freed == self._closes + self._refusals:
                        if file._taken and not self._others_in_use(file):
                            raise
                        file._refused = self._closes
                    self._refusals += 1
                    self._changed.notify_all()
                continue
            file._size = path.stat().st_size
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
        if file._refused is not None or not all(other._begun for other in before):
            return False
        in_progress = (other for other in (*self._in_use, *before) if other._begun and not other.future.done())
        free = shutil.disk_usage(tempfile.gettempdir()).free - sum(other._size for other in in_progress)
        return sum(other._size for other in before) + file._size <= self._bytes_ahead and file._size <= free

    def _others_in_use(self, file: Fetched) -> bool:
        return any(other._begun for other in self._in_use if other is not file)

    def _note_closed(self, file: Fetched) -> None:
        with self._changed:
            file._begun = False
            self._closes += 1
            self._changed.notify_all()
