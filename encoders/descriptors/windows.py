"""The part of a picture that a position of a map sees, and what positions say of it (FK 4.5).

Letters: n windows, s cells along a side of a grid over the picture.
"""

import numpy as np
from numpy.typing import NDArray

from encoders.stream_specs import Scale

FCN_STRIDE_PX, FCN_WINDOW_PX = 32, 227
"""Of the fully connected layers of `alexnet_fcn`: position j sees the pixels from 32 j on."""


def windows(network: str, scale: Scale) -> NDArray[np.float64]:
    """Return top, left, bottom and right [n, 4] of each position, as shares of the picture's side.

    Of `alexnet_fcn`, without padding, they are what its fully connected layers see (FK 4.5).
    Decision: of other networks, whose padding lets a position see more than the picture, a
    position stands for its own cell of the map.
    """
    rows, columns = (np.arange(size, dtype=np.float64) for size in (scale.height, scale.width))
    if network == "alexnet_fcn":
        starts = [axis * FCN_STRIDE_PX / scale.side_px for axis in (rows, columns)]
        ends = [start + FCN_WINDOW_PX / scale.side_px for start in starts]
    else:
        starts = [rows / scale.height, columns / scale.width]
        ends = [(rows + 1) / scale.height, (columns + 1) / scale.width]
    (top, left), (bottom, right) = (np.meshgrid(*pair, indexing="ij") for pair in (starts, ends))
    return np.stack([top.ravel(), left.ravel(), bottom.ravel(), right.ravel()], 1)


def mean_of_windows(
    places: NDArray[np.float64], scores: NDArray[np.float64], side: int
) -> NDArray[np.float64]:
    """Return a grid [s, s] over the picture: the mean score of the windows that hold a cell's
    centre, NaN where there is none (Decision).

    Args:
        places: [n, 4], of `windows`. scores: [n].
    """
    first, last = (
        np.ceil(places * side - 0.5).clip(0, side).astype(int).reshape(-1, 2, 2).swapaxes(0, 1)
    )
    sums = np.zeros((2, side + 1, side + 1))
    for sign, row, column in (
        (1, first[:, 0], first[:, 1]),
        (-1, first[:, 0], last[:, 1]),
        (-1, last[:, 0], first[:, 1]),
        (1, last[:, 0], last[:, 1]),
    ):
        for plane, values in zip(sums, (scores, np.ones_like(scores)), strict=True):
            np.add.at(plane, (row, column), sign * values)
    total, count = sums.cumsum(1).cumsum(2)[:, :side, :side]
    count = count.round()
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
