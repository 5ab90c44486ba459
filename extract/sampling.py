"""Which frames of a clip a stream sees, and in which windows: from presentation times alone, one frame at a time.

A sampler never looks back at a video and never holds more than one window of frame keys, so any number of samplers
can share one forward pass over a video of any length.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import AmexError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a clip's frames become windows.

    Attributes:
        fps: frames per second on the clock of presentation times, or None for every frame of the file. The clip's
            first frame is the first sample; the k-th is the frame whose time is nearest to ``first + k / fps``.
        count: instead of ``fps``, so many samples of every clip, however long: the frames shown in the middle of that
            many equal stretches of it. A clip of fewer frames shows some of them twice.
        frames: samples a window.
        step: distance between the samples of a window, in samples.
        stride: distance between the starts of windows, in samples.
        tail: ``pad`` makes windows until every sample has been covered and repeats the last frame to fill the last
            window; ``drop`` leaves an incomplete window out.

    Raises:
        AmexError: if a value is out of range.
    """

    fps: float | None = None
    count: int | None = None
    frames: int = 16
    step: int = 1
    stride: int = 16
    tail: str = "pad"

    def __post_init__(self) -> None:
        for name in ("count", "frames", "step", "stride"):
            value = getattr(self, name)
            if name == "count" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise AmexError(f"sampling: {name} must be a whole number of at least 1, got {value!r}")
        if self.fps is not None and not (isinstance(self.fps, int | float) and 0 < self.fps < float("inf")):
            raise AmexError(f"sampling: fps must be positive, or native, got {self.fps!r}")
        if self.fps is not None and self.count is not None:
            raise AmexError("sampling: give fps or count, not both; fps=native with count")
        if self.tail not in ("pad", "drop"):
            raise AmexError(f"sampling: tail must be pad or drop, got {self.tail!r}")

    @property
    def spec(self) -> dict[str, Any]:
        """As specs record it: without ``count`` where it is not used."""
        return {name: value for name, value in asdict(self).items() if name != "count" or value is not None}

    @property
    def span(self) -> int:
        """Samples from the first to the last of a window, both counted."""
        return (self.frames - 1) * self.step + 1

    def samples(self, seconds: float, rate: float) -> int:
        """About how many samples a clip of ``seconds`` has in a video of ``rate`` frames a second."""
        return self.count if self.count is not None else round(seconds * (self.fps or rate))

    def windows(self, samples: int) -> int:
        """How many windows ``samples`` samples make."""
        if samples == 0:
            return 0
        if self.tail == "drop":
            return max(0, (samples - self.span) // self.stride + 1)
        # A further window starts while the one before it has not reached the end, and there is something to start on.
        return 1 + max(0, min(-(-(samples - self.span) // self.stride), (samples - 1) // self.stride))


@dataclass(frozen=True)
class Window:
    """A window of sampled frames.

    Attributes:
        keys: the frames, by the keys they were pushed under; a key may repeat.
        start: presentation time of the first frame, seconds.
        end: when the last frame ceases to be shown, seconds.
    """

    keys: tuple[int, ...]
    start: float
    end: float


class Sampler:
    """Cuts the frames of [start, end) into windows as they arrive in presentation order.

    Args:
        start: seconds, None for the beginning of the video.
        end: seconds, exclusive, None for its end.
        until: when the video ends; needed for ``Sampling.count`` alone.
    """

    def __init__(
        self,
        sampling: Sampling,
        start: float | None = None,
        end: float | None = None,
        until: float = float("inf"),
    ) -> None:
        self.sampling = sampling
        self.start = float("-inf") if start is None else start
        self.end = float("inf") if end is None else end
        self.until = min(self.end, until)
        self.frames = 0  # frames inside [start, end) so far
        self._held: deque[tuple[int, int, float, float]] = (
            deque()
        )  # (position, key, begin, end) a window may still need
        self._samples = 0  # length of the sampled sequence so far
        self._next = 0  # position at which the next window starts
        self._windows = 0
        self._first: float | None = None
        self._targets = 0  # samples assigned so far, when resampling

    def push(self, key: int, begin: float, end: float, *, last: bool = False) -> list[Window]:
        """Takes the frame shown during [begin, end) and returns the windows it completes.

        Args:
            last: no frame follows in the video.
        """
        if not self.start <= begin < self.end:
            return []
        self.frames += 1
        windows = []
        for _ in range(self._repeats(begin, end, last or end >= self.end)):
            if self._wanted(self._samples):
                self._held.append((self._samples, key, begin, end))
            self._samples += 1
            while self._samples >= self._next + self.sampling.span:
                windows.append(self._cut())
        return windows

    def finish(self) -> list[Window]:
        """The windows that the tail makes. Call once, after the last frame of the clip."""
        windows = []
        while self._windows < self.sampling.windows(self._samples):
            windows.append(self._cut())
        self._held.clear()
        return windows

    @property
    def oldest(self) -> int | None:
        """The smallest key a later window may still use, None if there is none."""
        return self._held[0][1] if self._held else None

    def holds(self, key: int) -> bool:
        """Whether the frame pushed last, under ``key``, may be used by a later window."""
        return bool(self._held) and self._held[-1][1] == key

    def _repeats(self, begin: float, end: float, last: bool) -> int:
        """How often the frame stands in the sampled sequence: 1 at native rate, any number when resampling."""
        if self.sampling.fps is None and self.sampling.count is None:
            return 1
        if self._first is None:
            self._first = begin
        if self.sampling.count is not None:
            repeats = self.sampling.count - self._targets
            if not last:
                period = (self.until - self._first) / self.sampling.count
                repeats = sum(
                    self._first + (target + 0.5) * period < end - 1e-9
                    for target in range(self._targets, self.sampling.count)
                )
            self._targets += repeats
            return repeats
        # The last frame takes every instant up to the end, others those nearer to them than to the next frame. Times
        # come from clocks as coarse as 1 ms: an instant within 1 % of a period of the end is the end.
        # An instant half-way between two frames is the earlier one's, whatever the rounding.
        limit = min(self.end, end) - 0.01 / self.sampling.fps if last else (begin + end) / 2 + 1e-9
        repeats = 0
        while self._first + (self._targets + repeats) / self.sampling.fps <= limit or self._targets + repeats == 0:
            repeats += 1
        self._targets += repeats
        return repeats

    def _wanted(self, position: int) -> bool:
        """Whether some window, this one or a later one, has a sample at ``position``."""
        stride, step, span = self.sampling.stride, self.sampling.step, self.sampling.span
        start = self._next
        while start <= position:
            if position - start < span and (position - start) % step == 0:
                return True
            start += stride
        return False

    def _cut(self) -> Window:
        """The window at the next start, its missing samples filled with the last it has."""
        inside = [
            held
            for held in self._held
            if 0 <= held[0] - self._next < self.sampling.span and (held[0] - self._next) % self.sampling.step == 0
        ]
        keys = [key for _, key, _, _ in inside]
        keys += keys[-1:] * (self.sampling.frames - len(keys))
        self._next += self.sampling.stride
        self._windows += 1
        while self._held and self._held[0][0] < self._next:
            self._held.popleft()
        return Window(tuple(keys), inside[0][2], inside[-1][3])
