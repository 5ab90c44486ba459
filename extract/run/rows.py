"""The rows of one sampling request in one stream, in memory until their part is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...errors import AmexError, plural

# Rows of the first allocation. Each later allocation adds an eighth, so that little memory stays unused.
FIRST_ROWS = 16


class RowsError(AmexError):
    """An encoder returned other arrays than its spec declares."""


@dataclass
class RequestRows:
    """The rows of one sampling request in one stream, or the reason why there are none.

    Each row is kept once, in the dtype of the store. The arrays grow in place. For large arrays on Linux, whose memory
    is mapped, growing copies no bytes.

    Attributes:
        layout: the stream's ``features.row_arrays``: name -> (shape of a row, dtype).
        decoder: name of the decoder, with the reason if it is not the first choice.
        times: start and end of each window, half-open, in seconds on the video's own clock.
        overflow: index of a window -> why the store's dtype cannot hold its feature.
        failure: (stage, reason) if the request failed.
        missing: seconds of the request that are lost to damage; None if unknown. Only with ``damage``.
        damage: the damage that cut the request short; empty if there is none.
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
    _exported: bool = False

    def put(self, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Store the row of window ``index``; if the store's dtype cannot hold it, store the reason in ``overflow``.

        Windows may come in any order, each once.

        Args:
            arrays: the encoder's row of each array of ``layout`` except ``times``.

        Raises:
            RowsError: if an array is missing or has another shape.
        """
        for name, (shape, dtype) in self.layout.items():
            if name == "times":
                continue
            if name not in arrays:
                raise RowsError(f"the encoder returns no {name!r}; its spec declares {name!r} {list(shape)} {dtype}")
            if np.shape(arrays[name]) != shape:
                actual = list(np.shape(arrays[name]))
                raise RowsError(f"the encoder returns {name!r} of shape {actual}; its spec declares {list(shape)}")
        if reason := overflow_reason(arrays["values"], self.layout["values"][1]):
            self.overflow[index] = reason
            return
        if self._exported:
            raise RowsError("put() was called after arrays()")
        self._make_room(index + 1)
        for name, stored in self._stored.items():
            stored[index] = arrays[name]
        self._filled += 1

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all rows as the arrays of the stream, including ``times``, without a copy. Call it after the last put.

        Raises:
            RowsError: if rows are missing.
        """
        if self._filled != len(self.times):
            raise RowsError(
                f"the encoder returned {plural(self._filled, 'row')} for {plural(len(self.times), 'window')}"
            )
        if not self._exported:
            self._resize(len(self.times))
            self._exported = True
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
                # Safe in place: no one else refers to the arrays before `arrays` returns them. NumPy's reference check
                # is off, because debuggers and profilers hold additional references.
                self._stored[name].resize((rows, *shape), refcheck=False)


def overflow_reason(values: np.ndarray, dtype: str = "float16") -> str:
    """Return why a float dtype cannot hold a feature; empty if it can."""
    if not np.isfinite(values).all():
        return "is not finite"
    largest = np.abs(values).max(initial=0)
    return f"reaches {largest:.3g}, more than {dtype} holds" if largest > np.finfo(dtype).max else ""
