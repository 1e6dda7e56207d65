"""Rank pooling of maps, and its case of two frames, the difference: the Eulerian motion of a layer (VU 5.3.1-5.3.2).

Letters: k windows of n frames each, C channels, h and w the map's height and width.
"""

import torch
from torch import Tensor


def rank_pooled(maps: Tensor, places: Tensor) -> Tensor:
    """Return the signed sums [k, C, h, w] of maps [f, C, h, w] over windows of n of them, given as places [k, n].

    Approximate rank pooling: sum over t = 1..n of (2t - n - 1) v_t. Two frames give v_2 - v_1, which is how
    VU 5.3.1 has the difference as a special case of rank pooling and dynamic images (its [92] and [100]); for
    more it names no weights, and these are the dynamic image's without its running mean.
    """
    length = places.shape[1]
    pooled = maps[places[:, length - 1]] * (length - 1)
    for t in range(1, length):
        if weight := 2 * t - length - 1:
            pooled += weight * maps[places[:, t - 1]]
    return pooled


def signed_parts(signed: Tensor) -> Tensor:
    """[k, 2C, h, w] of [k, C, h, w]: the positive parts in the first C channels, the negative in the last C,
    because the max pooling that follows would lose negative motion (METHODS 2, Decision)."""
    return torch.cat([signed.clamp_min(0), (-signed).clamp_min(0)], dim=1)
