"""What every decoder yields, and how it fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

# Tell the other end at least every so many frames or packets that work goes on.
BEAT_FRAMES = 16
BEAT_PACKETS = 4096
# PyAV's names of pixel formats that hold the planes of another one interleaved, and that other one. Converted to RGB
# directly, their chroma is interpolated, and that of the other is not.
INTERLEAVED = {"nv12": "yuv420p"}


class Unreadable(Exception):
    """A video cannot be decoded, or no further.

    Attributes:
        stage: ``open`` or ``decode``.
        logged: whether FFmpeg's log tells of it, in which several decoding threads write.
    """

    def __init__(self, stage: str, reason: str, *, logged: bool = False) -> None:
        super().__init__(reason)
        self.stage = stage
        self.logged = logged


class DecoderFailed(Exception):
    """This decoder gave up or complained; another one has to start over."""


@dataclass(frozen=True)
class Shown:
    """A frame and when it is shown: [begin, end) seconds on the video's own clock.

    Attributes:
        image: makes (height, width, 3) uint8 RGB, upright.
        last: no frame follows in the video.
        decoded: whether the frame was decoded; otherwise no request needs it, and it has no image.
    """

    begin: Fraction
    end: Fraction
    image: Callable[[], np.ndarray] | None
    last: bool
    decoded: bool = True


class RgbConverter:
    """Makes RGB images of PyAV frames, on one thread. What one conversion prepares serves the next of the same size.

    A frame that converts itself prepares all anew: 0.5 ms for 340x256, where the conversion takes 0.12.
    """

    def __init__(self) -> None:
        self._planes = VideoReformatter()
        self._rgb = VideoReformatter()

    def image_of(self, frame: Any) -> Callable[[], np.ndarray]:
        """Makes the image of a frame, upright, when called."""

        def image() -> np.ndarray:
            planar = INTERLEAVED.get(frame.format.name)
            planes = self._planes.reformat(frame, format=planar, threads=1) if planar else frame
            pixels = self._rgb.reformat(planes, format="rgb24", threads=1).to_ndarray()
            # PyAV gives the rotation tag in degrees counter-clockwise, as rot90 counts; decord has applied it already.
            return np.rot90(pixels, round(frame.rotation / 90) % 4) if frame.rotation else pixels

        return image


def short_reason(error: BaseException | str) -> str:
    """An error or a log line in a few words, the same in every run: no clock times, addresses or places."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(
        r"\[\d\d:\d\d:\d\d\] |\S+\.cc:\d+: | @ 0x[0-9a-f]+|\[/[^\]]*\]|Stack trace.*", "", text, flags=re.DOTALL
    )
    return " ".join(text.split())[:120]
