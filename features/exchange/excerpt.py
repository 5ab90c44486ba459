"""The content of an export: all or some clips of a stream, with their rows or with one mean vector per clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..reader import Stream
from ..rows import Batch, Rows
from ..schema import clip_arrays, entry_bytes, fingerprint, is_caption_stream, row_arrays

# Maximal batch in memory, in bytes and clips; a larger clip is a batch of its own.
BATCH_BYTES = 16 << 20
BATCH_CLIPS = 4096


class Excerpt:
    """Clips of a stream in a given order, read batch by batch.

    Attributes:
        name: name of the stream.
        ids: clip ids, or the captions of a stream of text.
        pooled: whether each clip has one vector, the mean of its rows, instead of the rows.
        spec: spec of the exported features, after pooling.
        clips, rows: numbers of clips and rows read so far.
        left_out: number of clips skipped so far because they have no rows or no mean.
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
        """Whether the clip ids are captions."""
        return is_caption_stream(self.spec)

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """All arrays: name -> (shape of an entry, dtype)."""
        return {**row_arrays(self.spec), **clip_arrays(self.spec)}

    @property
    def size(self) -> int:
        """Upper bound of the bytes of all arrays."""
        rows = len(self.ids) if self.pooled else sum(map(self.stream.rows_of, self.ids))
        return rows * entry_bytes(row_arrays(self.spec)) + len(self.ids) * entry_bytes(clip_arrays(self.spec))

    def batches(self, *, empty: bool = True) -> Iterator[Batch]:
        """Yield the clips in batches of at most ``BATCH_BYTES`` or ``BATCH_CLIPS``.

        Args:
            empty: whether to include clips without rows. Pooled exports never include them.

        Raises:
            DamagedPart: if a checksum differs.
        """
        row_bytes = entry_bytes(row_arrays(self.stream.spec))
        buffer: list[str] = []
        size = 0
        for clip_id in self.ids:
            clip_bytes = self.stream.rows_of(clip_id) * row_bytes
            if buffer and (size + clip_bytes > BATCH_BYTES or len(buffer) == BATCH_CLIPS):
                yield self._read(buffer, empty)
                buffer, size = [], 0
            buffer.append(clip_id)
            size += clip_bytes
        if buffer:
            yield self._read(buffer, empty)

    def each(self) -> Iterator[tuple[str, Rows]]:
        """Yield id and rows of the clips one by one."""
        for batch in self.batches():
            yield from zip(batch.clip_ids, batch, strict=True)

    def _read(self, ids: Sequence[str], empty: bool) -> Batch:
        selection = ids if empty or self.pooled else [clip_id for clip_id in ids if self.stream.rows_of(clip_id)]
        batch = self.stream.read(selection)
        if self.pooled:
            batch = pooled_batch(batch)
        self.clips += len(batch.clip_ids)
        self.rows += len(batch)
        self.left_out += len(ids) - len(batch.clip_ids)
        self._progress(len(ids))
        return batch


def pooled_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of the pooled stream: one float32 vector per clip, without times."""
    output = spec["output"]
    shape = output["clip_arrays"]["sentence"]["shape"] if "sentence" in clip_arrays(spec) else output["shape"]
    shape = shape[1:] if _of_objects(spec) else shape
    of = {"of": output["of"]} if "of" in output else {}
    return {**spec, "pool": "mean", "output": {**of, "shape": list(shape), "dtype": "float32", "times": False}}


def pooled_batch(batch: Batch) -> Batch:
    """Pool a batch to one row per clip: the mean of its rows in float32; for a caption its ``sentence``, if it exists.

    For objects it is the mean over the boxes of each row, then over the rows that have boxes. Clips without a mean are
    skipped.
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
    """Return whether a clip has rows, and for objects at least one box."""
    return bool(len(rows)) and not (_has_counts(rows) and (rows["counts"] < 1).all())


def mean(rows: Rows) -> np.ndarray:
    """Return the mean of a clip for which ``has_mean`` is true: (D,) float32. float64 is rounded once, at the end."""
    values = rows.values
    wide = np.promote_types(values.dtype, np.float32)
    if _has_counts(rows):
        nonempty = rows["counts"] > 0
        counts = np.minimum(rows["counts"][nonempty], values.shape[1])
        boxes = np.arange(values.shape[1]) < counts[:, None]
        # The values of unused boxes are arbitrary, possibly NaN.
        sums = np.where(boxes[..., None], values[nonempty], 0).sum(axis=1, dtype=wide)
        values = sums / counts[:, None].astype(wide)
    with np.errstate(over="ignore"):  # a large float64 becomes infinite in float32
        return values.mean(axis=0, dtype=wide).astype(np.float32)


def _has_counts(rows: Rows) -> bool:
    return "counts" in rows.arrays and rows.values.ndim == 3


def _of_objects(spec: dict[str, Any]) -> bool:
    return "counts" in row_arrays(spec) and len(spec["output"]["shape"]) == 2
