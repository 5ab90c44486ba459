"""All storage backends behave alike; unsupported operations are clear errors."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from amex.errors import AmexError
from amex.features import create_store
from amex.storage import (
    MISSING_ERRORS,
    Storage,
    StorageError,
    open_path,
    reachable,
    storage_at,
    write_atomic,
    write_json,
    write_text,
)


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return an empty folder of a backend; ``memory`` is another file system of fsspec."""
    if request.param == "local":
        return tmp_path / "folder"
    if request.param == "s3":
        return open_path(f"{request.getfixturevalue('s3')}/some/folder")
    MemoryFileSystem.store.clear()
    return open_path("memory://some/folder")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Path]:
    """Serve ``tmp_path / "served"`` with one file. Yield the address."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.txt").write_text("there")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield open_path(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(storage_at(folder).sizes())


def test_a_file_is_written_atomically(folder: Path) -> None:
    path = folder / "deep" / "a.json"
    write_json(path, {"é": [1, 2.5]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, 2.5]}

    def stopped() -> None:
        with write_atomic(path) as handle:
            handle.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, 2.5]}
    assert names(folder) == ["deep/a.json"]


def test_the_first_of_several_writers_wins_if_requested(folder: Path) -> None:
    threads = [
        threading.Thread(target=partial(write_text, folder / "a", str(number), once=True)) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    first = next(iter(iter(lambda: read(folder / "a"), None)))
    for thread in threads:
        thread.join()
    assert (folder / "a").read_text() == first
    write_text(folder / "a", "later")
    assert (folder / "a").read_text() == "later"
    assert names(folder) == ["a"]


def read(path: Path) -> str:
    """Wait until a file exists. Return its content."""
    while True:
        try:
            return path.read_text()
        except MISSING_ERRORS:
            continue


def test_files_of_a_folder_are_listed_and_read(folder: Path) -> None:
    assert storage_at(folder).sizes() == {}
    assert list(storage_at(folder).read_matching("*.json")) == []
    texts = {"b.json": "bb", "a.json": "a", "c.txt": "", "deep/er/d.json": "ddd"}
    for name, text in texts.items():
        write_text(folder / name, text)
    storage = storage_at(folder)
    assert storage.sizes() == {name: len(text) for name, text in texts.items()}
    assert sorted(storage.files()) == sorted(Path(name) for name in texts)
    assert list(storage.read_matching("*.json")) == [("a.json", b"a"), ("b.json", b"bb")]
    assert storage.read(["deep/er/d.json", "a.json"]) == {"deep/er/d.json": b"ddd", "a.json": b"a"}
    assert [storage.has_file(name) for name in ("a.json", "deep/er/d.json", "deep", "x")] == [True, True, False, False]
    assert storage.size_and_time(Path("b.json"))[0] == 2
    assert storage.size_and_time(Path("x")) == (None, None)
    assert storage_at(folder / "b.json").size() == 2
    with pytest.raises(FileNotFoundError):
        storage.read(["x"])


def test_changed_files_have_a_new_version_and_missing_files_are_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.json", "a.json", "c.txt", "deep/d.json"):
        write_text(folder / name, "one")
    monkeypatch.setattr("amex.storage.local.YOUNG", -(10**9))
    before = storage_at(folder).versions("*.json")
    assert [(name, size) for name, (size, _) in before.items()] == [("a.json", 3), ("b.json", 3)]
    assert storage_at(folder).versions("*.json") == before
    write_text(folder / "a.json", "two")
    after = storage_at(folder).versions("*.json")
    assert after["b.json"] == before["b.json"]
    assert after["a.json"] != before["a.json"] or after["a.json"][1] is None  # None if the backend cannot tell
    assert list(storage_at(folder).read_each(["b.json", "x", "a.json"])) == [("b.json", b"one"), ("a.json", b"two")]
    assert storage_at(folder / "none").versions("*") == {}


def test_a_new_local_file_has_no_version_and_a_dangling_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    assert storage_at(tmp_path).versions("*") == {"a": (3, None)}
    os.utime(tmp_path / "a", (10**9, 10**9))
    assert storage_at(tmp_path).versions("*") == {"a": (3, f"3 {10**18}")}
    (tmp_path / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        storage_at(tmp_path).versions("*")


def test_a_listing_is_repeated_until_it_is_consistent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(folder / "old", "")
    kind = type(storage_at(folder))
    listed, listings = kind._listed, 0

    def changed_by(self: Storage, pattern: str) -> dict[str, tuple[int, str | None]]:
        nonlocal listings
        files, listings = listed(self, pattern), listings + 1
        assert listings < 9
        write_text(folder / f"{listings}", "")
        storage_at(folder / "old").remove()
        return files

    monkeypatch.setattr(kind, "_listed", changed_by)
    monkeypatch.setattr("amex.storage.s3.PAGE", 1)
    assert sorted(storage_at(folder).versions("*")) == ["1", "2"]


def test_put_replaces_a_file_atomically(folder: Path) -> None:
    write_text(folder / "a", "before")

    def pieces(count: int) -> Iterator[bytes]:
        yield b"one"
        if count == 1:
            raise KeyboardInterrupt
        yield b"two"

    with pytest.raises(KeyboardInterrupt):
        storage_at(folder / "a").put(pieces(1))
    assert (folder / "a").read_bytes() == b"before"
    storage_at(folder / "a").put(pieces(2))
    assert (folder / "a").read_bytes() == b"onetwo"
    assert names(folder) == ["a"]


def test_a_published_folder_is_complete_and_its_staging_folder_is_gone(folder: Path, tmp_path: Path) -> None:
    storage_at(folder).make_folder()
    for content in ("one", "two"):
        with storage_at(folder).staging_folder("new") as begun:
            (begun / "in").mkdir(parents=True)
            (begun / "in" / "x").write_text(content)
            storage_at(folder / "done").publish(begun, is_intact=lambda there: False)
        assert not begun.exists()
        assert (folder / "done" / "in" / "x").read_text() == content
        assert names(folder) == ["done/in/x"]
    with storage_at(folder).staging_folder("half") as begun:
        begun.mkdir()
        (begun / "x").touch()
    assert names(folder) == ["done/in/x"]


def test_a_folder_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[int, bool] = {}
    monkeypatch.setattr(os, "fsync", lambda file: synced.update({os.fstat(file).st_ino: (tmp_path / "done").exists()}))
    with storage_at(tmp_path).staging_folder("new") as begun:
        (begun / "in").mkdir(parents=True)
        for name in ("a", "in/b"):
            (begun / name).write_text(name)
        storage_at(tmp_path / "done").publish(begun, is_intact=lambda there: False)
    assert synced == {(tmp_path / "done" / name).stat().st_ino: False for name in ("a", "in/b")}


def test_an_intact_folder_of_an_earlier_writer_is_reused(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    with storage_at(tmp_path).staging_folder("new") as begun:
        begun.mkdir()
        inode = (tmp_path / "done").stat().st_ino
        storage_at(tmp_path / "done").publish(begun, is_intact=lambda there: there == tmp_path / "done")
    assert (tmp_path / "done").stat().st_ino == inode


def test_removing_twice_is_not_an_error(folder: Path) -> None:
    for name in ("a/b", "a/c", "d"):
        write_text(folder / name, "x")
    storage_at(folder / "a").remove_if_empty()
    assert names(folder) == ["a/b", "a/c", "d"]
    storage_at(folder / "a" / "b").remove()
    storage_at(folder / "a" / "c").remove()
    storage_at(folder / "a").remove_if_empty()
    assert not (folder / "a").exists()
    for _ in range(2):
        storage_at(folder).remove()
        assert not folder.exists()


def test_a_local_copy_exists_until_its_context_ends(folder: Path) -> None:
    write_text(folder / "a.mp4", "video")
    storage = storage_at(folder / "a.mp4")
    with storage.local_copy() as file:
        assert type(file) is type(Path())
        assert (file.name, file.read_text()) == ("a.mp4", "video")
    assert file.exists() is not storage.must_fetch


def test_a_local_file_name_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


def test_a_temporary_file_beside_has_the_name_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    with storage_at(tmp_path / "0-a.json").write(once=True, beside=tmp_path / "beside"):
        (begun,) = (tmp_path / "beside").iterdir()
        assert begun.name.startswith(".0-a.json.")
    assert not begun.exists()


def test_a_write_error_has_the_callers_type_and_one_line(tmp_path: Path) -> None:
    class Refused(AmexError):
        pass

    (tmp_path / "file").touch()
    with (
        pytest.raises(Refused, match=f"^cannot write {tmp_path}/file/a: .+$"),
        write_atomic(tmp_path / "file" / "a", Refused),
    ):
        pass


def test_files_on_a_web_server_are_read_only(web: Path) -> None:
    storage: Storage = storage_at(web)
    assert (storage.can_list, storage.can_rename, storage.must_fetch) == (False, False, True)
    assert storage.is_folder()
    assert storage.has_file("nobody knows.mp4")
    assert storage.size_and_time(Path("a.txt")) == (None, None)
    with storage_at(web / "a.txt").local_copy() as file:
        assert file.read_text() == "there"
    with pytest.raises(StorageError, match=f"^no {web}b.txt$"), storage_at(web / "b.txt").local_copy():
        pass
    refusals = (
        lambda: write_text(web / "b.txt", "x"),
        lambda: storage.publish(Path(), lambda there: True),
        storage.remove,
    )
    for refused in refusals:
        with pytest.raises(StorageError, match=r"cannot be written: give a folder, or .* s3://BUCKET/NAME"):
            refused()


def test_a_store_cannot_be_created_on_a_web_server(web: Path) -> None:
    with pytest.raises(StorageError, match=rf"^{web}s\.zarr/zarr\.json cannot be written: .+$"):
        create_store(f"{web}s.zarr")


@pytest.mark.parametrize("given", ["nothing://a/b", "s3//a/b", "c:/a"])
def test_an_unknown_address_is_a_one_line_error_and_other_text_is_a_local_path(given: str) -> None:
    if "://" in given:
        with pytest.raises(StorageError, match=given):
            open_path(given)
    else:
        assert open_path(given) == Path(given)


def test_only_disk_errors_of_a_local_path_are_converted(tmp_path: Path) -> None:
    def fail(error: Exception, path: Path) -> None:
        with reachable(path, but=MISSING_ERRORS):
            raise error

    with pytest.raises(StorageError, match=f"{tmp_path} cannot be read or written: broken"):
        fail(OSError("broken"), tmp_path)
    with pytest.raises(FileNotFoundError):
        fail(FileNotFoundError(), tmp_path)
    with pytest.raises(RuntimeError):
        fail(RuntimeError(), tmp_path)
    with pytest.raises(StorageError, match="s3://b/c cannot be read or written: odd"):
        fail(RuntimeError("odd"), open_path("s3://b/c"))


def test_a_local_path_of_universal_pathlib_has_the_local_backend(tmp_path: Path) -> None:
    from upath import UPath

    write_text(open_path(UPath(tmp_path / "a")), "x")
    assert storage_at(open_path(UPath(tmp_path))).can_rename
    assert storage_at(open_path(os.fspath(tmp_path))).sizes() == {"a": 1}
