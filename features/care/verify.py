"""Verify a store: every byte is as it was written and no part is missing. Repair what needs no video.

``amex extract --repair`` computes damaged parts again. docs/reference/store.md lists the damage that a store cannot
detect.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import zarr

from ...errors import plural
from ...storage import MISSING_ERRORS, storage_at, write_text
from ..parts import DAMAGE_ERRORS
from ..reader import Stream
from ..schema import (
    FORMAT,
    INDEX,
    LOCK,
    REMOVED,
    REPAIR_SPEC,
    DamagedPart,
    LaterFormat,
    StoreError,
    bytes_of,
    check_arrays,
    clip_arrays,
    fingerprint,
    group_text,
    has_stream,
    is_unsealed,
    new_folder_name,
    part_folder,
    read_problems,
    read_spec,
    read_store,
    row_arrays,
    sealed,
    stream_names,
)
from ..writer import committed_fingerprints, file_digests, is_committed

# Prefixes of temporary files and folders in a store and in a stream.
TEMPORARY = (REMOVED, ".zarr.json.", ".problems.json.", ".spec.json.", f".{INDEX}.")
# Seconds to wait for the commit record of a complete part: a run writes it right after the part.
COMMITTED_WITHIN = 2.0


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A difference between a store and what was written to it.

    Attributes:
        stream: name of the stream; empty if the damage belongs to no stream.
        part: name of the part; empty if the damage belongs to no part.
        path: the damaged file or folder, relative to the store.
        kind: ``part``: the files or the commit record of a part have changed; the part must be computed again.
            ``lost``: a commit record or a spec is missing or unusable. ``metadata``: ``repair_metadata`` can write it
            again. ``leftover``: an interrupted run or removal left it; it is harmless and costs disk space.
    """

    stream: str
    part: str = ""
    path: str
    reason: str
    kind: str

    def __str__(self) -> str:
        return f"{f'{self.stream}/{self.part}' if self.kind == 'part' else self.path}: {self.reason}"


Result = TypeVar("Result")
# Called with the bytes of a part's files after the part was checked.
Progress = Callable[[int], None]


def verify_store(
    store: Path, *, quick: bool = False, progress: Progress = lambda done: None
) -> Iterator[Damage | None]:
    """Check every byte of a store. Yield a Damage for each fault and None for each intact part.

    Args:
        quick: compare only the names and sizes of files with rows. Records, metadata, offsets and ids are read.
        progress: called with the bytes of each part after its check.

    Raises:
        StoreError: if there is no store, or it has a later format.
    """
    yield from _metadata(store)
    for folder in sorted(store.iterdir()):
        if folder.name.startswith(TEMPORARY):
            yield _leftover("", folder.name)
        elif folder.name.startswith(".") or not folder.is_dir():
            continue
        elif has_stream(store, folder.name):
            try:
                stream = Stream(store, folder.name, skip_damaged=True, afresh=True)
            except LaterFormat:
                raise
            except StoreError as error:
                reason = f"{error} (its parts were not compared)"
                yield Damage(stream=folder.name, path=f"{folder.name}/spec.json", reason=reason, kind="lost")
                continue
            yield from verify(stream, quick=quick, progress=progress)
            for path in sorted(folder.iterdir()):
                if path.name.startswith(TEMPORARY):
                    yield _leftover(folder.name, f"{folder.name}/{path.name}")
        elif {path.name for path in folder.iterdir()} <= {"zarr.json", "parts", "commits", INDEX, LOCK}:
            yield _leftover("", folder.name)


def verify(stream: Stream, *, quick: bool = False, progress: Progress = lambda done: None) -> Iterator[Damage | None]:
    """Check every byte of the parts of a stream. Yield a Damage for each bad part and None for each intact part.

    Several parts are read in parallel; the results are in the order of the names. Parts without commit record and
    leftovers of interrupted runs come last.

    Args:
        stream: opened with ``skip_damaged``, unless a damaged commit record should raise an error.
        quick, progress: see ``verify_store``.
    """
    if not stream.commits and stream.damaged and committed_fingerprints(stream.path) - {stream.fingerprint}:
        reason = f"belongs to another stream: none of the parts was made with this spec; {REPAIR_SPEC}"
        yield Damage(stream=stream.name, path=f"{stream.name}/spec.json", reason=reason, kind="lost")
        return
    for part, reason in stream.damaged.items():
        path = f"{stream.name}/commits/{part}.json"
        yield Damage(stream=stream.name, part=part, path=path, reason=reason, kind="part")

    def check_part(part: str) -> tuple[str, str, int]:
        """Return the path of the fault, the reason (empty if the part is intact), and the bytes of the files."""
        path, size = f"{stream.name}/commits/{part}.json", 0
        try:
            commit = stream.commits[part]
            path = f"{stream.name}/parts/{part_folder(commit)}"
            size = bytes_of(commit)
            reason = find_fault(store / path, commit, quick=quick)
        except DamagedPart as error:
            reason = str(error)
        except MISSING_ERRORS:
            reason = "is missing"
        # Another program may have replaced or removed the part since the stream was opened.
        return path, reason if reason and is_committed(store, stream.name, part) else "", size

    store, parts = stream.path.parent, list(stream.commits)
    checks = _in_order(check_part, parts, storage_at(stream.path).readers)
    for part, (path, reason, size) in zip(parts, checks, strict=True):
        progress(size)
        yield Damage(stream=stream.name, part=part, path=path, reason=reason, kind="part") if reason else None
    yield from _uncommitted(stream, quick=quick)


def _in_order(function: Callable[[Any], Result], items: Iterable[Any], threads: int) -> Iterator[Result]:
    """Map a function in threads and yield the results in order, with a limited number of pending items."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _uncommitted(stream: Stream, *, quick: bool) -> Iterator[Damage]:
    """Yield a Damage for each leftover among the parts, and for each part whose commit record is lost.

    A run may be writing at the same time. So list the parts first and look for their commit records later, in the order
    in which they are written.
    """
    for part in _replaced_with_record(stream):
        yield _leftover(stream.name, f"{stream.name}/commits/{part}.json")
    uncommitted = [path for path in leftovers(stream) if part_of(path.name) not in stream.damaged]
    complete = {path for path in uncommitted if _is_complete(stream, path, quick=quick)}

    def is_committed_now(path: Path) -> bool:
        return is_committed(stream.path.parent, stream.name, part_of(path.name))

    deadline = time.monotonic() + COMMITTED_WITHIN
    while time.monotonic() < deadline and not all(map(is_committed_now, complete)):
        time.sleep(0.05)
    now = Stream(stream.path.parent, stream.name, skip_damaged=True) if complete else stream
    for path in uncommitted:
        part = part_of(path.name)
        counts = part not in stream.commits and part not in stream.replaced and is_committed_now(path)
        if counts or not path.exists():
            continue  # a run has committed or deleted it meanwhile
        relative_path = f"{stream.name}/parts/{path.name}"
        lost: list[str] = []
        with contextlib.suppress(*DAMAGE_ERRORS):
            lost = _absent_clips(now, path) if path in complete else []
        if lost:
            clips = f"{plural(len(lost), 'clip')} {'is' if len(lost) == 1 else 'are'}"
            reason = (
                f"the part is complete, but its commit record is missing: {clips} absent, the first {lost[0]!r}; "
                "run the same amex extract or import command to bring them back"
            )
            yield Damage(stream=stream.name, part=part, path=relative_path, reason=reason, kind="lost")
        else:
            yield _leftover(stream.name, relative_path)


def leftovers(stream: Stream) -> list[Path]:
    """Return the files and folders among the parts that belong to no committed part."""
    committed = {part_folder(record) for record in stream.index.parts} | {"zarr.json"}
    with contextlib.suppress(*MISSING_ERRORS):
        return sorted(path for path in (stream.path / "parts").iterdir() if path.name not in committed)
    return []


def _replaced_with_record(stream: Stream) -> list[str]:
    """Return the replaced parts that still have a commit record."""
    if not stream.replaced:
        return []
    records = (stream.path / "commits").glob("*.json")
    return sorted(stream.replaced & {path.name.removesuffix(".json") for path in records})


def part_of(name: str) -> str:
    """Return the name of the part to which a folder or a leftover belongs."""
    return name.lstrip(".").partition(".")[0]


def remove_leftovers(stream: Stream) -> None:
    """Delete the files of replaced parts, and leftovers of other writers of committed parts.

    Safe while other runs write.
    """
    for part in _replaced_with_record(stream):
        storage_at(stream.path / "commits" / f"{part}.json").remove()
    for path in leftovers(stream):
        if part_of(path.name) in stream.commits or part_of(path.name) in stream.replaced:
            storage_at(path).remove()


def repair_metadata(store: Path) -> list[str]:
    """Repair metadata that needs neither videos nor the spec of a run. Return the paths, relative to the store.

    The zarr.json of groups is rewritten. A damaged problems.json is deleted. A spec.json with an intact spec gets a new
    checksum; its provenance may have changed, so the provenance records when it was resealed.
    """
    repaired = []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for damage in list(_metadata(store)) if stream_names(store) else ():
        path = store / damage.path
        if path.name == "problems.json":
            storage_at(path).remove()
        elif path.name == "spec.json":
            record = json.loads(path.read_bytes())
            intact = {"format": FORMAT, "fingerprint": record["fingerprint"], "spec": record["spec"]}
            write_text(path, sealed({**intact, "provenance": {**record["provenance"], "resealed": now}}))
        else:
            write_text(path, group_text() if damage.stream else group_text({"format": FORMAT, "remade": now}))
        repaired.append(damage.path)
    return repaired


def files_without_checksum(store: Path) -> list[str]:
    """Return the files of formats 1 and 2 that have no checksum, relative to the store."""
    files = [] if read_store(store)["format"] > 2 else ["zarr.json"]
    for file in (*(f"{name}/spec.json" for name in stream_names(store)), "problems.json"):
        with contextlib.suppress(ValueError, KeyError, *MISSING_ERRORS):
            record = json.loads((store / file).read_bytes())
            if isinstance(record, list) or is_unsealed(record):
                files.append(file)
    return files


def _leftover(stream: str, path: str) -> Damage:
    return Damage(stream=stream, path=path, reason="left by an interrupted run", kind="leftover")


def _metadata(store: Path) -> Iterator[Damage]:
    """Yield a Damage for each file that ``repair_metadata`` can repair."""
    names = stream_names(store)
    try:
        read_store(store)
        reason = _group_fault(store / "zarr.json", of_store=True)
    except LaterFormat:
        raise
    except MISSING_ERRORS as error:
        raise StoreError(f"{store} is not an amex store") from error
    except StoreError:
        if not names:
            raise
        reason = "is damaged or missing"
    if reason:
        yield Damage(stream="", path="zarr.json", reason=reason, kind="metadata")
    try:
        read_problems(store / "problems.json")
    except LaterFormat:
        raise
    except StoreError as error:
        yield Damage(stream="", path="problems.json", reason=str(error), kind="metadata")
    for name in names:
        for file in ("zarr.json", "parts/zarr.json"):
            if reason := _group_fault(store / name / file):
                yield Damage(stream=name, path=f"{name}/{file}", reason=reason, kind="metadata")
        if reason := _seal_fault(store / name / "spec.json"):
            yield Damage(stream=name, path=f"{name}/spec.json", reason=reason, kind="metadata")


def _group_fault(path: Path, *, of_store: bool = False) -> str:
    """Return the fault of a group's zarr.json, which only other Zarr readers need; empty if it is intact."""
    try:
        record = json.loads(path.read_bytes())
        attributes = {"amex": record["attributes"]["amex"]} if of_store else {}
        expected = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
        return "" if record == expected else "is not what amex wrote"
    except MISSING_ERRORS:
        return "is missing"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "is damaged"


def _seal_fault(path: Path) -> str:
    """Return the fault of a spec.json with an intact spec; empty if it is intact or the spec itself is damaged."""
    try:
        data = path.read_bytes()
        record = json.loads(data)
        check_arrays(record["spec"])
        if record["fingerprint"] != fingerprint(record["spec"]) or not isinstance(record["provenance"], dict):
            return ""
        read_spec(path)
    except LaterFormat:
        raise
    except StoreError:
        return "the spec is intact, but its provenance or format is damaged"
    except (*MISSING_ERRORS, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return ""


def _is_complete(stream: Stream, path: Path, *, quick: bool) -> bool:
    """Return whether a folder is a complete part that had no commit record when the stream was opened."""
    part = part_of(path.name)
    if part in stream.commits or part in stream.replaced:
        return False
    try:
        if path.name == part:  # in format 1 the name has no digest
            return _has_arrays(stream, path)
        if not re.fullmatch(re.escape(part) + r"\.[0-9a-f]{12}", path.name):
            return False
        # A folder is renamed to such a name only when it is complete.
        return quick or path.name == new_folder_name(part, file_digests(path))
    except (*DAMAGE_ERRORS, IndexError):  # an array is damaged, or a run has removed the folder
        return False


def _has_arrays(stream: Stream, folder: Path) -> bool:
    """Return whether a folder has all arrays of a part and every chunk is intact."""
    files = storage_at(folder).sizes()
    rows, clips = int(_entries(folder, "offsets")[-1]), len(_entries(folder, "clip_ids"))
    for arrays, count in ((row_arrays(stream.spec), rows), (clip_arrays(stream.spec), clips)):
        for name, (shape, dtype) in arrays.items():
            array = _entries(folder, name)
            # Zarr replaces missing files by zeros.
            stored = not array.size or any(file.startswith(f"{name}/c/") for file in files)
            if not stored or array.shape != (count, *shape) or array.dtype != dtype:
                return False
    return True


def _entries(folder: Path, name: str) -> Any:
    return zarr.open_array(storage_at(folder).zarr_store(), path=name, mode="r")[:]


def _absent_clips(stream: Stream, folder: Path) -> list[str]:
    """Return the clips of a complete part that are absent in the stream."""
    return [str(clip_id) for clip_id in _entries(folder, "clip_ids") if stream.state(str(clip_id)) == "absent"]


def find_fault(folder: Path, commit: dict[str, Any], *, quick: bool = False) -> str:
    """Compare the files of a part with its commit record. Return the first difference; empty if there is none.

    Args:
        quick: see ``verify_store``.
    """
    sizes = storage_at(folder).sizes()
    if extra := sorted(sizes.keys() - commit["files"].keys()):
        return f"{extra[0]} was added after the commit"
    for name, expected in commit["files"].items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != expected["bytes"]:
            return f"{name} has {sizes[name]:,} bytes, not {expected['bytes']:,}"
    for name, expected in commit["files"].items():
        if quick and "/c/" in name and not name.startswith(("offsets/", "clip_ids/")):
            continue
        try:
            with (folder / name).open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
        except MISSING_ERRORS:
            return f"{name} is missing"
        except OSError as error:
            if not storage_at(folder).is_damage(error):
                raise
            return f"{name} cannot be read from the disk"
        if digest != expected["sha256"]:
            return f"{name} has changed since it was written"
    return ""
