"""Is every byte of a store the one that was written, and is every part there? What needs no video, ``mend`` remakes.

Damaged parts are computed again by ``amex extract --repair``. What a store cannot know is listed in docs/store.md.
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
from ...storage import NOT_THERE, storage_at, write_text
from ..parts import DAMAGE
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
    folder_name,
    folder_of,
    group_text,
    has_stream,
    is_unsealed,
    read_problems,
    read_spec,
    read_store,
    row_arrays,
    sealed,
    stream_names,
)
from ..writer import digests, is_committed, made_with

# How temporary files and folders in a store, and in a stream, begin.
TEMPORARY = (REMOVED, ".zarr.json.", ".problems.json.", ".spec.json.", f".{INDEX}.")
# Seconds for which the commit record of a complete part is waited for: a run writes it right after the part.
COMMITTED_WITHIN = 2.0


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something in a store that is not as it was written.

    Attributes:
        stream: empty if it is of no stream.
        part: empty if it is of no part.
        path: what it is about, below the store.
        kind: ``part``: bytes or commit record of a part have changed; it must be computed again. ``lost``: a commit
            record or a spec is missing or of no use. ``metadata``: ``mend`` makes it anew. ``leftover``: an interrupted
            run or removal left it; it does no harm, and costs disk.
    """

    stream: str
    part: str = ""
    path: str
    reason: str
    kind: str

    def __str__(self) -> str:
        return f"{f'{self.stream}/{self.part}' if self.kind == 'part' else self.path}: {self.reason}"


Result = TypeVar("Result")
# Called with the bytes of the files of a part once it was compared.
Progress = Callable[[int], None]


def verify_store(
    store: Path, *, quick: bool = False, progress: Progress = lambda done: None
) -> Iterator[Damage | None]:
    """Reads every byte of a store; yields a Damage for each thing at fault, None for each part that is good.

    Args:
        quick: of rows compare only the names and sizes of their files; records, metadata, offsets and ids are read.

    Raises:
        StoreError: if there is no store, or it is of a later format.
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
    """Reads every byte of the parts of a stream; yields a Damage for each bad part, None for each good one.

    Several parts are read at a time; the order is that of their names. Parts whose commit record is missing, and
    leftovers of interrupted runs, come last.

    Args:
        stream: opened with ``skip_damaged``, unless a damaged commit record is to be an error.
        quick: see ``verify_store``.
    """
    if not stream.commits and stream.damaged and made_with(stream.path) - {stream.fingerprint}:
        reason = f"is another stream's: none of the parts was made with this spec; {REPAIR_SPEC}"
        yield Damage(stream=stream.name, path=f"{stream.name}/spec.json", reason=reason, kind="lost")
        return
    for part, reason in stream.damaged.items():
        path = f"{stream.name}/commits/{part}.json"
        yield Damage(stream=stream.name, part=part, path=path, reason=reason, kind="part")

    def look(part: str) -> tuple[str, str, int]:
        """Of a part the path of what is at fault, what that is, and the bytes of its files."""
        path, size = f"{stream.name}/commits/{part}.json", 0
        try:
            commit = stream.commits[part]
            path = f"{stream.name}/parts/{folder_of(commit)}"
            size = bytes_of(commit)
            reason = fault_of(store / path, commit, quick=quick)
        except DamagedPart as error:
            reason = str(error)
        except NOT_THERE:
            reason = "is missing"
        # Another program may have replaced or removed the part since the stream was opened.
        return path, reason if reason and is_committed(store, stream.name, part) else "", size

    store, parts = stream.path.parent, list(stream.commits)
    looks = _in_order(look, parts, storage_at(stream.path).readers)
    for part, (path, reason, size) in zip(parts, looks, strict=True):
        progress(size)
        yield Damage(stream=stream.name, part=part, path=path, reason=reason, kind="part") if reason else None
    yield from _uncommitted(stream, quick=quick)


def _in_order(function: Callable[[Any], Result], items: Iterable[Any], threads: int) -> Iterator[Result]:
    """``map`` in threads, with few items on their way."""
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
    """What lies among the parts and belongs to none, or to one whose commit record is lost.

    A run may be writing: a part is listed first and its commit record looked for later, as they are written.
    """
    for part in _still_there(stream):
        yield _leftover(stream.name, f"{stream.name}/commits/{part}.json")
    uncommitted = [path for path in leftovers(stream) if part_of(path.name) not in stream.damaged]
    complete = {path for path in uncommitted if _is_complete(stream, path, quick=quick)}

    def is_committed_now(path: Path) -> bool:
        return is_committed(stream.path.parent, stream.name, part_of(path.name))

    until = time.monotonic() + COMMITTED_WITHIN
    while time.monotonic() < until and not all(map(is_committed_now, complete)):
        time.sleep(0.05)
    now = Stream(stream.path.parent, stream.name, skip_damaged=True) if complete else stream
    for path in uncommitted:
        part = part_of(path.name)
        counts = part not in stream.commits and part not in stream.replaced and is_committed_now(path)
        if counts or not path.exists():
            continue  # it belongs to a run that has committed or removed it since
        below_store = f"{stream.name}/parts/{path.name}"
        lost: list[str] = []
        with contextlib.suppress(*DAMAGE):
            lost = _absent(now, path) if path in complete else []
        if lost:
            clips = f"{plural(len(lost), 'clip')} {'is' if len(lost) == 1 else 'are'}"
            reason = (
                f"the part is complete, but its commit record is missing: {clips} absent, the first {lost[0]!r}; "
                "run the same amex extract or import command to bring them back"
            )
            yield Damage(stream=stream.name, part=part, path=below_store, reason=reason, kind="lost")
        else:
            yield _leftover(stream.name, below_store)


def leftovers(stream: Stream) -> list[Path]:
    """What lies among the parts and belongs to none."""
    known = {folder_of(record) for record in stream.index.parts} | {"zarr.json"}
    with contextlib.suppress(*NOT_THERE):
        return sorted(path for path in (stream.path / "parts").iterdir() if path.name not in known)
    return []


def _still_there(stream: Stream) -> list[str]:
    """The parts that were replaced and still have a commit record."""
    if not stream.replaced:
        return []
    records = (stream.path / "commits").glob("*.json")
    return sorted(stream.replaced & {path.name.removesuffix(".json") for path in records})


def part_of(name: str) -> str:
    """The part that a folder or a leftover among the parts is of."""
    return name.lstrip(".").partition(".")[0]


def sweep(stream: Stream) -> None:
    """Removes what is left of parts that were replaced, and what interrupted or slower writers left of those that are
    committed. Safe while other runs write.
    """
    for part in _still_there(stream):
        storage_at(stream.path / "commits" / f"{part}.json").remove()
    for path in leftovers(stream):
        if part_of(path.name) in stream.commits or part_of(path.name) in stream.replaced:
            storage_at(path).remove()


def mend(store: Path) -> list[str]:
    """Makes anew what needs neither videos nor the spec of a run; returns the paths, below the store.

    The zarr.json of groups are written again. A damaged problems.json is removed. A spec.json whose spec is intact gets
    a new seal: what it says of provenance may have changed, and it says that.
    """
    mended = []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for damage in list(_metadata(store)) if stream_names(store) else ():
        path = store / damage.path
        if path.name == "problems.json":
            storage_at(path).remove()
        elif path.name == "spec.json":
            record = json.loads(path.read_bytes())
            made = {**record["provenance"], "resealed": now}
            kept = {"format": FORMAT, "fingerprint": record["fingerprint"], "spec": record["spec"]}
            write_text(path, sealed({**kept, "provenance": made}))
        else:
            write_text(path, group_text() if damage.stream else group_text({"format": FORMAT, "remade": now}))
        mended.append(damage.path)
    return mended


def without_seal(store: Path) -> list[str]:
    """Files of formats 1 and 2 of which not every byte has a checksum, below the store."""
    files = [] if read_store(store)["format"] > 2 else ["zarr.json"]
    for file in (*(f"{name}/spec.json" for name in stream_names(store)), "problems.json"):
        with contextlib.suppress(ValueError, KeyError, *NOT_THERE):
            record = json.loads((store / file).read_bytes())
            if isinstance(record, list) or is_unsealed(record):
                files.append(file)
    return files


def _leftover(stream: str, path: str) -> Damage:
    return Damage(stream=stream, path=path, reason="left by an interrupted run", kind="leftover")


def _metadata(store: Path) -> Iterator[Damage]:
    """What ``mend`` can make anew."""
    names = stream_names(store)
    try:
        read_store(store)
        reason = _group_fault(store / "zarr.json", of_store=True)
    except LaterFormat:
        raise
    except NOT_THERE as error:
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
    """What is wrong with the zarr.json of a group, which nobody but other Zarr readers needs; empty if nothing is."""
    try:
        record = json.loads(path.read_bytes())
        attributes = {"amex": record["attributes"]["amex"]} if of_store else {}
        expected = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
        return "" if record == expected else "is not what amex wrote"
    except NOT_THERE:
        return "is missing"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "is damaged"


def _seal_fault(path: Path) -> str:
    """What is wrong with a spec.json whose spec is intact; empty if nothing is, or it cannot be sealed anew."""
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
        return "its spec is intact, but not what else it says: provenance or format"
    except (*NOT_THERE, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return ""


def _is_complete(stream: Stream, path: Path, *, quick: bool) -> bool:
    """Whether what lies among the parts is a complete part that had no commit record when the stream was opened."""
    part = part_of(path.name)
    if part in stream.commits or part in stream.replaced:
        return False
    try:
        if path.name == part:  # in format 1 the name has no digest
            return _has_arrays(stream, path)
        if not re.fullmatch(re.escape(part) + r"\.[0-9a-f]{12}", path.name):
            return False
        # A folder gets such a name once it is complete.
        return quick or path.name == folder_name(part, digests(path))
    except (*DAMAGE, IndexError):  # an array is damaged, or a run has removed the folder
        return False


def _has_arrays(stream: Stream, folder: Path) -> bool:
    """Whether a folder has all arrays of a part, every chunk intact."""
    there = storage_at(folder).sizes()
    rows, clips = int(_entries(folder, "offsets")[-1]), len(_entries(folder, "clip_ids"))
    for arrays, count in ((row_arrays(stream.spec), rows), (clip_arrays(stream.spec), clips)):
        for name, (shape, dtype) in arrays.items():
            array = _entries(folder, name)
            # Zarr fills in for files that are missing.
            stored = not array.size or any(file.startswith(f"{name}/c/") for file in there)
            if not stored or array.shape != (count, *shape) or array.dtype != dtype:
                return False
    return True


def _entries(folder: Path, name: str) -> Any:
    return zarr.open_array(storage_at(folder).zarr_store(), path=name, mode="r")[:]


def _absent(stream: Stream, folder: Path) -> list[str]:
    """The clips of a complete part of which the stream knows nothing."""
    return [str(clip_id) for clip_id in _entries(folder, "clip_ids") if stream.state(str(clip_id)) == "absent"]


def fault_of(folder: Path, commit: dict[str, Any], *, quick: bool = False) -> str:
    """What differs between the files of a part and its commit record; empty if nothing does.

    Args:
        quick: see ``verify_store``.
    """
    there = storage_at(folder).sizes()
    if extra := sorted(there.keys() - commit["files"].keys()):
        return f"{extra[0]} was added after the commit"
    for name, expected in commit["files"].items():
        if name not in there:
            return f"{name} is missing"
        if there[name] != expected["bytes"]:
            return f"{name} has {there[name]:,} bytes, not {expected['bytes']:,}"
    for name, expected in commit["files"].items():
        if quick and "/c/" in name and not name.startswith(("offsets/", "clip_ids/")):
            continue
        try:
            with (folder / name).open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
        except NOT_THERE:
            return f"{name} is missing"
        except OSError as error:
            if not storage_at(folder).is_damage(error):
                raise
            return f"{name} cannot be read from the disk"
        if digest != expected["sha256"]:
            return f"{name} has changed since it was written"
    return ""
