"""A small R(2+1)D: each 3D convolution is split into a spatial and a temporal one (Tran et al., CVPR 2018)."""

from __future__ import annotations

from torch import nn
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D

WIDTHS = (24, 48, 96, 128)


def r2plus1d_tiny(classes: int = 36) -> nn.Sequential:
    """Build a small R(2+1)D with half the depth of R(2+1)D-18 and 1.2 million parameters.

    It maps (batch, 3, frames, height, width) to (batch, classes). The input of the last layer, ``fc``, is the feature
    of length 128.
    """
    first = WIDTHS[0]
    stem = nn.Sequential(
        nn.Conv3d(3, first, (1, 5, 5), (1, 2, 2), (0, 2, 2), bias=False),
        nn.BatchNorm3d(first),
        nn.ReLU(inplace=True),
        nn.Conv3d(first, first, (3, 3, 3), (1, 2, 2), (1, 1, 1), bias=False),
        nn.BatchNorm3d(first),
        nn.ReLU(inplace=True),
    )
    blocks = []
    width = first
    for stage, planes in enumerate(WIDTHS):
        stride = 1 if stage == 0 else 2
        shortcut = None
        if stride > 1:
            shortcut = nn.Sequential(nn.Conv3d(width, planes, 1, stride, bias=False), nn.BatchNorm3d(planes))
        blocks.append(BasicBlock(width, planes, Conv2Plus1D, stride, shortcut))
        width = planes
    module = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten())
    module.add_module("fc", nn.Linear(width, classes))
    return module
