"""S3D-G trained with MIL-NCE on HowTo100M (Miech et al., CVPR 2020), the network of COOT's, MMPT's and HERO's features.

S3D-G: Xie et al., ECCV 2018. The names of parameters are those of the public checkpoint ``s3d_howto100m.pth``, which
loads strictly. Its text module is therefore part of the network, but unused.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .i3d import BLOCKS

DIM, JOINT = 1024, 512
# Text module: vocabulary size, word dimension, hidden dimension.
WORDS, WORD_DIM, TEXT_HIDDEN = 66_250, 300, 2048


class MilNceS3D(nn.Module):
    """Maps (batch, 3, frames, height, width) in [0, 1] to the joint space of video and text, (batch, 512).

    Frames, height and width must be even. It was trained on 32 frames with sides of 200 to 256.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Unit(24, 64, (2, 4, 4), padding=(1, 2, 2))
        self.conv_2b = Unit(64, 64)
        self.conv_2c = SeparableUnit(64, 192)
        self.gating = Gate(192)
        channels = 192
        for name, block in BLOCKS.items():
            self.add_module(name.lower(), Inception(channels, *block))
            channels = block[0] + block[2] + block[4] + block[5]
        self.fc = nn.Linear(DIM, JOINT)
        self.text_module = nn.ModuleDict(
            {
                "word_embd": nn.Embedding(WORDS, WORD_DIM),
                "fc1": nn.Linear(WORD_DIM, TEXT_HIDDEN),
                "fc2": nn.Linear(TEXT_HIDDEN, JOINT),
            }
        )

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the mean over time and space of the last inception block, ``mixed_5c``, (batch, 1024)."""
        # Blocks of 2 x 2 x 2 pixels become channels. TensorFlow's padding does not compute the first position.
        x = clips.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        x = self.conv1(x.permute(0, 3, 5, 7, 1, 2, 4, 6).flatten(1, 4))[:, :, 1:, 1:, 1:]
        x = pool(x, (1, 3, 3), (1, 2, 2))
        x = self.gating(self.conv_2c(self.conv_2b(x)))
        x = pool(x, (1, 3, 3), (1, 2, 2))
        x = self.mixed_3c(self.mixed_3b(x))
        x = pool(x, (3, 3, 3), (2, 2, 2))
        x = self.mixed_4f(self.mixed_4e(self.mixed_4d(self.mixed_4c(self.mixed_4b(x)))))
        x = pool(x, (2, 2, 2), (2, 2, 2))
        return self.mixed_5c(self.mixed_5b(x)).mean((2, 3, 4))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(clips))


class Pooled(nn.Module):
    """A MilNceS3D that returns the features of ``mixed_5c``."""

    def __init__(self, network: MilNceS3D) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.network.features(clips)


class Unit(nn.Module):
    """Convolution, batch-norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, kernel, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm3d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn1(self.conv1(x)))


class SeparableUnit(Unit):
    """A 3x3 convolution in space, then one of length 3 in time, each with batch-norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (1, 3, 3), padding=(0, 1, 1))
        self.conv2 = nn.Conv3d(outputs, outputs, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn2 = nn.BatchNorm3d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn2(self.conv2(super().forward(x))))


class Gate(nn.Module):
    """Feature gating: scales channels by a function of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.fc(x.mean((2, 3, 4))))[:, :, None, None, None] * x


class Inception(nn.Module):
    """An inception block of four gated branches: 1x1; 1x1 then 3x3x3 (twice); pool then 1x1."""

    def __init__(self, inputs: int, a: int, b0: int, b1: int, c0: int, c1: int, d: int) -> None:
        super().__init__()
        self.conv_b0 = Unit(inputs, a)
        self.conv_b1_a, self.conv_b1_b = Unit(inputs, b0), SeparableUnit(b0, b1)
        self.conv_b2_a, self.conv_b2_b = Unit(inputs, c0), SeparableUnit(c0, c1)
        self.conv_b3_b = Unit(inputs, d)
        self.gating_b0, self.gating_b1, self.gating_b2, self.gating_b3 = (Gate(size) for size in (a, b1, c1, d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = (
            self.gating_b0(self.conv_b0(x)),
            self.gating_b1(self.conv_b1_b(self.conv_b1_a(x))),
            self.gating_b2(self.conv_b2_b(self.conv_b2_a(x))),
            self.gating_b3(self.conv_b3_b(F.max_pool3d(x, 3, stride=1, padding=1))),
        )
        return torch.cat(branches, dim=1)


def pool(x: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> torch.Tensor:
    """Max pooling with the padding of the converted network: zeros after the last position if windows overlap."""
    padding = [side for k, s in zip(reversed(kernel), reversed(stride), strict=True) for side in (0, k - s)]
    return F.max_pool3d(F.pad(x, padding), kernel, stride, ceil_mode=True)
