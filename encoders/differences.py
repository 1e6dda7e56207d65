"""Difference maps: v(l) = f_l(I2) - f_l(I1), the Eulerian motion of a layer (VU 5.3.1-5.3.2)."""

import torch
from torch import Tensor


def difference_maps(maps: Tensor) -> Tensor:
    """Maps of f adjacent frames [f, C, h, w] to f - 1 signed differences as [f - 1, 2C, h, w].

    The first C channels hold the positive part and the last C the negative part, because the max
    pooling that follows would lose negative motion (METHODS 2, Decision). f = 0 or 1 gives none.
    """
    signed = maps[1:] - maps[:-1]
    return torch.cat([signed.clamp_min(0), (-signed).clamp_min(0)], dim=1)
