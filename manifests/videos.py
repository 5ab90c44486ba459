"""Find the video file of a clip below a folder, by path or by id, in any layout and any container format."""

from __future__ import annotations

import os
import unicodedata
from functools import cached_property
from pathlib import Path, PurePosixPath

from ..errors import AmexError, plural, printable
from ..storage import open_path, reachable, storage_at

# Extensions of video files that ffmpeg can read; other files are ignored.
EXTENSIONS = frozenset(
    (
        *(".3g2", ".3gp", ".3gpp", ".asf", ".avi", ".divx", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv"),
    )
)
# Prefix of the files in which macOS stores attributes of other files: ._a.mp4 is not a video.
NO_VIDEO = "._"


class VideoError(AmexError):
    """The video of a clip has no file, or several files match."""


class MissingVideoError(VideoError):
    """The video of a clip has no file."""


class VideoFinder:
    """Finds video files below ``root``.

    A name is first tried as a relative path. Otherwise it is an id: the name of a file without extension, anywhere
    below the root. ``xHr8X2Wpmno`` and ``226/xHr8X2Wpmno`` both find ``training/226/xHr8X2Wpmno.mkv``. A name with an
    extension finds the file with that name, or else the only file with another extension; ``notes`` reports these. The
    folder is listed once, at the first id. The root may also be a prefix in an object store, or an http(s) address. An
    http(s) address cannot be listed, so names must be paths, and a missing file is detected only at the download.

    Attributes:
        root: the folder, prefix or address.
        other_extension: paths of the videos that were found with another extension, by name.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = open_path(root)
        self.other_extension: dict[str, Path] = {}
        self._storage = storage_at(self.root)
        if not self._storage.is_folder():
            if self._storage.has_file(""):
                raise VideoError(f"{self.root} is not a folder: give the folder of the videos")
            raise VideoError(f"the videos folder {self.root} does not exist")
        if not is_utf8(self.root.absolute()):
            where = quote_path(self.root.absolute())
            raise VideoError(f"the path of the videos folder {where} is not UTF-8: pass a link to it with --videos")

    def find(self, video: str) -> Path:
        """Return the path of ``video``, relative to the root.

        Raises:
            VideoError: if it is missing or ambiguous, is a URL, is not UTF-8, or leads out of the root.
        """
        if "://" in video:
            raise VideoError(f"{video!r} is a URL: download it to {self.root} and use its file name")
        name = PurePosixPath(video.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or "\0" in video:
            raise VideoError(f"the path {video!r} leaves the videos folder {self.root}")
        path = Path(video) if self._is_file(video) else self._search(video, name)
        if not is_utf8(path):
            raise VideoError(f"video {video!r} is {quote_path(path)}, a path that is not UTF-8: rename it")
        return path

    def notes(self) -> list[str]:
        """Return a line about the videos that were found with another extension, if there are any."""
        if not self.other_extension:
            return []
        video, path = next(iter(self.other_extension.items()))
        count = len(self.other_extension)
        were = f"{plural(count, 'video')} {'was' if count == 1 else 'were'}"
        first = "" if count == 1 else "the first "
        return [f"{were} found with another extension, {first}{printable(video)} as {quote_path(path)}"]

    def list_videos(self) -> list[Path]:
        """Return all video files below the root with UTF-8 paths: relative paths, sorted.

        Each file is listed once, even if several links lead to it, see ``LocalStorage.files``.
        """
        return [path for path in self._files if is_utf8(path)]

    @property
    def non_utf8_videos(self) -> list[Path]:
        """The video files with paths that are not UTF-8, sorted."""
        return [path for path in self._files if not is_utf8(path)]

    def size_and_time(self, path: Path) -> tuple[int | None, int | None]:
        """Return size (bytes) and modification time (nanoseconds) of a file below the root; None if unknown."""
        return self._storage.size_and_time(path)

    def _is_file(self, video: str) -> bool:
        with reachable(self.root):
            return self._storage.has_file(video)

    def _search(self, video: str, name: PurePosixPath) -> Path:
        """Return the file whose id is ``video``, or whose name is ``video``, possibly with another extension."""
        name = PurePosixPath(nfc(str(name)))
        matches = self._with_id(name.name, name.parent)
        if not matches and name.suffix.lower() in EXTENSIONS:
            matches = self._with_id(name.stem, name.parent)
            matches = [path for path in matches if nfc(path.name) == name.name] or matches
            if len(matches) == 1 and nfc(matches[0].name) != name.name:
                self.other_extension[video] = matches[0]
        if not matches:
            raise MissingVideoError(f"no video {video!r} below {self.root}")
        if len(matches) > 1:
            names = ", ".join(quote_path(path) for path in sorted(matches)[:4])
            raise VideoError(
                f"{len(matches)} files could be video {video!r}: {names}; name one by its path, or keep one of them"
            )
        return matches[0]

    def _with_id(self, video_id: str, parent: PurePosixPath) -> list[Path]:
        """Return the files with this id in folders whose path ends with ``parent``."""
        depth = len(parent.parts)
        matches = self._by_id.get(video_id, [])
        return [path for path in matches if depth == 0 or Path(nfc(str(path.parent))).parts[-depth:] == parent.parts]

    @cached_property
    def _files(self) -> list[Path]:
        if not self._storage.can_list:
            raise VideoError(f"{self.root} cannot be listed: name the videos in a manifest")
        with reachable(self.root):
            return sorted(
                path
                for path in self._storage.files()
                if path.suffix.lower() in EXTENSIONS and not path.name.startswith(NO_VIDEO)
            )

    @cached_property
    def _by_id(self) -> dict[str, list[Path]]:
        by_id: dict[str, list[Path]] = {}
        for path in self._files:
            for key in {path.stem, video_id(path.name)}:
                by_id.setdefault(nfc(key), []).append(path)
        return by_id


def nfc(name: str) -> str:
    """Return a name in Unicode form NFC. File names from macOS may have accents as separate characters."""
    return unicodedata.normalize("NFC", name)


def video_id(video: str) -> str:
    """Return the id of a video: its name or path without extension, or without both extensions of ID.mp4.webm.

    Some downloaders write double extensions. A manifest may name a video with or without extension.
    """
    stem, extension = os.path.splitext(video)
    while extension.lower() in EXTENSIONS:
        video = stem
        stem, extension = os.path.splitext(video)
    return video


def is_utf8(path: Path) -> bool:
    """Return whether a path can be stored as UTF-8. File names on disk may contain any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def quote_path(path: Path) -> str:
    """Return a path for a message, with bytes that are not UTF-8 as ``\\xe9``."""
    return printable(os.fsencode(path).decode(errors="backslashreplace"))
