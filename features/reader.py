"""Reading: stores, streams, the rows of a clip, batches of many clips, and whole streams through Dask."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import first_line
from ..storage import NOT_THERE, open_path, reachable, storage_at
from .schema import (
    REPAIR,
    ClipNotThere,
    ClipSource,
    DamagedPart,
    Failure,
    StoreError,
    clip_arrays,
    fingerprint,
    folder_of,
    has_stream,
    parse_commit,
    read_problems,
    read_spec,
    read_store,
    replaced_by,
    row_arrays,
    stream_names,
    stream_path,
)
from .shards import DamagedArray, Layout, ShardedArray, ShardReader, Span, as_bytes

if TYPE_CHECKING:
    import dask.array


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """While much is made and nothing is dropped: the collector would look through all of it again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True, repr=False)
class Rows:
    """The rows of one clip in one stream; in a stream of text, the tokens of one caption.

    Attributes:
        arrays: by name; ``rows["boxes"]`` is short for ``rows.arrays["boxes"]``.
    """

    arrays: Mapping[str, np.ndarray]

    @property
    def values(self) -> np.ndarray:
        """The features: (rows, ...), the stream's dtype."""
        return self.arrays["values"]

    @property
    def times(self) -> np.ndarray:
        """(rows, 2) float64, [start, end) seconds on the video's own clock. Streams of text have none."""
        return self.arrays["times"]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        timed = len(self) and "times" in self.arrays
        span = f" over [{self.times[0, 0]:.3f}, {self.times[-1, 1]:.3f}) s" if timed else ""
        more = "".join(f", {name}" for name in self.arrays if name not in ("values", "times"))
        return f"{type(self).__name__}({self.values.dtype}{list(self.values.shape)}{span}{more})"


@dataclass(frozen=True, repr=False)
class Batch(Rows):
    """The rows of several clips end to end: rows ``offsets[i]:offsets[i+1]`` are those of ``clip_ids[i]``.

    Attributes:
        offsets: (clips + 1,) int64.
        clip_ids: in the order asked for.
        clip_arrays: names of those arrays that have one entry a clip instead of one a row.
    """

    offsets: np.ndarray
    clip_ids: tuple[str, ...]
    clip_arrays: frozenset[str]

    def __iter__(self) -> Iterator[Rows]:
        for index, (begin, end) in enumerate(itertools.pairwise(self.offsets)):
            arrays = self.arrays.items()
            yield Rows({n: array[index] if n in self.clip_arrays else array[begin:end] for n, array in arrays})

    def __repr__(self) -> str:
        return f"Batch({len(self.clip_ids)} clips, {self.values.dtype}{list(self.values.shape)})"


def open_store(path: str | os.PathLike[str], *, skip_damaged: bool = False) -> Store:
    """Opens a store for reading.

    Args:
        skip_damaged: open streams with damaged commit records too, without the clips of those parts:
            ``Stream.damaged`` names them. By default such a stream is an error, as it would seem smaller than it is.

    Raises:
        StoreError: if there is none at ``path``.
    """
    path = open_path(path)
    try:
        with reachable(path, but=NOT_THERE):
            read_store(path)
    except NOT_THERE as error:
        raise StoreError(f"{path} is not an amex store; make one with: amex extract --store {path} ...") from error
    return Store(path, skip_damaged=skip_damaged)


class Store(Mapping[str, "Stream"]):
    """A store: a mapping from stream names to streams, as they were when each was first asked for."""

    def __init__(self, path: Path, *, skip_damaged: bool = False) -> None:
        self.path = path
        self._skip_damaged = skip_damaged
        self._streams: dict[str, Stream] = {}

    def __getitem__(self, name: str) -> Stream:
        """A stream.

        Raises:
            DamagedPart: if a commit record is damaged, unless the store was opened with ``skip_damaged``.
            StoreError: if there is no such stream, or its spec is damaged.
        """
        if name not in self._streams:
            with reachable(self.path):
                if name not in self:
                    there = ", ".join(self) or "none yet"
                    raise StoreError(f"no stream {name!r} in {self.path}; there is {there}")
                self._streams[name] = Stream(self.path, name, skip_damaged=self._skip_damaged)
        return self._streams[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and has_stream(self.path, name)

    def __iter__(self) -> Iterator[str]:
        return iter(stream_names(self.path))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def problems(self) -> list[Failure]:
        """Manifest lines of the last run that were not usable clips, as ledger entries."""
        with reachable(self.path):
            return read_problems(self.path / "problems.json")

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, streams={list(self)})"


class Stream:
    """One kind of feature: a mapping from clip ids, or for text from captions, to rows.

    Attributes:
        spec: how the features were made.
        fingerprint: sha256 of the spec.
        provenance: where the weights came from and which amex declared the stream.
        commits: part name -> commit record, for every part whose record is intact.
        damaged: part name -> what is wrong with its commit record; empty unless those are skipped.
        failures: clip_id -> ledger entry, for clips that have no rows because they failed.

    A clip may have several entries in the commit records. The highest revision counts, since the others are of other
    seconds or of another file; among equals rows before failures, then the last attempt.
    """

    def __init__(self, store: Path, name: str, *, skip_damaged: bool = False) -> None:
        self.name = name
        self.path = stream_path(store, name)
        self._store = store
        record = read_spec(self.path / "spec.json")
        self.spec: dict[str, Any] = record["spec"]
        self.fingerprint: str = record["fingerprint"]
        self.provenance: dict[str, Any] = record["provenance"]
        self.commits: dict[str, dict[str, Any]] = {}
        self.damaged: dict[str, str] = {}
        self.failures: dict[str, Failure] = {}
        self._reader = ShardReader(self.path / "parts")
        self._opened: dict[str, dict[str, ShardedArray]] = {}  # by part and name
        self._where: dict[str, tuple[str, int, int, int]] = {}  # clip_id -> part, place in it, first row, rows
        self._revisions: dict[str, int] = {}  # of the entries in _where, where it is not 0
        self._mixed: set[str] = set()  # parts that hold rows which do not count
        with uncollected():
            for file, data in storage_at(self.path / "commits").read_matching("*.json"):
                part = file.removesuffix(".json")
                try:
                    self.commits[part] = self._own(parse_commit(self.path / "commits" / file, data))
                except DamagedPart as error:
                    if not skip_damaged:
                        raise
                    self.damaged[part] = str(error)
            for part in {part for commit in self.commits.values() for part in replaced_by(commit)}:
                self.commits.pop(part, None)
                self.damaged.pop(part, None)
            for part, commit in self.commits.items():
                try:
                    self._index(part, commit)
                except (KeyError, TypeError) as error:
                    path = self.path / "commits" / f"{part}.json"
                    raise StoreError(f"{path} has entries that this amex does not know: {first_line(error)}") from error
        for clip_id in self._where.keys() & self.failures.keys():
            if self.failures[clip_id].rank[0] > self._revisions.get(clip_id, 0):
                self._mixed.add(self._where.pop(clip_id)[0])
            else:
                del self.failures[clip_id]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in a stream of objects or one with ``probabilities``; empty in others."""
        return tuple(self.spec.get("output", {}).get("labels", ()))

    def _own(self, commit: dict[str, Any]) -> dict[str, Any]:
        """Returns the commit record of a part of this stream; raises DamagedPart for one of another stream's."""
        if commit["fingerprint"] != self.fingerprint:
            raise DamagedPart(
                f"part {commit['part']} of stream {self.name!r} in {self._store} was made with another spec than the "
                f"stream's; {REPAIR}"
            )
        return commit

    def _index(self, part: str, commit: dict[str, Any]) -> None:
        first = 0
        for place, clip in enumerate(commit["clips"]):
            clip_id, revision = clip["clip_id"], clip.get("revision", 0)
            known = self._where.get(clip_id)
            if known is None or revision > self._revisions.get(clip_id, 0):
                self._where[clip_id] = (part, place, first, clip["rows"])
                if revision:
                    self._revisions[clip_id] = revision
            if known is not None:
                self._mixed.update((part, known[0]))
            first += clip["rows"]
        for entry in commit["failures"]:
            failure = Failure(**entry)
            known = self.failures.get(failure.clip_id)
            if known is None or known.rank < failure.rank:
                self.failures[failure.clip_id] = failure

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, clip_id: str) -> Rows:
        """The rows of one clip.

        Raises:
            ClipNotThere: if the clip was never extracted or failed; the message says which, and why.
            DamagedPart: if a checksum does not hold.
        """
        return next(iter(self.read([clip_id])))

    def read(self, clip_ids: Sequence[str]) -> Batch:
        """The rows of many clips, in the order given: of all clips and arrays at once.

        Raises:
            ClipNotThere, DamagedPart: as ``stream[clip_id]``.
        """
        single = clip_arrays(self.spec)
        offsets = np.cumsum([0, *map(self.rows_of, clip_ids)], dtype=np.int64)
        arrays = {
            name: np.empty((len(clip_ids) if name in single else int(offsets[-1]), *shape), dtype)
            for name, (shape, dtype) in {**row_arrays(self.spec), **single}.items()
        }
        self.read_into(arrays, clip_ids, offsets[:-1])
        return Batch(arrays, offsets, tuple(clip_ids), frozenset(single))

    def read_into(self, arrays: Mapping[str, np.ndarray], clip_ids: Sequence[str], firsts: Sequence[int]) -> None:
        """Reads the rows of many clips into arrays that are there, as for a batch whose clips are padded to one length.

        Args:
            arrays: those of the stream's arrays that are wanted, by name: contiguous, (entries, ...) of its dtype.
            firsts: of each clip the entry that its first row becomes. An array of one entry a clip is filled in order.

        Raises:
            ClipNotThere, DamagedPart: as ``stream[clip_id]``.
            ValueError: if an array does not have the form of the stream's.
        """
        forms, single = {**row_arrays(self.spec), **clip_arrays(self.spec)}, clip_arrays(self.spec)
        for name, array in arrays.items():
            shape, dtype = forms[name]
            if array.shape[1:] != shape or array.dtype != dtype or not array.flags.c_contiguous:
                raise ValueError(f"{name} of stream {self.name!r} is read into contiguous {dtype}, (entries, *{shape})")
        # Clips that lie side by side, here and there: part, place of the first, clips, first row, rows, index, entry.
        runs: list[list[Any]] = []
        for index, (clip_id, entry) in enumerate(zip(clip_ids, map(int, firsts), strict=True)):
            part, place, first, rows = self._locate(clip_id)
            last = runs[-1] if runs else None
            if last and (last[0], last[1] + last[2], last[6] + last[4]) == (part, place, entry):
                last[2] += 1
                last[4] += rows
            else:
                runs.append([part, place, 1, first, rows, index, entry])
        opened = self._open({run[0] for run in runs})
        spans = []
        for name, array in arrays.items():
            output = as_bytes(array)
            for part, place, clips, first, rows, index, entry in runs:
                of, count, at = (place, clips, index) if name in single else (first, rows, entry)
                if at + count > len(array):
                    raise ValueError(f"{name} of stream {self.name!r} has more entries than the array to read into")
                spans.append(Span(opened[part][name], of, count, output, at))
        self._fill(spans)

    def _fill(self, spans: Sequence[Span]) -> None:
        """Reads spans. Raises DamagedPart where a checksum does not hold."""
        try:
            with reachable(self.path, but=(DamagedArray,)):
                self._reader.read(spans)
        except DamagedArray as error:
            raise self._damage(error.array.part, error) from error

    def _damage(self, part: str, error: Exception) -> StoreError:
        """The error for what a part is not any more."""
        if not self.path.exists():
            return StoreError(f"stream {self.name!r} was removed from {self._store} while it was read")
        return DamagedPart(f"part {part} of stream {self.name!r} in {self._store}: {first_line(error)}; {REPAIR}")

    def _open(self, parts: Collection[str]) -> dict[str, dict[str, ShardedArray]]:
        """The arrays of parts, by part and name, once it is sure that the parts are those of their commit records."""
        opened = {part: self._opened[part] for part in parts if part in self._opened}
        new = [part for part in parts if part not in opened]
        if len(self._opened) + len(new) > OPENED:
            self._opened.clear()
        with reachable(self.path, but=DAMAGE):
            groups = self._groups(new)
            for part, group in zip(new, groups, strict=True):
                try:
                    opened[part] = self._opened[part] = self._arrays_of(part, group)
                except DAMAGE as error:
                    raise self._damage(part, error) from error
        return opened

    def _groups(self, parts: Sequence[str]) -> Sequence[bytes | Exception]:
        """The zarr.json of parts, which says what part it is; an error of the storage in the place of one."""
        files = [(f"{folder_of(self.commits[part])}/zarr.json", 0, GROUP_BYTES) for part in parts]
        return storage_at(self.path / "parts").read_ranges(files)

    def _arrays_of(self, part: str, group: bytes | Exception) -> dict[str, ShardedArray]:
        """The arrays of a part whose group has this zarr.json. Raises what ``DAMAGE`` has if they are not its own."""
        commit = self.commits[part]
        folder, files = folder_of(commit), commit["files"]
        if isinstance(group, Exception):
            raise group
        if hashlib.sha256(group).hexdigest() != files["zarr.json"]["sha256"]:
            raise ValueError("zarr.json is not what was committed")
        single = clip_arrays(self.spec)
        forms = {**row_arrays(self.spec), **single}
        if "arrays" in commit:
            layouts = {name: Layout.of(commit["arrays"][name]) for name in forms}
        else:
            layouts = check_part(self.path / "parts" / folder, commit, forms.keys())
        arrays = {}
        for name, (shape, dtype) in forms.items():
            layout, entries = layouts[name], len(commit["clips"]) if name in single else commit["rows"]
            if (layout.shape, layout.dtype) != ((entries, *shape), np.dtype(dtype).name):
                raise ValueError(f"{name} is {layout.dtype}{list(layout.shape)}, which the spec does not say")
            names = [f"{name}/{layout.file(shard)}" for shard in range(-(-entries // layout.shard))]
            arrays[name] = ShardedArray(
                part=part,
                files=[f"{folder}/{file}" for file in names],
                sizes=[files[file]["bytes"] for file in names],
                layout=layout,
                in_order="arrays" in commit and not layout.zstd,
            )
        return arrays

    def to_dask(self, array: str = "values") -> dask.array.Array:
        """A whole array of the stream, in blocks of about a part, for statistics over all of it."""
        import dask.array as da

        shape, dtype = {**row_arrays(self.spec), **clip_arrays(self.spec)}[array]
        blocks = [da.zeros((0, *shape), dtype=dtype)]
        for part in self.commits:
            source = PartArray(self, part, array)
            if source.shape[0]:
                block = da.from_array(source, chunks=source.shape, name=f"{self.name}-{part}-{array}")
                blocks.append(block[self._counting(part, array)] if part in self._mixed else block)
        return da.concatenate(blocks)

    def _counting(self, part: str, array: str) -> np.ndarray:
        """Which entries of an array of a part count: (rows or clips,) bool."""
        clips = self.commits[part]["clips"]
        counts = [self._where.get(clip["clip_id"], ("", 0))[:2] == (part, place) for place, clip in enumerate(clips)]
        return np.repeat(counts, 1 if array in clip_arrays(self.spec) else [clip["rows"] for clip in clips])

    def video(self, clip_id: str) -> str:
        """The file a clip's rows come from, below the folder of videos. Raises ClipNotThere."""
        self._locate(clip_id)
        return self.source(clip_id).video or ""

    def source(self, clip_id: str) -> ClipSource:
        """What a clip was computed from, also one that failed. Raises ClipNotThere."""
        if failure := self.failures.get(clip_id):
            return ClipSource.of(failure.source)
        part, place, _, _ = self._locate(clip_id)
        return ClipSource.of(self.commits[part]["clips"][place])

    def cut_off(self) -> dict[str, dict[str, Any]]:
        """By clip id the entries of clips that were kept as far as their video is undamaged.

        An entry has ``damage``, the reason, and ``missing``, the seconds that are not there, None if unknown.
        """
        return {
            clip["clip_id"]: clip
            for part, commit in self.commits.items()
            for place, clip in enumerate(commit["clips"])
            if "damage" in clip and self._where.get(clip["clip_id"], ())[:2] == (part, place)
        }

    def digest(self, clip_ids: Sequence[str]) -> str:
        """A sha256 over which committed rows belong to clips, in the order given; also of clips that have none.

        No row is read: a commit record has the checksums of its part's files.
        """
        files: dict[str, str] = {}  # of each part
        mark = hashlib.sha256(self.fingerprint.encode())
        for clip_id in clip_ids:
            part, place = self._where[clip_id][:2] if clip_id in self._where else ("", 0)
            if part not in files:
                files[part] = fingerprint(self.commits[part]["files"]) if part else ""
            mark.update(json.dumps([clip_id, files[part], place]).encode())
        return mark.hexdigest()

    def state(self, clip_id: str) -> str:
        """``done``, ``empty`` (decoded, and legitimately nothing there), ``failed`` or ``absent``."""
        if clip_id in self._where:
            return "done" if self._where[clip_id][3] else "empty"
        return "failed" if clip_id in self.failures else "absent"

    def rows_of(self, clip_id: str) -> int:
        """How many rows a clip has, or a caption tokens. Raises ClipNotThere."""
        return self._locate(clip_id)[3]

    @property
    def rows(self) -> int:
        """Rows in the stream."""
        return sum(rows for *_, rows in self._where.values())

    def _locate(self, clip_id: str) -> tuple[str, int, int, int]:
        try:
            return self._where[clip_id]
        except KeyError:
            pass
        if clip_id in self.failures:
            failure = self.failures[clip_id]
            raise ClipNotThere(f"clip {clip_id!r} failed in {self.name}: {failure.stage}: {failure.reason}")
        raise ClipNotThere(f"clip {clip_id!r} is not in stream {self.name!r} of {self._store}; extract it first")

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, clips={len(self)}, rows={self.rows}, failed={len(self.failures)})"


# What is raised where bytes on a disk are not those that were written.
DAMAGE = (ValueError, RuntimeError, KeyError, *NOT_THERE)
# Parts whose arrays a stream keeps in mind: enough for a pass over a million clips in any order.
OPENED = 4096
# Bytes of the zarr.json of a part's group, at most.
GROUP_BYTES = 4096


@dataclass(frozen=True)
class PartArray:
    """An array of a part, as NumPy and Dask slice it. Reading raises DamagedPart where a checksum does not hold."""

    stream: Stream
    part: str
    name: str

    @property
    def _array(self) -> ShardedArray:
        return self.stream._open({self.part})[self.part][self.name]

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.layout.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self._array.layout.dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *others = key if isinstance(key, tuple) else (key,)
        first, end, step = rows.indices(self.shape[0])
        entries = np.empty((max(0, end - first), *self.shape[1:]), self.dtype)
        self.stream._fill([Span(self._array, first, len(entries), as_bytes(entries), 0)])
        return entries[(slice(None, None, step), *others)]


def check_part(folder: Path, commit: Mapping[str, Any], arrays: Set[str]) -> dict[str, Layout]:
    """Checks a part of a format before 4, whose commit record does not say how its arrays lie; returns that.

    Ids, offsets and metadata are compared byte for byte, the data of ``arrays``, which has checksums of its own, by its
    size alone: that it is another part's of the same size, ``verify`` finds out.

    Raises:
        ValueError: unless the folder holds what the commit record says.
    """
    storage = storage_at(folder)
    there = storage.sizes()
    for name, file in commit["files"].items():
        if name not in there:
            raise ValueError(f"{name} is missing")
        if there[name] != file["bytes"]:
            raise ValueError(f"{name} has {there[name]} bytes, not {file['bytes']}")
    small = [name for name in commit["files"] if name.split("/")[0] not in arrays or name.endswith("zarr.json")]
    contents = storage.read(small)
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != commit["files"][name]["sha256"]:
            raise ValueError(f"{name} is not what was committed")
    return {name: Layout.of_zarr(json.loads(contents[f"{name}/zarr.json"])) for name in arrays}
