"""Your own videos: every video file below a folder is a clip, with captions from a file beside them if there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...foreign import read_json_lines
from ..annotations import Annotations
from ..clip import Clip, ManifestError, Problem
from ..videos import VideoError, VideoFinder, quoted
from .base import Dataset, read_csv


def build(annotations: Annotations, protocol: str) -> Iterator[Clip | Problem]:
    """As ``scan_folder``, of a folder or of the file of captions in it."""
    path = annotations.path
    yield from scan_folder(path.parent, path) if path.is_file() else scan_folder(path)


def scan_folder(folder: Path, captions: Path | None = None) -> Iterator[Clip | Problem]:
    """One whole-video clip a file; its ``clip_id`` is the path relative to the folder.

    A file whose name cannot be an id is a Problem, and so is a clip whose captions cannot be stored.

    With a captions file (``captions.csv`` or ``captions.jsonl`` in the folder, or another that is given), rows name a
    ``video`` and a ``caption``. Rows of one video are its captions. A row with ``start`` and ``end`` is a clip of its
    own.
    """
    for name in ("captions.jsonl", "captions.csv"):
        if captions is None and (folder / name).exists():
            captions = folder / name
    finder = VideoFinder(folder)
    files = finder.walk()
    if not files and not finder.misnamed:
        raise ManifestError(f"no video files below {folder}")
    whole: dict[str, list[str]] = {path.as_posix(): [] for path in files}
    by_file = {os.path.realpath(folder / path): path.as_posix() for path in files}
    cut: dict[tuple[str, float, float], list[str]] = {}
    for where, row in caption_rows(captions) if captions else ():
        try:
            name, caption = row["video"], row["caption"]
            video = finder.find(name).as_posix()
            if video not in whole:  # it is named through a link, or has an extension that no walk looks for
                video = by_file.get(os.path.realpath(folder / video), video)
            if row.get("start") in (None, "") and row.get("end") in (None, ""):
                whole.setdefault(video, []).append(caption)
            else:
                cut.setdefault((video, float(row["start"]), float(row["end"])), []).append(caption)
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"{where}: needs video and caption, and start and end together ({error!r})") from error
        except VideoError as error:
            raise ManifestError(f"{where}: {error}") from error
    with_cuts = {video for video, _, _ in cut}
    for video, texts in whole.items():
        if texts or video not in with_cuts:
            yield _clip(clip_id=video, video=video, captions=tuple(texts))
    for (video, start, end), texts in cut.items():
        clip_id = f"{video}_{start}_{end}"
        yield _clip(clip_id=clip_id, video=video, start=start, end=end, captions=tuple(texts))
    for path in finder.misnamed:
        yield Problem(file=quoted(path), reason="its path is not UTF-8: rename it")


def _clip(**fields: Any) -> Clip | Problem:
    try:
        return Clip(**fields)
    except ValueError as error:
        return Problem(file=fields["clip_id"], reason=f"not a clip: {error}")


def caption_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Rows of a captions file with the place each comes from."""
    if path.suffix.lower() == ".csv":
        for number, row in enumerate(read_csv(path, "video", "caption"), start=2):
            yield f"{path}:{number}", row
        return
    yield from read_json_lines(path, ManifestError)


DATASET = Dataset(
    name="folder",
    title="your own videos: every video file below a folder is a clip",
    takes="a folder of videos, optionally with captions.csv or captions.jsonl (columns video, caption[, start, end])",
    build=build,
)
