"""What reading gives: the rows of one clip, and of many clips end to end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import plural


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
        return f"Batch({plural(len(self.clip_ids), 'clip')}, {self.values.dtype}{list(self.values.shape)})"
