"""Temporary folders and named semaphores. Leftovers of killed processes are deleted by the next process."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from .local import LocalStorage

# Names of temporary folders and semaphores.
NAME = re.compile(r"amex-[0-9a-f]{12}")
# Linux stores named semaphores here, as files sem.NAME.
SHARED_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a private temporary folder below TMPDIR. It is deleted when the context ends."""
    base = Path(tempfile.gettempdir())
    with claimed_name(base) as name:
        (base / name).mkdir(mode=0o700)
        try:
            yield base / name
        finally:
            shutil.rmtree(base / name, ignore_errors=True)


@contextlib.contextmanager
def semaphores() -> Iterator[None]:
    """Give the semaphores of this process and its children a name by which ``remove_stale_files`` finds them.

    Python deletes semaphores itself, but not if its resource tracker is killed too, as at the end of a batch job.
    """
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield
        return
    with claimed_name(SHARED_MEMORY) as name:
        config = multiprocessing.current_process()._config  # children inherit it; there is no public interface
        previous = config["semprefix"]
        config["semprefix"] = f"/{name}"
        try:
            yield
        finally:
            config["semprefix"] = previous


@contextlib.contextmanager
def claimed_name(folder: Path) -> Iterator[str]:
    """Yield a unique name for the files of this process in ``folder``. Delete leftovers of killed processes first.

    The file NAME.lock is locked until the context ends. The system releases the lock however the process ends.
    """
    remove_stale_files(folder)
    while True:
        name = f"amex-{uuid.uuid4().hex[:12]}"
        lock = folder / f"{name}.lock"
        with lock.open("x") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not lock.exists():  # another process deleted it before it was locked
                    continue
            except BlockingIOError:  # another process is deleting it
                continue
            except OSError:  # a file system without locks: an unlocked file would look like a leftover
                lock.unlink(missing_ok=True)
            try:
                yield name
            finally:
                lock.unlink(missing_ok=True)
            return


def remove_stale_files(folder: Path) -> None:
    """Delete the leftovers of killed processes of this user in ``folder``.

    Only names that match ``NAME`` are deleted: users may have files that begin with amex- too.
    """
    for lock in folder.glob("amex-*.lock"):
        with contextlib.suppress(OSError):  # its process is alive, or another process deletes it
            if not NAME.fullmatch(lock.stem) or not _is_ours(lock) or lock.is_symlink():
                continue
            with lock.open("r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for path in (folder / lock.stem, *folder.glob(f"sem.{lock.stem}-*")):
                    if os.path.lexists(path) and _is_ours(path):
                        LocalStorage(path).remove()
                lock.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    return path.lstat().st_uid == os.getuid()
