"""What is exported of a stream: all its clips or some, with their rows or with one mean vector each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..reader import Stream
from ..rows import Batch, Rows
from ..schema import clip_arrays, entry_bytes, fingerprint, is_of_captions, row_arrays

# What is in memory at a time, as the stream holds it; a clip that is larger is read whole.
BATCH_BYTES = 16 << 20
BATCH_CLIPS = 4096


class Excerpt:
    """Clips of a stream in a given order, read batch by batch.

    Attributes:
        name: the stream's.
        ids: of the clips, or the captions of a stream of text.
        pooled: whether a clip has one vector, the mean of its rows, in place of the rows.
        spec: how the features were made, with what pooling changes.
        clips, rows: how many were read so far.
        left_out: how many clips were left out so far because they have no rows or no mean.
    """

    def __init__(
        self,
        stream: Stream,
        ids: Sequence[str] | None = None,
        *,
        pooled: bool = False,
        progress: Callable[[int], None] = lambda clips: None,
    ) -> None:
        self.stream = stream
        self.name = stream.name
        self.ids = list(stream) if ids is None else list(ids)
        self.pooled = pooled
        self.spec = pooled_spec(stream.spec) if pooled else stream.spec
        self.fingerprint = fingerprint(self.spec)
        self.clips = self.rows = self.left_out = 0
        self._progress = progress

    @property
    def of_text(self) -> bool:
        """Whether the ids are captions."""
        return is_of_captions(self.spec)

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """All arrays: name -> (shape of an entry, dtype)."""
        return {**row_arrays(self.spec), **clip_arrays(self.spec)}

    @property
    def size(self) -> int:
        """Bytes of all arrays, at most."""
        rows = len(self.ids) if self.pooled else sum(map(self.stream.rows_of, self.ids))
        return rows * entry_bytes(row_arrays(self.spec)) + len(self.ids) * entry_bytes(clip_arrays(self.spec))

    def batches(self, *, empty: bool = True) -> Iterator[Batch]:
        """The clips end to end, some tens of MB at a time.

        Args:
            empty: whether clips without rows come too. Of pooled ones they never do.

        Raises:
            DamagedPart: if a checksum does not hold.
        """
        row_bytes = entry_bytes(row_arrays(self.stream.spec))
        held: list[str] = []
        size = 0
        for clip_id in self.ids:
            more = self.stream.rows_of(clip_id) * row_bytes
            if held and (size + more > BATCH_BYTES or len(held) == BATCH_CLIPS):
                yield self._read(held, empty)
                held, size = [], 0
            held.append(clip_id)
            size += more
        if held:
            yield self._read(held, empty)

    def each(self) -> Iterator[tuple[str, Rows]]:
        """The clips one by one."""
        for batch in self.batches():
            yield from zip(batch.clip_ids, batch, strict=True)

    def _read(self, ids: Sequence[str], empty: bool) -> Batch:
        wanted = ids if empty or self.pooled else [clip_id for clip_id in ids if self.stream.rows_of(clip_id)]
        batch = self.stream.read(wanted)
        if self.pooled:
            batch = pooled_batch(batch)
        self.clips += len(batch.clip_ids)
        self.rows += len(batch)
        self.left_out += len(ids) - len(batch.clip_ids)
        self._progress(len(ids))
        return batch


def pooled_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec of the means of a stream: one float32 vector a clip, without times."""
    output = spec["output"]
    shape = output["clip_arrays"]["sentence"]["shape"] if "sentence" in clip_arrays(spec) else output["shape"]
    shape = shape[1:] if _of_objects(spec) else shape
    of = {"of": output["of"]} if "of" in output else {}
    return {**spec, "pool": "mean", "output": {**of, "shape": list(shape), "dtype": "float32", "times": False}}


def pooled_batch(batch: Batch) -> Batch:
    """One row a clip: the mean of its rows in float32; of a caption its own vector where there is one.

    Of objects it is the mean over the boxes that are there, then over the rows that have any. Clips without a mean are
    left out.
    """
    if "sentence" in batch.clip_arrays:
        ids, values = batch.clip_ids, batch["sentence"].astype(np.float32)
    else:
        means = {clip_id: mean(rows) for clip_id, rows in zip(batch.clip_ids, batch, strict=True) if has_mean(rows)}
        ids = tuple(means)
        shape = batch.values.shape[2 if _has_counts(batch) else 1 :]
        values = np.array(list(means.values()), np.float32).reshape(len(ids), *shape)
    return Batch({"values": values}, np.arange(len(ids) + 1, dtype=np.int64), ids, frozenset())


def has_mean(rows: Rows) -> bool:
    """Whether a clip has rows, and one of objects any box."""
    return bool(len(rows)) and not (_has_counts(rows) and (rows["counts"] < 1).all())


def mean(rows: Rows) -> np.ndarray:
    """The mean of a clip that has one: (D,) float32. float64 is rounded once, at the end."""
    values = rows.values
    wide = np.promote_types(values.dtype, np.float32)
    if _has_counts(rows):
        seen = rows["counts"] > 0
        counts = np.minimum(rows["counts"][seen], values.shape[1])
        boxes = np.arange(values.shape[1]) < counts[:, None]
        # What is beyond the boxes that are there may be anything, also NaN.
        sums = np.where(boxes[..., None], values[seen], 0).sum(axis=1, dtype=wide)
        values = sums / counts[:, None].astype(wide)
    with np.errstate(over="ignore"):  # a float64 may be infinite in float32
        return values.mean(axis=0, dtype=wide).astype(np.float32)


def _has_counts(rows: Rows) -> bool:
    return "counts" in rows.arrays and rows.values.ndim == 3


def _of_objects(spec: dict[str, Any]) -> bool:
    return "counts" in row_arrays(spec) and len(spec["output"]["shape"]) == 2
