"""Windows of time, and weights with a part for each of them that grow with the clip (VU 3.3.3).

Letters: b clips, n frames, J windows.
"""

import torch
from torch import Tensor


def num_windows(num_frames: int, size: int, stride: int) -> int:
    """Return J; fewer frames than a window has are one window."""
    return max(0, num_frames - size) // stride + 1


def window_maxima(frames: Tensor, size: int, stride: int) -> Tensor:
    """Return the maximum over each window, [b, J, ...] of frames [b, n, ...]."""
    if frames.shape[1] < size:
        return frames.amax(1, keepdim=True)
    return frames.unfold(1, size, stride).amax(-1)


def resampled(weights: Tensor, count: int) -> Tensor:
    """Return weights [count, ...] of weights [own, ...] with the same sum over the first axis.

    Growing, a part becomes equal parts that share its weight; the other way, parts are added up.
    Equal inputs of all parts therefore have the same output before and after, and growing and going
    back changes nothing.
    """
    own = len(weights)
    if count <= own:
        groups = torch.arange(own, device=weights.device) * count // own
        return weights.new_zeros(count, *weights.shape[1:]).index_add(0, groups, weights)
    groups = torch.arange(count, device=weights.device) * own // count
    sizes = torch.bincount(groups, minlength=own).to(weights.dtype)
    return (weights / sizes.view(-1, *[1] * (weights.ndim - 1)))[groups]
