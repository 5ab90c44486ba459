"""Files are prefetched in order and within limits, and all copies are deleted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from s3_server import Server
from s3fs import S3FileSystem

from amex.storage import DiskFull, Fetcher, StorageError, open_path

SIZE = 1000
NAMES = [Path(f"in/{number}.bin") for number in range(8)]


def content(name: Path) -> bytes:
    return name.stem.encode() * SIZE


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return a private folder for temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def root(s3: str) -> Path:
    """Return a prefix with eight files of 1,000 bytes."""
    root = open_path(f"{s3}/deep")
    for name in NAMES:
        (root / name.as_posix()).write_bytes(content(name))
    return root


def copies() -> list[Path]:
    """Return all local copies of a fetcher."""
    files: list[Path] = []
    for folder in leftovers():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # deleted just now, or a lock file
            files += folder.iterdir()
    return sorted(files, key=lambda path: path.name)


def copies_are(names: list[Path]) -> bool:
    return [copy.name for copy in copies()] == [name.name for name in names]


def leftovers() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("amex-*"))


def eventually(condition: Callable[..., bool], *arguments: Any) -> bool:
    until = time.monotonic() + 10
    while not condition(*arguments) and time.monotonic() < until:
        time.sleep(0.002)
    return condition(*arguments)


def requests(server: Server) -> list[str]:
    """Return the requested files, sorted."""
    return sorted(path.rpartition("/")[2] for method, path in server.seen if method == "GET")


def test_the_next_files_are_fetched_while_one_is_in_use(root: Path, server: Server) -> None:
    server.seen.clear()
    with Fetcher(root, iter(NAMES), ahead=3) as files:
        for number, file in enumerate(files):
            with file as path:
                assert (file.name, path.name) == (NAMES[number], NAMES[number].name)
                assert path.read_bytes() == content(file.name)
                assert eventually(copies_are, NAMES[number : number + 4])  # this one and the next three
                assert requests(server) == [name.name for name in NAMES[: number + 4]]
            assert not path.exists()
    assert requests(server) == [name.name for name in NAMES]
    assert leftovers() == []


@pytest.mark.parametrize(("limit", "count"), [(2 * SIZE, 2), (2 * SIZE - 1, 1), (SIZE - 1, 0)])
def test_no_more_bytes_than_allowed_are_fetched_ahead(limit: int, count: int, root: Path, server: Server) -> None:
    server.seen.clear()
    with Fetcher(root, NAMES, ahead=4, bytes_ahead=limit) as files:
        assert eventually(lambda: sum(method == "HEAD" for method, _ in server.seen) == 4)
        assert eventually(lambda: len(copies()) == count)
        for number, file in enumerate(files):
            with file as path:
                assert path.read_bytes() == content(file.name)
                assert len(requests(server)) <= number + 1 + count
    assert requests(server) == [name.name for name in NAMES]


@pytest.mark.parametrize("status", [403, 404])
def test_a_failed_download_does_not_affect_other_files(status: int, root: Path, server: Server) -> None:
    server.trouble = lambda request: status if request["PATH_INFO"].endswith("/2.bin") else None
    with Fetcher(root, NAMES, ahead=3) as files:
        for file in files:
            if file.name.name != "2.bin":
                with file as path:
                    assert path.read_bytes() == content(file.name)
            else:
                with pytest.raises(StorageError, match=f"{root}/in/2.bin"), file:
                    pass
    assert leftovers() == []


def test_files_are_used_by_several_at_once_and_closed_in_any_order(root: Path, server: Server) -> None:
    chance = random.Random(0)
    server.trouble = lambda request: 503 if chance.random() < 0.1 else None
    used: list[Path] = []

    def use(files: Fetcher) -> None:
        for file in files:
            with file as path:
                time.sleep(chance.random() / 100)
                assert path.read_bytes() == content(file.name)
                used.append(file.name)

    with Fetcher(root, NAMES, ahead=2) as files, ThreadPoolExecutor(3) as threads:
        for result in [threads.submit(use, files) for _ in range(3)]:
            result.result()
    assert sorted(used) == NAMES
    assert leftovers() == []


def test_a_callback_reports_the_end_of_a_download(root: Path, server: Server) -> None:
    answer = threading.Event()
    server.trouble = lambda request: None if answer.wait(10) else 503
    with Fetcher(root, NAMES[:2], ahead=2) as files:
        file = next(files)
        told: list[Path] = []
        file.future.add_done_callback(lambda future: told.append(future.result()))
        assert not file.future.done()
        answer.set()
        assert eventually(lambda: bool(told))
        assert told[0].read_bytes() == content(file.name)
        file.close()
        file.close()
        assert not told[0].exists()


class Disk:
    """Simulate a disk with space for this many files."""

    files = len(NAMES)
    refused = 0


@pytest.fixture
def disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Raise the error of a full disk."""
    disk = Disk()
    fetch, lock = S3FileSystem._get_file, asyncio.Lock()

    async def get_file(self: S3FileSystem, rpath: str, lpath: str, **more: Any) -> None:
        async with lock:
            if len(copies()) >= disk.files:
                Path(lpath).write_bytes(b"begun")
                disk.refused += 1
                raise OSError(errno.ENOSPC, "No space left on device")
            await fetch(self, rpath, lpath, **more)

    monkeypatch.setattr(S3FileSystem, "_get_file", get_file)
    S3FileSystem.clear_instance_cache()
    yield disk
    S3FileSystem.clear_instance_cache()


def test_a_download_waits_for_disk_space(root: Path, disk: Disk) -> None:
    disk.files = 2
    with Fetcher(root, NAMES, ahead=4) as files, ThreadPoolExecutor(4) as threads:

        def use() -> int:
            count = 0
            for file in files:
                with file as path:
                    assert path.read_bytes() == content(file.name)
                    assert eventually(lambda: disk.refused > 0)
                    count += 1
            return count

        assert sum(result.result() for result in [threads.submit(use) for _ in range(4)]) == len(NAMES)
    assert leftovers() == []


def test_a_disk_too_small_for_one_file_is_an_error_that_names_tmpdir(root: Path, disk: Disk) -> None:
    disk.files = 0
    with Fetcher(root, NAMES, ahead=2) as files:
        for file in files:
            with pytest.raises(DiskFull, match="name a larger disk with TMPDIR"), file:
                pass
    assert leftovers() == []


def test_a_file_of_unknown_size_is_not_prefetched(root: Path, server: Server) -> None:
    server.trouble = lambda request: 403 if request["REQUEST_METHOD"] == "HEAD" else None
    server.seen.clear()
    with Fetcher(root, NAMES[:3], ahead=3) as files:
        assert eventually(lambda: [method for method, _ in server.seen].count("HEAD") == 3)
        for number, file in enumerate(files):
            with file as path:
                assert path.read_bytes() == content(file.name)
                assert len(requests(server)) == number + 1


def test_nothing_is_prefetched_onto_a_full_disk(root: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 2 * SIZE})
    monkeypatch.setattr("amex.storage.fetch.shutil.disk_usage", lambda path: usage)
    server.seen.clear()
    server.trouble = lambda request: time.sleep(0.05) if request["REQUEST_METHOD"] == "GET" else None
    with Fetcher(root, NAMES[:4], ahead=4) as files:
        assert eventually(lambda: len(requests(server)) >= 2)
        assert len(requests(server)) == 2  # in progress
        usage.free = SIZE - 1
        for file in files:
            with file as path:
                assert path.read_bytes() == content(file.name)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_no_copy(stop: type[BaseException], root: Path, server: Server) -> None:
    answer = threading.Event()
    server.trouble = lambda request: answer.wait(10) and None if request["PATH_INFO"].endswith("/3.bin") else None
    files = Fetcher(root, NAMES, ahead=4)

    def interrupted() -> None:
        with files:
            first, second = next(files), next(files)
            with first:
                assert second.future.result(10).exists()  # although it is not closed
                assert eventually(lambda: any(path.endswith("/3.bin") for _, path in server.seen))
                threading.Timer(0.1, answer.set).start()
                raise stop

    with pytest.raises(stop):
        interrupted()
    assert eventually(lambda: leftovers() == [])
    with pytest.raises(StopIteration):
        next(files)


def test_a_large_download_ends_soon_after_it_is_cancelled(s3: str, server: Server) -> None:
    root = open_path(s3)
    (root / "large.bin").write_bytes(bytes(6 << 20))
    server.seen.clear()
    with Fetcher(root, [Path("large.bin")]) as files:
        file = next(files)
        assert eventually(lambda: bool(copies()))
        file.close()
        assert eventually(file.future.done)
        assert leftovers() == []


def test_local_files_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in NAMES:
        (tmp_path / name).write_bytes(content(name))
    threads = threading.active_count()
    with Fetcher(tmp_path, NAMES) as files:
        for file in files:
            assert file.future.done()
            with file as path:
                assert path == tmp_path / file.name
        assert threading.active_count() == threads
    assert all((tmp_path / name).read_bytes() == content(name) for name in NAMES)
