"""Many small parts into few, and clips out of a stream. Both write a part that replaces others, and then remove those.

A program that is killed in between leaves parts that do not count any more; the next one, or ``verify.sweep``, removes
them. Readers see the clips in the old parts or in the new one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...storage import NOT_THERE, storage_at
from ..reader import Stream
from ..schema import FORMAT, LOCK, bytes_of, check_stream, folder_of
from .rewriting import PART_BYTES, SMALL, Piece, Sources, completed, grouped
from .verify import sweep


@dataclass(kw_only=True)
class Rewritten:
    """What became of the parts of a stream.

    Attributes:
        parts_before, bytes_before: of the parts that count, and of their files.
        parts_after, bytes_after: the same afterwards; after a trial, about.
        dropped: clips and failures in rewritten parts that did not count any more, or were to be removed.
        damaged: part -> what is wrong with it. It was left as it is.
    """

    parts_before: int = 0
    parts_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    dropped: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


def compact(
    store: Path,
    name: str,
    *,
    part_bytes: int = PART_BYTES,
    old: bool = False,
    trial: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rewritten:
    """Joins small parts of a stream, and drops what does not count any more. Does nothing where there is nothing to do.

    Parts that are half as large as a new one stay as they are, unless some of their rows do not count. All that is
    recorded of clips and failures is kept. Other programs may read and write meanwhile.

    Args:
        part_bytes: bytes of rows of a new part, at most. They are in memory until it is written.
        old: rewrite also parts of an older format, however large.
        trial: write nothing.
        progress: called with the bytes that are done and those to do.

    Raises:
        StoreError: if there is no such stream, or its spec is damaged.
    """

    def choose(sources: Sources) -> list[list[Piece]]:
        pieces = []
        for part, commit in sources.commits.items():
            places, failures = sources.counting(part), sources.failures(part)
            alone = len(places) < len(commit["clips"]) or (old and commit["format"] < FORMAT)
            own = sources.pieces(part, places, failures, alone=alone)
            if alone or max(own[0].share) < SMALL:
                pieces += own
        return grouped(pieces)

    return _replace(store, name, [choose], part_bytes=part_bytes, trial=trial, progress=progress)


def remove_clips(
    store: Path,
    name: str,
    clip_ids: Collection[str],
    *,
    part_bytes: int = PART_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rewritten:
    """Removes clips from a stream: their rows, those of earlier revisions, and their failures. They are absent then.

    Parts that hold any of it are rewritten without. Clips of which the stream knows nothing are no error.

    Raises:
        StoreError: if there is no such stream, or its spec is damaged.
    """
    unwanted = frozenset(clip_ids)

    def without(sources: Sources, *, hidden: bool) -> list[list[Piece]]:
        groups = []
        for part, commit in sources.commits.items():
            ids = [clip["clip_id"] for clip in commit["clips"]]
            counting = sources.counting(part)
            of_part = {*ids, *(entry["clip_id"] for entry in commit["failures"])} & unwanted
            if not of_part or (hidden and len(counting) == len(ids)):
                continue
            places = [place for place in counting if hidden or ids[place] not in unwanted]
            entries = [entry for entry in sources.failures(part) if hidden or entry["clip_id"] not in unwanted]
            groups += [[piece] for piece in sources.pieces(part, places, entries)]
        return groups

    # First what later revisions hide: without these it would count again.
    passes = [lambda sources: without(sources, hidden=True), lambda sources: without(sources, hidden=False)]
    return _replace(store, name, passes, unwanted=unwanted, part_bytes=part_bytes, progress=progress)


def _replace(
    store: Path,
    name: str,
    passes: Sequence[Callable[[Sources], list[list[Piece]]]],
    *,
    unwanted: Collection[str] = (),
    part_bytes: int,
    trial: bool = False,
    progress: Callable[[int, int], None],
) -> Rewritten:
    """Rewrites groups of pieces, pass by pass; each pass again as long as other programs rewrite parts beside it.

    Where files can be locked, one program rewrites a stream at a time: else one that has read a clip could write it
    again after another has removed it. All is done again where ``unwanted`` clips are there afterwards nevertheless.
    """
    check_stream(store, name)
    with contextlib.nullcontext() if trial else storage_at(store / name / LOCK).locked():
        return _replace_alone(store, name, passes, unwanted, part_bytes, trial, progress)


def _replace_alone(
    store: Path,
    name: str,
    passes: Sequence[Callable[[Sources], list[list[Piece]]]],
    unwanted: Collection[str],
    part_bytes: int,
    trial: bool,
    progress: Callable[[int, int], None],
) -> Rewritten:
    result = Rewritten()
    stream = Stream(store, name, skip_damaged=True)
    result.parts_before, result.bytes_before = len(stream.index.parts), sum(map(bytes_of, stream.index.parts))
    result.parts_after, result.bytes_after = result.parts_before, result.bytes_before
    while True:
        for choose in passes:
            again = True
            while again:
                try:
                    again = _pass(store, name, choose, result, part_bytes, trial, progress)
                except NOT_THERE:  # a commit record that another program has replaced meanwhile
                    again = True
        # The index on disk, made afresh, has no ids of clips that were removed.
        stream = Stream(store, name, skip_damaged=True, afresh=not trial)
        if not trial:
            sweep(stream)
        result.damaged |= stream.damaged
        if result.damaged or (stream.index.locate_all(list(unwanted)) < 0).all():
            return result


def _pass(
    store: Path,
    name: str,
    choose: Callable[[Sources], list[list[Piece]]],
    result: Rewritten,
    part_bytes: int,
    trial: bool,
    progress: Callable[[int, int], None],
) -> bool:
    """Rewrites the groups of one pass; returns whether another program has rewritten parts beside it."""
    stream = Stream(store, name, skip_damaged=True)
    if not trial:
        sweep(stream)
    sources = Sources(stream, part_bytes)
    groups = choose(sources)
    total, done = sum(piece.bytes for group in groups for piece in group), 0
    for group, complete in zip(groups, completed(groups), strict=True):
        if trial:
            _count(result, [sources.commits[part] for part in complete], sum(piece.bytes for piece in group))
        elif record := sources.rewrite(group, store, replaces=complete, taken=stream.replaced):
            replaced = [sources.commits[part] for part in record.get("replaces", ())]
            _count(result, replaced, bytes_of(record))
            result.dropped += entries(replaced) - entries([record])
            remove_parts(stream.path, replaced)
            if not record["clips"] and not record["failures"]:
                remove_parts(stream.path, [record])
                result.parts_after -= 1
                result.bytes_after -= bytes_of(record)
        done += sum(piece.bytes for piece in group)
        progress(done, total)
    result.damaged |= sources.damaged
    return sources.changed


def _count(result: Rewritten, replaced: Sequence[dict[str, Any]], added: int) -> None:
    result.parts_after += 1 - len(replaced)
    result.bytes_after += added - sum(map(bytes_of, replaced))


def entries(commits: Iterable[dict[str, Any]]) -> int:
    """Clips and failures in the commit records of parts."""
    return sum(len(commit["clips"]) + len(commit["failures"]) for commit in commits)


def remove_parts(stream: Path, commits: Sequence[dict[str, Any]]) -> None:
    """Removes parts of a stream that do not count: first their commit records, so that no reader misses a folder."""
    records = [stream / "commits" / f"{commit['part']}.json" for commit in commits]
    folders = [stream / "parts" / folder_of(commit) for commit in commits]
    with ThreadPoolExecutor(storage_at(stream).readers) as pool:
        for paths in (records, folders):
            list(pool.map(lambda path: storage_at(path).remove(), paths))
