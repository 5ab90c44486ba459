"""Convert any list of clips into a manifest, with little memory even for ten million rows.

Rows with the same video and times are captions of one clip. They can be anywhere in the list, so the rows are sorted on
disk, in a temporary database.
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
from ..storage import write_atomic
from .clip import Clip, ManifestError, Problem, json_line
from .columns import (
    default_clip_id,
    guess_columns,
    is_blank,
    parse_caption,
    parse_captions,
    parse_intervals,
    parse_list,
    parse_name,
    parse_seconds,
    parse_split,
    parse_video,
    video_address,
)
from .tables import Table, open_table

# Rows to insert into the database at a time.
BATCH = 2000
FIELDS = ("clip_id", "line", "address", "video", "start", "end", "split", "caption")
# Videos whose file name occurs in several addresses, with the first address.
AMBIGUOUS = (
    "select video, address, min(rowid) from piece where video in (select video from piece where address != '' "
    "group by video having count(distinct address) > 1) group by video"
)
# The rows grouped by clip, with the clips in the order of their first rows.
SORTED = (
    f"select {', '.join(FIELDS)} from (select *, rowid as place, min(rowid) over (partition by clip_id) as first "
    "from piece) order by first, place"
)


@dataclass(kw_only=True)
class ImportSummary:
    """The result of importing a list.

    Attributes:
        columns: meaning -> column.
        rows, clips, videos, captions: their numbers.
        splits: number of clips by split.
        named_by: number of rows by how they name the video: ``name``, ``youtube`` (the id in an address) or ``url``
            (the file name in an address).
        problems: number of rows, or parts of rows, that were skipped.
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
    """Open a list. Return it with meaning -> column. Raises ManifestError like ``guess_columns``."""
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
) -> ImportSummary:
    """Write the manifest of a list.

    Args:
        columns: meaning -> column, from ``choose_columns``.
        report: called with each skipped row.
        advance: called with the number of rows read.

    Raises:
        ManifestError: if the list cannot be read, or the manifest cannot be written.
    """
    result = ImportSummary(columns=dict(columns))

    def skip(problem: Problem) -> None:
        result.problems += 1
        report(problem)

    # A database without a name is a temporary file, which SQLite deletes when it is closed.
    with closing(sqlite3.connect("", isolation_level=None)) as database:
        try:
            database.execute(f"create table piece ({', '.join(FIELDS)})")
            database.execute("begin")
            insert = f"insert into piece values ({', '.join('?' * len(FIELDS))})"
            pieces = _pieces(table, columns, result, skip)
            while batch := list(itertools.islice(pieces, BATCH)):
                database.executemany(insert, batch)
                advance(result.rows)
            database.execute("commit")
            first_address = (
                {video: address for video, address, _ in database.execute(AMBIGUOUS)} if result.named_by["url"] else {}
            )
            with write_atomic(out, ManifestError) as handle:
                for clip in _clips(database.execute(SORTED), first_address, table.path.name, skip):
                    handle.write(json_line(clip))
                    result.clips += 1
                    result.captions += len(clip.captions)
                    result.splits[clip.split] += 1
                if not result.clips:
                    raise ManifestError(f"{table.path}: none of {plural(result.rows, 'row')} is a clip")
            result.videos = database.execute("select count(distinct video) from piece").fetchone()[0]
        except sqlite3.Error as error:
            raise ManifestError(
                f"cannot sort {table.path} in the temporary folder: {error}; set TMPDIR to another"
            ) from error
    return result


def _pieces(
    table: Table, columns: Mapping[str, str], result: ImportSummary, skip: Callable[[Problem], None]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows for the database: one per caption, or one for a clip without captions."""
    meanings = list(columns)
    for item in table.rows(list(columns.values())):
        result.rows += 1
        if isinstance(item, Problem):
            skip(item)
            continue
        line, values = item
        row = dict(zip(meanings, values, strict=True))
        address = video_address(str(row["video"]))
        try:
            for clip in row_clips(row, result.named_by):
                if isinstance(clip, ValueError):
                    skip(Problem(file=table.path.name, line=line, reason=str(clip)))
                    continue
                for caption in clip.captions or (None,):
                    yield clip.clip_id, line, address, clip.video, clip.start, clip.end, clip.split, caption
        except ValueError as error:
            skip(Problem(file=table.path.name, line=line, reason=str(error)))


def row_clips(row: Mapping[str, Any], named_by: Counter[str]) -> Iterator[Clip | ValueError]:
    """Yield the clips of one row, and a ValueError for each part of the row that is not a clip.

    If the times are lists, each item is a clip, with the caption at the same position.

    Args:
        named_by: counts how rows name the video; updated.

    Raises:
        ValueError: if no part of the row can be a clip.
    """
    video, named = parse_video(parse_name(row["video"], "video"))
    named_by[named] += 1
    split = parse_split(row.get("split"))
    clip_id = parse_name(row["clip_id"], "clip") if "clip_id" in row else None
    start, end, pairs = row.get("start"), row.get("end"), None
    if not is_blank(row.get("times")):
        pairs = parse_intervals(row["times"])
        if isinstance(pairs, tuple):
            (start, end), pairs = pairs, None
    elif (starts := parse_list(start)) is not None and (ends := parse_list(end)) is not None:
        if len(starts) != len(ends):
            raise ValueError(f"{plural(len(starts), 'start')} for {plural(len(ends), 'end')}")
        pairs = list(zip(starts, ends, strict=True))
    if pairs is None:
        texts = parse_captions(row["caption"]) if "caption" in row else ()
        yield _clip(clip_id, video, start, end, split, texts)
        return
    if not pairs:
        raise ValueError("its lists are empty")
    texts = (parse_list(row["caption"]) or [row["caption"]]) if "caption" in row else None
    if texts is not None and len(texts) != len(pairs):
        raise ValueError(f"{plural(len(texts), 'caption')} for {plural(len(pairs), 'time')}")
    for number, (start, end) in enumerate(pairs):
        numbered_id = f"{clip_id}_{number}" if clip_id is not None and len(pairs) > 1 else clip_id
        try:
            yield _clip(numbered_id, video, start, end, split, () if texts is None else [parse_caption(texts[number])])
        except ValueError as error:
            yield error


def _clip(clip_id: str | None, video: str, start: Any, end: Any, split: str, captions: Iterable[str]) -> Clip:
    start, end = parse_seconds(start), parse_seconds(end)
    if (start is None) != (end is None):
        raise ValueError("start and end are only valid together")
    clip_id = default_clip_id(video, start, end) if clip_id is None else clip_id
    return Clip(clip_id=clip_id, video=video, start=start, end=end, split=split, captions=tuple(captions))


def _clips(
    rows: Iterator[tuple[Any, ...]], first_address: Mapping[str, str], file: str, skip: Callable[[Problem], None]
) -> Iterator[Clip]:
    """Yield the clips of the sorted rows. Rows that contradict the first row of their clip are skipped."""
    for clip_id, group in itertools.groupby(rows, key=lambda row: row[0]):
        captions: list[str] = []
        first = None
        for _, line, address, *fields, caption in group:
            if first_address.get(fields[0], address) != address:
                reason = f"another video has the name {fields[0]!r} too, {first_address[fields[0]]}: use unique ids"
                skip(Problem(file=file, line=line, reason=reason))
                continue
            first = first or (line, fields)
            if fields != first[1]:
                reason = f"clip {clip_id!r} has a different video, time or split on line {first[0]}"
                skip(Problem(file=file, line=line, reason=reason))
            elif caption is not None:
                captions.append(caption)
        if first is not None:
            video, start, end, split = first[1]
            yield Clip(clip_id=clip_id, video=video, start=start, end=end, split=split, captions=tuple(captions))
