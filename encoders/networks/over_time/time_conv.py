"""Time-domain convolution (VU 3.3.1): kernels of 3 x 3 positions over the frames of a window, then
conv pooling."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.networks.over_time.conv_pooling import PooledHead
from encoders.networks.over_time.head import OverTime, Shape
from encoders.networks.over_time.windows import resampled
from encoders.networks.settings import TimeConvSettings

SIDE = 3
"""Positions that a kernel spans, each way."""


class TimeConvHead(PooledHead):
    """Kernels [window, kernels, C, 3, 3], and the layers of conv pooling behind them.

    Clips of fewer frames than a window use the sums of neighbouring frames' kernels: one frame is
    seen by a kernel of two dimensions, and growth gives a tenth of it to each of ten frames.
    """

    def __init__(
        self, shape: Shape, settings: TimeConvSettings, num_classes: int, draw: torch.Generator
    ) -> None:
        channels, height, width = shape
        super().__init__(settings.kernels * height * width, settings, num_classes, draw)
        size, self.stride = settings.window_frames, settings.window_stride
        first = min(size, settings.clip_frames[0])
        drawn = torch.randn(first, settings.kernels, channels, SIDE, SIDE, generator=draw)
        std = (2 / (first * channels * SIDE**2)) ** 0.5
        self.kernel = nn.Parameter(resampled(std * drawn, size))
        self.kernel_bias = nn.Parameter(torch.zeros(settings.kernels))

    @classmethod
    def for_maps(
        cls, shape: Shape, settings: TimeConvSettings, num_classes: int, draw: torch.Generator
    ) -> Self:
        return cls(shape, settings, num_classes, draw)

    def forward(self, maps: Tensor, noise: torch.Generator | None) -> Tensor:
        kernel = resampled(self.kernel, min(len(self.kernel), maps.shape[1]))
        moved = functional.conv3d(
            maps.transpose(1, 2),
            kernel.permute(1, 2, 0, 3, 4),
            self.kernel_bias,
            stride=(self.stride, 1, 1),
            padding=(0, SIDE // 2, SIDE // 2),
        )
        return super().forward(functional.relu(moved).transpose(1, 2), noise)

    def tied(self, num_frames: int) -> tuple[nn.Parameter, float]:
        size = len(self.kernel)
        return self.kernel, size / min(size, num_frames)


class TimeConv(OverTime):
    """Convolution over time and positions -> max_t -> f6 -> f7 -> K."""

    name = "time_conv"
    head_type = TimeConvHead
    sees_order = True
