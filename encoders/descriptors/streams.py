"""Feature maps of a segment's frames to the local descriptors of its streams (METHODS 2).

Letters: f frames, C channels, T cells of the spatial pyramid.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from encoders.descriptors.differences import rank_pooled, signed_parts
from encoders.descriptors.pyramid import LEVELS, num_cells, pyramid_pool
from encoders.stream_specs import FRAME, INPUT, FlowWindow, Scaling, StreamSpec, Window

EPSILON = 1e-12
"""Shorter maps are divided by this, so that an empty one stays 0."""

WHOLE_MAP_SCALE = 158.0
"""The released FV-VAE network multiplies the L2-normalised map by this constant."""

SCALINGS = get_args(Scaling)


def scale(maps: Tensor, scaling: str) -> Tensor:
    """Normalise maps [f, C, h, w] before the spatial pyramid.

    per_position: each of the h * w descriptors over its L2 norm (DQ Table 7).
    whole_map: each map over the L2 norm of all its values, times 158 (the released network).
    relative: each difference over the mean L2 norm of the maps that it is taken of, times 158: a large change stays
        larger than a small one, which whole_map forgets. For maps of single frames, as here, it is whole_map.
    Zeros stay zeros.
    """
    if scaling == "per_position":
        return functional.normalize(maps, dim=1)
    if scaling in ("whole_map", "relative"):
        return over_length(maps, maps.flatten(1).norm(dim=1))
    raise ValueError(f"describe.scaling: expected one of {SCALINGS}, got {scaling!r}")


def over_length(x: Tensor, length: Tensor) -> Tensor:
    """x [f, ...] over the lengths [f] of whole maps, times 158; over 0 it stays 0."""
    return x / length.clamp_min(EPSILON).view(-1, *[1] * (x.ndim - 1)) * WHOLE_MAP_SCALE


def appearance(maps: Tensor, scaling: str, levels: tuple[int, ...] = LEVELS) -> Tensor:
    """Descriptors [f, T, C] of maps [f, C, h, w]."""
    return pyramid_pool(scale(maps, scaling), levels)


def positions(maps: Tensor, scaling: str) -> Tensor:
    """Descriptors [f, h w, C] of maps [f, C, h, w], one a position, row by row; no pyramid.

    What DQ 5.2's AVE averages and Concatenation puts side by side.
    """
    return scale(maps, scaling).flatten(2).transpose(1, 2).contiguous()


KINDS = ("appearance", "difference", "positions", "global")
"""What a stream holds of a node's maps; the entry `rank` of describe.streams is a difference of several frames, and
`flow` the appearance of pictures of flow. A node without spatial extent (fc7) gives "global" alone."""


@dataclass(frozen=True)
class Stream:
    """What is made of one node.

    Attributes:
        name: the column of DESCRIPTORS.
        node: of the network, or `input`.
        kind: one of `KINDS`.
        cells: T, descriptors of one view of a frame.
        width: C of a descriptor.
        window: the frames that it reads for one sampled frame.
        scaling, spp_levels: how maps become descriptors.
        views: crops of a frame, whose descriptors stand one view after the other.
    """

    name: str
    node: str
    kind: str
    cells: int
    width: int
    window: Window = FRAME
    scaling: str = "per_position"
    spp_levels: tuple[int, ...] = LEVELS
    views: int = 1

    @property
    def flow(self) -> FlowWindow | None:
        """What it reads where that is optical flow."""
        return self.window if isinstance(self.window, FlowWindow) else None

    @property
    def num_descriptors(self) -> int:
        """Of a frame, all views together."""
        return self.views * self.cells

    def describe(self, maps: Tensor, places: Tensor) -> Tensor:
        """Descriptors [k, T, C] of one view.

        The values of a global node stay as the network gives them.

        Args:
            maps: the node's, [u, channels, h, w], of u source frames, or of u stacks of flow.
            places: int64 [k, n], the frames among them that `window` reads for each of k sampled frames; of flow
                the stack, n = 1.
        """
        if self.kind == "difference":
            return self._difference(maps, places)
        own = maps[places[:, -1]]
        if self.kind == "appearance":
            return appearance(own, self.scaling, self.spp_levels)
        if self.kind == "positions":
            return positions(own, self.scaling)
        return own.flatten(1).unsqueeze(1)

    def _difference(self, maps: Tensor, places: Tensor) -> Tensor:
        signed = rank_pooled(maps, places)
        if self.scaling == "per_position":
            return pyramid_pool(scale(signed_parts(signed), self.scaling), self.spp_levels)
        # One factor for a whole map, and no part below 0: both go as well with what is left after pooling, in place of maps.
        if self.scaling == "relative":
            length = maps.flatten(1).norm(dim=1)[places].mean(1)
        else:
            length = signed.flatten(1).norm(dim=1)
        pooled = [pyramid_pool(part, self.spp_levels) for part in (signed, -signed)]
        return over_length(torch.cat(pooled, 2).clamp_min(0), length)


_KIND_OF = {"rank": "difference", "flow": "appearance"}
"""Entries of describe.streams whose streams are of a kind that bears another name."""


def _of_vector(entries: list[tuple[str, StreamSpec]]) -> list[tuple[str, StreamSpec]]:
    """Of a node without spatial extent: the values of the frame, once, and those of each flow."""
    flows = [(kind, spec) for kind, spec in entries if kind == "flow"]
    return [("global", StreamSpec()), *flows] if len(entries) > len(flows) else flows


def streams_of(
    shapes: dict[str, tuple[int, int, int]],
    entries: Sequence[tuple[str, StreamSpec, Sequence[str]]],
    scaling: str,
    levels: tuple[int, ...],
    views: int = 1,
) -> dict[str, Stream]:
    """{name: stream}, such as features_12_appearance, node by node.

    Args:
        shapes: {node: (C, h, w)}, their order is that of the streams.
        entries: kind, fields and nodes of each entry of describe.streams.
        scaling: of entries that name none.

    Raises:
        ValueError: two streams would have one name, or nothing but differences of a vector is wanted.
    """
    streams: dict[str, Stream] = {}
    for node, (channels, height, width) in shapes.items():
        is_global = height * width == 1
        of_node = [(kind, spec) for kind, spec, nodes in entries if node in nodes]
        if is_global:
            if of_node and all(kind in ("difference", "rank") for kind, _ in of_node):
                raise ValueError(
                    f"describe.streams: expected a {of_node[0][0]} of a node with maps, got {node}, which gives a vector; "
                    "name a node before the pooling of the network, or have its appearance"
                )
            of_node = _of_vector(of_node)
        for entry, spec in of_node:
            window = spec.window
            name = f"{re.sub('[^0-9A-Za-z]+', '_', node)}_{entry}{spec.suffix}"
            if is_global and entry == "flow":
                name += "_global"
            if name in streams:
                raise ValueError(
                    f"describe.streams: expected names of streams that differ in letters and digits, got {name} of "
                    f"{streams[name].node!r} and {node!r}; leave one of them out, or to another run"
                )
            kind = "global" if is_global else _KIND_OF.get(entry, entry)
            own = channels
            if isinstance(window, FlowWindow) and node == INPUT:
                own = max(channels, window.num_channels)
            streams[name] = Stream(
                name=name,
                node=node,
                kind=kind,
                cells={"positions": height * width, "global": 1}.get(kind, num_cells(levels)),
                width=own * (2 if kind == "difference" else 1),
                window=window,
                scaling=spec.scaling or scaling,
                spp_levels=levels,
                views=views,
            )
    return streams
