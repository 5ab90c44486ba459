"""Writing: a store, a stream's spec, and parts. The commit record comes last and the first one counts: no locks."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import first_line
from ..storage import NOT_THERE, open_path, reachable, storage_at, write_text
from .schema import (
    FORMAT,
    REMOVED,
    UNRECORDED,
    ClipSource,
    DamagedPart,
    Failure,
    LaterFormat,
    SpecMismatch,
    StoreError,
    check_arrays,
    check_stream,
    clip_arrays,
    diff_specs,
    fingerprint,
    folder_name,
    group_text,
    parse_commit,
    part_text,
    read_commit,
    read_spec,
    read_store,
    row_arrays,
    sealed,
    stream_path,
)
from .shards import Joined, write_array, write_file


@dataclass(frozen=True, kw_only=True)
class ClipRows:
    """The rows of one clip, ready to be written.

    Attributes:
        clip_id: the clip; in a stream of text, the caption.
        arrays: each of the stream's ``row_arrays``, and of its ``clip_arrays`` the entry of this clip, by name and of
            the stream's dtypes. No rows means the clip is legitimately empty.
        decoder: which decoder served the frames, and why when it was not the default.
        source: what they were computed from.
        missing: seconds that damage of the video took from the clip, None if unknown. Only with ``damage``.
        damage: why the rows are not those of the whole clip, if they are not.
        origin: of rows that are rewritten, see ``schema.origins_of``.
    """

    clip_id: str
    arrays: Mapping[str, np.ndarray]
    decoder: str = ""
    source: ClipSource = UNRECORDED
    missing: float | None = None
    damage: str = ""
    origin: tuple[str, int] | None = None

    def __len__(self) -> int:
        return len(self.arrays["values"])


def create_store(path: str | os.PathLike[str]) -> Path:
    """Makes an empty store at ``path``, or finds the one that is there.

    Raises:
        StoreError: if something else is there, or the store was written by a later amex.
    """
    path = open_path(path)
    with reachable(path):
        return _create_store(path)


def _create_store(path: Path) -> Path:
    with contextlib.suppress(*NOT_THERE):
        about = read_store(path)
        if about["format"] < FORMAT:  # what is written from now on is not for those who read the old format alone
            write_text(path / "zarr.json", group_text({**about, "format": FORMAT}))
        return path
    foreign = path.exists() and (not path.is_dir() or any(e for e in path.iterdir() if "zarr.json" not in e.name))
    if foreign and not (path / "zarr.json").is_file():  # which another run may have made this moment
        raise StoreError(f"{path} exists and is not an amex store; choose another --store")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    write_text(path / "zarr.json", group_text({"format": FORMAT, "created": created}), once=True)
    read_store(path)  # another run may have been as quick
    return path


def write_problems(store: Path, problems: Sequence[Failure]) -> None:
    """Replaces the ledger of manifest lines that were not usable clips."""
    record = {"format": FORMAT, "problems": [dataclasses.asdict(problem) for problem in problems]}
    write_text(store / "problems.json", sealed(record))


def declare_stream(
    store: Path, stream: str, spec: dict[str, Any], provenance: dict[str, Any], *, repair: bool = False
) -> str:
    """Fixes what a stream holds, or checks that it holds that already. Returns the fingerprint.

    As long as nothing was committed under another spec, this one takes its place; a run that is at work under the other
    cannot commit then.

    Args:
        stream: one plain name; see ``schema.stream_path``.
        spec: all that decides the numbers: encoder, weights, sampling, transform, output, precision, decoder.
        provenance: what does not, but a reader wants to know: where weights came from, who wrote it.
        repair: write a spec.json anew that is damaged, or another stream's.

    Raises:
        SpecMismatch: listing every field that differs from the spec in the store.
        StoreError: if the name cannot be a stream's, or parts are there without the spec that they were made with.
    """
    folder, mark = stream_path(store, stream), fingerprint(spec)
    path = folder / "spec.json"
    try:
        check_arrays(spec)
        _check_numbers(spec)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"the spec of stream {stream!r} cannot be stored: {first_line(error)}") from error
    record = sealed({"format": FORMAT, "fingerprint": mark, "spec": spec, "provenance": provenance})
    exists = path.exists()
    others = made_with(folder) if repair or not exists else set()
    replace = repair and exists and _is_wrong(path, mark, others)
    if replace or not exists:
        if others - {mark}:
            raise StoreError(
                f"stream {stream!r} of {store} has no intact spec.json, and its parts were made with other settings: "
                f"use those, or remove the stream with amex features rm {store} {stream}"
            )
        for group in (folder, folder / "parts"):
            write_text(group / "zarr.json", group_text(), once=True)
        storage_at(folder / "commits").make_folder()
        write_text(path, record, once=not replace)
    there = read_spec(path)
    if there["fingerprint"] != mark and not has_commits(store, stream):
        with _undisturbed(store, stream):
            there = _declared_anew(store, stream, path, record)
    if there["fingerprint"] != mark:
        lines = [f"  {field}: {old!r} in the store, {new!r} now" for field, old, new in diff_specs(there["spec"], spec)]
        raise SpecMismatch(
            f"stream {stream!r} of {store} was made with other settings:\n" + "\n".join(lines) + "\n"
            "Use the store's settings, or store these under a name of their own: --stream NAME=NETWORK"
        )
    return mark


def _undisturbed(store: Path, stream: str) -> contextlib.AbstractContextManager[None]:
    """As long as a stream is empty, one program at a time declares it or commits to it, where files can be locked.

    Otherwise a run could commit in the moment in which another tries a spec that it takes back.
    """
    group = store / stream / "zarr.json"  # written once
    if has_commits(store, stream) or not group.exists():
        return contextlib.nullcontext()
    return storage_at(group).locked()


def _declared_anew(store: Path, stream: str, path: Path, record: str) -> dict[str, Any]:
    """Puts a spec in the place of one that nothing was committed under; returns the spec that counts then."""
    other = path.read_text()
    if not has_commits(store, stream):
        write_text(path, record)
        if has_commits(store, stream):  # another run was quicker: its rows stay what they are
            write_text(path, other)
    return read_spec(path)


def _check_numbers(spec: dict[str, Any]) -> None:
    """Raises ValueError unless the entries of a spec's arrays are numbers that readers of Zarr know, one or more."""
    for name, (shape, dtype) in {**row_arrays(spec), **clip_arrays(spec)}.items():
        of = np.dtype(dtype)
        if of.kind not in "biuf" or of.itemsize > 8 or not of.isnative or 0 in shape:
            raise ValueError(
                f"{name} has entries of {dtype}{list(shape)}: store one number or more of bool, an integer or a float "
                "of up to 64 bits, without a byte order"
            )


def made_with(stream: Path) -> set[str]:
    """The fingerprints of the specs that the parts of a stream were made with, as their commit records say."""
    fingerprints = set()
    for name, data in storage_at(stream / "commits").read_matching("*.json"):
        with contextlib.suppress(DamagedPart):
            fingerprints.add(parse_commit(stream / "commits" / name, data)["fingerprint"])
    return fingerprints


def _is_wrong(spec: Path, mark: str, others: set[str]) -> bool:
    """Whether a spec.json is damaged, or another stream's while all parts were made with the spec of ``mark``."""
    try:
        return read_spec(spec)["fingerprint"] != mark and others == {mark}
    except LaterFormat:
        raise
    except StoreError:
        return True


def remove_stream(store: Path, stream: str) -> None:
    """Removes a stream; of one that is a link, the link. A kill in between leaves no half of it that reads as whole.

    Raises:
        StoreError: if there is no such stream, or it cannot be removed.
    """
    folder = stream_path(store, stream)
    check_stream(store, stream)
    if not storage_at(folder).can_rename:
        for inner in ("spec.json", "commits", "."):
            storage_at(folder / inner).remove()
        return
    trash = store / f"{REMOVED}{stream[:20]}.{uuid.uuid4().hex[:12]}"
    folder.rename(trash)
    storage_at(trash).remove()
    if trash.exists():
        raise StoreError(f"stream {stream!r} is removed, but {trash} cannot be deleted: delete it yourself")


def write_part(
    store: Path,
    stream: str,
    part: str,
    *,
    spec: dict[str, Any],
    clips: Sequence[ClipRows],
    failures: Sequence[Failure],
    run: dict[str, Any],
    replaces: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes one part and, once every byte of it is read back and on disk, its commit record. Returns the record.

    If another writer commits the same part first, nothing is written, and the record is that writer's.

    Args:
        spec: the stream's, as it was declared.
        run: host, seconds, versions: recorded, but no part of what two equal runs must agree on.
        replaces: parts of the stream that do not count any more as soon as this one does.

    Raises:
        SpecMismatch: if the stream was declared anew with another spec.
        StoreError: if a clip cannot be stored, the store is gone, or the disk does not give back what was written.
    """
    for clip in clips:
        _check_clip(spec, clip)
    parts, committed = stream_path(store, stream) / "parts", commit_path(store, stream, part)
    if committed.exists():
        return read_commit(committed)
    check_declared(store, stream, spec)
    try:
        with storage_at(parts).begin_folder(f"{part}.{uuid.uuid4().hex[:12]}.partial") as begun:
            files = {"zarr.json": write_file(begun / "zarr.json", part_text(part, fingerprint(spec)).encode())}
            arrays = {}
            for name, array in part_arrays(spec, clips):
                layout, written = write_array(begun, name, array)
                arrays[name] = dataclasses.asdict(layout)
                files |= written
            if storage_at(begun).sizes() != {name: file["bytes"] for name, file in files.items()}:
                raise StoreError(
                    f"{begun} has lost files while it was written: check the disk, and that no other "
                    "program cleans up there"
                )
            files = dict(sorted(files.items()))
            folder = publish_part(begun, parts, part, files)
        commit = {
            "format": FORMAT,
            "part": part,
            "folder": folder.name,
            "fingerprint": fingerprint(spec),
            "rows": sum(map(len, clips)),
            "clips": [clip_entry(clip) for clip in clips],
            "failures": [dataclasses.asdict(failure) for failure in failures],
            **_origins(clips),
            "arrays": arrays,
            "files": files,
            **({"replaces": list(replaces)} if replaces else {}),
            "run": run,
        }
        with _undisturbed(store, stream):
            write_text(committed, sealed(commit), once=True, beside=parts)
            try:
                check_declared(store, stream, spec)
            except SpecMismatch:  # who declared it anew may have looked for commits before this one
                storage_at(committed).remove()
                storage_at(folder).remove()
                raise
    except Exception:
        if not committed.exists():
            raise
        # Another writer was faster, and a sweep took away what this one was writing.
    return read_commit(committed)


def publish_part(begun: Path, parts: Path, part: str, files: dict[str, dict[str, Any]]) -> Path:
    """Puts a part that was made in a folder of this machine among the others of its stream; returns where.

    Args:
        files: of the part, as ``digests`` has them.
    """
    folder = parts / folder_name(part, files)
    # What an interrupted run left there may have been damaged since.
    storage_at(folder).publish(begun, is_intact=lambda there: digests(there) == files)
    return folder


def _check_clip(spec: dict[str, Any], clip: ClipRows) -> None:
    """Raises StoreError if arrays of a clip do not have the same rows, or its entries not the shapes of the stream."""
    for name, (shape, _) in row_arrays(spec).items():
        if np.shape(clip.arrays[name]) != (len(clip), *shape):
            raise StoreError(
                f"clip {clip.clip_id!r} has {name} of {list(np.shape(clip.arrays[name]))}, and the stream wants "
                f"{[len(clip), *shape]}, as values has {len(clip)} rows"
            )


def commit_path(store: Path, stream: str, part: str) -> Path:
    """Where a part's commit record is, or will be."""
    return stream_path(store, stream) / "commits" / f"{part}.json"


def is_committed(store: Path, stream: str, part: str) -> bool:
    """Whether a part is there: a look at the disk, cheap enough to be asked before each part."""
    return commit_path(store, stream, part).exists()


def has_commits(store: Path, stream: str) -> bool:
    """Whether anything was ever committed in a stream: rows, or failures."""
    return any(True for _ in (store / stream / "commits").glob("*.json"))


def check_declared(store: Path, stream: str, spec: dict[str, Any]) -> None:
    """Raises StoreError unless a stream is there, and SpecMismatch unless it holds what ``spec`` makes."""
    path = store / stream / "spec.json"
    if not path.exists():
        raise StoreError(f"the store {store} is gone")
    if read_spec(path)["fingerprint"] != fingerprint(spec):
        raise SpecMismatch(
            f"another run has declared stream {stream!r} of {store} with other settings while it was empty; "
            "use those, or store these under a name of their own: --stream NAME=NETWORK"
        )


def part_arrays(spec: dict[str, Any], clips: Sequence[ClipRows]) -> Iterator[tuple[str, Joined]]:
    """The arrays of a part by name, the rows of its clips end to end."""
    for name, (shape, dtype) in row_arrays(spec).items():
        yield name, Joined(shape, np.dtype(dtype), [clip.arrays[name] for clip in clips])
    for name, (shape, dtype) in clip_arrays(spec).items():
        entries = np.array([clip.arrays[name] for clip in clips], dtype).reshape(len(clips), *shape)
        yield name, Joined(shape, entries.dtype, [entries], "clip")
    offsets = np.cumsum([0, *(len(clip) for clip in clips)], dtype=np.int64)
    yield "offsets", Joined((), offsets.dtype, [offsets], "boundary")
    clip_ids = np.array([clip.clip_id for clip in clips], dtype=np.dtypes.StringDType())
    yield "clip_ids", Joined((), clip_ids.dtype, [clip_ids], "clip")


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below a folder."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": digest}
    return files


def clip_entry(clip: ClipRows) -> dict[str, Any]:
    """A clip, or a caption, as the commit record has it."""
    decoder = {"decoder": clip.decoder} if clip.decoder else {}
    damage = {"missing": clip.missing, "damage": clip.damage} if clip.damage else {}
    return {"clip_id": clip.clip_id, "rows": len(clip), **decoder, **clip.source.entry, **damage}


def _origins(clips: Sequence[ClipRows]) -> dict[str, list[list[Any]]]:
    """The ``origins`` of a commit record, where clips have some."""
    runs: list[list[Any]] = []
    for mark, place in (clip.origin for clip in clips if clip.origin):
        if runs and (runs[-1][0], sum(runs[-1][1:])) == (mark, place):
            runs[-1][2] += 1
        else:
            runs.append([mark, place, 1])
    return {"origins": runs} if runs else {}
