"""Spatial pyramid pooling of feature maps (DQ Table 7; METHODS 2).

Letters: f frames, C channels, h and w the map's height and width, T = sum of side^2 cells.
"""

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = (6, 3, 2, 1)
"""Cells along a side of each level; on a 7 x 7 map exactly the windows 2/1, 3/2, 4/3 and 7/1 of DQ
Table 7."""


def pyramid_pool(maps: Tensor, levels: tuple[int, ...] = LEVELS) -> Tensor:
    """Max-pool maps [f, C, h, w] to descriptors [f, T, C], level by level, row by row in each.

    Maps smaller than a level repeat values, as adaptive pooling defines it. The gradient of a cell
    goes to its largest value, in equal parts if several are largest.
    """
    grids: dict[int, Tensor] = {}
    for side in sorted(levels, reverse=True):
        if maps.requires_grad:
            # On a GPU the gradient of torch's own adaptive pooling differs from run to run.
            grids[side] = _pool_by_slices(maps, side)
            continue
        # A cell is exactly the union of the cells of a finer level whose side is a multiple.
        finer = next((grid for finer, grid in grids.items() if finer % side == 0), maps)
        grids[side] = functional.adaptive_max_pool2d(finer, side)
    pooled = [grids[side].flatten(2) for side in levels]
    return torch.cat(pooled, dim=2).transpose(1, 2).contiguous()


def _pool_by_slices(maps: Tensor, side: int) -> Tensor:
    rows, columns = (_cells(size, side) for size in maps.shape[2:])
    bands = [maps[:, :, row].amax(2) for row in rows]
    cells = [band[..., column].amax(2) for band in bands for column in columns]
    return torch.stack(cells, dim=2).unflatten(2, (side, side))


def _cells(size: int, side: int) -> list[slice]:
    """Return cells i along an axis, floor(i size / side) to ceil((i + 1) size / side)."""
    return [slice(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]


def num_cells(levels: tuple[int, ...] = LEVELS) -> int:
    """Return T, the number of descriptors of a frame (50 for the default levels)."""
    return sum(side * side for side in levels)
