"""Reading: stores, streams, the rows of clips, and whole streams as Dask arrays."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import did_you_mean, first_line
from ..foreign import uncollected
from ..storage import MISSING_ERRORS, open_path, reachable, storage_at
from .index import Index
from .opening import LISTINGS, open_index
from .part_array import PartArray
from .parts import BadPart, PartReader
from .records import Commits, Failures
from .rows import Batch, Rows
from .schema import (
    REPAIR,
    ClipSource,
    DamagedPart,
    Failure,
    MissingClip,
    ReplacedPart,
    StoreError,
    as_ids,
    clip_arrays,
    clip_origins,
    has_stream,
    parse_commit,
    part_folder,
    read_problems,
    read_spec,
    read_store,
    row_arrays,
    stream_names,
    stream_path,
)
from .shards import Span, as_bytes

if TYPE_CHECKING:
    import dask.array

    from .dataset import JoinedDataset, StreamDataset


def open_store(path: str | os.PathLike[str], *, skip_damaged: bool = False) -> Store:
    """Open a store for reading.

    Args:
        path: a folder, or an address such as ``s3://BUCKET/NAME``.
        skip_damaged: open streams that have damaged commit records, without the clips of those parts
            (``Stream.damaged`` names them). By default opening such a stream is an error.

    Returns:
        A mapping from the names of streams to streams.

    Raises:
        StoreError: an AmexError, if there is no store at ``path``.
    """
    path = open_path(path)
    try:
        with reachable(path, but=MISSING_ERRORS):
            read_store(path)
    except MISSING_ERRORS as error:
        raise StoreError(f"{path} is not an amex store; make one with: amex extract FOLDER --store {path}") from error
    return Store(path, skip_damaged=skip_damaged)


class Store(Mapping[str, "Stream"]):
    """The features of a set of videos: a mapping from the names of streams to streams.

        store = amex.open_store("my.zarr")
        list(store)                              # names of the streams
        store["r2plus1d_18"]["a.mp4"].values     # (rows, 512)

    A stream is opened when it is first accessed. It shows what was committed then; see ``Stream.refresh``.

    Attributes:
        path: the folder or the address of the store.
    """

    def __init__(self, path: Path, *, skip_damaged: bool = False) -> None:
        self.path = path
        self._skip_damaged = skip_damaged
        self._streams: dict[str, Stream] = {}

    def __getitem__(self, name: str) -> Stream:
        """Return a stream.

        Raises:
            DamagedPart: if a commit record is damaged, and the store was opened without ``skip_damaged``.
            StoreError: if there is no such stream, or its spec is damaged.
        """
        if name not in self._streams:
            with reachable(self.path):
                if name not in self:
                    names = ", ".join(self) or "none yet"
                    raise StoreError(f"no stream {name!r} in {self.path}; there is {names}{did_you_mean(name, self)}")
                self._streams[name] = Stream(self.path, name, skip_damaged=self._skip_damaged)
        return self._streams[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and has_stream(self.path, name)

    def __iter__(self) -> Iterator[str]:
        return iter(stream_names(self.path))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def dataset(self, names: Sequence[str], clip_ids: Sequence[str] | None = None) -> JoinedDataset:
        """Return the clips that several streams share as a data set for ``torch.utils.data.DataLoader``.

        Args:
            names: the streams.
            clip_ids: the clips to choose from, in this order; None for those of the first stream, as they are stored.

        Returns:
            A data set whose batches are dicts from the names of streams to padded tensors; see ``JoinedDataset``.

        Raises:
            StoreError: if a stream is unknown, or no clip is in all of them.
        """
        from .dataset import JoinedDataset

        return JoinedDataset([self[name] for name in names], clip_ids)

    @property
    def problems(self) -> list[Failure]:
        """The lines of the manifest that the last extraction skipped, with reasons."""
        with reachable(self.path):
            return read_problems(self.path / "problems.json")

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, streams={list(self)})"


class Stream:
    """One kind of feature in a store. Behaves as a mapping from clip ids, or for text from captions, to ``Rows``.

        stream = store["r2plus1d_18"]
        rows = stream["a.mp4"]                           # rows.values (rows, 512), rows.times (rows, 2)
        batch = stream.read(["a.mp4", "b.webm"])         # many clips at once
        loader = DataLoader(stream.dataset(), batch_size=32)

    Attributes:
        name: of the stream in the store.
        path: its folder.
        spec: everything that decides the numbers: network, weights, sampling, precision, dtype and shape.
        fingerprint: sha256 of the spec.
        provenance: where the weights came from, and the versions that declared the stream.
        index: where the rows of each clip are, as arrays.
        commits: part name -> commit record, read on access.
        damaged: part name -> what is wrong with its commit record; empty without ``skip_damaged``.
        failures: clip id -> ``Failure`` with ``stage`` and ``reason``, for clips that have no rows because they failed.

    A clip may have several entries in the commit records. The entry of the highest revision is valid: the others are of
    other times or of another file. Among these, rows take precedence over failures, and later attempts over earlier.

    Args:
        store: the path of the store.
        name: of the stream.
        skip_damaged: see ``open_store``.
        afresh: see ``refresh``.
    """

    def __init__(self, store: Path, name: str, *, skip_damaged: bool = False, afresh: bool = False) -> None:
        self.name = name
        self.path = stream_path(store, name)
        self._store = store
        self._skip_damaged = skip_damaged
        record = read_spec(self.path / "spec.json")
        self.spec: dict[str, Any] = record["spec"]
        self.fingerprint: str = record["fingerprint"]
        self.provenance: dict[str, Any] = record["provenance"]
        self._parts = PartReader(self.path / "parts", self.spec)
        self.refresh(afresh=afresh)

    def refresh(self, *, afresh: bool = False) -> None:
        """Read from the disk what was committed or removed since the stream was opened.

        Args:
            afresh: rebuild the index from all commit records.

        Raises:
            DamagedPart, StoreError: as ``Store[name]``.
        """
        with uncollected():
            index, damaged = open_index(self.path, self.fingerprint, self._parse, afresh=afresh)
        if damaged and not self._skip_damaged:
            raise next(iter(damaged.values()))
        self.index = index
        self.damaged: dict[str, str] = {part: str(error) for part, error in damaged.items()}
        self.commits = Commits(index.parts, self._read)
        self.failures = Failures(self)

    def _read(self, part: str) -> dict[str, Any]:
        file = f"{part}.json"
        # Through storage, which has connections of its own in a fork.
        return self._parse(part, storage_at(self.path / "commits").read([file])[file])

    def _parse(self, part: str, data: bytes) -> dict[str, Any]:
        """Return a commit record; raise DamagedPart if it is damaged, or belongs to another stream."""
        commit = parse_commit(self.path / "commits" / f"{part}.json", data)
        if commit["fingerprint"] != self.fingerprint:
            raise DamagedPart(
                f"part {part} of stream {self.name!r} in {self._store} was made with another spec than the stream's; "
                f"{REPAIR}"
            )
        return commit

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the stream again where it is unpickled, for example in the worker of a ``DataLoader``."""
        return functools.partial(Stream, skip_damaged=self._skip_damaged), (self._store, self.name)

    @property
    def replaced(self) -> frozenset[str]:
        """The names of parts that others have replaced. No new part may have one of them."""
        return self.index.replaced

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in a stream of objects or with ``probabilities``; otherwise empty."""
        return tuple(self.spec.get("output", {}).get("labels", ()))

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and _rows(*self._find(clip_id)) >= 0

    def __iter__(self) -> Iterator[str]:
        """Yield the clips that were extracted, in stored order, also those with 0 rows."""
        index = self.index
        return index.names(index.clips)

    def __len__(self) -> int:
        return len(self.index.clips)

    def __getitem__(self, clip_id: str) -> Rows:
        """Return the rows of one clip.

        Raises:
            MissingClip: if the clip was never extracted or failed; the message says which, and why.
            DamagedPart: if a checksum does not hold.
        """
        return next(iter(self.read([clip_id])))

    def read(self, clip_ids: Sequence[str], arrays: Collection[str] | None = None) -> Batch:
        """Read the rows of many clips at once.

        Args:
            clip_ids: the clips, in the order of the result.
            arrays: the names of the arrays to read; None for all.

        Returns:
            The rows of all clips end to end. Iterate it for the rows of each clip.

        Raises:
            MissingClip, DamagedPart: as ``stream[clip_id]``.
            StoreError: if the stream has no such array.
        """
        clip_ids, single = as_ids(clip_ids), clip_arrays(self.spec)
        forms = {**row_arrays(self.spec), **single}
        if unknown := set(arrays or ()) - forms.keys():
            raise StoreError(f"stream {self.name!r} has no array {min(unknown)!r}; there is {', '.join(forms)}")
        for _ in range(LISTINGS):
            index = self.index
            entries = index.find(clip_ids)
            if len(absent := np.flatnonzero(entries < 0)):
                raise self._absent(clip_ids[absent[0]])
            offsets = np.append(0, np.cumsum(index.rows[entries]))
            read = {
                name: np.empty((len(entries) if name in single else int(offsets[-1]), *shape), dtype)
                for name, (shape, dtype) in forms.items()
                if arrays is None or name in arrays
            }
            try:
                self._fill(read, index, entries)
            except ReplacedPart:  # its rows are elsewhere by now
                self.refresh()
            else:
                return Batch(read, offsets, clip_ids, frozenset(single))
        raise StoreError(f"the parts of {self.path} are replaced faster than they are read; try again")

    def _fill(self, arrays: Mapping[str, NDArray[Any]], index: Index, entries: NDArray[Any]) -> None:
        """Read entries of the index into arrays, end to end."""
        columns = (index.part[entries], index.place[entries], index.first[entries], index.rows[entries])
        # Clips that are stored next to each other: part, place of the first, first row, clips, rows.
        runs: list[list[int]] = []
        for part, place, first, rows in zip(*(column.tolist() for column in columns), strict=True):
            last = runs[-1] if runs else None
            if last and (last[0], last[1] + last[3]) == (part, place):
                last[3] += 1
                last[4] += rows
            else:
                runs.append([part, place, first, 1, rows])
        single = clip_arrays(self.spec)
        with self._reading():
            opened = self._parts.open(index, {run[0] for run in runs})
            spans = []
            for name, array in arrays.items():
                output, at = as_bytes(array), 0
                for part, place, first, clips, rows in runs:
                    begin, count = (place, clips) if name in single else (first, rows)
                    spans.append(Span(opened[part][name], begin, count, output, at))
                    at += count
            self._parts.read(spans)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Convert a read error of a part into an error that says why.

        Raises:
            DamagedPart: if the part is damaged.
            ReplacedPart: if another part has replaced it.
            StoreError: if the stream was removed, or is not reachable.
        """
        try:
            with reachable(self.path, but=(BadPart,)):
                yield
        except BadPart as error:
            if not self.path.exists():
                raise StoreError(f"stream {self.name!r} was removed from {self._store} while it was read") from error
            where = f"part {error.part} of stream {self.name!r} in {self._store}"
            if not self._is_committed(error.part, error.folder):
                raise ReplacedPart(f"{where} was replaced while it was read; open the stream again") from error
            raise DamagedPart(f"{where}: {first_line(error.reason)}; {REPAIR}") from error

    def _is_committed(self, part: str, folder: str) -> bool:
        """Return whether the commit record of a part names this folder; True if the record is unreadable."""
        try:
            return part_folder(self._read(part)) == folder
        except MISSING_ERRORS:
            return False
        except DamagedPart:
            return True
        except storage_at(self.path).errors:
            return True

    def dataset(self, clip_ids: Sequence[str] | None = None) -> StreamDataset:
        """Return clips as a data set for ``torch.utils.data.DataLoader``.

        Args:
            clip_ids: the items, in this order; None for all clips, in stored order.

        Returns:
            A data set whose batches are dicts of tensors, padded to the longest clip; see ``StreamDataset``.

        Raises:
            MissingClip: if a clip has no rows because it failed or was never extracted.
        """
        from .dataset import StreamDataset

        return StreamDataset(self, clip_ids)

    def stored_order(self, clip_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the indices that sort clips into stored order, the fastest order to read them in."""
        return np.argsort(self.index.find(clip_ids), kind="stable")

    def to_dask(self, array: str = "values") -> dask.array.Array:
        """Return an array of the whole stream as a Dask array, one block per part, for statistics.

        Args:
            array: its name.

        Returns:
            (rows of the stream, ...), or (clips, ...) for an array with one entry per clip; in stored order.
        """
        import dask.array as da

        shape, dtype = {**row_arrays(self.spec), **clip_arrays(self.spec)}[array]
        blocks, index = [da.zeros((0, *shape), dtype=dtype)], self.index
        for number, part in enumerate(index.parts.names):
            source = PartArray(self, index, number, array)
            if source.shape[0]:
                name = f"{self.name}-{part}-{array}"
                block = da.from_array(source, chunks=source.shape, name=name)  # type: ignore[no-untyped-call]
                blocks.append(block[self._counting(index, number, array)] if number in index.mixed else block)
        joined: dask.array.Array = da.concatenate(blocks)  # type: ignore[no-untyped-call]
        return joined

    def _counting(self, index: Index, part: int, array: str) -> NDArray[Any]:
        """Return which entries of an array of a part are valid: (rows or clips,) bool."""
        clips = index.clips_of(part)
        counts = index.counts[clips]
        return counts if array in clip_arrays(self.spec) else np.repeat(counts, index.rows[clips])

    def video(self, clip_id: str) -> str:
        """Return the file of a clip, relative to the folder of the videos; raise MissingClip if there are no rows."""
        index, entry = self._locate(clip_id)
        return index.videos[entry] or ""

    def source(self, clip_id: str) -> ClipSource:
        """Return the file and the times that a clip was extracted from, also if it failed.

        Raises:
            MissingClip: if it was never extracted.
        """
        index, entry = self._find(clip_id)
        if entry < 0:
            raise self._absent(clip_id)
        return ClipSource(**index.source(entry))

    def tries(self, clip_id: str) -> tuple[int, int]:
        """Return revision and attempts of a clip from the index; raise MissingClip if it was never extracted."""
        index, entry = self._find(clip_id)
        if entry < 0:
            raise self._absent(clip_id)
        return int(index.revision[entry]), int(index.attempts[entry])

    def cut_off(self) -> dict[str, dict[str, Any]]:
        """Return the entries of clips that were kept up to the damage of their video, by clip id.

        An entry has ``damage``, the reason, and ``missing``, the lost seconds or None if unknown.
        """
        index = self.index
        return {clip_id: self._entry(clip_id) for clip_id in index.names(index.cut_off)}

    def _entry(self, clip_id: str) -> dict[str, Any]:
        """Return the entry of a clip in its commit record; refresh the stream if the record has changed."""
        for _ in range(LISTINGS):
            index, entry = self._find(clip_id)
            if entry < 0:
                raise self._absent(clip_id)
            with contextlib.suppress(*MISSING_ERRORS, LookupError):
                commit, place = self.commits[index.parts.names[index.part[entry]]], index.place[entry]
                behind = place - len(commit["clips"])
                record: dict[str, Any] = commit["clips"][place] if behind < 0 else commit["failures"][behind]
                if record["clip_id"] == clip_id:
                    return record
            self.refresh()
        raise StoreError(f"the commits of {self.path} change faster than they are read; try again")

    def digest(self, clip_ids: Sequence[str]) -> str:
        """Return a sha256 that identifies the rows of clips, in the order given; clips may have none.

        No row is read: commit records have checksums. Rows that compaction has moved to another part are the same rows.
        """
        index = self.index
        origins: dict[int, list[tuple[str, int]]] = {}  # by part
        mark = hashlib.sha256(self.fingerprint.encode())
        for clip_id, entry in zip(clip_ids, index.find(clip_ids).tolist(), strict=True):
            origin = None
            if entry >= 0:
                part, place = int(index.part[entry]), int(index.place[entry])
                if part not in origins:
                    clips = index.clips_of(part)
                    origins[part] = clip_origins(index.parts[part], clips.stop - clips.start)
                origin = origins[part][place]
            mark.update(json.dumps([clip_id, origin]).encode())
        return mark.hexdigest()

    def state(self, clip_id: str) -> str:
        """Return ``done``, ``empty`` (decoded, but there are no rows), ``failed`` or ``absent`` (never extracted)."""
        return STATES[min(_rows(*self._find(clip_id)), 1) - ABSENT]

    def states(self, clip_ids: Sequence[str]) -> NDArray[np.str_]:
        """Return the ``state`` of each clip, (clips,) str."""
        index = self.index
        entries = index.locate_all(clip_ids)
        rows = np.full(len(entries), ABSENT)
        rows[entries >= 0] = index.rows[entries[entries >= 0]]
        states: NDArray[np.str_] = np.array(STATES)[np.minimum(rows, 1) - ABSENT]
        return states

    def are_of(
        self, clip_ids: Sequence[str], starts: Sequence[float | None], ends: Sequence[float | None]
    ) -> NDArray[np.bool_]:
        """Return whether clips were extracted from these times, (clips,) bool; True if unknown.

        Args:
            clip_ids: the clips; they may be absent.
            starts, ends: seconds, None for the beginning and the end of a video.
        """
        index = self.index
        entries = index.locate_all(clip_ids)
        same = np.ones(len(entries), bool)
        clips = np.flatnonzero(entries >= 0)
        clips = clips[index.recorded[entries[clips]]]
        for recorded, times in ((index.start, starts), (index.end, ends)):
            before, now = recorded[entries[clips]], np.array(times, np.float64)[clips]
            same[clips] &= (before == now) | (np.isnan(before) & np.isnan(now))
        return same

    def place(self, clip_id: str) -> tuple[str, int]:
        """Return the part that has the rows of a clip, and the clip's place in it; raise MissingClip without rows."""
        index, entry = self._locate(clip_id)
        return index.parts.names[index.part[entry]], int(index.place[entry])

    def rows_of(self, clip_id: str) -> int:
        """Return the number of rows of a clip, or of tokens of a caption; raise MissingClip without rows."""
        return _rows(*self._locate(clip_id))

    @property
    def rows(self) -> int:
        """The number of rows in the stream."""
        index = self.index
        return int(index.rows[index.clips].sum())

    def _find(self, clip_id: str) -> tuple[Index, int]:
        """Return the current index and the valid entry of a clip in it, or -1.

        Another thread may replace ``self.index`` meanwhile, and entries of the new one have other numbers.
        """
        index = self.index
        return index, index.locate(clip_id)

    def _locate(self, clip_id: str) -> tuple[Index, int]:
        """Return as ``_find`` the entry with a clip's rows; raise MissingClip without rows."""
        index, entry = self._find(clip_id)
        if _rows(index, entry) < 0:
            raise self._absent(clip_id)
        return index, entry

    def _absent(self, clip_id: str) -> MissingClip:
        if failure := self.failures.get(clip_id):
            return MissingClip(f"clip {clip_id!r} failed in {self.name}: {failure.stage}: {failure.reason}")
        message = f"clip {clip_id!r} is not in stream {self.name!r} of {self._store}; extract it first"
        return MissingClip(message, clip_id, self)

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, clips={len(self)}, rows={self.rows}, failed={len(self.failures)})"


# States by number of rows: ABSENT without an entry, -1 for a failure, 0, and 1 or more.
ABSENT = -2
STATES = ("absent", "failed", "empty", "done")


def _rows(index: Index, entry: int) -> int:
    """Return the rows of an entry, -1 for a failure, ABSENT without an entry."""
    return int(index.rows[entry]) if entry >= 0 else ABSENT
