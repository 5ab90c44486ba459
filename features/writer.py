"""Write stores, specs of streams, and parts. A part's commit record is written last, and the first one counts."""

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

from ..errors import first_line, plural
from ..storage import MISSING_ERRORS, open_path, reachable, storage_at, write_text
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
    group_text,
    new_folder_name,
    parse_commit,
    part_text,
    read_commit,
    read_spec,
    read_store,
    row_arrays,
    sealed,
    stream_path,
)
from .shards import ConcatenatedArray, write_array, write_file


@dataclass(frozen=True, kw_only=True)
class ClipRows:
    """The rows of one clip, ready to be written.

    Attributes:
        clip_id: the clip; in a stream of text, the caption.
        arrays: by name, each of the stream's ``row_arrays`` (rows, ...) and this clip's entry (...) of each of its
            ``clip_arrays``, in the dtypes of the stream. A clip without rows is valid: it is empty.
        decoder: the decoder that was used, and why if it is not the default.
        source: what the rows were computed from.
        missing: seconds of the clip that are lost because the video is damaged; None if unknown. Only with ``damage``.
        damage: why the rows do not cover the full clip; empty if they do.
        origin: only for rewritten rows, see ``schema.clip_origins``.
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
    """Create a store at ``path``, or open the existing one. Return its path.

    Raises:
        StoreError: if something else is at ``path``, or the store was written by a later version of amex.
    """
    path = open_path(path)
    with reachable(path):
        return _create_store(path)


def _create_store(path: Path) -> Path:
    with contextlib.suppress(*MISSING_ERRORS):
        about = read_store(path)
        if about["format"] < FORMAT:  # versions that read only the old format must refuse the store from now on
            write_text(path / "zarr.json", group_text({**about, "format": FORMAT}))
        return path
    foreign = path.exists() and (not path.is_dir() or any(e for e in path.iterdir() if "zarr.json" not in e.name))
    if foreign and not (path / "zarr.json").is_file():  # another run may have created the store just now
        raise StoreError(f"{path} exists and is not an amex store; choose another --store")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    write_text(path / "zarr.json", group_text({"format": FORMAT, "created": created}), once=True)
    read_store(path)  # check it: another run may have written it
    return path


def write_problems(store: Path, problems: Sequence[Failure]) -> None:
    """Replace problems.json, the list of manifest lines that are not usable clips."""
    record = {"format": FORMAT, "problems": [dataclasses.asdict(problem) for problem in problems]}
    write_text(store / "problems.json", sealed(record))


def declare_stream(
    store: Path, stream: str, spec: dict[str, Any], provenance: dict[str, Any], *, repair: bool = False
) -> str:
    """Create a stream with this spec, or check that the existing stream has this spec. Return the fingerprint.

    The spec of an empty stream is replaced. A run that still works with the old spec can no longer commit.

    Args:
        stream: name of the stream, see ``schema.stream_path``.
        spec: all settings that influence the features: encoder, weights, sampling, transform, output, precision,
            decoder.
        provenance: information without influence on the features, for example the origin of the weights.
        repair: rewrite a spec.json that is damaged or belongs to another stream.

    Raises:
        SpecMismatch: if the stream has another spec; the message lists every field that differs.
        StoreError: if the name is not allowed, or the stream has parts but no intact spec.json that fits them.
    """
    folder, digest = stream_path(store, stream), fingerprint(spec)
    path = folder / "spec.json"
    try:
        check_arrays(spec)
        _check_numbers(spec)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"the spec of stream {stream!r} cannot be stored: {first_line(error)}") from error
    record = sealed({"format": FORMAT, "fingerprint": digest, "spec": spec, "provenance": provenance})
    exists = path.exists()
    committed = committed_fingerprints(folder) if repair or not exists else set()
    replace = repair and exists and _is_wrong(path, digest, committed)
    if replace or not exists:
        if committed - {digest}:
            raise StoreError(
                f"stream {stream!r} of {store} has no intact spec.json, and its parts were made with other settings: "
                f"use those settings, or remove the stream with amex features rm {store} {stream}"
            )
        for group in (folder, folder / "parts"):
            write_text(group / "zarr.json", group_text(), once=True)
        storage_at(folder / "commits").make_folder()
        write_text(path, record, once=not replace)
    stored = read_spec(path)
    if stored["fingerprint"] != digest and not has_commits(store, stream):
        with _declaration_lock(store, stream):
            stored = _replace_spec(store, stream, path, record)
    if stored["fingerprint"] != digest:
        differences = diff_specs(stored["spec"], spec)
        lines = [f"  {field}: {old!r} in the store, {new!r} now" for field, old, new in differences]
        raise SpecMismatch(
            f"stream {stream!r} of {store} was made with other settings:\n" + "\n".join(lines) + "\n"
            "Use the settings of the store, or write a stream with another name: --stream NAME=NETWORK"
        )
    return digest


def _declaration_lock(store: Path, stream: str) -> contextlib.AbstractContextManager[None]:
    """Lock an empty stream while its spec is replaced or its first part is committed, if files can be locked.

    Without the lock, a run could commit while another run replaces the spec and then restores it.
    """
    group = store / stream / "zarr.json"  # never rewritten
    if has_commits(store, stream) or not group.exists():
        return contextlib.nullcontext()
    return storage_at(group).locked()


def _replace_spec(store: Path, stream: str, path: Path, record: str) -> dict[str, Any]:
    """Replace the spec of an empty stream. Return the spec that is valid afterwards."""
    previous = path.read_text()
    if not has_commits(store, stream):
        write_text(path, record)
        if has_commits(store, stream):  # another run has committed rows meanwhile: restore their spec
            write_text(path, previous)
    return read_spec(path)


def _check_numbers(spec: dict[str, Any]) -> None:
    """Raise ValueError unless all arrays of a spec have dtypes that Zarr supports and at least one number per entry."""
    for name, (shape, dtype_name) in {**row_arrays(spec), **clip_arrays(spec)}.items():
        dtype = np.dtype(dtype_name)
        if dtype.kind not in "biuf" or dtype.itemsize > 8 or not dtype.isnative or 0 in shape:
            raise ValueError(
                f"{name} has entries of {dtype_name}{list(shape)}: an entry needs at least one bool, integer or float "
                "of up to 64 bits, in native byte order"
            )


def committed_fingerprints(stream: Path) -> set[str]:
    """Return the fingerprints in the intact commit records of a stream."""
    fingerprints = set()
    for name, data in storage_at(stream / "commits").read_matching("*.json"):
        with contextlib.suppress(DamagedPart):
            fingerprints.add(parse_commit(stream / "commits" / name, data)["fingerprint"])
    return fingerprints


def _is_wrong(spec: Path, digest: str, committed: set[str]) -> bool:
    """Return whether a spec.json is damaged, or differs although all parts have the fingerprint ``digest``."""
    try:
        return read_spec(spec)["fingerprint"] != digest and committed == {digest}
    except LaterFormat:
        raise
    except StoreError:
        return True


def remove_stream(store: Path, stream: str) -> None:
    """Delete a stream. If its folder is a link, delete only the link.

    If the process is killed, the rest of the stream cannot be mistaken for a smaller stream.

    Raises:
        StoreError: if there is no such stream, or it cannot be deleted.
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
    """Write a part, read it back, sync it, and then write its commit record. Return the commit record.

    If another writer commits the same part first, return the record of that writer.

    Args:
        part: name of the part.
        spec: the declared spec of the stream.
        run: host, seconds, versions. Equal runs may differ in it.
        replaces: names of parts that stop to count as soon as this part is committed.

    Raises:
        SpecMismatch: if the stream has another spec by now.
        StoreError: if a clip does not fit the spec, the store is gone, or the disk returns other bytes than written.
    """
    for clip in clips:
        _check_clip(spec, clip)
    parts, committed = stream_path(store, stream) / "parts", commit_path(store, stream, part)
    if committed.exists():
        return read_commit(committed)
    check_declared(store, stream, spec)
    try:
        with storage_at(parts).staging_folder(f"{part}.{uuid.uuid4().hex[:12]}.partial") as staged:
            files = {"zarr.json": write_file(staged / "zarr.json", part_text(part, fingerprint(spec)).encode())}
            arrays = {}
            for name, array in part_arrays(spec, clips):
                layout, array_files = write_array(staged, name, array)
                arrays[name] = dataclasses.asdict(layout)
                files |= array_files
            if storage_at(staged).sizes() != {name: file["bytes"] for name, file in files.items()}:
                raise StoreError(
                    f"{staged} has lost files while it was written: check the disk, and that no other "
                    "program deletes files there"
                )
            files = dict(sorted(files.items()))
            folder = publish_part(staged, parts, part, files)
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
        with _declaration_lock(store, stream):
            write_text(committed, sealed(commit), once=True, beside=parts)
            try:
                check_declared(store, stream, spec)
            except SpecMismatch:  # another run has replaced the spec before it could see this commit
                storage_at(committed).remove()
                storage_at(folder).remove()
                raise
    except Exception:
        # If another writer has committed the same part, remove_leftovers may have deleted the folder that this one was
        # writing. Any error is then harmless, because the part is complete. All other errors are raised.
        if not committed.exists():
            raise
    return read_commit(committed)


def publish_part(staged: Path, parts: Path, part: str, files: dict[str, dict[str, Any]]) -> Path:
    """Move or upload a part from a local folder to the folder of parts. Return its folder there.

    Args:
        staged: the local folder.
        parts: the folder of the stream's parts.
        files: size and sha256 of the files of the part, see ``file_digests``.
    """
    folder = parts / new_folder_name(part, files)
    # An interrupted run may have left the same folder, and it may have been damaged since.
    storage_at(folder).publish(staged, is_intact=lambda existing: file_digests(existing) == files)
    return folder


def _check_clip(spec: dict[str, Any], clip: ClipRows) -> None:
    """Raise StoreError if an array of a clip does not have the shape of the spec or the number of rows of values."""
    for name, (shape, _) in row_arrays(spec).items():
        if np.shape(clip.arrays[name]) != (len(clip), *shape):
            raise StoreError(
                f"clip {clip.clip_id!r} has {name} of shape {list(np.shape(clip.arrays[name]))}; the stream needs "
                f"{[len(clip), *shape]}, because values has {plural(len(clip), 'row')}"
            )


def commit_path(store: Path, stream: str, part: str) -> Path:
    """Return the path of a part's commit record."""
    return stream_path(store, stream) / "commits" / f"{part}.json"


def is_committed(store: Path, stream: str, part: str) -> bool:
    """Return whether a part is committed. One cheap check on disk."""
    return commit_path(store, stream, part).exists()


def has_commits(store: Path, stream: str) -> bool:
    """Return whether a stream has any commit record, of rows or of failures."""
    return any(True for _ in (store / stream / "commits").glob("*.json"))


def check_declared(store: Path, stream: str, spec: dict[str, Any]) -> None:
    """Check that a stream exists and has this spec. Raises StoreError or SpecMismatch."""
    path = store / stream / "spec.json"
    if not path.exists():
        raise StoreError(f"the store {store} is gone")
    if read_spec(path)["fingerprint"] != fingerprint(spec):
        raise SpecMismatch(
            f"another run has declared stream {stream!r} of {store} with other settings while it was empty; "
            "use those settings, or write a stream with another name: --stream NAME=NETWORK"
        )


def part_arrays(spec: dict[str, Any], clips: Sequence[ClipRows]) -> Iterator[tuple[str, ConcatenatedArray]]:
    """Yield name and content of the arrays of a part: the rows of its clips end to end."""
    for name, (shape, dtype) in row_arrays(spec).items():
        yield name, ConcatenatedArray(shape, np.dtype(dtype), [clip.arrays[name] for clip in clips])
    for name, (shape, dtype) in clip_arrays(spec).items():
        entries = np.array([clip.arrays[name] for clip in clips], dtype).reshape(len(clips), *shape)
        yield name, ConcatenatedArray(shape, entries.dtype, [entries], "clip")
    offsets = np.cumsum([0, *(len(clip) for clip in clips)], dtype=np.int64)
    yield "offsets", ConcatenatedArray((), offsets.dtype, [offsets], "boundary")
    clip_ids = np.array([clip.clip_id for clip in clips], dtype=np.dtypes.StringDType())
    yield "clip_ids", ConcatenatedArray((), clip_ids.dtype, [clip_ids], "clip")


def file_digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of every file below a folder, by relative path."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": digest}
    return files


def clip_entry(clip: ClipRows) -> dict[str, Any]:
    """Return the entry of a clip, or of a caption, in a commit record."""
    decoder = {"decoder": clip.decoder} if clip.decoder else {}
    damage = {"missing": clip.missing, "damage": clip.damage} if clip.damage else {}
    return {"clip_id": clip.clip_id, "rows": len(clip), **decoder, **clip.source.entry, **damage}


def _origins(clips: Sequence[ClipRows]) -> dict[str, list[list[Any]]]:
    """Return the ``origins`` of a commit record, if the clips have an origin: [digest, first position, count]."""
    runs: list[list[Any]] = []
    for digest, place in (clip.origin for clip in clips if clip.origin):
        if runs and (runs[-1][0], sum(runs[-1][1:])) == (digest, place):
            runs[-1][2] += 1
        else:
            runs.append([digest, place, 1])
    return {"origins": runs} if runs else {}
