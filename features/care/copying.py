"""Copy streams into another store: all clips, for example to merge partitions, or some clips.

Parts are copied unchanged, and every file is compared with its checksum. A part is rewritten if only some of its clips
are requested, count, or are missing in the target. So an interrupted copy continues where it stopped.
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

from ...storage import MISSING_ERRORS, reachable, storage_at, write_text
from ..reader import Stream, open_store
from ..schema import (
    Failure,
    LaterFormat,
    SpecMismatch,
    StoreError,
    bytes_of,
    check_stream,
    diff_specs,
    free_name,
    is_caption_stream,
    part_folder,
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
from .rewriting import PartRewriter, grouped
from .verify import remove_leftovers

# Bytes to copy at a time.
BLOCK = 1 << 20


@dataclass(kw_only=True)
class CopyResult:
    """The result of copying a stream.

    Attributes:
        parts, bytes: number and size of the parts written.
        clips: number of clips that are new in the target; failures are not counted.
        known: number of clips that the target had already.
        damaged: part -> reason. Damaged parts are not copied. The empty name has the reason of a damaged stream.
    """

    parts: int = 0
    bytes: int = 0
    clips: int = 0
    known: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


class _Damaged(Exception):
    """A part does not match its commit record."""


def copy_store(
    source: Path,
    target: Path,
    *,
    names: Sequence[str] = (),
    clips: Collection[str] | None = None,
    captions: Collection[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, CopyResult]:
    """Copy streams into another store, which is created if necessary. Return the result of each stream, by name.

    Specs, the records of clips, and failures are copied. problems.json is copied unless ``clips`` is given. If both
    stores have a clip, the higher revision counts, as within one store.

    Args:
        names: names of the streams; all by default.
        clips: ids of the clips to copy, with their failures; all by default.
        captions: with ``clips``, the captions to copy in streams of text.
        progress: called with the bytes of parts done and the total.

    Raises:
        SpecMismatch: if a stream of the target was made with other settings. Then nothing is copied.
        StoreError: if a store or a stream does not exist, or source and target are the same store.
    """
    check_mergeable([source], target, names)
    target = create_store(target)
    result: dict[str, CopyResult] = {}
    with reachable(source), reachable(target):
        for name in names or stream_names(source):
            try:
                stream = Stream(source, name, skip_damaged=True)
            except LaterFormat:
                raise
            except StoreError as error:
                result[name] = CopyResult(damaged={"": str(error)})
                continue
            declare_stream(target, name, stream.spec, stream.provenance)
            selected = clips
            if clips is not None and is_caption_stream(stream.spec):
                selected = captions
            result[name] = _copy_stream(stream, target, selected, progress)
        if clips is None:
            try:
                join_problems(target, read_problems(source / "problems.json"))
            except LaterFormat:
                raise
            except StoreError as error:
                result[""] = CopyResult(damaged={"": str(error)})
    return result


def check_mergeable(sources: Sequence[Path], target: Path, names: Sequence[str] = ()) -> None:
    """Raise the errors that ``copy_store`` would raise for these sources, before anything is written."""
    specs: dict[str, tuple[Path, dict[str, Any]]] = {}
    if (target / "zarr.json").exists():
        for name, spec in _specs(open_store(target).path, ()):
            if has_commits(target, name):  # the spec of an empty stream can be replaced
                specs[name] = target, spec
    for source in sources:
        if source.resolve() in (target.resolve(), *target.resolve().parents):
            raise StoreError(f"{source} is the store to copy: {target} cannot be in it")
        for name, spec in _specs(open_store(source).path, names):
            other_store, other_spec = specs.setdefault(name, (source, spec))
            if lines := [f"  {key}: {old!r} there, {new!r} here" for key, old, new in diff_specs(other_spec, spec)]:
                raise SpecMismatch(
                    f"stream {name!r} of {source} was made with other settings than that of {other_store}:\n"
                    + "\n".join(lines)
                    + "\namex features cp --stream copies the streams that agree"
                )


def _specs(store: Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and specs of streams; skip damaged specs. Raises StoreError if a named stream does not exist."""
    for name in names or stream_names(store):
        check_stream(store, name)
        with contextlib.suppress(StoreError):
            yield name, read_spec(store / name / "spec.json")["spec"]


def join_problems(store: Path, problems: Sequence[Failure]) -> None:
    """Add new problems to the problems.json of a store."""
    existing = read_problems(store / "problems.json")
    if new := [problem for problem in problems if problem not in existing]:
        write_problems(store, [*existing, *new])


def _copy_stream(
    stream: Stream, target: Path, selected: Collection[str] | None, progress: Callable[[int, int], None]
) -> CopyResult:
    copy = Stream(target, stream.name)
    result, before = CopyResult(), len(copy)
    result.known = sum(1 for clip_id in stream if clip_id in copy and (selected is None or clip_id in selected))
    again = True
    while again:
        try:
            again = _copy_pass(stream, target, selected, result, progress)
        except MISSING_ERRORS:  # another program has replaced a commit record meanwhile
            again = True
        stream = Stream(stream.path.parent, stream.name, skip_damaged=True)
    result.damaged |= stream.damaged
    result.clips = len(Stream(target, stream.name)) - before
    return result


def _copy_pass(
    stream: Stream,
    target: Path,
    selected: Collection[str] | None,
    result: CopyResult,
    progress: Callable[[int, int], None],
) -> bool:
    """Copy missing clips. Return whether another program has rewritten parts at the same time."""
    copy = Stream(target, stream.name)
    remove_leftovers(copy)
    sources = PartRewriter(stream)
    copies, pieces = [], []
    for part, commit in sources.commits.items():
        places, failures = _missing(sources, copy, part, selected)
        if not places and not failures:
            continue
        # A copy of the whole part would contain entries that do not count or that the target has already.
        if len(places) + len(failures) < len(commit["clips"]) + len(commit["failures"]):
            pieces += sources.pieces(part, places, failures)
        else:
            copies.append((part, bytes_of(commit)))
    groups = grouped(pieces)
    total, done = sum(size for _, size in copies) + sum(piece.bytes for piece in pieces), 0
    for part, size in copies:
        try:
            result.bytes += bytes_of(copy_part(stream, sources.commits[part], copy))
            result.parts += 1
        except _Damaged as damage:
            if is_committed(stream.path.parent, stream.name, part):
                result.damaged[part] = str(damage)
            else:
                sources.changed = True
        done += size
        progress(done, total)
    for group in groups:
        if record := sources.rewrite(group, target, taken=copy.replaced):
            result.parts += 1
            result.bytes += bytes_of(record)
        done += sum(piece.bytes for piece in group)
        progress(done, total)
    result.damaged |= sources.damaged
    return sources.changed


def _missing(
    sources: PartRewriter, copy: Stream, part: str, selected: Collection[str] | None
) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the positions of a part's clips, and its failures, that count, are selected and are new to the copy."""

    def is_new(clip_id: str, rank: tuple[int, int]) -> bool:
        if selected is not None and clip_id not in selected:
            return False
        if clip_id in copy:
            return rank[0] > copy.source(clip_id).revision
        return clip_id not in copy.failures or rank > copy.failures[clip_id].rank

    clips = sources.commits[part]["clips"]
    places = [
        place
        for place in sources.counting(part)
        # Rows count before failures of the same revision.
        if is_new(clips[place]["clip_id"], (clips[place].get("revision", 0), 1 << 62))
    ]
    return places, [entry for entry in sources.failures(part) if is_new(entry["clip_id"], Failure(**entry).rank)]


def copy_part(stream: Stream, commit: dict[str, Any], copy: Stream) -> dict[str, Any]:
    """Copy a part unchanged into the stream of another store. Return its commit record there.

    The copy gets another name if its name is taken by a different part.

    Args:
        stream: the source.
        commit: the commit record of the part.
        copy: the stream to copy to.

    Raises:
        _Damaged: if a file of the part has changed since its commit.
    """
    store, parts, files = copy.path.parent, copy.path / "parts", commit["files"]
    name = free_name(commit["part"], copy.replaced)
    while True:
        committed = commit_path(store, stream.name, name)
        if committed.exists():  # written below, or by another program
            existing = read_commit(committed)
            if all(existing[key] == commit[key] for key in ("rows", "clips", "failures", "files")):
                return existing
            name = free_name(name, {*copy.replaced, name})
            continue
        check_declared(store, stream.name, stream.spec)
        with storage_at(parts).staging_folder(f"{name}.{uuid.uuid4().hex[:12]}.partial") as staged:
            _copy_files(stream.path / "parts" / part_folder(commit), staged, files)
            folder = publish_part(staged, parts, name, files).name
        # Records of format 1 have no folder. The parts that this part replaced do not exist in the target.
        record = {**commit, "format": max(2, commit["format"]), "part": name, "folder": folder}
        record.pop("replaces", None)
        write_text(committed, sealed(record), once=True, beside=parts)


def _copy_files(source: Path, folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Copy files into a local folder. Raises _Damaged if a file does not match its sha256."""

    def copy(name: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        try:
            with (source / name).open("rb") as original, (folder / name).open("wb") as target:
                while block := original.read(BLOCK):
                    digest.update(block)
                    target.write(block)
        except MISSING_ERRORS as error:
            raise _Damaged(f"{name} is missing") from error
        except OSError as error:
            if not storage_at(source).is_damage(error):
                raise
            raise _Damaged(f"{name} cannot be read from the disk") from error
        if digest.hexdigest() != files[name]["sha256"]:
            raise _Damaged(f"{name} has changed since it was written")

    with ThreadPoolExecutor(storage_at(source).readers) as pool:
        list(pool.map(copy, files))
