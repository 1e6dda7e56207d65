"""Slow pooling (VU 3.3.1): the maximum over each window of time, a fully-connected layer, and the
maximum over the windows.

The thesis does not say where the second layer is: here behind the second maximum, so that the
parameters are those of conv pooling.
"""

import torch
from torch import Tensor

from encoders.networks.over_time.conv_pooling import PooledHead
from encoders.networks.over_time.head import OverTime
from encoders.networks.over_time.windows import window_maxima
from encoders.networks.settings import WindowSettings


class SlowHead(PooledHead):
    """The layers of conv pooling, with a maximum before each."""

    def __init__(
        self, inputs: int, settings: WindowSettings, num_classes: int, draw: torch.Generator
    ) -> None:
        super().__init__(inputs, settings, num_classes, draw)
        self.window = settings.window_frames, settings.window_stride

    def forward(self, maps: Tensor, noise: torch.Generator | None) -> Tensor:
        windows = self.f6(window_maxima(maps.flatten(2), *self.window), noise)
        return self.out(self.f7(windows.amax(1), noise))


class SlowPooling(OverTime):
    """Maxima of windows -> f6 -> maximum over windows -> f7 -> K."""

    name = "slow_pooling"
    head_type = SlowHead
