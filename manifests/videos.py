"""Which file a clip's video is: found below one folder by path, or by id in any layout and any container."""

from __future__ import annotations

import os
import unicodedata
from functools import cached_property
from pathlib import Path, PurePosixPath

from ..errors import AmexError, printable
from ..storage import open_path, reachable, storage_at

# What ffmpeg's demuxers read and people keep videos in; other files in the folder are not considered.
EXTENSIONS = frozenset(
    (
        *(".3g2", ".3gp", ".3gpp", ".asf", ".avi", ".divx", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv"),
    )
)
# Files that macOS lays beside others on foreign disks: ._a.mp4 has attributes of a.mp4, and no video.
NO_VIDEO = "._"


class VideoError(AmexError):
    """No file, or no one file, belongs to a clip's video."""


class MissingVideoError(VideoError):
    """No file belongs to a clip's video."""


class VideoFinder:
    """Finds video files below ``root``.

    Names are taken as relative paths first. What is not a path is an id, and an id is a file's name without its
    extension, anywhere below the root: ``xHr8X2Wpmno`` finds ``training/226/xHr8X2Wpmno.mkv``, and so does
    ``226/xHr8X2Wpmno``. A name with an extension finds the file of that name, or else the only one that has another
    extension, which ``notes`` tells. The folder is read once, at the first id. A root may be a prefix in an object
    store, or an http(s) address; the latter cannot be listed, so names below it are paths, and whether they are there
    is known when they are fetched.

    Attributes:
        other_extension: the videos that were found under another extension, and their paths.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = open_path(root)
        self.other_extension: dict[str, Path] = {}
        self._storage = storage_at(self.root)
        if not self._storage.is_folder():
            if self._storage.has_file(""):
                raise VideoError(f"{self.root} is no folder: give the folder that has the videos")
            raise VideoError(f"the videos folder {self.root} does not exist")
        if not is_utf8(self.root.absolute()):
            where = quoted(self.root.absolute())
            raise VideoError(f"the path of the videos folder {where} is not UTF-8: give a link to it with --videos")

    def find(self, video: str) -> Path:
        """The path of ``video``, relative to the root.

        Raises:
            VideoError: if it is missing, is found twice, is a URL, is not UTF-8, or would leave the root.
        """
        if "://" in video:
            raise VideoError(f"{video!r} is a URL: download it below {self.root} and name it there")
        name = PurePosixPath(video.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or "\0" in video:
            raise VideoError(f"the path {video!r} leaves the videos folder {self.root}")
        path = Path(video) if self._is_file(video) else self._search(video, name)
        if not is_utf8(path):
            raise VideoError(f"video {video!r} is {quoted(path)}, a path that is not UTF-8: rename it")
        return path

    def notes(self) -> list[str]:
        """A line about the videos that were found under another extension, if there are any."""
        if not self.other_extension:
            return []
        video, path = next(iter(self.other_extension.items()))
        count = len(self.other_extension)
        were = "1 video was" if count == 1 else f"{count:,} videos were"
        first = "" if count == 1 else "the first "
        return [f"{were} found with another extension, {first}{printable(video)} as {quoted(path)}"]

    def walk(self) -> list[Path]:
        """All video files below the root whose paths are UTF-8, relative to it, sorted.

        In a folder of links each file has one path, see ``LocalStorage.files``.
        """
        return [path for path in self._files if is_utf8(path)]

    @property
    def misnamed(self) -> list[Path]:
        """All other video files, sorted."""
        return [path for path in self._files if not is_utf8(path)]

    def size_and_time(self, path: Path) -> tuple[int | None, int | None]:
        """Bytes of a file below the root, and when it was last modified (nanoseconds); None where nobody can say."""
        return self._storage.size_and_time(path)

    def _is_file(self, video: str) -> bool:
        with reachable(self.root):
            return self._storage.has_file(video)

    def _search(self, video: str, name: PurePosixPath) -> Path:
        """The file whose id is ``video``, or that has its name and perhaps another extension."""
        name = PurePosixPath(composed(str(name)))
        matches = self._with_id(name.name, name.parent)
        if not matches and name.suffix.lower() in EXTENSIONS:
            matches = self._with_id(name.stem, name.parent)
            matches = [path for path in matches if composed(path.name) == name.name] or matches
            if len(matches) == 1 and composed(matches[0].name) != name.name:
                self.other_extension[video] = matches[0]
        if not matches:
            raise MissingVideoError(f"no video {video!r} below {self.root}")
        if len(matches) > 1:
            names = ", ".join(quoted(path) for path in sorted(matches)[:4])
            raise VideoError(
                f"{len(matches)} files could be video {video!r}: {names}; name one by its path, or keep one of them"
            )
        return matches[0]

    def _with_id(self, video_id: str, parent: PurePosixPath) -> list[Path]:
        """The files with an id that lie in a folder whose path ends with ``parent``, compared part by part."""
        depth = len(parent.parts)
        matches = self._by_id.get(video_id, [])
        return [
            path for path in matches if depth == 0 or Path(composed(str(path.parent))).parts[-depth:] == parent.parts
        ]

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
                by_id.setdefault(composed(key), []).append(path)
        return by_id


def composed(name: str) -> str:
    """A name with each accented letter as one character: macOS may write it as two, and captions rarely do."""
    return unicodedata.normalize("NFC", name)


def video_id(video: str) -> str:
    """The id of a video, or of a path: without its extension, and without both of names such as ID.mp4.webm.

    Downloaders leave such names. A manifest may name a video with its extension or without.
    """
    stem, extension = os.path.splitext(video)
    while extension.lower() in EXTENSIONS:
        video = stem
        stem, extension = os.path.splitext(video)
    return video


def is_utf8(path: Path) -> bool:
    """Whether a path can be stored: a name on a disk may be any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def quoted(path: Path) -> str:
    """A path from a disk as a message shows it, bytes that are not UTF-8 as ``\\xe9``."""
    return printable(os.fsencode(path).decode(errors="backslashreplace"))
