"""An array of a part as Dask reads it, see ``Stream.to_dask``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .index import Index
from .schema import clip_arrays, row_arrays
from .shards import Span, as_bytes

if TYPE_CHECKING:
    from .reader import Stream


@dataclass(frozen=True)
class PartArray:
    """An array of a part with the interface that Dask needs. Reading raises DamagedPart if a checksum fails."""

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
    def dtype(self) -> np.dtype[Any]:
        return np.dtype({**row_arrays(self.stream.spec), **clip_arrays(self.stream.spec)}[self.name][1])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        rows, *others = key if isinstance(key, tuple) else (key,)
        chosen = range(*rows.indices(self.shape[0]))
        first, end = (min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]) + 1) if chosen else (0, 0)
        entries = np.empty((end - first, *self.shape[1:]), self.dtype)
        with self.stream._reading():
            array = self.stream._parts.open(self.index, [self.part])[self.part][self.name]
            self.stream._parts.read([Span(array, first, len(entries), as_bytes(entries), 0)])
        return entries[(slice(None, None, chosen.step), *others)]
