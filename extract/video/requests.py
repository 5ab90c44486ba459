"""What is asked for of a video, and what comes of it: the messages between a worker and its feeders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .sampling import Sampling
from .transform import Transform


@dataclass(frozen=True)
class SamplingRequest:
    """Windows that are wanted of a video. Clips and streams that agree on all of it share them.

    Attributes:
        start: seconds, None for the beginning of the video.
        end: seconds, exclusive, None for its end.
        transform: None for frames at their own size.
    """

    start: float | None
    end: float | None
    sampling: Sampling
    transform: Transform | None = None


@dataclass(frozen=True)
class Video:
    """A file to decode; ``number`` is its reader's name for it."""

    number: int
    path: Path
    requests: tuple[SamplingRequest, ...]


@dataclass(frozen=True)
class Digest:
    """The sha256 of the file; None if it cannot be read."""

    sha256: str | None


@dataclass(frozen=True)
class Opened:
    """Decoding begins. ``decoder`` names the decoder, with a reason in parentheses where it is not the first choice."""

    decoder: str


@dataclass(frozen=True)
class Window:
    """A window of a request, ready for an encoder.

    Attributes:
        index: which of the request's windows, from 0.
        start: seconds, when its first frame is shown.
        end: seconds, until when its last one is.
        pixels: (frames, height, width, 3), in [0, 255]; uint8 or float32, see ``Transform``. In memory that a feeder
            fills again: valid until the next event is asked for.
    """

    request: int
    index: int
    start: float
    end: float
    pixels: np.ndarray


@dataclass(frozen=True)
class Done:
    """All windows of a request have come; the clip has ``frames`` frames.

    ``damage`` says why that is not the whole clip, if it is not; then ``missing`` seconds of it, None if nobody knows
    how many.
    """

    request: int
    frames: int
    missing: float | None = None
    damage: str = ""


@dataclass(frozen=True)
class Failed:
    """No more of a request will come, and what came is not the whole."""

    request: int
    stage: str
    reason: str


@dataclass(frozen=True)
class Restart:
    """The decoder changed: all that came of this video is void and comes again."""


@dataclass(frozen=True)
class End:
    """The video is finished.

    Attributes:
        frames: how many were decoded in the pass that counts.
        seconds: that the feeder spent on ``decode``, on ``transform``, and ``blocked``, waiting for room.
    """

    frames: int
    seconds: dict[str, float] = field(default_factory=dict, compare=False)


Event = Digest | Opened | Window | Done | Failed | Restart | End
