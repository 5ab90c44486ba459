"""Results of reading: the rows of one clip, and of many clips end to end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import plural


@dataclass(frozen=True, repr=False)
class Rows:
    """The rows of one clip in one stream, in the order of time. In a stream of text: the tokens of one caption.

    Attributes:
        arrays: arrays by name, each with one entry per row: ``values``, ``times``, and for objects also ``boxes``,
            ``scores`` and ``counts``. ``rows["boxes"]`` is short for ``rows.arrays["boxes"]``.
    """

    arrays: Mapping[str, NDArray[Any]]

    @property
    def values(self) -> NDArray[Any]:
        """The features: (rows, ...) in the dtype of the stream, such as (rows, 512) float16."""
        return self.arrays["values"]

    @property
    def times(self) -> NDArray[np.float64]:
        """(rows, 2) float64: start and end of each row in seconds on the video's own clock, half-open.

        Raises:
            KeyError: in a stream of text, which has no times.
        """
        return self.arrays["times"]

    def __getitem__(self, name: str) -> NDArray[Any]:
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
    """The rows of several clips end to end. Iterating yields the ``Rows`` of each clip.

    Attributes:
        offsets: (clips + 1,) int64. Rows ``offsets[i]:offsets[i + 1]`` belong to clip ``clip_ids[i]``.
        clip_ids: the clips, in the order asked for.
        clip_arrays: names of the arrays that have one entry per clip instead of one per row.
    """

    offsets: NDArray[np.int64]
    clip_ids: tuple[str, ...]
    clip_arrays: frozenset[str]

    def __iter__(self) -> Iterator[Rows]:
        for index, (begin, end) in enumerate(itertools.pairwise(self.offsets)):
            arrays = self.arrays.items()
            yield Rows({n: array[index] if n in self.clip_arrays else array[begin:end] for n, array in arrays})

    def __repr__(self) -> str:
        return f"Batch({plural(len(self.clip_ids), 'clip')}, {self.values.dtype}{list(self.values.shape)})"
