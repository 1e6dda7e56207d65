"""Feature maps of a segment's frames to the local descriptors of its streams (METHODS 2).

Letters: f frames, C channels, T cells of the spatial pyramid.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from encoders.descriptors.differences import rank_pooled, signed_parts
from encoders.descriptors.pyramid import LEVELS, num_cells, pyramid_pool
from encoders.stream_specs import (
    FRAME,
    INPUT,
    ClipSpec,
    ClipWindow,
    FlowWindow,
    Scale,
    Scaling,
    StreamSpec,
    Window,
)

EPSILON = 1e-12
"""Least divisor of a map, so that an empty map stays 0."""

WHOLE_MAP_SCALE = 158.0
"""The released FV-VAE network multiplies the L2-normalised map by this constant."""

SCALINGS = get_args(Scaling)


def scale(maps: Tensor, scaling: str) -> Tensor:
    """Normalise maps [f, C, h, w] before the spatial pyramid.

    per_position: each of the h * w descriptors over its L2 norm (DQ Table 7).
    whole_map: each map over the L2 norm of all its values, times 158 (the released network).
    relative: each difference over the mean L2 norm of its maps, times 158: unlike with whole_map, a
        large change stays larger than a small one. For maps of single frames, as here, it is
        whole_map.
    none: activations as they are (FK 3: FC7; DQ 5.2: "to make the training of VAE stable" alone).
    Zeros stay zeros.
    """
    if scaling == "none":
        return maps
    if scaling == "per_position":
        return functional.normalize(maps, dim=1)
    if scaling in ("whole_map", "relative"):
        return over_length(maps, maps.flatten(1).norm(dim=1))
    raise ValueError(f"describe.scaling: expected one of {SCALINGS}, got {scaling!r}")


def over_length(x: Tensor, length: Tensor) -> Tensor:
    """Return x [f, ...] over the lengths [f] of whole maps, times 158; over 0 it stays 0."""
    return x / length.clamp_min(EPSILON).view(-1, *[1] * (x.ndim - 1)) * WHOLE_MAP_SCALE


def appearance(maps: Tensor, scaling: str, levels: tuple[int, ...] = LEVELS) -> Tensor:
    """Return descriptors [f, T, C] of maps [f, C, h, w]."""
    return pyramid_pool(scale(maps, scaling), levels)


def positions(maps: Tensor, scaling: str) -> Tensor:
    """Return descriptors [f, h w, C] of maps [f, C, h, w], one per position, row by row.

    DQ 5.2's AVE averages them, its Concatenation puts them side by side.
    """
    return scale(maps, scaling).flatten(2).transpose(1, 2).contiguous()


KINDS = ("appearance", "difference", "positions", "dense", "global")
"""Kinds of stream. `dense` has the rows of `positions`, for every local encoder (DQ Table 7 row 3).
The entry `rank` of describe.streams is a difference of several frames, `flow` the appearance of
pictures of flow, and `clip` has dense rows of a network of clips. A node without spatial extent
(fc7) gives only "global"."""


@dataclass(frozen=True)
class Stream:
    """The local descriptors that are computed from one node.

    Attributes:
        name: the column of DESCRIPTORS.
        node: of the network, or `input`.
        kind: one of `KINDS`.
        cells: T, the number of descriptors of one view of a frame, those of all scales together.
        width: C, the length of a stored descriptor.
        window: the frames that it reads for one sampled frame.
        scaling, spp_levels: scaling of the maps, and levels of the pyramid.
        views: number of crops of a frame; their descriptors stand one view after the other.
        scales: the sizes of the picture, smallest first, as their rows stand in each view; none
            given: one size.
        raw_width: length of a descriptor before the projection of describe.pca_components; 0
            without one.
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
    scales: tuple[Scale, ...] = ()
    raw_width: int = 0

    @property
    def unprojected(self) -> "Stream":
        """The stream before its projection."""
        return replace(self, width=self.raw_width or self.width, raw_width=0)

    def projected(self, components: int) -> "Stream":
        """Return the stream whose descriptors are stored with so many values; 0: as they are.

        Raises:
            ValueError: they have fewer.
        """
        if components > self.width:
            raise ValueError(
                f"describe.pca_components: expected at most the {self.width} values of "
                f"{self.name}, got {components}; lower it, or leave the stream to another run"
            )
        return replace(self, width=components, raw_width=self.width) if components else self

    @property
    def spans(self) -> list[slice]:
        """The rows of each scale in a view."""
        rows = [scale.rows for scale in self.scales] or [self.cells]
        ends = list(itertools.accumulate(rows))
        return [slice(end - number, end) for number, end in zip(rows, ends, strict=True)]

    @property
    def flow(self) -> FlowWindow | None:
        """The window, if it is one of optical flow."""
        return self.window if isinstance(self.window, FlowWindow) else None

    @property
    def clip(self) -> ClipWindow | None:
        """The window, if it is one of a clip, which a network of clips reads."""
        return self.window if isinstance(self.window, ClipWindow) else None

    @property
    def num_descriptors(self) -> int:
        """Number of descriptors of a frame, all views together."""
        return self.views * self.cells

    def describe(self, maps: Tensor, indices: Tensor) -> Tensor:
        """Return descriptors [k, T, C] of one view at one scale.

        The values of a global node stay as the network gives them.

        Args:
            maps: of the node, [u, channels, h, w], for u source frames or u stacks of flow.
            indices: int64 [k, n], the maps that `window` reads for each of k sampled frames; for
                flow that of the stack, n = 1.
        """
        if self.kind == "difference":
            return self._difference(maps, indices)
        current = maps[indices[:, -1]]
        if self.kind == "appearance":
            return appearance(current, self.scaling, self.spp_levels)
        if self.kind in ("positions", "dense"):
            return positions(current, self.scaling)
        return current.flatten(1).unsqueeze(1)

    def describe_clips(self, maps: Tensor) -> Tensor:
        """Return descriptors [k, T, C] of the maps [k, C, t, h, w] of k clips: each place and time
        in turn, or cells of the spatial pyramid over all times, over the first and the second half
        of them: the maxima, as in space."""
        scaled = scale(maps, self.scaling)
        if self.clip is not None and self.clip.pools:
            parts = [scaled[:, :, times].amax(2) for times in _parts_of_time(maps.shape[2])]
            return torch.cat([pyramid_pool(part, self.spp_levels) for part in parts], 1)
        return scaled.flatten(2).transpose(1, 2).contiguous()

    def _difference(self, maps: Tensor, indices: Tensor) -> Tensor:
        signed = rank_pooled(maps, indices)
        if self.scaling in ("per_position", "none"):
            return pyramid_pool(scale(signed_parts(signed), self.scaling), self.spp_levels)
        # The factor is the same for a whole map, and parts are not below 0: so both steps can come
        # after the pooling, which leaves fewer values.
        if self.scaling == "relative":
            length = maps.flatten(1).norm(dim=1)[indices].mean(1)
        else:
            length = signed.flatten(1).norm(dim=1)
        pooled = [pyramid_pool(part, self.spp_levels) for part in (signed, -signed)]
        return over_length(torch.cat(pooled, 2).clamp_min(0), length)


_KIND_OF = {"rank": "difference", "flow": "appearance", "clip": "dense"}
"""Kinds of the streams of those entries of describe.streams whose kind has another name."""


def _vector_entries(entries: list[tuple[str, StreamSpec]]) -> list[tuple[str, StreamSpec]]:
    """Return the entries of a node without spatial extent: the frame's values, and each flow's."""
    flows = [(kind, spec) for kind, spec in entries if kind == "flow"]
    return [("global", StreamSpec()), *flows] if len(entries) > len(flows) else flows


def _parts_of_time(times: int) -> list[slice]:
    """Return all times and both halves, which share the middle one of an odd number."""
    halves = [slice(0, (times + 1) // 2), slice(times // 2, times)] if times > 1 else []
    return [slice(0, times), *halves]


def clip_streams(
    shapes: Sequence[tuple[str, ClipSpec, tuple[int, int, int, int]]],
    scaling: str,
    levels: tuple[int, ...],
    views: int = 1,
) -> dict[str, Stream]:
    """Return {name: stream} of networks of clips, such as layer4_clip_gap2x16.

    Args:
        shapes: node, fields and (C, t, h, w) of each entry of describe.streams and its nodes.
        scaling: of entries without one.

    Raises:
        ValueError: two streams would have the same name.
    """
    streams: dict[str, Stream] = {}
    for node, spec, (channels, times, height, width) in shapes:
        name = f"{re.sub('[^0-9A-Za-z]+', '_', node)}_clip{spec.suffix}"
        if name in streams:
            raise ValueError(f"describe.streams: expected each clip once, got two of {name}")
        pooled = num_cells(levels) * len(_parts_of_time(times))
        streams[name] = Stream(
            name=name,
            node=node,
            kind=_KIND_OF["clip"],
            cells=pooled if spec.window.pools else times * height * width,
            width=channels,
            window=spec.window,
            scaling=spec.scaling or scaling,
            spp_levels=levels,
            views=views,
        )
    return streams


def streams_of(
    shapes: dict[str, tuple[int, int, int]],
    entries: Sequence[tuple[str, StreamSpec, Sequence[str]]],
    scaling: str,
    levels: tuple[int, ...],
    views: int = 1,
    smaller: Sequence[dict[str, tuple[int, int, int]]] = (),
    sides_px: Sequence[int] = (0,),
) -> dict[str, Stream]:
    """Return {name: stream}, node by node; a name is for example features_12_appearance.

    Args:
        shapes: {node: (C, h, w)}, in the order of the streams.
        entries: kind, fields and nodes of each entry of describe.streams.
        scaling: of entries without one.
        smaller: the shapes at smaller sizes of the picture, smallest first.
        sides_px: the sides of the picture at all sizes.

    Raises:
        ValueError: two streams would have the same name, or a vector has only differences.
    """
    streams: dict[str, Stream] = {}
    for node, (channels, height, width) in shapes.items():
        is_global = height * width == 1
        node_entries = [(kind, spec) for kind, spec, nodes in entries if node in nodes]
        if is_global:
            if node_entries and all(kind in ("difference", "rank") for kind, _ in node_entries):
                raise ValueError(
                    f"describe.streams: expected a {node_entries[0][0]} of a node with maps, "
                    f"got {node}, which gives a vector; name a node before the pooling of the "
                    "network, or have its appearance"
                )
            node_entries = _vector_entries(node_entries)
        for entry, spec in node_entries:
            window = spec.window
            name = f"{re.sub('[^0-9A-Za-z]+', '_', node)}_{entry}{spec.suffix}"
            if is_global and entry == "flow":
                name += "_global"
            if name in streams:
                raise ValueError(
                    "describe.streams: expected names of streams that differ in letters and "
                    f"digits, got {name} of {streams[name].node!r} and {node!r}; leave one of them "
                    "out, or to another run"
                )
            kind = "global" if is_global else _KIND_OF.get(entry, entry)
            input_channels = channels
            if isinstance(window, FlowWindow) and node == INPUT:
                input_channels = max(channels, window.num_channels)
            sizes = [at[node][1:] for at in smaller] + [(height, width)]
            scales = tuple(
                Scale(side_px, h * w, h, w)
                if kind in ("positions", "dense", "global")
                else Scale(side_px, num_cells(levels))
                for side_px, (h, w) in zip(sides_px, sizes, strict=True)
            )
            streams[name] = Stream(
                name=name,
                node=node,
                kind=kind,
                cells=sum(scale.rows for scale in scales),
                width=input_channels * (2 if kind == "difference" else 1),
                window=window,
                scaling=spec.scaling or scaling,
                spp_levels=levels,
                views=views,
                scales=scales,
            )
    return streams
