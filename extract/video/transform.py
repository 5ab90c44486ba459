"""Pixels on their way into a network: resize, centre crop, normalise. Each choice is part of a stream's fingerprint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...errors import AmexError


@dataclass(frozen=True, kw_only=True)
class Transform:
    """What happens to each frame.

    Attributes:
        resize: length of the shorter side, or (height, width), or None.
        interpolation: ``bilinear`` or ``bicubic``.
        antialias: False interpolates float pixels without a low-pass filter, as torch does by default. True filters
            and rounds to whole pixel values, as Pillow does. The two are different features.
        crop: (height, width) of the centre crop, its corner rounded half to even, or None.
        mean: per channel, on pixels in [0, 1].
        std: per channel, likewise.
    """

    resize: int | tuple[int, int] | None
    interpolation: str = "bilinear"
    antialias: bool = False
    crop: tuple[int, int] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """(height, width, 3) uint8 to (3, height, width) float32, on the same device.

        Raises:
            AmexError: if the frame is smaller than the crop.
        """
        pixels = image.permute(2, 0, 1)[None].float()
        if self.resize is not None:
            size = self._size(*pixels.shape[-2:])
            pixels = F.interpolate(pixels, size=size, mode=self.interpolation, antialias=self.antialias)
            if self.antialias:
                pixels = pixels.round().clamp(0, 255)
        if self.crop is not None:
            (height, width), (crop_height, crop_width) = pixels.shape[-2:], self.crop
            if height < crop_height or width < crop_width:
                raise AmexError(f"a frame of {width}x{height} is smaller than the crop of {crop_width}x{crop_height}")
            top, left = round((height - crop_height) / 2), round((width - crop_width) / 2)
            pixels = pixels[..., top : top + crop_height, left : left + crop_width]
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        return (pixels[0] / 255 - mean) / std

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.resize, int):
            return self.resize
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize
