"""Streams as data sets of torch: an item is a clip, a batch is padded and one read.

``Stream.dataset`` and ``Store.dataset`` make them. This module alone of ``features`` imports torch, so that reading a
store does not need to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from .reader import Stream
from .rows import Batch
from .schema import StoreError, as_ids

# From the rows that each clip has, (B,), which of them to take: their numbers, (B, R) or (R,), and how many, (B,).
Choice = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class PaddedBatch(dict[str, Any]):
    """A batch of a ``DataLoader``, which torch's default ``collate_fn`` leaves as it is: nothing is to be stacked."""


# The documentation of torch's default_collate extends it in this way, though the map has no public name.
default_collate_fn_map[PaddedBatch] = lambda batches, *, collate_fn_map=None: batches[0]


class StreamDataset(Dataset[dict[str, Tensor]]):
    """The clips of one stream for ``torch.utils.data.DataLoader``, whose workers may be forked or spawned.

    An item is a dict of the stream's arrays, such as ``values`` (R, ...) and ``times`` (R, 2), and of ``clip``, the
    clip's place in ``clip_ids``. A batch of B items is one read. Arrays of rows are padded with zeros to the longest
    clip, (B, R, ...), and ``mask`` (B, R) bool tells which rows there are; R is at least 1. Types are those of the
    store.

    Args:
        clip_ids: the items, in this order; None for all clips, in the order in which they are stored.

    Attributes:
        clip_ids: (clips,) strings. An array, since workers that are forked would copy a list as they count references.

    Raises:
        ClipNotThere: if a clip has no rows because it failed or was never extracted.
    """

    def __init__(self, stream: Stream, clip_ids: Sequence[str] | np.ndarray | None = None) -> None:
        self.stream = stream
        self.clip_ids = as_array(stream if clip_ids is None else clip_ids)
        absent = np.flatnonzero(stream.index.find(self.clip_ids.tolist()) < 0)
        if len(absent):
            stream.rows_of(str(self.clip_ids[absent[0]]))  # says why

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rows = self.stream[str(self.clip_ids[index])]
        arrays = {name: torch.from_numpy(np.asarray(array)) for name, array in rows.arrays.items()}
        return {**arrays, "clip": torch.tensor(index % len(self))}

    def batch(self, indices: Sequence[int]) -> PaddedBatch:
        """The items of these indices as one batch."""
        clips = np.asarray(indices, np.int64)
        read = self.stream.read(self.clip_ids[clips].tolist())
        arrays = {name: torch.from_numpy(array) for name, array in pad(read, range(len(clips))).items()}
        return PaddedBatch(arrays, clip=torch.from_numpy(clips))

    def __getitems__(self, indices: Sequence[int]) -> list[PaddedBatch]:
        """``batch``, as what torch collates: a list."""
        return [self.batch(indices)]

    def __repr__(self) -> str:
        return f"StreamDataset({self.stream.name!r}, clips={len(self)})"


class JoinedDataset(Dataset[dict[str, dict[str, Tensor]]]):
    """The clips that several streams have all: an item or batch is a dict of those of ``StreamDataset`` by stream.

    Args:
        streams: of one store or of several; no two of one name.
        clip_ids: the clips to choose from, in this order; None for those of the first stream, as they are stored.

    Attributes:
        clip_ids: as of ``StreamDataset``.

    Raises:
        StoreError: if no clip is in all streams.
    """

    def __init__(self, streams: Sequence[Stream], clip_ids: Sequence[str] | np.ndarray | None = None) -> None:
        names = [stream.name for stream in streams]
        if not names:
            raise StoreError("there are no streams to join: name at least one")
        if len(set(names)) < len(names):
            raise StoreError(f"streams are joined by name, so they need different names, and there are {names}")
        among = as_array(streams[0] if clip_ids is None else clip_ids)
        entries = np.array([stream.index.find(among.tolist()) for stream in streams])
        self.clip_ids = among[(entries >= 0).all(axis=0)]
        if not len(self.clip_ids):
            raise StoreError(f"no clip is in all of the streams {', '.join(names)} of {streams[0].path.parent}")
        self.streams = {stream.name: StreamDataset(stream, self.clip_ids) for stream in streams}

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> dict[str, dict[str, Tensor]]:
        return {name: stream[index] for name, stream in self.streams.items()}

    def batch(self, indices: Sequence[int]) -> PaddedBatch:
        """The items of these indices as one batch."""
        return PaddedBatch({name: stream.batch(indices) for name, stream in self.streams.items()})

    def __getitems__(self, indices: Sequence[int]) -> list[PaddedBatch]:
        """``batch``, as what torch collates: a list."""
        return [self.batch(indices)]

    def __repr__(self) -> str:
        return f"JoinedDataset({list(self.streams)}, clips={len(self)})"


def as_array(clip_ids: Any) -> np.ndarray:
    """Strings as one array of them."""
    if not isinstance(clip_ids, np.ndarray):
        clip_ids = as_ids(clip_ids)
    return np.asarray(clip_ids, np.dtypes.StringDType())


def all_rows(counts: np.ndarray, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Every row of each clip, or its first so many."""
    kept = counts if most is None else np.minimum(counts, most)
    return np.arange(max(1, kept.max(initial=0))), kept


def pad(batch: Batch, clips: Sequence[int], choose: Choice = all_rows) -> dict[str, np.ndarray]:
    """Some clips of a batch as arrays of one shape: (B, R, ...) of rows with their ``mask`` (B, R), (B, ...) of clips.

    Rows are copied once, from where they were read to where they are padded. What is beyond a clip's rows is zero.

    Args:
        clips: their places in the batch.
        choose: which rows of each.
    """
    places = np.asarray(clips, np.int64)
    first = batch.offsets[places]
    numbers, kept = choose(batch.offsets[places + 1] - first)
    mask = np.arange(numbers.shape[-1]) < kept[:, None]
    rows = np.where(mask, first[:, None] + numbers, 0)
    padded = {"mask": mask}
    for name, array in batch.arrays.items():
        if name in batch.clip_arrays:
            padded[name] = array[places]
        elif len(array):
            padded[name] = array[rows]
            padded[name][~mask] = 0
        else:
            padded[name] = np.zeros((*rows.shape, *array.shape[1:]), array.dtype)
    return padded
