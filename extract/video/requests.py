"""The messages between a worker and its feeders: requests for windows of a video, and the events that answer them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .sampling import Sampling
from .transform import Transform


@dataclass(frozen=True)
class SamplingRequest:
    """A request for windows of a video. Clips and streams with equal requests share the windows.

    Attributes:
        start: seconds; None for the beginning of the video.
        end: seconds, exclusive; None for the end of the video.
        transform: None keeps frames at their own size.
    """

    start: float | None
    end: float | None
    sampling: Sampling
    transform: Transform | None = None


@dataclass(frozen=True)
class Video:
    """A file to decode and its requests. ``number`` is the caller's identifier."""

    number: int
    path: Path
    requests: tuple[SamplingRequest, ...]


@dataclass(frozen=True)
class Digest:
    """The sha256 of the file; None if the file cannot be read."""

    sha256: str | None


@dataclass(frozen=True)
class Opened:
    """Decoding starts. ``decoder`` is its name, with a reason in parentheses if it is not the first choice."""

    decoder: str


@dataclass(frozen=True)
class Window:
    """A window of a request, ready for an encoder.

    Attributes:
        request: number of the request in its video.
        index: number of the window in its request, from 0.
        start: start of the first frame, in seconds.
        end: end of the last frame, in seconds.
        pixels: (frames, height, width, 3), in [0, 255]; uint8 or float32, see ``Transform``. The array is in shared
            memory and is valid only until the next event is read.
    """

    request: int
    index: int
    start: float
    end: float
    pixels: np.ndarray


@dataclass(frozen=True)
class Done:
    """A request is complete.

    Attributes:
        request: number of the request in its video.
        frames: number of frames in the clip.
        missing: seconds of the clip that are lost to damage; None if unknown. Only with ``damage``.
        damage: the damage that cut the request short; empty if there is none.
    """

    request: int
    frames: int
    missing: float | None = None
    damage: str = ""


@dataclass(frozen=True)
class Failed:
    """A request failed. Its windows so far are invalid."""

    request: int
    stage: str
    reason: str


@dataclass(frozen=True)
class Restart:
    """Another decoder starts the video from the beginning. All earlier windows of this video are invalid."""


@dataclass(frozen=True)
class End:
    """The video is finished.

    Attributes:
        frames: number of frames decoded in the last pass.
        seconds: activity -> seconds that the feeder spent: ``decode``, ``transform``, ``blocked`` (waiting for space).
    """

    frames: int
    seconds: dict[str, float] = field(default_factory=dict, compare=False)


Event = Digest | Opened | Window | Done | Failed | Restart | End
