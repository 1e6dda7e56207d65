"""End-point error of optical flow, and targets in the size of what a decoder gives.

A place whose truth is not known is NaN in it, and counts nowhere.

Letters: t flows of a clip, h and w sides. Flow is [..., 2]: u to the right and v downwards, in px.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

DIVISOR_PX = 20.0
"""Networks learn flow in units of so many px, as FlowNet's code does."""

SMALLEST = 1e-12
"""Added to the square of an error, so that one of 0 has a gradient."""


def end_point_errors(flow: Tensor, truth: Tensor) -> Tensor:
    """Return the distances [...] of flows [..., 2] from the truth; NaN where it is not known."""
    return ((flow - truth).square().sum(-1) + SMALLEST).sqrt()


def flow_loss(flows: Sequence[Tensor], truth: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted sum, over scales, of the mean end-point error (Eq. 4.3), in units of
    `DIVISOR_PX`.

    Args:
        flows: [b, 2, t, h, w] in these units, or without t where t is 1.
        truth: [b, t, H, W, 2] in px of the pictures that the network saw.
    """
    parts = []
    for flow, weight in zip(flows, weights, strict=True):
        given = (flow if flow.ndim == 5 else flow.unsqueeze(2)).permute(0, 2, 3, 4, 1).float()
        target = resized(truth, given.shape[2:4]) / DIVISOR_PX
        # Left out before: the gradient of NaN is NaN, whatever it is multiplied with.
        known = target.isfinite().all(-1)
        errors = end_point_errors(given[known], target[known])
        parts.append(weight * errors.sum() / known.sum().clamp_min(1))
    return torch.stack(parts).sum()


def resized(flow: Tensor, sides: Sequence[int]) -> Tensor:
    """Return flow [..., h, w, 2] as means over the known places of each cell of other sides; its
    values stay in px of the old ones."""
    if tuple(flow.shape[-3:-1]) == tuple(sides):
        return flow
    planes = flow.flatten(0, -4).permute(0, 3, 1, 2)
    known = planes.isfinite().all(1, keepdim=True)
    height, width = sides
    values = planes.where(known, planes.new_zeros(()))
    sums = functional.adaptive_avg_pool2d(values, (height, width))
    share = functional.adaptive_avg_pool2d(known.to(planes.dtype), (height, width))
    return (sums / share).permute(0, 2, 3, 1).unflatten(0, flow.shape[:-3])


def scaled(flow: Tensor, sides: Sequence[int]) -> Tensor:
    """Return `resized` flow in px of the new sides: the flow of the resized pictures."""
    height, width = flow.shape[-3:-1]
    factors = flow.new_tensor([sides[1] / width, sides[0] / height])
    return resized(flow, sides) * factors


def from_levels(levels: Tensor, bound_px: float) -> Tensor:
    """Return flow in px of uint8 levels, as `pipelines.video.flow.to_levels` makes them."""
    return levels.float() * (bound_px / 127.5) - bound_px
