"""The video file of a clip, restricted to the folder of videos."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ...errors import AmexError
from ...manifests import Clip
from ...manifests.videos import EXTENSIONS, VideoFinder, quote_path

if TYPE_CHECKING:
    from ...features import Stream


class VideoFiles:
    """The files of a folder of videos, by clip.

    Args:
        root: a folder on this machine.
        streams: name the file that each clip was extracted from. If none does, the file is searched as in extraction.
    """

    def __init__(self, root: Path, streams: Mapping[str, Stream]) -> None:
        self.root, self._streams = root, streams

    def path(self, clip: Clip) -> Path:
        """Return the file of a clip, with links resolved.

        Raises:
            AmexError: if there is none, it is not a video, or it is outside the folder. Stores and manifests may come
                from strangers, and must not make the page send other files.
        """
        name = self._named(clip) or self._finder.find(clip.video).as_posix()
        within = PurePosixPath(name)
        if within.is_absolute() or ".." in within.parts or "\0" in name:
            raise AmexError(f"the path {name!r} leaves the videos folder {self.root}")
        path = Path(os.path.realpath(self.root / name))
        if not path.is_file():
            raise AmexError(f"no video {name!r} below {self.root}")
        if not path.is_relative_to(os.path.realpath(self.root)):
            raise AmexError(
                f"{name!r} is a link to {quote_path(path)}, outside {self.root}: to show it, give "
                "the folder that it leads to with --videos"
            )
        if path.suffix.lower() not in EXTENSIONS:
            raise AmexError(f"{name!r} has no extension of a video")
        return path

    def _named(self, clip: Clip) -> str:
        streams = (stream for stream in self._streams.values() if clip.clip_id in stream)
        return next((video for stream in streams if (video := stream.video(clip.clip_id))), "")

    @cached_property
    def _finder(self) -> VideoFinder:
        return VideoFinder(self.root)


def media_type(path: Path) -> str:
    """Return the media type of a file: a video type or bytes, never a page or a script."""
    guessed = mimetypes.guess_type(path.name)[0] or ""
    return guessed if guessed.startswith("video/") else "application/octet-stream"
