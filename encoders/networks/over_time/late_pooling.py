"""Late pooling (VU 3.3.1): two fully-connected layers for each frame, then the maximum over
time."""

import torch
from torch import Tensor

from encoders.networks.over_time.conv_pooling import PooledHead
from encoders.networks.over_time.head import OverTime


class LateHead(PooledHead):
    """The layers of conv pooling, with the maximum behind them."""

    def forward(self, maps: Tensor, noise: torch.Generator | None) -> Tensor:
        return self.out(self.f7(self.f6(maps.flatten(2), noise), noise).amax(1))


class LatePooling(OverTime):
    """f7(f6(x_t)) -> max_t -> K."""

    name = "late_pooling"
    head_type = LateHead
