"""The general importer: any list of clips becomes a manifest, of ten million rows in little memory.

Rows of one stretch of one video are captions of one clip. They may lie anywhere in the list, so that rows are sorted on
the disk, in a database that is gone afterwards.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import plural
from ..storage import write_whole
from .clip import Clip, ManifestError, Problem, json_line
from .columns import (
    address_of,
    blank,
    caption_of,
    captions_of,
    cut_id,
    guess_columns,
    intervals,
    name_of,
    seconds,
    several,
    split_of,
    video_of,
)
from .tables import Table, open_table

# Rows that are handed to the database at once.
BATCH = 2000
FIELDS = ("clip_id", "line", "address", "video", "start", "end", "split", "caption")
# Of videos that are named by the file of an address, those that come from several; the first address counts.
SEVERAL = (
    "select video, address, min(rowid) from piece where video in (select video from piece where address != '' "
    "group by video having count(distinct address) > 1) group by video"
)
# Each clip's rows after each other, clips in the order of their first rows.
SORTED = (
    f"select {', '.join(FIELDS)} from (select *, rowid as place, min(rowid) over (partition by clip_id) as first "
    "from piece) order by first, place"
)


@dataclass(kw_only=True)
class Imported:
    """What came of a list.

    Attributes:
        columns: meaning -> column.
        splits: clips by split.
        named_by: rows by how they name the video: ``name``, ``youtube`` (the id in an address), ``url`` (its file).
        problems: rows, or parts of rows, that are left out.
    """

    columns: Mapping[str, str]
    rows: int = 0
    clips: int = 0
    videos: int = 0
    captions: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    named_by: Counter[str] = field(default_factory=Counter)
    problems: int = 0


def choose_columns(path: Path, given: Mapping[str, str]) -> tuple[Table, dict[str, str]]:
    """Opens a list and says which column has which meaning; raises ManifestError as ``guess_columns`` does."""
    table = open_table(path)
    try:
        return table, guess_columns(table.columns, given)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from error


def import_list(
    table: Table,
    columns: Mapping[str, str],
    out: Path,
    *,
    report: Callable[[Problem], None],
    advance: Callable[[int], None] = lambda rows: None,
) -> Imported:
    """Writes the manifest of a list.

    Args:
        columns: meaning -> column, from ``choose_columns``.
        report: called with each row that is left out.
        advance: called with the number of rows that are read.

    Raises:
        ManifestError: if the list cannot be read to its end, or the manifest cannot be written.
    """
    result = Imported(columns=dict(columns))

    def leave_out(problem: Problem) -> None:
        result.problems += 1
        report(problem)

    # A database without a name is a temporary file, which is deleted when it is closed.
    with closing(sqlite3.connect("", isolation_level=None)) as database:
        try:
            database.execute(f"create table piece ({', '.join(FIELDS)})")
            database.execute("begin")
            insert = f"insert into piece values ({', '.join('?' * len(FIELDS))})"
            pieces = _pieces(table, columns, result, leave_out)
            while batch := list(itertools.islice(pieces, BATCH)):
                database.executemany(insert, batch)
                advance(result.rows)
            database.execute("commit")
            first = (
                {video: address for video, address, _ in database.execute(SEVERAL)} if result.named_by["url"] else {}
            )
            with write_whole(out, ManifestError) as handle:
                for clip in _clips(database.execute(SORTED), first, table.path.name, leave_out):
                    handle.write(json_line(clip))
                    result.clips += 1
                    result.captions += len(clip.captions)
                    result.splits[clip.split] += 1
                if not result.clips:
                    raise ManifestError(f"{table.path}: no row is a clip, of {plural(result.rows, 'row')}")
            result.videos = database.execute("select count(distinct video) from piece").fetchone()[0]
        except sqlite3.Error as error:
            raise ManifestError(
                f"cannot sort {table.path} in the temporary folder: {error}; set TMPDIR to another"
            ) from error
    return result


def _pieces(
    table: Table, columns: Mapping[str, str], result: Imported, leave_out: Callable[[Problem], None]
) -> Iterator[tuple[Any, ...]]:
    """The rows of the database: one a caption, or one for a clip without any."""
    meanings = list(columns)
    for item in table.rows(list(columns.values())):
        result.rows += 1
        if isinstance(item, Problem):
            leave_out(item)
            continue
        line, values = item
        row = dict(zip(meanings, values, strict=True))
        address = address_of(str(row["video"]))
        try:
            for clip in row_clips(row, result.named_by):
                if isinstance(clip, ValueError):
                    leave_out(Problem(file=table.path.name, line=line, reason=str(clip)))
                    continue
                for caption in clip.captions or (None,):
                    yield clip.clip_id, line, address, clip.video, clip.start, clip.end, clip.split, caption
        except ValueError as error:
            leave_out(Problem(file=table.path.name, line=line, reason=str(error)))


def row_clips(row: Mapping[str, Any], named_by: Counter[str]) -> Iterator[Clip | ValueError]:
    """The clips of one row, and a ValueError for each part of it that is none.

    A row whose times are lists holds a clip for each of their items, with the caption at the same place.

    Raises:
        ValueError: if the row as a whole is none.
    """
    video, named = video_of(name_of(row["video"], "video"))
    named_by[named] += 1
    split = split_of(row.get("split"))
    clip_id = name_of(row["clip_id"], "clip") if "clip_id" in row else None
    start, end, pairs = row.get("start"), row.get("end"), None
    if not blank(row.get("times")):
        pairs = intervals(row["times"])
        if isinstance(pairs, tuple):
            (start, end), pairs = pairs, None
    elif (starts := several(start)) is not None and (ends := several(end)) is not None:
        if len(starts) != len(ends):
            raise ValueError(f"{plural(len(starts), 'start')} for {plural(len(ends), 'end')}")
        pairs = list(zip(starts, ends, strict=True))
    if pairs is None:
        texts = captions_of(row["caption"]) if "caption" in row else ()
        yield _clip(clip_id, video, start, end, split, texts)
        return
    if not pairs:
        raise ValueError("its lists are empty")
    texts = (several(row["caption"]) or [row["caption"]]) if "caption" in row else None
    if texts is not None and len(texts) != len(pairs):
        raise ValueError(f"{plural(len(texts), 'caption')} for {plural(len(pairs), 'time')}")
    for number, (start, end) in enumerate(pairs):
        own = f"{clip_id}_{number}" if clip_id is not None and len(pairs) > 1 else clip_id
        try:
            yield _clip(own, video, start, end, split, () if texts is None else [caption_of(texts[number])])
        except ValueError as error:
            yield error


def _clip(clip_id: str | None, video: str, start: Any, end: Any, split: str, captions: Iterable[str]) -> Clip:
    start, end = seconds(start), seconds(end)
    if (start is None) != (end is None):
        raise ValueError("start and end go together")
    clip_id = cut_id(video, start, end) if clip_id is None else clip_id
    return Clip(clip_id=clip_id, video=video, start=start, end=end, split=split, captions=tuple(captions))


def _clips(
    rows: Iterator[tuple[Any, ...]], first_address: Mapping[str, str], file: str, leave_out: Callable[[Problem], None]
) -> Iterator[Clip]:
    for clip_id, group in itertools.groupby(rows, key=lambda row: row[0]):
        captions: list[str] = []
        first = None
        for _, line, address, *fields, caption in group:
            if first_address.get(fields[0], address) != address:
                reason = f"another video is called {fields[0]!r} too, {first_address[fields[0]]}: name videos by an id"
                leave_out(Problem(file=file, line=line, reason=reason))
                continue
            first = first or (line, fields)
            if fields != first[1]:
                reason = f"clip {clip_id!r} has another video, another time or another split on line {first[0]}"
                leave_out(Problem(file=file, line=line, reason=reason))
            elif caption is not None:
                captions.append(caption)
        if first is not None:
            video, start, end, split = first[1]
            yield Clip(clip_id=clip_id, video=video, start=start, end=end, split=split, captions=tuple(captions))
