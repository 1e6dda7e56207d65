"""Rank pooling of maps, and its case of two frames, the difference (VU 5.3.1-5.3.2).

VU calls it the Eulerian motion of a layer.

Letters: k windows of n frames each, C channels, h and w the map's height and width.
"""

import torch
from torch import Tensor


def rank_pooled(maps: Tensor, indices: Tensor) -> Tensor:
    """Return the signed sums [k, C, h, w] of maps [f, C, h, w] over windows of n maps.

    Approximate rank pooling: sum over t = 1..n of (2t - n - 1) v_t. Two frames give v_2 - v_1: VU
    5.3.1 has the difference as a special case of rank pooling and dynamic images (its [92] and
    [100]). For more frames it gives no weights; these are those of the dynamic image without its
    running mean.

    Args:
        indices: the maps of each window, [k, n].
    """
    length = indices.shape[1]
    pooled = maps[indices[:, length - 1]] * (length - 1)
    for t in range(1, length):
        if weight := 2 * t - length - 1:
            pooled += weight * maps[indices[:, t - 1]]
    return pooled


def signed_parts(signed: Tensor) -> Tensor:
    """Return the positive parts, then the negative parts: [k, 2C, h, w] of [k, C, h, w].

    The max pooling that follows would lose negative motion (METHODS 2, Decision).
    """
    return torch.cat([signed.clamp_min(0), (-signed).clamp_min(0)], dim=1)
