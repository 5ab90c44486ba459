"""3D ResNeXt-101 for windows of 16 frames of 112x112 (Hara et al., CVPR 2018), the 3D network of HowTo100M's features.

The names of parameters are those of the public checkpoint ``resnext101.pth`` of video_feature_extractor, which loads
strictly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

DIM, CLASSES = 2048, 400
GROUPS = 32
# Blocks of each stage.
DEPTHS = (3, 4, 23, 3)


class ResNeXt101(nn.Module):
    """Maps (batch, 3, frames, height, width) to logits of Kinetics' classes, (batch, 400)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        channels = 64
        for stage, depth in enumerate(DEPTHS):
            width = 128 << stage
            blocks = [Bottleneck(channels, width, 1 if stage == 0 else 2)]
            blocks += [Bottleneck(2 * width, width) for _ in range(depth - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = 2 * width
        self.fc = nn.Linear(DIM, CLASSES)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(clips))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3, 4)))


class Bottleneck(nn.Module):
    """A residual block: 1x1x1, grouped 3x3x3 and 1x1x1 convolutions. A projection adapts the shape of the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride=stride, padding=1, groups=GROUPS, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, 2 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(2 * width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != 2 * width:
            projection = nn.Conv3d(inputs, 2 * width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm3d(2 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))
