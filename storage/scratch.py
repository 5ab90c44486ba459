"""Temporary files and semaphores. What a killed process leaves, the next process that makes some removes."""

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

# What this module calls the things of a process.
NAME = re.compile(r"amex-[0-9a-f]{12}")
# Where Linux keeps named semaphores, as files sem.NAME.
SHARED_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of this process alone, where TMPDIR says; it goes with the context."""
    base = Path(tempfile.gettempdir())
    with held(base) as name:
        (base / name).mkdir(mode=0o700)
        try:
            yield base / name
        finally:
            shutil.rmtree(base / name, ignore_errors=True)


@contextlib.contextmanager
def semaphores() -> Iterator[None]:
    """Names the semaphores of this process, and of those that it starts in the context, after it.

    Python removes them itself, unless its resource tracker is killed too, as at the end of a batch job.
    """
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield
        return
    with held(SHARED_MEMORY) as name:
        config = multiprocessing.current_process()._config  # which processes inherit; there is no public way
        before = config["semprefix"]
        config["semprefix"] = f"/{name}"
        try:
            yield
        finally:
            config["semprefix"] = before


@contextlib.contextmanager
def held(folder: Path) -> Iterator[str]:
    """A name for what this process puts into ``folder``. What killed processes of this user left there goes first.

    Beside it lies NAME.lock, locked as long as the context lasts. A system unlocks it however the process ends.
    """
    sweep_folder(folder)
    while True:
        name = f"amex-{uuid.uuid4().hex[:12]}"
        lock = folder / f"{name}.lock"
        with lock.open("x") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not lock.exists():  # it was swept before it was locked
                    continue
            except BlockingIOError:  # it is being swept
                continue
            except OSError:  # a file system without locks: nobody shall take it for a dead process's
                lock.unlink(missing_ok=True)
            try:
                yield name
            finally:
                lock.unlink(missing_ok=True)
            return


def sweep_folder(folder: Path) -> None:
    """Removes what processes of this user left in ``folder`` that ended before they could do so.

    Only what bears exactly a name that ``held`` gave goes: users have files that begin with amex- too.
    """
    for lock in folder.glob("amex-*.lock"):
        with contextlib.suppress(OSError):  # it is locked, or somebody else was quicker
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
