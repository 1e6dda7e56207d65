"""Conv pooling (VU 3.3.1): the maximum over time of each position's activations, then two
fully-connected layers."""

import torch
from torch import Tensor

from encoders.networks.over_time.head import (
    SCORES_STD,
    Connected,
    Head,
    OverTime,
    linear,
)
from encoders.networks.settings import PoolingSettings


class PooledHead(Head):
    """Two fully-connected layers and the scores, of a vector a clip."""

    def __init__(
        self, inputs: int, settings: PoolingSettings, num_classes: int, draw: torch.Generator
    ) -> None:
        super().__init__(inputs, settings, num_classes, draw)
        self.f6 = Connected(inputs, settings, draw)
        self.f7 = Connected(settings.units, settings, draw)
        self.out = linear(settings.units, num_classes, SCORES_STD, draw)

    def forward(self, maps: Tensor, noise: torch.Generator | None) -> Tensor:
        return self.out(self.f7(self.f6(maps.amax(1).flatten(1), noise), noise))


class ConvPooling(OverTime):
    """max_t x_t -> f6 -> f7 -> K."""

    name = "conv_pooling"
    head_type = PooledHead
