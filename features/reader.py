"""Reading: stores, streams, the rows of a clip, batches of many clips, and whole streams through Dask."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import LocalStore, WrapperStore

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
        self._checked: set[str] = set()  # parts whose ids, offsets and metadata are those of their commit records
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
        """The rows of many clips, in the order given. Clips that lie side by side are read in one go."""
        places = [self._locate(clip_id) for clip_id in clip_ids]
        runs: list[list[Any]] = []  # part, place of the first clip, clips, first row, rows
        for part, place, first, rows in places:
            last = runs[-1] if runs else None
            if last and last[0] == part and last[1] + last[2] == place:
                last[2] += 1
                last[4] += rows
            else:
                runs.append([part, place, 1, first, rows])
        arrays = {}
        for name, (shape, dtype) in row_arrays(self.spec).items():
            taken = (self._take(part, name, first, rows) for part, _, _, first, rows in runs)
            arrays[name] = np.concatenate([np.empty((0, *shape), dtype), *taken])
        for name, (shape, dtype) in clip_arrays(self.spec).items():
            taken = (self._take(part, name, place, clips) for part, place, clips, _, _ in runs)
            arrays[name] = np.concatenate([np.empty((0, *shape), dtype), *taken])
        offsets = np.cumsum([0, *(rows for *_, rows in places)], dtype=np.int64)
        return Batch(arrays, offsets, tuple(clip_ids), frozenset(clip_arrays(self.spec)))

    def to_dask(self, array: str = "values") -> dask.array.Array:
        """A whole array of the stream, in blocks of about a part, for statistics over all of it."""
        import dask.array as da

        shape, dtype = {**row_arrays(self.spec), **clip_arrays(self.spec)}[array]
        blocks = [da.zeros((0, *shape), dtype=dtype)]
        for part in self.commits:
            source = self._open(part, array, os.getpid())
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

    # Enough for a pass over a million clips in any order without opening parts twice in a row.
    @functools.lru_cache(maxsize=4096)  # noqa: B019 - streams are few and live as long as their readers
    def _open(self, part: str, array: str, process: int) -> PartArray:
        """An array of a part. A process forked from this one, as loaders of data are, needs connections of its own."""
        place = f"part {part} of stream {self.name!r} in {self._store}"
        commit = self.commits[part]
        with damage_in(place, self.path):
            folder = self.path / "parts" / folder_of(commit)
            if part not in self._checked:
                check_part(folder, commit, {*row_arrays(self.spec), *clip_arrays(self.spec)})
                self._checked.add(part)
            inner = storage_at(folder / array).zarr_store()
            whole = WholeArray(LocalStore(inner, read_only=True) if isinstance(inner, Path) else inner)
            return PartArray(zarr.open_array(whole, mode="r"), place, self.path)

    def _take(self, part: str, array: str, first: int, count: int) -> np.ndarray:
        return self._open(part, array, os.getpid())[first : first + count]

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, clips={len(self)}, rows={self.rows}, failed={len(self.failures)})"


# What Zarr and a disk raise where bytes are not those that were written.
DAMAGE = (ValueError, RuntimeError, KeyError, *NOT_THERE)


@contextlib.contextmanager
def damage_in(place: str, stream: Path) -> Iterator[None]:
    """Raises DamagedPart, which names the place, for what Zarr and a disk say of damage.

    Raises:
        StoreError: if the stream was removed after it had been opened.
    """
    try:
        with reachable(stream, but=DAMAGE):
            yield
    except DAMAGE as error:
        if not stream.exists():
            raise StoreError(f"stream {stream.name!r} was removed from {stream.parent} while it was read") from error
        raise DamagedPart(f"{place}: {first_line(error)}; {REPAIR}") from error


class WholeArray(WrapperStore):
    """The files of one array, whose chunks are all there: for one that is missing Zarr would fill in zeros."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        data = await super().get(key, prototype, byte_range)
        if data is None and key.startswith("c/"):
            raise FileNotFoundError(f"{key} is missing")
        return data


@dataclass(frozen=True)
class PartArray:
    """An array of a part, as NumPy and Dask slice it. Reading raises DamagedPart where a checksum does not hold."""

    array: zarr.Array
    place: str
    stream: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def ndim(self) -> int:
        return self.array.ndim

    def __getitem__(self, key: Any) -> np.ndarray:
        with damage_in(self.place, self.stream):
            return self.array[key]


def check_part(folder: Path, commit: Mapping[str, Any], arrays: Set[str]) -> None:
    """Raises ValueError unless a part's folder holds what the commit record says, as far as a quick look can tell.

    Ids, offsets and metadata are compared byte for byte, the data of ``arrays``, which has checksums of its own, by its
    size alone: that it is another part's of the same size, ``verify`` finds out.
    """
    storage = storage_at(folder)
    there = storage.sizes()
    for name, file in commit["files"].items():
        if name not in there:
            raise ValueError(f"{name} is missing")
        if there[name] != file["bytes"]:
            raise ValueError(f"{name} has {there[name]} bytes, not {file['bytes']}")
    small = [name for name in commit["files"] if name.split("/")[0] not in arrays or name.endswith("zarr.json")]
    for name, data in storage.read(small).items():
        if hashlib.sha256(data).hexdigest() != commit["files"][name]["sha256"]:
            raise ValueError(f"{name} is not what was committed")
