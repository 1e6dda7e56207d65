"""Local pooling (VU 3.3.1): the maximum over each window of time, two fully-connected layers that
the windows share, and a larger last layer with weights of its own for each window."""

import torch
from torch import Tensor, nn

from encoders.networks.over_time.head import SCORES_STD, Connected, Head, OverTime
from encoders.networks.over_time.windows import num_windows, resampled, window_maxima
from encoders.networks.settings import WindowSettings


class LocalHead(Head):
    """The shared layers, and the weights [J, K, units] of the longest clip's windows.

    Clips of fewer windows use the sums of neighbouring weights: growth from 1 window to J is then
    W_j = W / J, without a change of the parameters.
    """

    def __init__(
        self, inputs: int, settings: WindowSettings, num_classes: int, draw: torch.Generator
    ) -> None:
        super().__init__(inputs, settings, num_classes, draw)
        self.window = settings.window_frames, settings.window_stride
        self.f6 = Connected(inputs, settings, draw)
        self.f7 = Connected(settings.units, settings, draw)
        first, last = (num_windows(settings.clip_frames[i], *self.window) for i in (0, -1))
        drawn = SCORES_STD * torch.randn(first, num_classes, settings.units, generator=draw)
        self.weight = nn.Parameter(resampled(drawn, last))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, maps: Tensor, noise: torch.Generator | None) -> Tensor:
        windows = self.f6(window_maxima(maps.flatten(2), *self.window), noise)
        windows = self.f7(windows, noise)
        weight = resampled(self.weight, windows.shape[1])
        return torch.einsum("bju,jku->bk", windows, weight) + self.bias

    def tied(self, num_frames: int) -> tuple[nn.Parameter, float]:
        return self.weight, len(self.weight) / num_windows(num_frames, *self.window)


class LocalPooling(OverTime):
    """Maxima of windows -> f6 -> f7 -> side by side -> K."""

    name = "local_pooling"
    head_type = LocalHead
    sees_order = True
