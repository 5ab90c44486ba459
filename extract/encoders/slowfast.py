"""SlowFast R50 8x8 (Feichtenhofer et al., ICCV 2019): a slow pathway of few frames and a thin fast pathway of all.

The names of parameters are those of PyTorchVideo's public checkpoint ``SLOWFAST_8x8_R50.pyth``, which loads strictly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 400
# Frames of the fast pathway per frame of the slow one; channels of the slow pathway per channel of the fast one.
ALPHA, BETA = 4, 8
STEM = 64
# Blocks per stage, and temporal kernel size of the first convolution in the slow pathway's blocks.
DEPTHS, SLOW_SPANS = (3, 4, 6, 3), (1, 1, 3, 3)
DIM = 2048 + 2048 // BETA


class SlowFast(nn.Module):
    """Maps (batch, 3, frames, height, width) to logits of Kinetics' classes, (batch, 400).

    The frames are those of the fast pathway, a multiple of 4. In training: 32 frames, every second frame at 30 fps.
    """

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = [Stage(Stem(STEM, 1), Stem(STEM // BETA, 5), fused=STEM // BETA)]
        channels, out = STEM, 4 * STEM
        for index, (depth, span) in enumerate(zip(DEPTHS, SLOW_SPANS, strict=True)):
            stride = 1 if index == 0 else 2
            slow = Residuals(channels + 2 * channels // BETA, out, depth, span, stride)  # with the fused channels
            fast = Residuals(channels // BETA, out // BETA, depth, 3, stride)
            stages.append(Stage(slow, fast, fused=out // BETA if index < len(DEPTHS) - 1 else 0))
            channels, out = out, 2 * out
        self.blocks = nn.ModuleList([*stages, nn.Identity(), Head()])

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the means over time and space of the slow and the fast pathway, concatenated: (batch, 2304)."""
        slow, fast = every_fourth(clips), clips
        for stage in self.blocks[:-2]:
            slow, fast = stage(slow, fast)
        return torch.cat((slow.mean((2, 3, 4)), fast.mean((2, 3, 4))), dim=1)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.blocks[-1].proj(self.features(clips))


@torch.fx.wrap
def every_fourth(clips: torch.Tensor) -> torch.Tensor:
    """Return a quarter of the frames, evenly spaced from the first to the last: of 32, 0 4 8 13 17 22 26 31."""
    frames = clips.shape[2]
    return clips[:, :, torch.linspace(0, frames - 1, frames // ALPHA).long()]


class Pooled(nn.Module):
    """A SlowFast that returns features instead of logits."""

    def __init__(self, network: SlowFast) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.network.features(clips)


class Head(nn.Module):
    """Holds the classifier under its name in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(DIM, CLASSES)


class Stage(nn.Module):
    """Both pathways. If ``fused``, the fast pathway's channels are then concatenated to the slow pathway's."""

    def __init__(self, slow: nn.Module, fast: nn.Module, fused: int) -> None:
        super().__init__()
        self.multipathway_blocks = nn.ModuleList([slow, fast])
        self.multipathway_fusion = Fusion(fused) if fused else None

    def forward(self, slow: torch.Tensor, fast: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slow, fast = self.multipathway_blocks[0](slow), self.multipathway_blocks[1](fast)
        if self.multipathway_fusion is not None:
            slow = torch.cat((slow, self.multipathway_fusion(fast)), dim=1)
        return slow, fast


class Fusion(nn.Module):
    """Converts the fast pathway to the frame rate of the slow one, with twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_fast_to_slow = nn.Conv3d(
            channels, 2 * channels, (7, 1, 1), stride=(ALPHA, 1, 1), padding=(3, 0, 0), bias=False
        )
        self.norm = nn.BatchNorm3d(2 * channels)

    def forward(self, fast: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv_fast_to_slow(fast)))


class Stem(nn.Module):
    """Convolution over ``span`` frames, batch-norm, ReLU, pool."""

    def __init__(self, channels: int, span: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, channels, (span, 7, 7), stride=(1, 2, 2), padding=(span // 2, 3, 3), bias=False)
        self.norm = nn.BatchNorm3d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool3d(F.relu(self.norm(self.conv(x))), (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))


class Residuals(nn.Module):
    """The residual blocks of one pathway in one stage."""

    def __init__(self, inputs: int, outputs: int, depth: int, span: int, stride: int) -> None:
        super().__init__()
        first = Residual(inputs, outputs, span, stride)
        self.res_blocks = nn.Sequential(first, *(Residual(outputs, outputs, span) for _ in range(depth - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_blocks(x)


class Residual(nn.Module):
    """A bottleneck with a skip connection; a projection adapts its shape if necessary."""

    def __init__(self, inputs: int, outputs: int, span: int, stride: int = 1) -> None:
        super().__init__()
        strides = (1, stride, stride)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.branch1_conv = nn.Conv3d(inputs, outputs, 1, stride=strides, bias=False)
            self.branch1_norm = nn.BatchNorm3d(outputs)
        self.branch2 = Bottleneck(inputs, outputs, span, strides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.branch1_norm(self.branch1_conv(x)) if self.projects else x
        return F.relu(shortcut + self.branch2(x))


class Bottleneck(nn.Module):
    """Convolutions over ``span`` frames, 3x3 pixels and 1; each with batch-norm, the first two with ReLU."""

    def __init__(self, inputs: int, outputs: int, span: int, strides: tuple[int, int, int]) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv_a = nn.Conv3d(inputs, inner, (span, 1, 1), padding=(span // 2, 0, 0), bias=False)
        self.norm_a = nn.BatchNorm3d(inner)
        self.conv_b = nn.Conv3d(inner, inner, (1, 3, 3), stride=strides, padding=(0, 1, 1), bias=False)
        self.norm_b = nn.BatchNorm3d(inner)
        self.conv_c = nn.Conv3d(inner, outputs, 1, bias=False)
        self.norm_c = nn.BatchNorm3d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm_a(self.conv_a(x)))
        x = F.relu(self.norm_b(self.conv_b(x)))
        return self.norm_c(self.conv_c(x))
