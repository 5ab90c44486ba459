"""Which frames of a clip a stream sees, and in which windows: from presentation times alone, one frame at a time.

A sampler never looks back at a video and never holds more than one window of frame keys, so any number of samplers
can share one forward pass over a video of any length.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from ...errors import AmexError

# Times of annotations have few digits, those of frames are whole ticks of a clock: fractions of small denominators.
LARGEST_DENOMINATOR = 1_000_000
# Sampling fields that specs record only where they differ from these values, so that older fingerprints stay valid.
UNRECORDED = {"count": None, "at": "nearest"}


def exact(seconds: float) -> Fraction:
    """The number that a float stands for: 3.7 is 37/10, 0.06666666666666667 is 1/15.

    That is the fraction of a small denominator that rounds to the float, or, where there is none, its shortest decimal.
    A clip bound that was written with few digits, and one that was computed as frame / rate, both meet the frame they
    mean.
    """
    simple = Fraction(seconds).limit_denominator(LARGEST_DENOMINATOR)
    return simple if float(simple) == seconds else Fraction(repr(float(seconds)))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a clip's frames become windows.

    Attributes:
        fps: samples per second on the clock of presentation times, or None for every frame of the file.
        count: instead of ``fps``, so many samples of every clip, however long: the frames shown in the middle of that
            many equal stretches of it. A clip of fewer frames shows some of them twice.
        at: which frames belong to a clip, and which of them the instant ``origin + k / fps`` takes. ``shown``: those
            on screen at some time in the clip; the one on screen at the instant; the origin is the clip's start, or
            the first frame's begin where that is later. ``nearest``: those that begin in the clip; the one that begins
            nearest to the instant; the origin is the begin of the clip's first frame. If no frame begins in a clip,
            ``nearest`` takes the frame on screen at its start, as ``shown`` does.
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
    at: str = "nearest"
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
        if self.at not in ("shown", "nearest"):
            raise AmexError(f"sampling: at must be shown or nearest, got {self.at!r}")
        if self.tail not in ("pad", "drop"):
            raise AmexError(f"sampling: tail must be pad or drop, got {self.tail!r}")

    @property
    def spec(self) -> dict[str, Any]:
        """As specs record it."""
        unrecorded = UNRECORDED.items()
        return {name: value for name, value in asdict(self).items() if (name, value) not in unrecorded}

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
class SampledWindow:
    """A window of sampled frames.

    Attributes:
        keys: the frames, by the keys they were pushed under; a key may repeat.
        start: presentation time of the first frame, seconds. A frame that is on screen when the clip starts may have
            begun earlier.
        end: when the last frame ceases to be shown, seconds; perhaps after the clip.
    """

    keys: tuple[int, ...]
    start: float
    end: float


class Sampler:
    """Cuts the frames of [start, end) into windows as they arrive in presentation order.

    All arithmetic is in fractions, so no frame changes sides at a clip's edge.

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
        until: Fraction | float = math.inf,
    ) -> None:
        self.sampling = sampling
        self.start = -math.inf if start is None else exact(start)
        self.end = math.inf if end is None else exact(end)
        self.until = min(self.end, until)
        self.rate = None if sampling.fps is None else exact(sampling.fps)
        self.frames = 0  # frames of the clip so far
        self.windows = 0  # windows made so far
        self._held: deque[tuple[int, int, Fraction, Fraction]] = (
            deque()
        )  # (position, key, begin, end) a window may still need
        self._samples = 0  # length of the sampled sequence so far
        self._next = 0  # position at which the next window starts
        self._origin: Fraction | None = None  # the first instant, when resampling
        self._due: Fraction | None = None  # the next one, when resampling by rate

    def push(self, key: int, begin: Fraction, end: Fraction, *, last: bool = False) -> list[SampledWindow]:
        """Takes the frame shown during [begin, end) and returns the windows it completes.

        Args:
            last: no frame follows in the video.
        """
        final = last or end >= self.end
        if begin >= self.end or not (begin >= self.start or (end > self.start and self._takes_earlier(final))):
            return []
        self.frames += 1
        if self._origin is None:
            self._origin = max(begin, self.start)
        windows = []
        for _ in range(self._repeats(begin, end, final)):
            if self._wanted(self._samples):
                self._held.append((self._samples, key, begin, end))
            self._samples += 1
            while self._samples >= self._next + self.sampling.span:
                windows.append(self._cut())
        return windows

    def finish(self) -> list[SampledWindow]:
        """The windows that the tail makes. Call once, after the last frame of the clip."""
        windows = []
        while self.windows < self.sampling.windows(self._samples):
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

    def _takes_earlier(self, final: bool) -> bool:
        """Whether the frame that is on screen at the clip's start, but began earlier, belongs to the clip."""
        return self.sampling.at == "shown" or final  # final: no frame begins in the clip

    def _repeats(self, begin: Fraction, end: Fraction, final: bool) -> int:
        """How often the frame stands in the sampled sequence: 1 at native rate, any number when resampling.

        Args:
            final: no later frame of the clip follows.
        """
        if self.sampling.count is not None:
            return self._middles_before(end, final) - self._samples
        if self.rate is None:
            return 1
        if self._due is not None and end < self._due:  # most frames, where samples are sparse: one comparison
            return 0
        if self.sampling.at == "shown":
            reached = math.ceil((min(self.end, end) - self._origin) * self.rate)
        elif final:
            # The last frame takes every instant up to the end. Times come from clocks as coarse as 1 ms: an instant
            # within 1 % of a period of the end is the end.
            reached = math.floor((min(self.end, end) - self._origin) * self.rate - Fraction(1, 100)) + 1
        else:  # Instants nearer to this frame than to the next. One half-way is the earlier frame's.
            reached = math.floor(((begin + end) / 2 - self._origin) * self.rate) + 1
        reached = max(1, reached, self._samples)
        self._due = self._origin + reached / self.rate
        return reached - self._samples

    def _middles_before(self, end: Fraction, final: bool) -> int:
        """Of the middles of ``count`` equal stretches of the clip, how many come before ``end``; all if ``final``."""
        count = self.sampling.count
        stretch = (self.until - self._origin) / count
        if final or stretch <= 0:  # a damaged video may end before it begins
            return count
        return min(count, math.ceil((end - self._origin) / stretch - Fraction(1, 2)))

    def _wanted(self, position: int) -> bool:
        """Whether some window, this one or a later one, has a sample at ``position``."""
        stride, step, span = self.sampling.stride, self.sampling.step, self.sampling.span
        start = self._next
        while start <= position:
            if position - start < span and (position - start) % step == 0:
                return True
            start += stride
        return False

    def _cut(self) -> SampledWindow:
        """The window at the next start, its missing samples filled with the last it has."""
        inside = [
            held
            for held in self._held
            if 0 <= held[0] - self._next < self.sampling.span and (held[0] - self._next) % self.sampling.step == 0
        ]
        keys = [key for _, key, _, _ in inside]
        keys += keys[-1:] * (self.sampling.frames - len(keys))
        self._next += self.sampling.stride
        self.windows += 1
        while self._held and self._held[0][0] < self._next:
            self._held.popleft()
        return SampledWindow(tuple(keys), float(inside[0][2]), float(inside[-1][3]))
