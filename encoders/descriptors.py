"""Feature maps of a segment's frames to the local descriptors of its streams (METHODS 2).

Letters: f frames, C channels, T cells of the spatial pyramid.
"""

from torch import Tensor

from encoders.differences import difference_maps
from encoders.spp import LEVELS, pyramid_pool

EPSILON = 1e-12
WHOLE_MAP_SCALE = 158.0
"""The released FV-VAE network multiplies the L2-normalised map by this constant."""

SCALINGS = ("per_position", "whole_map")


def scale(maps: Tensor, scaling: str) -> Tensor:
    """Normalises maps [f, C, h, w] before the spatial pyramid.

    per_position: each of the h * w descriptors over its L2 norm (DQ Table 7).
    whole_map: each map over the L2 norm of all its values, times 158 (the released network).
    Zeros stay zeros.
    """
    if scaling == "per_position":
        return maps / maps.norm(dim=1, keepdim=True).clamp_min(EPSILON)
    if scaling == "whole_map":
        length = maps.flatten(1).norm(dim=1).clamp_min(EPSILON)
        return maps / length.view(-1, 1, 1, 1) * WHOLE_MAP_SCALE
    raise ValueError(f"describe.scaling: expected one of {SCALINGS}, got {scaling!r}")


def appearance(maps: Tensor, scaling: str, levels: tuple[int, ...] = LEVELS) -> Tensor:
    """Descriptors [f, T, C] of maps [f, C, h, w]."""
    return pyramid_pool(scale(maps, scaling), levels)


def difference(maps: Tensor, scaling: str, levels: tuple[int, ...] = LEVELS) -> Tensor:
    """Descriptors [f - 1, T, 2C] of the differences of adjacent maps [f, C, h, w]."""
    return pyramid_pool(scale(difference_maps(maps), scaling), levels)


def stream_width(stream: str, channels: int) -> int:
    """The width of a descriptor of `stream` at a node with that many channels."""
    return channels * (2 if stream == "difference" else 1)
