"""The frames that every decoder yields, and the errors that it raises."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

# Send a heartbeat at least once in this many frames or packets.
HEARTBEAT_FRAMES = 16
HEARTBEAT_PACKETS = 4096
# Pixel formats with interleaved planes -> the planar format with the same samples. A direct conversion to RGB would
# interpolate chroma differently from the planar format.
INTERLEAVED = {"nv12": "yuv420p"}


class Unreadable(Exception):
    """A video cannot be decoded, or not to its end.

    Attributes:
        stage: ``open`` or ``decode``.
        logged: whether the damage was found in FFmpeg's log. With several decoding threads, the log may run ahead.
    """

    def __init__(self, stage: str, reason: str, *, logged: bool = False) -> None:
        super().__init__(reason)
        self.stage = stage
        self.logged = logged


class DecoderFailed(Exception):
    """This decoder failed; the next one has to start from the beginning."""


@dataclass(frozen=True)
class TimedFrame:
    """A frame with the time it is shown: [begin, end) seconds on the video's own clock.

    Attributes:
        image: returns the pixels, (height, width, 3) uint8 RGB, upright. None if the frame was not decoded.
        last: whether this is the last frame of the video.
        decoded: whether the frame was decoded. Frames that no request needs may be skipped.
    """

    begin: Fraction
    end: Fraction
    image: Callable[[], np.ndarray] | None
    last: bool
    decoded: bool = True


class RgbConverter:
    """Converts PyAV frames to RGB on one thread. Frames of equal size share the converter's setup.

    The setup takes 0.5 ms for 340x256, the conversion 0.12 ms. PyAV's own ``frame.to_ndarray`` repeats the setup.
    """

    def __init__(self) -> None:
        self._planes = VideoReformatter()
        self._rgb = VideoReformatter()

    def image_of(self, frame: Any) -> Callable[[], np.ndarray]:
        """Return a function that returns the upright RGB pixels of a frame."""

        def image() -> np.ndarray:
            planar = INTERLEAVED.get(frame.format.name)
            planes = self._planes.reformat(frame, format=planar, threads=1) if planar else frame
            pixels = self._rgb.reformat(planes, format="rgb24", threads=1).to_ndarray()
            # PyAV's rotation is in degrees counter-clockwise, like rot90's. decord applies the rotation itself.
            return np.rot90(pixels, round(frame.rotation / 90) % 4) if frame.rotation else pixels

        return image


def short_reason(error: BaseException | str) -> str:
    """Shorten an error or log line. Remove clock times, addresses and paths, so that it is equal in every run."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(
        r"\[\d\d:\d\d:\d\d\] |\S+\.cc:\d+: | @ 0x[0-9a-f]+|\[/[^\]]*\]|Stack trace.*", "", text, flags=re.DOTALL
    )
    return " ".join(text.split())[:120]
