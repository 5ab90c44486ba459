"""Checks of the places of a store: a folder with its disk, and an object store."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ...errors import AmexError
from ...storage import open_path, reachable, write_text
from .findings import Finding, Subject, tried

# Bytes per synced write, about the size of a part of a store.
BLOCK = 8 << 20
# A disk is measured with this many bytes, or for this many seconds.
MEASURED, SECONDS = 8 * BLOCK, 3.0
SMALL_FILES = 64
# Minimum free bytes: an hour of video has some 10 MB of rows of windows, and a gigabyte of objects.
FREE = 2 << 30
# Files per second below which commits slow a run down: each commit is a file.
FEW_FILES = 10


def folder(subject: Subject) -> Iterator[Finding]:
    """Check space, speed and locks of the folder of a store."""
    place = subject.folder.absolute()
    remedy = "choose a folder that you may write to, with --store"
    if place.exists() and not place.is_dir():
        problem = f"{place} is a file"
        yield Finding(what="the folder of the store", state="broken", found=problem, remedy=remedy, essential=True)
        return
    while not place.is_dir() and place != place.parent:
        place = place.parent
    try:
        scratch = tempfile.mkdtemp(dir=place, prefix=".amex-doctor-")
    except OSError as error:
        problem = f"{place}: {error.strerror}"
        yield Finding(what="the folder of the store", state="broken", found=problem, remedy=remedy, essential=True)
        return
    try:
        yield _space(place)
        speed = f"the disk of {place} cannot be used: {remedy}"
        yield tried("the disk's speed", lambda: _speed(Path(scratch)), remedy=speed, essential=True)
        yield tried("small files", lambda: _small_files(Path(scratch)), remedy=speed, essential=True)
        locks = "locks do not work here: never run two programs that rewrite the same stream at the same time"
        yield tried("file locks", lambda: _locks(Path(scratch)), remedy=locks)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _space(place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    space = f"{free / (1 << 30):,.1f} GiB free in {place}"
    if free < FREE:
        remedy = "make room, or choose another folder: an hour of video takes 10 MB, with objects a gigabyte"
        return Finding(what="disk space", state="broken", found=space, remedy=remedy)
    return Finding(what="disk space", state="ok", found=space)


def _speed(scratch: Path) -> str:
    """Write a file to the disk, and read it back, past the cache."""
    block, written, begin = os.urandom(BLOCK), 0, time.monotonic()
    path = scratch / "block"
    with path.open("wb", buffering=0) as handle:
        while written < MEASURED and time.monotonic() - begin < SECONDS:
            written += handle.write(block)
            os.fdatasync(handle.fileno())
    writing = time.monotonic() - begin
    with path.open("rb", buffering=0) as handle:
        with contextlib.suppress(OSError):  # out of the memory that caches it
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin, read = time.monotonic(), 0
        while (data := handle.read(BLOCK)) and time.monotonic() - begin < SECONDS:
            if data != block[: len(data)]:
                raise OSError("what is read is not what was written")
            read += len(data)
    reading = max(1e-6, time.monotonic() - begin)
    return f"{written / writing / 1e6:,.0f} MB/s written, {read / reading / 1e6:,.0f} MB/s read"


def _small_files(scratch: Path) -> str:
    """Write files as commits are written: synced and atomically."""
    begin, count = time.monotonic(), 0
    while count < SMALL_FILES and time.monotonic() - begin < SECONDS:
        write_text(scratch / f"{count}.json", "x" * 4096)
        count += 1
    rate = count / (time.monotonic() - begin)
    slow = " (slow: larger --part-clips make fewer)" if rate < FEW_FILES else ""
    return f"{rate:,.0f} a second{slow}"


def _locks(scratch: Path) -> str:
    path = scratch / "lock"
    with path.open("w") as first, path.open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "a lock excludes other programs"
    raise OSError("two programs may have one lock at the same time")


def bucket(subject: Subject) -> Iterator[Finding]:
    """Check that an object store can be listed."""
    if not subject.bucket:
        return

    def listed() -> str:
        path = open_path(subject.bucket)
        with reachable(path):
            names = [entry.name for entry in itertools.islice(path.iterdir(), 3)]
        return f"{subject.bucket} can be listed: {', '.join(names) or 'nothing is in it'}"

    remedy = (
        "credentials are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile; another server than Amazon's is "
        "AWS_ENDPOINT_URL"
    )
    try:
        open_path(subject.bucket)
    except AmexError as error:
        yield Finding(what="S3", state="missing", found=str(error), remedy="pip install 'amex[s3]'", essential=True)
        return
    yield tried("S3", listed, remedy=remedy, essential=True)
