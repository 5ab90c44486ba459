"""Streams of one store into another: all of them, as when partitions are merged, or some clips.

Parts are copied as they are, every byte compared with its checksum. Parts of which only some clips are wanted, count or
are new to the other store are rewritten. So an interrupted copy goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...storage import NOT_THERE, reachable, storage_at, write_text
from ..reader import Stream, open_store
from ..schema import (
    Failure,
    LaterFormat,
    SpecMismatch,
    StoreError,
    bytes_of,
    check_stream,
    diff_specs,
    folder_of,
    free_name,
    is_of_captions,
    read_commit,
    read_problems,
    read_spec,
    sealed,
    stream_names,
)
from ..writer import (
    check_declared,
    commit_path,
    create_store,
    declare_stream,
    has_commits,
    is_committed,
    publish_part,
    write_problems,
)
from .rewriting import Sources, grouped
from .verify import sweep

# Bytes of a file that are copied at a time.
BLOCK = 1 << 20


@dataclass(kw_only=True)
class Copied:
    """What a copy of a stream came to.

    Attributes:
        parts, bytes: that were written.
        clips: that are in the other store now and were not before; failures are not counted.
        known: clips that were there.
        damaged: part -> what is wrong with it. It was not copied. Under an empty name what is wrong with the stream.
    """

    parts: int = 0
    bytes: int = 0
    clips: int = 0
    known: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


class _Damaged(Exception):
    """A part is not what its commit record says."""


def copy_store(
    source: Path,
    target: Path,
    *,
    names: Sequence[str] = (),
    clips: Collection[str] | None = None,
    captions: Collection[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Copied]:
    """Copies streams into another store, which need not exist. Returns what became of each, by name.

    Specs, what is recorded of clips, failures and, unless clips are chosen, problems.json are kept. Of a clip that both
    stores have the higher revision counts, as within a store.

    Args:
        names: of streams; all by default.
        clips: the clips to copy, and their failures; all by default.
        captions: with ``clips``, the captions to copy in streams of text.
        progress: called with the bytes of parts that are done and those to do.

    Raises:
        SpecMismatch: if a stream of the other store was made with other settings. Nothing is copied then.
        StoreError: if there is no store or no such stream, or both stores are one.
    """
    check_mergeable([source], target, names)
    target = create_store(target)
    result: dict[str, Copied] = {}
    with reachable(source), reachable(target):
        for name in names or stream_names(source):
            try:
                stream = Stream(source, name, skip_damaged=True)
            except LaterFormat:
                raise
            except StoreError as error:
                result[name] = Copied(damaged={"": str(error)})
                continue
            declare_stream(target, name, stream.spec, stream.provenance)
            wanted = clips
            if clips is not None and is_of_captions(stream.spec):
                wanted = captions
            result[name] = _copy_stream(stream, target, wanted, progress)
        if clips is None:
            try:
                join_problems(target, read_problems(source / "problems.json"))
            except LaterFormat:
                raise
            except StoreError as error:
                result[""] = Copied(damaged={"": str(error)})
    return result


def check_mergeable(sources: Sequence[Path], target: Path, names: Sequence[str] = ()) -> None:
    """Raises what ``copy_store`` would of any of these stores, before anything is written."""
    specs: dict[str, tuple[Path, dict[str, Any]]] = {}
    if (target / "zarr.json").exists():
        for name, spec in _specs(open_store(target).path, ()):
            if has_commits(target, name):  # an empty stream can be declared anew
                specs[name] = target, spec
    for source in sources:
        if source.resolve() in (target.resolve(), *target.resolve().parents):
            raise StoreError(f"{source} is the store to copy: {target} cannot be in it")
        for name, spec in _specs(open_store(source).path, names):
            known, other = specs.setdefault(name, (source, spec))
            if lines := [f"  {key}: {old!r} there, {new!r} here" for key, old, new in diff_specs(other, spec)]:
                raise SpecMismatch(
                    f"stream {name!r} of {source} was made with other settings than that of {known}:\n"
                    + "\n".join(lines)
                    + "\namex features cp --stream copies the streams that agree"
                )


def _specs(store: Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and specs of streams; raises StoreError if one is named that is not there. Damaged ones have none."""
    for name in names or stream_names(store):
        check_stream(store, name)
        with contextlib.suppress(StoreError):
            yield name, read_spec(store / name / "spec.json")["spec"]


def join_problems(store: Path, problems: Sequence[Failure]) -> None:
    """Adds to the ledger of manifest lines what it does not have."""
    there = read_problems(store / "problems.json")
    if more := [problem for problem in problems if problem not in there]:
        write_problems(store, [*there, *more])


def _copy_stream(
    stream: Stream, target: Path, wanted: Collection[str] | None, progress: Callable[[int, int], None]
) -> Copied:
    there = Stream(target, stream.name)
    result, before = Copied(), len(there)
    result.known = sum(1 for clip_id in stream if clip_id in there and (wanted is None or clip_id in wanted))
    again = True
    while again:
        try:
            again = _copy_pass(stream, target, wanted, result, progress)
        except NOT_THERE:  # a commit record that another program has replaced meanwhile
            again = True
        stream = Stream(stream.path.parent, stream.name, skip_damaged=True)
    result.damaged |= stream.damaged
    result.clips = len(Stream(target, stream.name)) - before
    return result


def _copy_pass(
    stream: Stream,
    target: Path,
    wanted: Collection[str] | None,
    result: Copied,
    progress: Callable[[int, int], None],
) -> bool:
    """Copies what is missing; returns whether another program has rewritten parts beside it."""
    there = Stream(target, stream.name)
    sweep(there)
    sources = Sources(stream)
    copies, pieces = [], []
    for part, commit in sources.commits.items():
        places, failures = _missing(sources, there, part, wanted)
        if not places and not failures:
            continue
        # As a whole it would bring entries that do not count, or compete with those that the other store has.
        if len(places) + len(failures) < len(commit["clips"]) + len(commit["failures"]):
            pieces += sources.pieces(part, places, failures)
        else:
            copies.append((part, bytes_of(commit)))
    groups = grouped(pieces)
    total, done = sum(size for _, size in copies) + sum(piece.bytes for piece in pieces), 0
    for part, size in copies:
        try:
            result.bytes += bytes_of(copy_part(stream, sources.commits[part], there))
            result.parts += 1
        except _Damaged as damage:
            if is_committed(stream.path.parent, stream.name, part):
                result.damaged[part] = str(damage)
            else:
                sources.changed = True
        done += size
        progress(done, total)
    for group in groups:
        if record := sources.rewrite(group, target, taken=there.replaced):
            result.parts += 1
            result.bytes += bytes_of(record)
        done += sum(piece.bytes for piece in group)
        progress(done, total)
    result.damaged |= sources.damaged
    return sources.changed


def _missing(
    sources: Sources, there: Stream, part: str, wanted: Collection[str] | None
) -> tuple[list[int], list[dict[str, Any]]]:
    """Of a part the places of the clips, and the failures, that count, are wanted, and are not in the other stream."""

    def is_new(clip_id: str, rank: tuple[int, int]) -> bool:
        if wanted is not None and clip_id not in wanted:
            return False
        if clip_id in there:
            return rank[0] > there.source(clip_id).revision
        return clip_id not in there.failures or rank > there.failures[clip_id].rank

    clips = sources.commits[part]["clips"]
    places = [
        place
        for place in sources.counting(part)
        # Rows count before failures of the same revision.
        if is_new(clips[place]["clip_id"], (clips[place].get("revision", 0), 1 << 62))
    ]
    return places, [entry for entry in sources.failures(part) if is_new(entry["clip_id"], Failure(**entry).rank)]


def copy_part(stream: Stream, commit: dict[str, Any], there: Stream) -> dict[str, Any]:
    """Copies the part of a commit into the stream of another store, as it is, and returns its commit record there.

    It has another name there where its own is another part's.

    Raises:
        _Damaged: if a byte is not the one that was committed.
    """
    store, parts, files = there.path.parent, there.path / "parts", commit["files"]
    name = free_name(commit["part"], there.replaced)
    while True:
        committed = commit_path(store, stream.name, name)
        if committed.exists():  # by now, or by another program that was faster
            known = read_commit(committed)
            if all(known[key] == commit[key] for key in ("rows", "clips", "failures", "files")):
                return known
            name = free_name(name, {*there.replaced, name})
            continue
        check_declared(store, stream.name, stream.spec)
        with storage_at(parts).begin_folder(f"{name}.{uuid.uuid4().hex[:12]}.partial") as begun:
            _copy_files(stream.path / "parts" / folder_of(commit), begun, files)
            folder = publish_part(begun, parts, name, files).name
        # Format 1 had no folder in its records. What the part replaced elsewhere is of no meaning here.
        record = {**commit, "format": max(2, commit["format"]), "part": name, "folder": folder}
        record.pop("replaces", None)
        write_text(committed, sealed(record), once=True, beside=parts)


def _copy_files(source: Path, folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Copies files into a folder of this machine. Raises _Damaged if one is not as its record says."""

    def copy(name: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        try:
            with (source / name).open("rb") as original, (folder / name).open("wb") as made:
                while block := original.read(BLOCK):
                    digest.update(block)
                    made.write(block)
        except NOT_THERE as error:
            raise _Damaged(f"{name} is missing") from error
        except OSError as error:
            if not storage_at(source).is_damage(error):
                raise
            raise _Damaged(f"{name} cannot be read from the disk") from error
        if digest.hexdigest() != files[name]["sha256"]:
            raise _Damaged(f"{name} has changed since it was written")

    with ThreadPoolExecutor(storage_at(source).readers) as pool:
        list(pool.map(copy, files))
