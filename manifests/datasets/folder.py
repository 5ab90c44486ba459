"""The user's own videos: every video file below a folder is a clip, with captions from an optional captions file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import did_you_mean, plural, printable
from ..annotations import Annotations
from ..clip import Clip, ManifestError, Problem
from ..columns import SPLITS, column_hint, default_clip_id, parse_captions, parse_name, parse_seconds, parse_split
from ..tables import Table, open_table
from ..videos import MissingVideoError, VideoError, VideoFinder, quote_path
from .base import Dataset

COLUMNS = ("video", "caption", "start", "end", "split")
# Maximal number of suggestions for unknown videos: each needs a comparison with all names.
HINTS = 100
# Warnings about a captions file that do not exclude a clip.
logger = logging.getLogger(__name__)


@dataclass
class _Annotated:
    """A full video or a part of it, with the content of its rows.

    Attributes:
        line: the line that gave the split.
    """

    start: float | None = None
    end: float | None = None
    split: str = ""
    line: int = 0
    captions: list[str] = field(default_factory=list)


def build(annotations: Annotations, protocol: str) -> Iterator[Clip | Problem]:
    """Yield the items of ``scan_folder``, for a folder or a captions file in it."""
    path = annotations.path
    yield from scan_folder(path.parent, path) if path.is_file() else scan_folder(path)


def scan_folder(folder: Path, captions: Path | None = None) -> Iterator[Clip | Problem]:
    """Yield a clip for each video file; its ``clip_id`` is the path relative to the folder.

    Rows of the captions file (``captions``, or ``captions.csv`` or ``captions.jsonl`` in the folder) have a ``video``
    and a ``caption``, a ``split``, or ``start`` and ``end``. The rows of a video are its captions. A row with times is
    a separate clip. An unusable row is a Problem, and so is a file whose name cannot be an id. Unused columns, and
    videos in several splits, are logged as warnings.

    Raises:
        ManifestError: if there are no videos, or the captions file cannot be read or lacks these columns.
    """
    for name in ("captions.jsonl", "captions.csv"):
        if captions is None and (folder / name).exists():
            captions = folder / name
    finder = VideoFinder(folder)
    files = finder.list_videos()
    if not files and not finder.non_utf8_videos:
        raise ManifestError(f"no video files below {folder}")
    by_video: dict[str, dict[str, _Annotated]] = {path.as_posix(): {} for path in files}  # clips by id
    by_file = {os.path.realpath(folder / path): path.as_posix() for path in files}
    missing = 0
    for item in caption_rows(captions) if captions else ():
        if isinstance(item, Problem):
            yield item
            continue
        line, row = item
        try:
            video = finder.find(parse_name(row["video"], "video")).as_posix()
            if video not in by_video:  # a path through a link, or a file with another extension
                video = by_file.get(os.path.realpath(folder / video), video)
            _add(by_video.setdefault(video, {}), video, line, row)
        except (ValueError, VideoError) as error:
            hint = ""
            if isinstance(error, MissingVideoError) and missing < HINTS:
                missing += 1
                hint = did_you_mean(row["video"], by_video, count=1)
            yield Problem(file=captions.name, line=line, reason=f"{error}{hint}")
    in_several_splits = {}
    for video, clips in by_video.items():
        for clip_id, clip in (clips or {video: _Annotated()}).items():
            yield _clip(
                clip_id=clip_id,
                video=video,
                start=clip.start,
                end=clip.end,
                split=clip.split,
                captions=tuple(clip.captions),
            )
        splits = dict.fromkeys(clip.split for clip in clips.values() if clip.split)
        if len(splits) > 1:
            in_several_splits[video] = ", ".join(splits)
    for path in finder.non_utf8_videos:
        yield Problem(file=quote_path(path), reason="its path is not UTF-8: rename it")
    if in_several_splits:
        video, splits = next(iter(in_several_splits.items()))
        number = len(in_several_splits)
        count = f"{plural(number, 'video')} {'has' if number == 1 else 'have'} clips in several splits"
        logger.warning("%s: %s, the first %s (%s)", captions, count, printable(video), splits)


def _add(clips: dict[str, _Annotated], video: str, line: int, row: Mapping[str, Any]) -> None:
    """Add a row to the clips of its video. Raises ValueError if the row is unusable."""
    start, end = parse_seconds(row.get("start")), parse_seconds(row.get("end"))
    if (start is None) != (end is None):
        raise ValueError("start and end are only valid together")
    split = parse_split(row.get("split"))
    if split and split not in SPLITS.values():
        raise ValueError(f"unknown split {split!r}; use train, val or test{column_hint(split, SPLITS)}")
    texts = parse_captions(row["caption"]) if "caption" in row else []
    if not (texts or split or end is not None):
        raise ValueError("it has no caption, no start and end, and no split")
    checked = Clip(clip_id=default_clip_id(video, start, end), video=video, start=start, end=end, captions=tuple(texts))
    clip = clips.setdefault(checked.clip_id, _Annotated(start, end))
    if split and clip.split and split != clip.split:
        raise ValueError(f"the clip is in split {split!r} here, and in {clip.split!r} on line {clip.line}")
    if split and not clip.split:
        clip.split, clip.line = split, line
    clip.captions += texts


def _clip(**fields: Any) -> Clip | Problem:
    try:
        return Clip(**fields)
    except ValueError as error:
        return Problem(file=fields["clip_id"], reason=f"not a clip: {error}")


def caption_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]] | Problem]:
    """Yield line and values of the rows of a captions file. The values have the names of COLUMNS.

    A row of a JSON file has only the fields that it contains; other rows have all columns of the file.

    Raises:
        ManifestError: if the file cannot be read, or lacks a required column.
    """
    table = open_table(path, head=None)
    columns = {name.strip().casefold(): name for name in table.columns}
    used = {name: columns[name] for name in COLUMNS if name in columns}
    unused = [name for name in table.columns if name and name not in used.values()]
    _check_columns(table, used, unused)
    if unused:
        noun = "column" if len(unused) == 1 else "columns"
        listed = ", ".join(map(repr, unused))
        logger.warning("%s", printable(f"{path}: not used: {noun} {listed}{_hint(unused, set(COLUMNS) - used.keys())}"))
    of_records = path.suffix.lower() in (".jsonl", ".json")
    for item in table.rows(list(used.values())):
        if isinstance(item, Problem):
            yield item
            continue
        line, values = item
        row = dict(zip(used, values, strict=True))
        yield line, {name: value for name, value in row.items() if value is not None} if of_records else row


def _check_columns(table: Table, used: Mapping[str, str], unused: Iterable[str]) -> None:
    if not table.columns:
        return  # a file without records
    for required in [("video",), ("caption", "start", "split")]:
        if not used.keys() & set(required):
            raise ManifestError(
                f"{table.path} has no column {' or '.join(required)}: its columns are {', '.join(table.columns)}"
                f"{_hint(unused, required)}"
            )


def _hint(unused: Iterable[str], missing: Iterable[str]) -> str:
    """Return a suggestion for the first unused column that is similar to a missing one; otherwise ``""``."""
    return next((hint for name in unused if (hint := column_hint(name, missing))), "")


DATASET = Dataset(
    name="folder",
    title="your own videos: every video file below a folder is a clip",
    takes="a folder of videos, or the captions file in it: captions.csv or captions.jsonl, with the columns video, "
    "caption, start, end, split",
    build=build,
)
