"""Streams as data sets of torch: an item is a clip, a batch is one read and is padded.

``Stream.dataset`` and ``Store.dataset`` make them. No other module of ``features`` imports torch: reading a store does
not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from .reader import Stream
from .rows import Batch
from .schema import StoreError, as_ids

# Chooses rows: from the number of rows of each clip (B,), the numbers of the chosen rows (B, R) or (R,), and how many
# of these each clip has (B,).
Choice = Callable[[NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]


class PaddedBatch(dict[str, Any]):
    """A batch of a ``DataLoader``. The default ``collate_fn`` of torch returns it unchanged."""


# The documentation of torch's default_collate registers types in this way, though the map has no public name.
default_collate_fn_map[PaddedBatch] = lambda batches, *, collate_fn_map=None: batches[0]


class StreamDataset(Dataset[dict[str, Tensor]]):
    """The clips of one stream, for ``torch.utils.data.DataLoader``. Its workers may be forked or spawned.

    An item is a dict of tensors: the arrays of the stream, such as ``values`` (R, ...) and ``times`` (R, 2), and
    ``clip``, the position of the clip in ``clip_ids``.

    A batch of B items is one read and a dict of tensors: arrays of rows, padded with zeros to the longest clip (B, R,
    ...), ``mask`` (B, R) bool, which is True for the rows of the clip, and ``clip`` (B,) int64. R is at least 1. Dtypes
    are those of the store, such as float16.

    Args:
        stream: the stream.
        clip_ids: the items, in this order; None for all clips, in stored order.

    Attributes:
        clip_ids: (clips,) strings. An array, because forked workers would copy a list as they count references.

    Raises:
        MissingClip: if a clip has no rows because it failed or was never extracted.
    """

    def __init__(self, stream: Stream, clip_ids: Sequence[str] | NDArray[Any] | None = None) -> None:
        self.stream = stream
        self.clip_ids = as_array(stream if clip_ids is None else clip_ids)
        absent = np.flatnonzero(stream.index.find(self.clip_ids.tolist()) < 0)
        if len(absent):
            stream.rows_of(str(self.clip_ids[absent[0]]))  # raises an error with the reason

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rows = self.stream[str(self.clip_ids[index])]
        arrays = {name: torch.from_numpy(np.asarray(array)) for name, array in rows.arrays.items()}
        return {**arrays, "clip": torch.tensor(index % len(self))}

    def batch(self, indices: Sequence[int]) -> PaddedBatch:
        """Return items as one batch."""
        clips = np.asarray(indices, np.int64)
        read = self.stream.read(self.clip_ids[clips].tolist())
        arrays = {name: torch.from_numpy(array) for name, array in pad(read, range(len(clips))).items()}
        return PaddedBatch(arrays, clip=torch.from_numpy(clips))

    def __getitems__(self, indices: Sequence[int]) -> list[PaddedBatch]:
        """Return ``batch`` in a list, which is what torch collates."""
        return [self.batch(indices)]

    def __repr__(self) -> str:
        return f"StreamDataset({self.stream.name!r}, clips={len(self)})"


class JoinedDataset(Dataset[dict[str, dict[str, Tensor]]]):
    """The clips that several streams share.

    An item or a batch is a dict from the names of the streams to items or batches of ``StreamDataset``.

    Args:
        streams: streams of one store or of several, with different names.
        clip_ids: the clips to choose from, in this order; None for those of the first stream, in stored order.

    Attributes:
        clip_ids: (clips,) strings, the clips that are in all streams.

    Raises:
        StoreError: if no clip is in all streams.
    """

    def __init__(self, streams: Sequence[Stream], clip_ids: Sequence[str] | NDArray[Any] | None = None) -> None:
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
        """Return items as one batch."""
        return PaddedBatch({name: stream.batch(indices) for name, stream in self.streams.items()})

    def __getitems__(self, indices: Sequence[int]) -> list[PaddedBatch]:
        """Return ``batch`` in a list, which is what torch collates."""
        return [self.batch(indices)]

    def __repr__(self) -> str:
        return f"JoinedDataset({list(self.streams)}, clips={len(self)})"


def as_array(clip_ids: Any) -> NDArray[Any]:
    """Return strings as one array."""
    if not isinstance(clip_ids, np.ndarray):
        clip_ids = as_ids(clip_ids)
    return np.asarray(clip_ids, np.dtypes.StringDType())


def all_rows(counts: NDArray[Any], most: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Choose every row of each clip, or its first ``most`` rows."""
    lengths = counts if most is None else np.minimum(counts, most)
    return np.arange(max(1, lengths.max(initial=0))), lengths


def pad(batch: Batch, clips: Sequence[int], choose: Choice = all_rows) -> dict[str, NDArray[Any]]:
    """Pad clips of a batch with zeros to one shape. Rows are copied once.

    Args:
        batch: the rows of clips.
        clips: positions of the clips in the batch.
        choose: chooses rows of each clip.

    Returns:
        Arrays of rows (B, R, ...), their ``mask`` (B, R) bool, and arrays of clips (B, ...).
    """
    places = np.asarray(clips, np.int64)
    first = batch.offsets[places]
    numbers, lengths = choose(batch.offsets[places + 1] - first)
    mask = np.arange(numbers.shape[-1]) < lengths[:, None]
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
