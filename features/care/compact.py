"""Compact a stream (join small parts) and remove clips. Both write a part that replaces others, then delete the others.

If the program is killed in between, the replaced parts stay on disk but do not count. The next run, or
``verify.remove_leftovers``, deletes them. Readers see the clips either in the old parts or in the new part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...storage import MISSING_ERRORS, storage_at
from ..reader import Stream
from ..schema import FORMAT, LOCK, bytes_of, check_stream, part_folder
from .rewriting import PART_BYTES, SMALL, PartRewriter, Piece, completed, grouped
from .verify import remove_leftovers


@dataclass(kw_only=True)
class RewriteResult:
    """The result of a compaction or a removal.

    Attributes:
        parts_before, bytes_before: number and size of the parts before the change.
        parts_after, bytes_after: the same afterwards; estimates after a trial.
        dropped: clips and failures that were not copied into new parts: superseded entries and removed clips.
        damaged: part -> reason. Damaged parts are not changed.
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
) -> RewriteResult:
    """Join small parts of a stream and drop entries that no longer count.

    Parts of at least half the size of a new part stay as they are, unless some of their rows do not count. The records
    of clips and failures are copied unchanged. Other programs may read and write meanwhile.

    Args:
        part_bytes: maximal bytes of rows of a new part. They are in memory until the part is written.
        old: also rewrite parts of an older format, of any size.
        trial: write nothing.
        progress: called with the bytes done and the total.

    Raises:
        StoreError: if there is no such stream, or its spec is damaged.
    """

    def choose(sources: PartRewriter) -> list[list[Piece]]:
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
) -> RewriteResult:
    """Remove clips from a stream: their rows, the rows of earlier revisions, and their failures.

    Parts that contain any of these are rewritten without them. Unknown clip ids are ignored.

    Args:
        part_bytes, progress: see ``compact``.

    Raises:
        StoreError: if there is no such stream, or its spec is damaged.
    """
    unwanted = frozenset(clip_ids)

    def without(sources: PartRewriter, *, hidden: bool) -> list[list[Piece]]:
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

    # First remove the entries that later revisions hide: otherwise they would count again.
    passes = [lambda sources: without(sources, hidden=True), lambda sources: without(sources, hidden=False)]
    return _replace(store, name, passes, unwanted=unwanted, part_bytes=part_bytes, progress=progress)


def _replace(
    store: Path,
    name: str,
    passes: Sequence[Callable[[PartRewriter], list[list[Piece]]]],
    *,
    unwanted: Collection[str] = (),
    part_bytes: int,
    trial: bool = False,
    progress: Callable[[int, int], None],
) -> RewriteResult:
    """Run passes that rewrite groups of pieces. Repeat a pass while other programs rewrite parts at the same time.

    If files can be locked, only one program rewrites a stream at a time. Otherwise a program that has read a clip
    could write it again after another program has removed it; so everything is repeated until no ``unwanted`` clip is
    left.
    """
    check_stream(store, name)
    with contextlib.nullcontext() if trial else storage_at(store / name / LOCK).locked():
        return _replace_alone(store, name, passes, unwanted, part_bytes, trial, progress)


def _replace_alone(
    store: Path,
    name: str,
    passes: Sequence[Callable[[PartRewriter], list[list[Piece]]]],
    unwanted: Collection[str],
    part_bytes: int,
    trial: bool,
    progress: Callable[[int, int], None],
) -> RewriteResult:
    result = RewriteResult()
    stream = Stream(store, name, skip_damaged=True)
    result.parts_before, result.bytes_before = len(stream.index.parts), sum(map(bytes_of, stream.index.parts))
    result.parts_after, result.bytes_after = result.parts_before, result.bytes_before
    while True:
        for choose in passes:
            again = True
            while again:
                try:
                    again = _pass(store, name, choose, result, part_bytes, trial, progress)
                except MISSING_ERRORS:  # another program has replaced a commit record meanwhile
                    again = True
        # A new index on disk does not contain the ids of removed clips.
        stream = Stream(store, name, skip_damaged=True, afresh=not trial)
        if not trial:
            remove_leftovers(stream)
        result.damaged |= stream.damaged
        if result.damaged or (stream.index.locate_all(list(unwanted)) < 0).all():
            return result


def _pass(
    store: Path,
    name: str,
    choose: Callable[[PartRewriter], list[list[Piece]]],
    result: RewriteResult,
    part_bytes: int,
    trial: bool,
    progress: Callable[[int, int], None],
) -> bool:
    """Rewrite the groups of one pass. Return whether another program has rewritten parts at the same time."""
    stream = Stream(store, name, skip_damaged=True)
    if not trial:
        remove_leftovers(stream)
    sources = PartRewriter(stream, part_bytes)
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


def _count(result: RewriteResult, replaced: Sequence[dict[str, Any]], added: int) -> None:
    result.parts_after += 1 - len(replaced)
    result.bytes_after += added - sum(map(bytes_of, replaced))


def entries(commits: Iterable[dict[str, Any]]) -> int:
    """Return the number of clips and failures in commit records."""
    return sum(len(commit["clips"]) + len(commit["failures"]) for commit in commits)


def remove_parts(stream: Path, commits: Sequence[dict[str, Any]]) -> None:
    """Delete replaced parts: first their commit records, so that no reader finds a record without its folder."""
    records = [stream / "commits" / f"{commit['part']}.json" for commit in commits]
    folders = [stream / "parts" / part_folder(commit) for commit in commits]
    with ThreadPoolExecutor(storage_at(stream).readers) as pool:
        for paths in (records, folders):
            list(pool.map(lambda path: storage_at(path).remove(), paths))
