"""Sampling: select the frames of a clip and group them into windows, from presentation times alone.

A sampler takes one frame at a time, never looks back, and holds at most the frame keys of one window. Therefore any
number of samplers can share one forward pass over a video of any length.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from ...errors import AmexError

# Times of annotations have few digits and times of frames are whole clock ticks: both are fractions with small
# denominators.
LARGEST_DENOMINATOR = 1_000_000
# Fields that a spec omits if they have these values, so that the fingerprints of older stores stay valid.
UNRECORDED = {"count": None, "at": "nearest"}


def exact(seconds: float) -> Fraction:
    """Return the exact number that a float stands for: 3.7 is 37/10, 0.06666666666666667 is 1/15.

    This is the fraction with a small denominator that rounds to the float, or else the float's shortest decimal. Clip
    bounds written with few digits and bounds computed as frame / rate are then exactly equal to the times of frames.
    """
    simple = Fraction(seconds).limit_denominator(LARGEST_DENOMINATOR)
    return simple if float(simple) == seconds else Fraction(repr(float(seconds)))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The rule that selects frames of a clip and groups them into windows.

    Attributes:
        fps: samples per second of presentation time; None samples every frame of the file.
        count: number of samples per clip, instead of ``fps``. The clip is divided into ``count`` equal intervals, and
            the frame shown in the middle of each is sampled. A clip with fewer frames repeats some of them.
        at: which frames belong to a clip, and which frame is sampled at the instant ``origin + k / fps``.
            ``shown``: the frames on screen at any time in the clip; the frame on screen at the instant. The origin is
            the clip's start, or the start of the first frame if that is later.
            ``nearest``: the frames that start in the clip; the frame that starts nearest to the instant. The origin is
            the start of the first such frame. If no frame starts in the clip, the frame on screen at its start is used.
        frames: samples per window.
        step: distance between the samples of a window, in samples.
        stride: distance between the starts of windows, in samples.
        tail: ``pad`` covers every sample and repeats the last frame to fill the last window; ``drop`` omits an
            incomplete last window.

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
            raise AmexError(f"sampling: fps must be a positive number or native, got {self.fps!r}")
        if self.fps is not None and self.count is not None:
            raise AmexError("sampling: set fps or count, not both; with count, set fps=native")
        if self.at not in ("shown", "nearest"):
            raise AmexError(f"sampling: at must be shown or nearest, got {self.at!r}")
        if self.tail not in ("pad", "drop"):
            raise AmexError(f"sampling: tail must be pad or drop, got {self.tail!r}")

    @property
    def spec(self) -> dict[str, Any]:
        """The fields as a spec records them."""
        unrecorded = UNRECORDED.items()
        return {name: value for name, value in asdict(self).items() if (name, value) not in unrecorded}

    @property
    def span(self) -> int:
        """Number of samples from the first to the last sample of a window, inclusive."""
        return (self.frames - 1) * self.step + 1

    def samples(self, seconds: float, rate: float) -> int:
        """Estimate the number of samples of a clip of ``seconds`` in a video with ``rate`` frames per second."""
        return self.count if self.count is not None else round(seconds * (self.fps or rate))

    def windows(self, samples: int) -> int:
        """Return the number of windows for a number of samples."""
        if samples == 0:
            return 0
        if self.tail == "drop":
            return max(0, (samples - self.span) // self.stride + 1)
        # Add windows until one reaches the end, as long as a sample is left to start on.
        return 1 + max(0, min(-(-(samples - self.span) // self.stride), (samples - 1) // self.stride))


@dataclass(frozen=True)
class SampledWindow:
    """A window of sampled frames.

    Attributes:
        keys: keys of the frames, as passed to ``Sampler.push``; a key may repeat.
        start: presentation time of the first frame in seconds. It may be earlier than the clip's start.
        end: end of the last frame in seconds. It may be later than the clip's end.
    """

    keys: tuple[int, ...]
    start: float
    end: float


class Sampler:
    """Samples the frames of [start, end), which arrive in presentation order, and groups them into windows.

    All arithmetic uses exact fractions, so that rounding never moves a frame across a clip's bound.

    Args:
        start: seconds; None for the beginning of the video.
        end: seconds, exclusive; None for the end of the video.
        until: end of the video in seconds; only needed for ``Sampling.count``.
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
        self.windows = 0  # windows returned so far
        # Samples that a later window may need: (position, key, begin, end).
        self._held: deque[tuple[int, int, Fraction, Fraction]] = deque()
        self._samples = 0  # number of samples so far
        self._next = 0  # position of the next window's first sample
        self._origin: Fraction | None = None  # first sampling instant
        self._due: Fraction | None = None  # next sampling instant, with ``fps``

    def push(self, key: int, begin: Fraction, end: Fraction, *, last: bool = False) -> list[SampledWindow]:
        """Add the frame shown during [begin, end); return the windows that it completes.

        Args:
            key: the caller's identifier of the frame; keys must increase.
            last: whether this is the last frame of the video.
        """
        final = last or end >= self.end
        if begin >= self.end or not (begin >= self.start or (end > self.start and self._includes_earlier(final))):
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
        """Return the windows of the tail. Call it once, after the last frame of the clip."""
        windows = []
        while self.windows < self.sampling.windows(self._samples):
            windows.append(self._cut())
        self._held.clear()
        return windows

    @property
    def oldest(self) -> int | None:
        """The smallest key that a later window may use; None if there is none."""
        return self._held[0][1] if self._held else None

    def holds(self, key: int) -> bool:
        """Return whether a later window may use the last pushed frame, ``key``."""
        return bool(self._held) and self._held[-1][1] == key

    def _includes_earlier(self, final: bool) -> bool:
        """Return whether a frame that starts before the clip but is on screen at its start belongs to the clip."""
        return self.sampling.at == "shown" or final  # final: no frame starts in the clip

    def _repeats(self, begin: Fraction, end: Fraction, final: bool) -> int:
        """Return how often the frame is sampled: once at the native rate, any number of times when resampling.

        Args:
            final: whether this is the last frame of the clip.
        """
        if self.sampling.count is not None:
            return self._middles_before(end, final) - self._samples
        if self.rate is None:
            return 1
        if self._due is not None and end < self._due:  # fast path: no instant is near this frame
            return 0
        # ``instants`` is the number of sampling instants from the origin up to this frame.
        if self.sampling.at == "shown":
            instants = math.ceil((min(self.end, end) - self._origin) * self.rate)
        elif final:
            # The last frame is sampled at every instant before the end. Clocks are as coarse as 1 ms, so an instant
            # less than 1 % of a period before the end counts as the end.
            instants = math.floor((min(self.end, end) - self._origin) * self.rate - Fraction(1, 100)) + 1
        else:  # instants nearer to this frame than to the next; a tie goes to the earlier frame
            instants = math.floor(((begin + end) / 2 - self._origin) * self.rate) + 1
        instants = max(1, instants, self._samples)
        self._due = self._origin + instants / self.rate
        return instants - self._samples

    def _middles_before(self, end: Fraction, final: bool) -> int:
        """Return how many midpoints of the clip's ``count`` equal intervals are before ``end``; all if ``final``."""
        count = self.sampling.count
        interval = (self.until - self._origin) / count
        if final or interval <= 0:  # the end of a damaged video may be before its begin
            return count
        return min(count, math.ceil((end - self._origin) / interval - Fraction(1, 2)))

    def _wanted(self, position: int) -> bool:
        """Return whether the next window or a later one has a sample at ``position``."""
        stride, step, span = self.sampling.stride, self.sampling.step, self.sampling.span
        start = self._next
        while start <= position:
            if position - start < span and (position - start) % step == 0:
                return True
            start += stride
        return False

    def _cut(self) -> SampledWindow:
        """Return the next window. Fill missing samples with its last sample."""
        inside = [
            sample
            for sample in self._held
            if 0 <= sample[0] - self._next < self.sampling.span and (sample[0] - self._next) % self.sampling.step == 0
        ]
        keys = [key for _, key, _, _ in inside]
        keys += keys[-1:] * (self.sampling.frames - len(keys))
        self._next += self.sampling.stride
        self.windows += 1
        while self._held and self._held[0][0] < self._next:
            self._held.popleft()
        return SampledWindow(tuple(keys), float(inside[0][2]), float(inside[-1][3]))
