"""Reading: stores, streams, the rows of a clip, batches of many clips, and whole streams through Dask."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from .schema import REPAIR, ClipNotThere, DamagedPart, Failure, StoreError, check_store, read_commit, read_spec

if TYPE_CHECKING:
    import dask.array


@dataclass(frozen=True, repr=False)
class Rows:
    """The rows of one clip in one stream.

    Attributes:
        values: (rows, ...), the stream's dtype.
        times: (rows, 2) float64, [start, end) seconds on the video's own clock.
    """

    values: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        span = f" over [{self.times[0, 0]:.3f}, {self.times[-1, 1]:.3f}) s" if len(self) else ""
        return f"{type(self).__name__}({self.values.dtype}{list(self.values.shape)}{span})"


@dataclass(frozen=True, repr=False)
class Batch(Rows):
    """The rows of several clips end to end: rows ``offsets[i]:offsets[i+1]`` are those of ``clip_ids[i]``.

    Attributes:
        offsets: (clips + 1,) int64.
        clip_ids: in the order asked for.
    """

    offsets: np.ndarray
    clip_ids: tuple[str, ...]

    def __iter__(self) -> Iterator[Rows]:
        for begin, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield Rows(self.values[begin:end], self.times[begin:end])

    def __repr__(self) -> str:
        return f"Batch({len(self.clip_ids)} clips, {self.values.dtype}{list(self.values.shape)})"


def open_store(path: str | os.PathLike[str]) -> Store:
    """Opens a store for reading; raises StoreError if there is none at ``path``."""
    path = Path(path)
    if not (path / "zarr.json").is_file():
        raise StoreError(f"{path} is not an amex store; make one with: amex extract --store {path} ...")
    check_store(path)
    return Store(path)


class Store(Mapping[str, "Stream"]):
    """A store: a mapping from stream names to streams, as they were when each was first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._streams: dict[str, Stream] = {}

    def __getitem__(self, name: str) -> Stream:
        if name not in self._streams:
            if not (self.path / name / "spec.json").is_file():
                there = ", ".join(self) or "none yet"
                raise StoreError(f"no stream {name!r} in {self.path}; there is {there}")
            self._streams[name] = Stream(self.path, name)
        return self._streams[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.parent.name for path in self.path.glob("*/spec.json")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def problems(self) -> list[Failure]:
        """Manifest lines of the last run that were not usable clips, as ledger entries."""
        path = self.path / "problems.json"
        return [Failure(**entry) for entry in json.loads(path.read_text())] if path.exists() else []

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, streams={list(self)})"


class Stream:
    """One kind of feature: a mapping from clip ids to rows.

    Attributes:
        spec: how the features were made.
        fingerprint: sha256 of the spec.
        provenance: where the weights came from and which amex declared the stream.
        commits: part name -> commit record, for every part whose record is intact.
        damaged: part name -> what is wrong with its commit record.
        failures: clip_id -> ledger entry, for clips that have no rows because they failed.
    """

    def __init__(self, store: Path, name: str) -> None:
        self.name = name
        self.path = store / name
        self._store = store
        record = read_spec(self.path / "spec.json")
        self.spec: dict[str, Any] = record["spec"]
        self.fingerprint: str = record["fingerprint"]
        self.provenance: dict[str, Any] = record["provenance"]
        self.commits: dict[str, dict[str, Any]] = {}
        self.damaged: dict[str, str] = {}
        self.failures: dict[str, Failure] = {}
        self._where: dict[str, tuple[str, int, int]] = {}  # clip_id -> part, first row, rows
        for path in sorted((self.path / "commits").glob("*.json")):
            try:
                self._index(path.stem, read_commit(path))
            except DamagedPart as error:
                self.damaged[path.stem] = str(error)
        for clip_id in self._where.keys() & self.failures.keys():
            del self.failures[clip_id]  # a later attempt succeeded

    def _index(self, part: str, commit: dict[str, Any]) -> None:
        self.commits[part] = commit
        first = 0
        for clip in commit["clips"]:
            self._where.setdefault(clip["clip_id"], (part, first, clip["rows"]))
            first += clip["rows"]
        for entry in commit["failures"]:
            failure = Failure(**entry)
            known = self.failures.get(failure.clip_id)
            if known is None or known.attempts < failure.attempts:
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
        part, first, rows = self._locate(clip_id)
        return Rows(self._take(part, "values", first, rows), self._take(part, "times", first, rows))

    def read(self, clip_ids: Sequence[str]) -> Batch:
        """The rows of many clips, in the order given. Clips that lie side by side are read in one go."""
        places = [self._locate(clip_id) for clip_id in clip_ids]
        runs: list[tuple[str, int, int]] = []
        for part, first, rows in places:
            if runs and runs[-1][0] == part and runs[-1][1] + runs[-1][2] == first:
                runs[-1] = (part, runs[-1][1], runs[-1][2] + rows)
            else:
                runs.append((part, first, rows))
        shape, dtype = tuple(self.spec["output"]["shape"]), self.spec["output"]["dtype"]
        values = [np.empty((0, *shape), dtype), *(self._take(part, "values", f, n) for part, f, n in runs)]
        times = [np.empty((0, 2)), *(self._take(part, "times", f, n) for part, f, n in runs)]
        offsets = np.cumsum([0, *(rows for _, _, rows in places)], dtype=np.int64)
        return Batch(np.concatenate(values), np.concatenate(times), offsets, tuple(clip_ids))

    def to_dask(self, array: str = "values") -> dask.array.Array:
        """A whole array of the stream, ``values`` or ``times``, one block a part, for statistics over all rows."""
        import dask.array as da

        shape = tuple(self.spec["output"]["shape"]) if array == "values" else (2,)
        dtype = self.spec["output"]["dtype"] if array == "values" else "float64"
        blocks = [da.zeros((0, *shape), dtype=dtype)]
        for part, commit in self.commits.items():
            if commit["rows"]:
                source = self._open(part, array)
                blocks.append(da.from_array(source, chunks=source.shape, name=f"{self.name}-{part}-{array}"))
        return da.concatenate(blocks)

    def state(self, clip_id: str) -> str:
        """``done``, ``empty`` (decoded, and legitimately nothing there), ``failed`` or ``absent``."""
        if clip_id in self._where:
            return "done" if self._where[clip_id][2] else "empty"
        return "failed" if clip_id in self.failures else "absent"

    @property
    def rows(self) -> int:
        """Rows in the stream."""
        return sum(rows for _, _, rows in self._where.values())

    def _locate(self, clip_id: str) -> tuple[str, int, int]:
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
    def _open(self, part: str, array: str) -> zarr.Array:
        return zarr.open_array(self._store, path=f"{self.name}/parts/{part}/{array}", mode="r")

    def _take(self, part: str, array: str, first: int, rows: int) -> np.ndarray:
        try:
            return self._open(part, array)[first : first + rows]
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise DamagedPart(f"part {part} of stream {self.name!r} in {self._store}: {error}; {REPAIR}") from error

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, clips={len(self)}, rows={self.rows}, failed={len(self.failures)})"
