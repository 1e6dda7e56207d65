"""Feature maps of a segment's frames to the local descriptors of its streams (METHODS 2).

Letters: f frames, C channels, T cells of the spatial pyramid.
"""

import re
from dataclasses import dataclass

from torch import Tensor

from encoders.differences import difference_maps
from encoders.spp import LEVELS, num_cells, pyramid_pool

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


def positions(maps: Tensor, scaling: str) -> Tensor:
    """Descriptors [f, h w, C] of maps [f, C, h, w], one a position, row by row; no pyramid.

    What DQ 5.2's AVE averages and Concatenation puts side by side.
    """
    return scale(maps, scaling).flatten(2).transpose(1, 2).contiguous()


KINDS = ("appearance", "difference", "positions", "global")
"""What a stream holds of a node's maps. A node without spatial extent (fc7) gives "global" alone."""


@dataclass(frozen=True)
class Stream:
    """What is made of one node: `kind` of `KINDS`, T = `cells` descriptors a frame, C = `width`."""

    name: str
    node: str
    kind: str
    cells: int
    width: int

    def describe(self, maps: Tensor, scaling: str, levels: tuple[int, ...]) -> Tensor:
        """Descriptors [f, T, C] of the node's maps [f, channels, h, w]; of a difference, [f - 1, T, C].

        The values of a global node stay as the network gives them.
        """
        if self.kind == "appearance":
            return appearance(maps, scaling, levels)
        if self.kind == "difference":
            return difference(maps, scaling, levels)
        if self.kind == "positions":
            return positions(maps, scaling)
        return maps.flatten(1).unsqueeze(1)


def streams_of(
    shapes: dict[str, tuple[int, int, int]], kinds: tuple[str, ...], levels: tuple[int, ...]
) -> dict[str, Stream]:
    """{name: stream} of nodes with maps of shape (C, h, w), such as features_12_appearance.

    Raises:
        ValueError: two nodes whose names differ in signs alone.
    """
    streams = {}
    for node, (channels, height, width) in shapes.items():
        of_node = ("global",) if height * width == 1 else kinds
        cells = {"positions": height * width, "global": 1}
        for kind in of_node:
            name = f"{re.sub('[^0-9A-Za-z]+', '_', node)}_{kind}"
            if name in streams:
                raise ValueError(
                    f"describe.nodes: expected names that differ in letters and digits, got "
                    f"{streams[name].node!r} and {node!r}; give one of them in another run"
                )
            streams[name] = Stream(
                name,
                node,
                kind,
                cells.get(kind, num_cells(levels)),
                channels * (2 if kind == "difference" else 1),
            )
    return streams
