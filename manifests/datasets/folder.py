"""Your own videos: every video file below a folder is a clip, with captions from a file beside them if there is one."""

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
from ..columns import SPLITS, captions_of, cut_id, name_of, near, seconds, split_of
from ..tables import Table, open_table
from ..videos import MissingVideoError, VideoError, VideoFinder, quoted
from .base import Dataset

COLUMNS = ("video", "caption", "start", "end", "split")
# Rows that name no video, and are told which one they may mean: each is compared with every name.
HINTS = 100
# What is said of a list that is no reason to leave a clip out.
notes = logging.getLogger(__name__)


@dataclass
class _Stretch:
    """A whole video, or a cut of one, and what rows say of it."""

    start: float | None = None
    end: float | None = None
    split: str = ""
    line: int = 0
    captions: list[str] = field(default_factory=list)


def build(annotations: Annotations, protocol: str) -> Iterator[Clip | Problem]:
    """As ``scan_folder``, of a folder or of the file of captions in it."""
    path = annotations.path
    yield from scan_folder(path.parent, path) if path.is_file() else scan_folder(path)


def scan_folder(folder: Path, captions: Path | None = None) -> Iterator[Clip | Problem]:
    """One whole-video clip a file; its ``clip_id`` is the path relative to the folder.

    With a captions file (``captions.csv`` or ``captions.jsonl`` in the folder, or another that is given), rows name a
    ``video``, and a ``caption``, a ``split``, or ``start`` and ``end``. Rows of one video are its captions. A row with
    times is a clip of its own. A row that cannot be used is a Problem, and so is a file whose name cannot be an id.
    Columns that are not used, and videos that are in two splits, are logged as warnings.

    Raises:
        ManifestError: if there are no videos, or the captions file cannot be read or has none of these columns.
    """
    for name in ("captions.jsonl", "captions.csv"):
        if captions is None and (folder / name).exists():
            captions = folder / name
    finder = VideoFinder(folder)
    files = finder.walk()
    if not files and not finder.misnamed:
        raise ManifestError(f"no video files below {folder}")
    by_video: dict[str, dict[str, _Stretch]] = {path.as_posix(): {} for path in files}
    by_file = {os.path.realpath(folder / path): path.as_posix() for path in files}
    missing = 0
    for item in caption_rows(captions) if captions else ():
        if isinstance(item, Problem):
            yield item
            continue
        line, row = item
        try:
            video = finder.find(name_of(row["video"], "video")).as_posix()
            if video not in by_video:  # it is named through a link, or has an extension that no walk looks for
                video = by_file.get(os.path.realpath(folder / video), video)
            _add(by_video.setdefault(video, {}), video, line, row)
        except (ValueError, VideoError) as error:
            meant = ""
            if isinstance(error, MissingVideoError) and missing < HINTS:
                missing += 1
                meant = did_you_mean(row["video"], by_video, count=1)
            yield Problem(file=captions.name, line=line, reason=f"{error}{meant}")
    mixed = {}
    for video, stretches in by_video.items():
        for clip_id, stretch in (stretches or {video: _Stretch()}).items():
            yield _clip(
                clip_id=clip_id,
                video=video,
                start=stretch.start,
                end=stretch.end,
                split=stretch.split,
                captions=tuple(stretch.captions),
            )
        splits = dict.fromkeys(stretch.split for stretch in stretches.values() if stretch.split)
        if len(splits) > 1:
            mixed[video] = ", ".join(splits)
    for path in finder.misnamed:
        yield Problem(file=quoted(path), reason="its path is not UTF-8: rename it")
    if mixed:
        video, splits = next(iter(mixed.items()))
        count = f"{plural(len(mixed), 'video')} {'has' if len(mixed) == 1 else 'have'} clips in several splits"
        notes.warning("%s: %s, the first %s (%s)", captions, count, printable(video), splits)


def _add(stretches: dict[str, _Stretch], video: str, line: int, row: Mapping[str, Any]) -> None:
    """Adds a row to the stretches of its video; raises ValueError for one that cannot be used."""
    start, end = seconds(row.get("start")), seconds(row.get("end"))
    if (start is None) != (end is None):
        raise ValueError("start and end go together")
    split = split_of(row.get("split"))
    if split and split not in SPLITS.values():
        raise ValueError(f"unknown split {split!r}, there is train, val and test{near(split, SPLITS)}")
    texts = captions_of(row["caption"]) if "caption" in row else []
    if not (texts or split or end is not None):
        raise ValueError("it has no caption, no start and end, and no split")
    cut = Clip(clip_id=cut_id(video, start, end), video=video, start=start, end=end, captions=tuple(texts))
    stretch = stretches.setdefault(cut.clip_id, _Stretch(start, end))
    if split and stretch.split and split != stretch.split:
        raise ValueError(f"the clip is in split {split!r} here, and in {stretch.split!r} on line {stretch.line}")
    if split and not stretch.split:
        stretch.split, stretch.line = split, line
    stretch.captions += texts


def _clip(**fields: Any) -> Clip | Problem:
    try:
        return Clip(**fields)
    except ValueError as error:
        return Problem(file=fields["clip_id"], reason=f"not a clip: {error}")


def caption_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]] | Problem]:
    """Rows of a captions file, by the names of COLUMNS: those that the file has, or this row where it is JSON.

    Raises:
        ManifestError: if the file cannot be read, or has none of the columns that it must have.
    """
    table = open_table(path, head=None)
    columns = {name.strip().casefold(): name for name in table.columns}
    used = {name: columns[name] for name in COLUMNS if name in columns}
    unused = [name for name in table.columns if name and name not in used.values()]
    _check_columns(table, used, unused)
    if unused:
        noun = "column" if len(unused) == 1 else "columns"
        listed = ", ".join(map(repr, unused))
        notes.warning("%s", printable(f"{path}: not used: {noun} {listed}{_meant(unused, set(COLUMNS) - used.keys())}"))
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
    for lacking in [("video",), ("caption", "start", "split")]:
        if not used.keys() & set(lacking):
            raise ManifestError(
                f"{table.path} has no column {' or '.join(lacking)}: its columns are {', '.join(table.columns)}"
                f"{_meant(unused, lacking)}"
            )


def _meant(unused: Iterable[str], lacking: Iterable[str]) -> str:
    """What the first unused column that is like a lacking one may be."""
    return next((hint for name in unused if (hint := near(name, lacking))), "")


DATASET = Dataset(
    name="folder",
    title="your own videos: every video file below a folder is a clip",
    takes="a folder of videos, or the captions file in it: captions.csv or captions.jsonl, with the columns video, "
    "caption, start, end, split",
    build=build,
)
