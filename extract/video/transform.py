"""Resize and crop frames for a network. Every setting is part of a stream's fingerprint.

This runs in the feeders, with NumPy and Pillow. The encoder normalises pixels on its device.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...errors import AmexError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CORNERS = {"even": round, "down": math.floor}
# Fields that a spec omits if they have these values, so that the fingerprints of older stores stay valid.
UNRECORDED = {"corner": "even"}


class TransformError(AmexError):
    """A transform has invalid settings, or a frame is too small for it."""


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Resize, centre crop and normalisation of frames.

    Attributes:
        resize: length of the shorter side, or (height, width); None keeps the size.
        interpolation: a key of FILTERS.
        antialias: True resizes with Pillow, which applies a low-pass filter and rounds pixels. False interpolates
            float pixels between their four neighbours, like torch's default; only for ``bilinear``. The features
            differ.
        crop: (height, width) of the centre crop; None keeps the whole frame.
        corner: rounding of the crop's upper left corner: ``even`` rounds half to even, like torchvision; ``down``
            rounds down, like transformers.
        mean: per channel, for pixels in [0, 1]; the encoder subtracts it.
        std: per channel, for pixels in [0, 1]; the encoder divides by it.

    Raises:
        TransformError: if a value is unknown.
    """

    resize: int | tuple[int, int] | None
    interpolation: str = "bilinear"
    antialias: bool = False
    crop: tuple[int, int] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    corner: str = "even"

    def __post_init__(self) -> None:
        if self.interpolation not in FILTERS:
            raise TransformError(f"unknown interpolation {self.interpolation!r}: use one of {', '.join(FILTERS)}")
        if self.resize is not None and not self.antialias and self.interpolation != "bilinear":
            raise TransformError(f"{self.interpolation} interpolation needs antialias=True")
        if self.corner not in CORNERS:
            raise TransformError(f"unknown corner {self.corner!r}: use one of {', '.join(CORNERS)}")

    @property
    def spec(self) -> dict[str, Any]:
        """The fields as a spec records them. It names the library that resizes, because rounding differs."""
        spec = {name: value for name, value in asdict(self).items() if (name, value) not in UNRECORDED.items()}
        return spec | {"antialias": "pillow"} if self.antialias else spec

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize and crop a frame.

        Args:
            image: (height, width, 3) uint8.

        Returns:
            (height, width, 3) in [0, 255]: float32 if ``resize`` is set and ``antialias`` is False, else uint8.

        Raises:
            TransformError: if the frame is smaller than the crop.
        """
        size = self.size(*image.shape[:2])
        top, left, height, width = self.window(*size)
        if size == image.shape[:2] and (self.antialias or self.resize is None):
            return image[top : top + height, left : left + width]
        if not self.antialias:
            return interpolate(image, size, (top, left, height, width))
        resized = Image.fromarray(image).resize(size[::-1], FILTERS[self.interpolation])
        return np.asarray(resized)[top : top + height, left : left + width]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of a frame after the resize."""
        if self.resize is None:
            return height, width
        if not isinstance(self.resize, int):
            return self.resize
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the crop of a resized frame: (top, left, height, width)."""
        if self.crop is None:
            return 0, 0, height, width
        if height < self.crop[0] or width < self.crop[1]:
            crop = f"{self.crop[1]}x{self.crop[0]}"
            raise TransformError(f"a frame of {width}x{height} is smaller than the crop of {crop}")
        rounded = CORNERS[self.corner]
        return rounded((height - self.crop[0]) / 2), rounded((width - self.crop[1]) / 2), *self.crop


def interpolate(image: np.ndarray, size: tuple[int, int], window: tuple[int, int, int, int]) -> np.ndarray:
    """Resize an image by bilinear interpolation without a filter; return a window of the result, float32.

    Weights and order of operations are those of ``torch.nn.functional.interpolate`` with ``align_corners=False``.
    Only the window is computed, so the cost does not depend on the size of the image.

    Args:
        size: (height, width) of the whole image after the resize.
        window: (top, left, height, width) of the window in the resized image.
    """
    top, left, height, width = window
    y0, y1, wy0, wy1 = neighbours(image.shape[0], size[0], top, height, 1)
    x0, x1, wx0, wx1 = neighbours(image.shape[1], size[1], left, width, 3)
    rows = np.ascontiguousarray(image).reshape(image.shape[0], -1)

    def interpolate_rows(indices: np.ndarray) -> np.ndarray:
        source = rows[indices]
        interpolated = source.take(x0, axis=1) * wx0
        interpolated += source.take(x1, axis=1) * wx1
        return interpolated

    result = interpolate_rows(y0)
    result *= wy0[:, None]
    lower = interpolate_rows(y1)
    lower *= wy1[:, None]
    result += lower
    return result.reshape(height, width, 3)


@functools.lru_cache(maxsize=64)
def neighbours(
    old: int, new: int, begin: int, count: int, channels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the two source neighbours, and their weights, of ``count`` pixels of a resized axis from ``begin``.

    Args:
        old: length of the source axis.
        new: length of the resized axis.
        channels: values per pixel; the indices are expanded to one per value.
    """
    scale = np.float32(old) / np.float32(new)
    source = (np.arange(begin, begin + count, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    source = np.maximum(source, np.float32(0))
    first = np.minimum(source.astype(np.int64), old - 1)
    weight = np.clip(source - first.astype(np.float32), 0, 1).astype(np.float32)
    second = np.minimum(first + 1, old - 1)

    def spread(index: np.ndarray) -> np.ndarray:
        return (index[:, None] * channels + np.arange(channels)).ravel()

    return spread(first), spread(second), np.repeat(np.float32(1) - weight, channels), np.repeat(weight, channels)
