"""Reading: stores, streams, the rows of a clip, batches of many clips, and whole streams through Dask."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import did_you_mean, first_line
from ..foreign import uncollected
from ..storage import NOT_THERE, open_path, reachable, storage_at
from .index import LISTINGS, Index, open_index
from .parts import BadPart, PartReader
from .records import Commits, Failures
from .rows import Batch, Rows
from .schema import (
    REPAIR,
    ClipNotThere,
    ClipSource,
    DamagedPart,
    Failure,
    ReplacedPart,
    StoreError,
    as_ids,
    clip_arrays,
    folder_of,
    has_stream,
    origins_of,
    parse_commit,
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
        raise StoreError(f"{path} is not an amex store; make one with: amex extract FOLDER --store {path}") from error
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
                    raise StoreError(f"no stream {name!r} in {self.path}; there is {there}{did_you_mean(name, self)}")
                self._streams[name] = Stream(self.path, name, skip_damaged=self._skip_damaged)
        return self._streams[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and has_stream(self.path, name)

    def __iter__(self) -> Iterator[str]:
        return iter(stream_names(self.path))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def dataset(self, names: Sequence[str], clip_ids: Sequence[str] | None = None) -> JoinedDataset:
        """The clips that all of these streams have, for ``torch.utils.data.DataLoader``; see ``JoinedDataset``."""
        from .dataset import JoinedDataset

        return JoinedDataset([self[name] for name in names], clip_ids)

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
        index: where the rows of each clip are, as arrays.
        commits: part name -> commit record, read when it is asked for.
        damaged: part name -> what is wrong with its commit record; empty unless those are skipped.
        failures: clip_id -> ledger entry, for clips that have no rows because they failed.

    A clip may have several entries in the commit records. The highest revision counts, since the others are of other
    seconds or of another file; among equals rows before failures, then the last attempt.

    Args:
        afresh: as of ``refresh``.
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
        """Looks at the disk again, for what was committed and removed since the stream was opened.

        Args:
            afresh: read every commit record, also those that the index has, and make the index anew.

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
        """A commit record of a part of this stream; raises DamagedPart if it is damaged, or another stream's."""
        commit = parse_commit(self.path / "commits" / f"{part}.json", data)
        if commit["fingerprint"] != self.fingerprint:
            raise DamagedPart(
                f"part {part} of stream {self.name!r} in {self._store} was made with another spec than the stream's; "
                f"{REPAIR}"
            )
        return commit

    def __reduce__(self) -> tuple[Any, ...]:
        """A stream that is pickled, as for a worker that reads it, is opened where it is unpickled."""
        return functools.partial(Stream, skip_damaged=self._skip_damaged), (self._store, self.name)

    @property
    def replaced(self) -> frozenset[str]:
        """The names of parts that do not count any more, whether anything of them is still there or not.

        No new part can have one of them.
        """
        return self.index.replaced

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in a stream of objects or one with ``probabilities``; empty in others."""
        return tuple(self.spec.get("output", {}).get("labels", ()))

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and _rows(*self._find(clip_id)) >= 0

    def __iter__(self) -> Iterator[str]:
        """The clips that have rows, be they 0, in the order in which those are stored."""
        index = self.index
        return index.names(index.clips)

    def __len__(self) -> int:
        return len(self.index.clips)

    def __getitem__(self, clip_id: str) -> Rows:
        """The rows of one clip.

        Raises:
            ClipNotThere: if the clip was never extracted or failed; the message says which, and why.
            DamagedPart: if a checksum does not hold.
        """
        return next(iter(self.read([clip_id])))

    def read(self, clip_ids: Sequence[str], arrays: Collection[str] | None = None) -> Batch:
        """The rows of many clips, in the order given: of all clips and arrays at once.

        Args:
            arrays: names of those that are wanted; None for all of the stream.

        Raises:
            ClipNotThere, DamagedPart: as ``stream[clip_id]``.
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

    def _fill(self, arrays: Mapping[str, np.ndarray], index: Index, entries: np.ndarray) -> None:
        """Reads entries of the index into arrays, end to end."""
        columns = (index.part[entries], index.place[entries], index.first[entries], index.rows[entries])
        # Of clips that lie side by side: part, place of the first, first row, clips, rows.
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
        """Says of a part that is not what was committed why that is.

        Raises:
            DamagedPart: if the part is damaged.
            ReplacedPart: if it does not count any more.
            StoreError: if the stream is gone, or cannot be reached.
        """
        try:
            with reachable(self.path, but=(BadPart,)):
                yield
        except BadPart as error:
            if not self.path.exists():
                raise StoreError(f"stream {self.name!r} was removed from {self._store} while it was read") from error
            there = f"part {error.part} of stream {self.name!r} in {self._store}"
            if not self._is_committed(error.part, error.folder):
                raise ReplacedPart(f"{there} was replaced while it was read; open the stream again") from error
            raise DamagedPart(f"{there}: {first_line(error.reason)}; {REPAIR}") from error

    def _is_committed(self, part: str, folder: str) -> bool:
        """Whether the commit record of a part says that it lies in a folder, as far as the record can be read."""
        try:
            return folder_of(self._read(part)) == folder
        except NOT_THERE:
            return False
        except (DamagedPart, *storage_at(self.path).errors):
            return True

    def dataset(self, clip_ids: Sequence[str] | None = None) -> StreamDataset:
        """These clips, or all, for ``torch.utils.data.DataLoader``; see ``StreamDataset``."""
        from .dataset import StreamDataset

        return StreamDataset(self, clip_ids)

    def stored_order(self, clip_ids: Sequence[str]) -> np.ndarray:
        """Indices of clips in the order in which their rows are stored, in which they are read fastest."""
        return np.argsort(self.index.find(clip_ids), kind="stable")

    def to_dask(self, array: str = "values") -> dask.array.Array:
        """A whole array of the stream, in blocks of about a part, for statistics over all of it."""
        import dask.array as da

        shape, dtype = {**row_arrays(self.spec), **clip_arrays(self.spec)}[array]
        blocks, index = [da.zeros((0, *shape), dtype=dtype)], self.index
        for number, part in enumerate(index.parts.names):
            source = PartArray(self, index, number, array)
            if source.shape[0]:
                block = da.from_array(source, chunks=source.shape, name=f"{self.name}-{part}-{array}")
                blocks.append(block[self._counting(index, number, array)] if number in index.mixed else block)
        return da.concatenate(blocks)

    def _counting(self, index: Index, part: int, array: str) -> np.ndarray:
        """Which entries of an array of a part count: (rows or clips,) bool."""
        clips = index.clips_of(part)
        counts = index.counts[clips]
        return counts if array in clip_arrays(self.spec) else np.repeat(counts, index.rows[clips])

    def video(self, clip_id: str) -> str:
        """The file a clip's rows come from, below the folder of videos. Raises ClipNotThere."""
        index, entry = self._locate(clip_id)
        return index.videos[entry] or ""

    def source(self, clip_id: str) -> ClipSource:
        """What a clip was computed from, also one that failed. Raises ClipNotThere."""
        index, entry = self._find(clip_id)
        if entry < 0:
            raise self._absent(clip_id)
        return ClipSource(**index.source(entry))

    def tries(self, clip_id: str) -> tuple[int, int]:
        """Revision and attempts of a clip that failed, without a look at its commit record. Raises ClipNotThere."""
        index, entry = self._find(clip_id)
        if entry < 0:
            raise self._absent(clip_id)
        return int(index.revision[entry]), int(index.attempts[entry])

    def cut_off(self) -> dict[str, dict[str, Any]]:
        """By clip id the entries of clips that were kept as far as their video is undamaged.

        An entry has ``damage``, the reason, and ``missing``, the seconds that are not there, None if unknown.
        """
        index = self.index
        return {clip_id: self._entry(clip_id) for clip_id in index.names(index.cut_off)}

    def _entry(self, clip_id: str) -> dict[str, Any]:
        """The entry of a clip in its commit record. Where that is gone or another, the disk is looked at again."""
        for _ in range(LISTINGS):
            index, entry = self._find(clip_id)
            if entry < 0:
                raise self._absent(clip_id)
            with contextlib.suppress(*NOT_THERE, LookupError):
                commit, place = self.commits[index.parts.names[index.part[entry]]], index.place[entry]
                behind = place - len(commit["clips"])
                record = commit["clips"][place] if behind < 0 else commit["failures"][behind]
                if record["clip_id"] == clip_id:
                    return record
            self.refresh()
        raise StoreError(f"the commits of {self.path} change faster than they are read; try again")

    def digest(self, clip_ids: Sequence[str]) -> str:
        """A sha256 over which committed rows belong to clips, in the order given; also of clips that have none.

        No row is read: a commit record has the checksums of its part's files. Rows that were rewritten into another
        part, as by compaction, are the same rows.
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
                    origins[part] = origins_of(index.parts[part], clips.stop - clips.start)
                origin = origins[part][place]
            mark.update(json.dumps([clip_id, origin]).encode())
        return mark.hexdigest()

    def state(self, clip_id: str) -> str:
        """``done``, ``empty`` (decoded, and legitimately nothing there), ``failed`` or ``absent``."""
        return STATES[min(_rows(*self._find(clip_id)), 1) - ABSENT]

    def states(self, clip_ids: Sequence[str]) -> np.ndarray:
        """(clips,) str: the ``state`` of each of many clips."""
        index = self.index
        entries = index.locate_all(clip_ids)
        rows = np.full(len(entries), ABSENT)
        rows[entries >= 0] = index.rows[entries[entries >= 0]]
        return np.array(STATES)[np.minimum(rows, 1) - ABSENT]

    def are_of(
        self, clip_ids: Sequence[str], starts: Sequence[float | None], ends: Sequence[float | None]
    ) -> np.ndarray:
        """(clips,) bool: whether clips were computed from these seconds, as far as is known; also of absent clips."""
        index = self.index
        entries = index.locate_all(clip_ids)
        same = np.ones(len(entries), bool)
        known = np.flatnonzero(entries >= 0)
        known = known[index.recorded[entries[known]]]
        for recorded, asked in ((index.start, starts), (index.end, ends)):
            before, now = recorded[entries[known]], np.array(asked, np.float64)[known]
            same[known] &= (before == now) | (np.isnan(before) & np.isnan(now))
        return same

    def place(self, clip_id: str) -> tuple[str, int]:
        """The part that has the rows of a clip, and which of its clips it is. Raises ClipNotThere."""
        index, entry = self._locate(clip_id)
        return index.parts.names[index.part[entry]], int(index.place[entry])

    def rows_of(self, clip_id: str) -> int:
        """How many rows a clip has, or a caption tokens. Raises ClipNotThere."""
        return _rows(*self._locate(clip_id))

    @property
    def rows(self) -> int:
        """Rows in the stream."""
        index = self.index
        return int(index.rows[index.clips].sum())

    def _find(self, clip_id: str) -> tuple[Index, int]:
        """The index as it is now, and the entry in it that counts of a clip, or -1.

        A thread that reads may put another index in its place, whose entries have other numbers.
        """
        index = self.index
        return index, index.locate(clip_id)

    def _locate(self, clip_id: str) -> tuple[Index, int]:
        """As ``_find``, the entry that has a clip's rows. Raises ClipNotThere."""
        index, entry = self._find(clip_id)
        if _rows(index, entry) < 0:
            raise self._absent(clip_id)
        return index, entry

    def _absent(self, clip_id: str) -> ClipNotThere:
        if failure := self.failures.get(clip_id):
            return ClipNotThere(f"clip {clip_id!r} failed in {self.name}: {failure.stage}: {failure.reason}")
        message = f"clip {clip_id!r} is not in stream {self.name!r} of {self._store}; extract it first"
        return ClipNotThere(message, clip_id, self)

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, clips={len(self)}, rows={self.rows}, failed={len(self.failures)})"


# The states of clips by their number of rows; a failure's is -1, and that of a clip without an entry ABSENT.
ABSENT = -2
STATES = ("absent", "failed", "empty", "done")


def _rows(index: Index, entry: int) -> int:
    """Rows of an entry, -1 of a failure, ABSENT of none."""
    return int(index.rows[entry]) if entry >= 0 else ABSENT


@dataclass(frozen=True)
class PartArray:
    """An array of a part, as NumPy and Dask slice it. Reading raises DamagedPart where a checksum does not hold."""

    stream: Stream
    index: Index
    part: int
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        single = clip_arrays(self.stream.spec)
        clips, (shape, _) = self.index.clips_of(self.part), {**row_arrays(self.stream.spec), **single}[self.name]
        return (clips.stop - clips.start if self.name in single else self.index.parts[self.part]["rows"], *shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype({**row_arrays(self.stream.spec), **clip_arrays(self.stream.spec)}[self.name][1])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *others = key if isinstance(key, tuple) else (key,)
        chosen = range(*rows.indices(self.shape[0]))
        first, end = (min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]) + 1) if chosen else (0, 0)
        entries = np.empty((end - first, *self.shape[1:]), self.dtype)
        with self.stream._reading():
            array = self.stream._parts.open(self.index, [self.part])[self.part][self.name]
            self.stream._parts.read([Span(array, first, len(entries), as_bytes(entries), 0)])
        return entries[(slice(None, None, chosen.step), *others)]
