"""Spatial pyramid pooling of feature maps (DQ Table 7; METHODS 2).

Letters: f frames, C channels, h and w the map's height and width, T = sum of side^2 cells.
"""

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = (6, 3, 2, 1)
"""Cells a side at each level; on a 7 x 7 map exactly the windows 2/1, 3/2, 4/3 and 7/1 of DQ Table 7."""


def pyramid_pool(maps: Tensor, levels: tuple[int, ...] = LEVELS) -> Tensor:
    """Max-pools maps [f, C, h, w] to descriptors [f, T, C], level by level, row by row in each.

    Maps smaller than a level repeat values, as adaptive pooling defines it.
    """
    pooled = [functional.adaptive_max_pool2d(maps, side).flatten(2) for side in levels]
    return torch.cat(pooled, dim=2).transpose(1, 2).contiguous()


def num_cells(levels: tuple[int, ...] = LEVELS) -> int:
    """T, the number of descriptors a frame gives (50 for the default levels)."""
    return sum(side * side for side in levels)
