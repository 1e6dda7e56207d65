"""GoogLeNet conv pooling (VU 3.3.1): the maximum over time of each frame's mean over positions, and
two fully-connected layers that GoogLeNet does not have."""

from typing import Self

import torch
from torch import Tensor

from encoders.networks.over_time.conv_pooling import PooledHead
from encoders.networks.over_time.head import OverTime, Shape
from encoders.networks.settings import PoolingSettings


class MeanHead(PooledHead):
    """The layers of conv pooling, on the mean over positions."""

    @classmethod
    def for_maps(
        cls, shape: Shape, settings: PoolingSettings, num_classes: int, draw: torch.Generator
    ) -> Self:
        return cls(shape[0], settings, num_classes, draw)

    def forward(self, maps: Tensor, noise: torch.Generator | None) -> Tensor:
        return super().forward(maps.mean((3, 4)), noise)


class GoogLeNetConv(OverTime):
    """mean over positions -> max_t -> f6 -> f7 -> K."""

    name = "googlenet_conv"
    head_type = MeanHead
