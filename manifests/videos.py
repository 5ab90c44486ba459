"""Which file a clip's video is: found below one folder by path, or by id in any layout and any container."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path, PurePosixPath

from ..errors import AmexError
from ..places import check_answers, is_remote, is_web, locate, reachable

# What ffmpeg's demuxers read and people keep videos in; other files in the folder are not considered.
EXTENSIONS = frozenset(
    (
        *(".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
        *(".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    )
)


class VideoError(AmexError):
    """No file, or no one file, belongs to a clip's video."""


class VideoFinder:
    """Finds video files below ``root``.

    Names are taken as relative paths first. What is not a path is an id, and an id is a file's name without its
    extension, anywhere below the root: ``xHr8X2Wpmno`` finds ``training/226/xHr8X2Wpmno.mkv``. The folder is read once,
    at the first id, and links in it are followed. A root may be a prefix in an object store, or an http(s) address; the
    latter cannot be listed, so names below it are paths, and whether they are there is known when they are fetched.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = locate(root)
        self.listed = not is_web(self.root)
        if not self.listed:
            check_answers(self.root)
        elif not is_remote(self.root) and not os.path.isdir(self.root):
            raise VideoError(f"the videos folder {self.root} does not exist; give it with --videos")

    def find(self, video: str) -> Path:
        """The path of ``video``, relative to the root.

        Raises:
            VideoError: if it is missing, is found twice, is a URL, or would leave the root.
        """
        if "://" in video:
            raise VideoError(f"{video} is a URL: download it below {self.root} and name it there")
        parts = PurePosixPath(video.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or "\0" in video:
            raise VideoError(f"the path {video!r} leaves the videos folder {self.root}")
        if not self.listed or self._is_file(video):
            return Path(video)
        found = self._by_id.get(parts.name, [])
        if len(parts.parts) > 1:  # "training/226/abc" names a folder too
            found = [path for path in found if path.parent.as_posix().endswith(parts.parent.as_posix())]
        if not found:
            raise VideoError(f"no video {video!r} below {self.root}")
        if len(found) > 1:
            names = ", ".join(str(path) for path in sorted(found)[:4])
            raise VideoError(f"{len(found)} files could be video {video!r}: {names}; keep one of them")
        return found[0]

    def _is_file(self, video: str) -> bool:
        if is_remote(self.root):
            return video in self._keys
        return os.path.lexists(self.root / video) and not (self.root / video).is_dir()

    @cached_property
    def _keys(self) -> frozenset[str]:
        """Of an object store: all names below the root."""
        with reachable(self.root):
            return frozenset(name[len(self.root.path.rstrip("/")) + 1 :] for name in self.root.fs.find(self.root.path))

    def walk(self) -> list[Path]:
        """All video files below the root, relative to it, sorted."""
        if not self.listed:
            raise VideoError(f"{self.root} cannot be listed: name the videos in a manifest")
        if is_remote(self.root):
            return sorted(Path(name) for name in self._keys if Path(name).suffix.lower() in EXTENSIONS)
        found = []
        for folder, _, names in os.walk(self.root, followlinks=True):
            base = Path(folder).relative_to(self.root)
            found += [base / name for name in names if Path(name).suffix.lower() in EXTENSIONS]
        return sorted(found)

    @cached_property
    def _by_id(self) -> dict[str, list[Path]]:
        by_id: dict[str, list[Path]] = {}
        for path in self.walk():
            # Downloaders leave names such as ID.mp4.webm: the name before its first extension is an id too.
            for key in {path.stem, path.name.split(".", 1)[0] if Path(path.stem).suffix in EXTENSIONS else path.stem}:
                by_id.setdefault(key, []).append(path)
        return by_id
