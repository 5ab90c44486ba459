"""Where a store is: a folder, or a prefix in an object store such as S3. Both are paths; where they differ is here.

A file of an object store is written whole or not at all, there is no renaming, and many small files are read at once.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import AmexError, first_line
from .scratch import temporary_folder

# How a path says that there is nothing.
NOT_THERE = (FileNotFoundError, NotADirectoryError)
# Of S3: what does not answer is asked again, later and later. AWS_ENDPOINT_URL names another server than Amazon's.
# A download holds ten blocks of a file in memory.
S3_OPTIONS = {
    "default_block_size": 8 << 20,
    "config_kwargs": {"retries": {"max_attempts": 8, "mode": "standard"}, "connect_timeout": 10, "read_timeout": 60},
}
# Seconds to wait for an https server: for a connection, for its next bytes.
CONNECT, READ = 10, 60
# Files of an object store that are asked for together.
READ_TOGETHER = 500


class StorageError(AmexError):
    """An object store cannot be reached, or does not let one in."""


def locate(text: str | os.PathLike[str]) -> Path:
    """``s3://bucket/x.zarr`` as a path of universal_pathlib; anything else as a Path."""
    if not isinstance(text, str) or "://" not in text:
        return text if is_remote(text) else Path(text)
    try:
        from upath import UPath
    except ImportError as error:
        raise StorageError(f"{text} needs s3fs: pip install 'amex[s3]'") from error
    try:
        return UPath(text, **_options(text))
    except (ValueError, ImportError) as error:
        raise StorageError(f"{text}: {first_line(error)}") from error


def _options(text: str) -> dict[str, Any]:
    # Other processes write what is listed here, so a listing is never kept.
    options: dict[str, Any] = {"use_listings_cache": False}
    if text.startswith("s3://"):
        options |= S3_OPTIONS
    elif is_web(text):
        from aiohttp import ClientTimeout

        options["client_kwargs"] = {"timeout": ClientTimeout(total=None, sock_connect=CONNECT, sock_read=READ)}
    return options


def is_remote(path: Any) -> bool:
    """Whether a path lies in an object store."""
    return not isinstance(path, (str, Path)) and hasattr(path, "storage_options")


def files_of(path: Any) -> Any:
    """The file system that a remote path lies in, with connections of this process: a fork cannot use its parent's."""
    import fsspec

    return fsspec.filesystem(path.protocol, **path.storage_options)


def zarr_store(path: Path) -> Any:
    """A path as Zarr wants it."""
    if not is_remote(path):
        return path
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(str(path), storage_options=dict(path.storage_options))


def write_text(path: Path, text: str, *, once: bool = False, scratch: Path | None = None) -> None:
    """Writes a file so that it is there whole or not at all, also after a power cut.

    Args:
        once: leave the file alone if it is there: of several writers the first has its way.
        scratch: folder on the same file system where the file begins; None: its own. What a kill leaves stays there.
    """
    if is_remote(path):
        with contextlib.suppress(FileExistsError):
            files_of(path).pipe_file(path.path, text.encode(), mode="create" if once else "overwrite")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=scratch or path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        if once:
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                os.replace(temporary, path)
            Path(temporary).unlink(missing_ok=True)
        else:
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def write_whole(path: Path, kind: type[AmexError] = AmexError) -> Iterator[IO[str]]:
    """A local text file to write to that is there whole in the end, or not at all; raises ``kind`` if it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as handle:
            try:
                yield handle
                handle.close()
                os.chmod(handle.name, 0o644)
                os.replace(handle.name, path)
            except BaseException:
                os.unlink(handle.name)
                raise
    except OSError as error:
        raise kind(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def begin_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new local folder ``name`` to fill before ``publish``: beside the finished ones, or where the machine has room.

    What is left of it goes; where the process is killed, with the next (see ``scratch``), or as the part is swept.
    """
    if is_remote(parent):
        with temporary_folder() as folder:
            yield folder / name
        return
    try:
        yield parent / name
    finally:
        shutil.rmtree(parent / name, ignore_errors=True)


def publish(begun: Path, folder: Path) -> None:
    """Moves a finished folder to its place, unless it is there.

    To an object store it goes file by file, also over what another writer puts there: a commit makes it count, and
    until then the same name stands for the same bytes.
    """
    if is_remote(folder):
        files_of(folder).put(f"{begun}/", f"{folder.path}/", recursive=True)
    elif not folder.exists():
        begun.rename(folder)


def read_files(folder: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files of a folder that match, in order of their names."""
    if not is_remote(folder):
        for path in sorted(folder.glob(pattern), key=str):
            yield path.name, path.read_bytes()
        return
    paths = sorted(files_of(folder).glob(f"{folder.path}/{pattern}"))
    for first in range(0, len(paths), READ_TOGETHER):
        for path, data in sorted(files_of(folder).cat(paths[first : first + READ_TOGETHER]).items()):
            yield path.rpartition("/")[2], data


def sizes(folder: Path) -> dict[str, int]:
    """The bytes of every file below a folder, by its path from there; none where there is no folder."""
    if is_remote(folder):
        files = files_of(folder).find(folder.path, detail=True)
        return {path.removeprefix(f"{folder.path}/"): file["size"] for path, file in files.items()}
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def read_together(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The content of several files of a folder, by name."""
    if not is_remote(folder):
        return {name: (folder / name).read_bytes() for name in names}
    paths = {name: f"{folder.path}/{name}" for name in names}
    contents = files_of(folder).cat(list(paths.values()))
    return {name: contents[path] for name, path in paths.items()}


def remove(path: Path) -> None:
    """Removes a folder or a file, if nobody else has."""
    if is_remote(path):
        with contextlib.suppress(FileNotFoundError):
            files_of(path).rm(path.path, recursive=True)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_web(path: Any) -> bool:
    """Whether a path is behind an http(s) server, which reads and does not list."""
    return str(path).startswith(("http://", "https://"))


def check_answers(path: Path) -> None:
    """Raises StorageError if no http(s) server answers, whatever it may say of the path."""
    try:
        urllib.request.urlopen(str(path), timeout=CONNECT).close()
    except urllib.error.HTTPError:
        pass
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise StorageError(
            f"{path} cannot be reached: {first_line(getattr(error, 'reason', None) or error)}"
        ) from error


@contextlib.contextmanager
def reachable(path: Path, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Says in a line what a disk or an object store has against it, ``but`` for errors that the caller expects."""
    try:
        yield
    except (AmexError, *but):
        raise
    except Exception as error:
        if not is_remote(path) and not isinstance(error, OSError):
            raise
        raise StorageError(f"{path} cannot be read or written: {first_line(error)}") from error
