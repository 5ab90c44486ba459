"""The rows of one sampling request in one stream, in memory as the store will hold them, until a part is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...errors import AmexError

# Rows that the first arrays have room for. Each later allocation adds an eighth, so that little of it stays unused.
FIRST_ROWS = 16


class RowsError(AmexError):
    """An encoder does not return the arrays that its spec declares."""


@dataclass
class RequestRows:
    """The rows of one sampling request in one stream as they are encoded, or why there are none.

    There is one copy of each row, in the dtype of the store. The arrays grow in place: where memory is mapped, as it is
    for large arrays on Linux, growing moves no bytes.

    Attributes:
        layout: the stream's ``features.row_arrays``: name -> (shape of a row, dtype).
        decoder: which decoder served the frames, and why when it was not the default.
        times: start and end of each window, in seconds on the video's own clock, half-open.
        overflow: by window: why the store cannot hold its feature.
        failure: stage and reason, if the request cannot be answered.
        missing: seconds that damage of the video took from the request; None if unknown. Only with ``damage``.
        damage: why the rows are not those of the whole request, if they are not.
    """

    layout: Mapping[str, tuple[tuple[int, ...], str]]
    decoder: str = ""
    times: list[tuple[float, float]] = field(default_factory=list)
    overflow: dict[int, str] = field(default_factory=dict)
    failure: tuple[str, str] | None = ("decode", "the decoder gave no result")
    missing: float | None = None
    damage: str = ""
    _stored: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _filled: int = 0
    _given_out: bool = False

    def put(self, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps the row of window ``index``, or in ``overflow`` why the store cannot hold it.

        Windows may come in any order, each once.

        Args:
            arrays: one row of each array of ``layout`` but ``times``, as the encoder returns it.

        Raises:
            RowsError: if one is missing or has another shape.
        """
        for name, (shape, dtype) in self.layout.items():
            if name == "times":
                continue
            if name not in arrays:
                raise RowsError(f"the encoder returns no {name!r}; its spec declares {name!r} {list(shape)} {dtype}")
            if np.shape(arrays[name]) != shape:
                shown = list(np.shape(arrays[name]))
                raise RowsError(f"the encoder returns {name!r} of shape {shown}; its spec declares {list(shape)}")
        if reason := overflow_reason(arrays["values"], self.layout["values"][1]):
            self.overflow[index] = reason
            return
        if self._given_out:
            raise RowsError("the rows of this request are given out already")
        self._make_room(index + 1)
        for name, stored in self._stored.items():
            stored[index] = arrays[name]
        self._filled += 1

    def arrays(self) -> dict[str, np.ndarray]:
        """All rows as the arrays of the stream, ``times`` among them; not copied. To be called after the last ``put``.

        Raises:
            RowsError: if rows are missing.
        """
        if self._filled != len(self.times):
            raise RowsError(f"the encoder returned {self._filled} rows for {len(self.times)} windows")
        if not self._given_out:
            self._resize(len(self.times))
            self._given_out = True
        times = {"times": np.array(self.times, np.float64).reshape(-1, 2)} if "times" in self.layout else {}
        return {**self._stored, **times}

    def _make_room(self, rows: int) -> None:
        capacity = len(self._stored["values"]) if self._stored else 0
        if rows > capacity:
            self._resize(max(rows, FIRST_ROWS, capacity + capacity // 8))

    def _resize(self, rows: int) -> None:
        for name, (shape, dtype) in self.layout.items():
            if name == "times":
                continue
            if name not in self._stored:
                self._stored[name] = np.empty((rows, *shape), dtype)
            elif len(self._stored[name]) != rows:
                # In place: nobody else has the arrays before `arrays` gives them out. NumPy's own check of that counts
                # references, which debuggers and profilers add to.
                self._stored[name].resize((rows, *shape), refcheck=False)


def overflow_reason(values: np.ndarray, dtype: str = "float16") -> str:
    """Why a float dtype cannot hold a feature; empty if it can."""
    if not np.isfinite(values).all():
        return "is not finite"
    largest = np.abs(values).max(initial=0)
    return f"reaches {largest:.3g}, more than {dtype} holds" if largest > np.finfo(dtype).max else ""
