"""The Ray callable that turns frames into descriptors.

Arrow table in, Arrow table out, one object per actor; an ordinary class that works without Ray. The
only stage that loads the network, and with it torchvision, whose import takes as long as torch's.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from encoders.backbones import load
from encoders.backbones.flow_input import COLOURS
from encoders.codebooks.pca import Pca
from encoders.descriptors.streams import Stream, streams_of
from encoders.descriptors.views import mirrored_flow, mirrored_picture, views_of
from encoders.stream_specs import VIEWS, FlowWindow, Window
from encoders.tensor_files import load_tensors
from pipelines import logs
from pipelines.cluster.device import device
from pipelines.cluster.meter import SILENT, Meter
from pipelines.describe.clips import ClipNetwork, described_clips
from pipelines.errors import ConfigError
from pipelines.settings.config import Config
from pipelines.storage.columns import descriptor_type, descriptors_to_arrow
from pipelines.storage.tables import DESCRIPTORS

log = logging.getLogger(__name__)


def described_streams(config: Config) -> dict[str, Stream]:
    """Return {column of DESCRIPTORS: its stream}.

    Raises:
        ConfigError: the network has no such node, or does not take such pictures or stacks of flow.
    """
    describe, sides = config.describe, config.picture.sides
    size = sides[-1]
    try:
        named = functools.partial(load.expanded, describe.backbone, crop_px=size)
        nodes = named(describe.used_nodes)
        *smaller, shapes = (load.node_shapes(describe.backbone, nodes, side) for side in sides)
        entries = [
            (kind, spec, named(spec.nodes or describe.nodes))
            for kind, spec in describe.specs
            if kind != "clip"
        ]
        for window in describe.windows:
            if isinstance(window, FlowWindow) and channels_of(window) > COLOURS:
                load.check_stacks(describe.backbone, nodes, size, window.num_channels)
        levels, views = describe.spp_levels, VIEWS[config.picture.views]
        named_streams = streams_of(shapes, entries, describe.scaling, levels, views, smaller, sides)
        components = describe.pca_components
        projected = {name: stream.projected(components) for name, stream in named_streams.items()}
        return projected | described_clips(config, levels, views)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        raise ConfigError(
            f"picture.{'scales' if config.picture.scales else 'crop_px'}: {describe.backbone} does "
            f"not take {' or '.join(map(str, sides))} px: {error}"
        ) from error


def nodes_of(streams: dict[str, Stream]) -> dict[FlowWindow | None, tuple[str, ...]]:
    """Return the inputs of the network (None: pictures), and the nodes to compute of each; a
    network of clips has its own."""
    own = [stream for stream in streams.values() if not stream.clip]
    inputs = dict.fromkeys(stream.flow for stream in own)
    return {
        flow: tuple(dict.fromkeys(stream.node for stream in own if stream.flow == flow))
        for flow in inputs
    }


def channels_of(flow: FlowWindow | None) -> int:
    """Return the input channels of the network; a single flow goes through that of pictures."""
    return max(COLOURS, flow.num_channels if flow else COLOURS)


CPU_FRAMES = 4
"""Frames of a forward pass on a CPU: so few that activations stay in its caches and the allocator
keeps their memory.
"""

MOST_FRAMES = 256
"""Most frames of a forward pass on a GPU: more make it no faster."""


def projections(data: bytes) -> dict[str, Pca]:
    """Return {stream: its projection} of a file of `pipelines.describe.projection`."""
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_tensors(data).items():
        stream, _, key = name.partition("/")
        tensors.setdefault(stream, {})[key] = tensor
    found = {stream: Pca.from_tensors(own) for stream, own in tensors.items()}
    return {stream: pca for stream, pca in found.items() if pca is not None}


def precision(name: str, on: str) -> torch.dtype:
    """Return the dtype of the forward pass by describe.precision, on cuda or cpu."""
    if name == "auto":
        return torch.float32 if on == "cpu" else torch.bfloat16
    return getattr(torch, name)


MAPS_BYTES = 64 * 2**20
"""Size of a node's maps in memory from which on descriptors are made of them at once, in parts of
this size.

Early layers give gigabytes a segment; deep ones of a whole segment are less, and described
together.
"""


class DescribeFrames:
    """A mapper of several segments' frames to DESCRIPTORS rows: one forward pass serves all nodes
    and streams of the pictures, and one those of each kind of optical flow.

    Args:
        weights: gives the network's, as `backbones.load_model` takes them. None: random filters,
            to learn how long a call takes.
        projection: gives the file of `pipelines.describe.projection`, where streams need one.

    Raises:
        ConfigError: streams need a projection, and there is none.
    """

    def __init__(
        self,
        weights: Callable[[], bytes] | None,
        config: Config,
        streams: dict[str, Stream],
        num_threads: int,
        meter: Meter = SILENT,
        projection: Callable[[], bytes] | None = None,
    ) -> None:
        logs.configure()
        self.settings, self.picture = config.describe, config.picture
        self.streams, self.meter = streams, meter
        meter.joined("describe")
        self.device = device(meter, config.cluster.allow_missing_gpu)
        if self.device == "cpu":
            torch.set_num_threads(num_threads)
        name, data = self.settings.backbone, weights() if weights else None
        self.clips = None
        if any(stream.clip for stream in streams.values()):
            dtype = precision(self.settings.precision, self.device)
            self.clips = ClipNetwork(data, self.settings, self.device, dtype)
        self.projections: dict[str, Pca] = {}
        if any(stream.raw_width for stream in streams.values()):
            if projection is None:
                raise ConfigError(
                    "describe.pca_components: expected the projection of the run, which is not at "
                    "hand here; name a video of the run instead of a file"
                )
            self.projections = {
                name: Pca(*(t.to(self.device) for t in (pca.mean, pca.components, pca.scale)))
                for name, pca in projections(projection()).items()
            }
        if data:
            cut = functools.partial(load.cut, name, load.load_model(name, data))
        else:
            cut = functools.partial(load.random_part, name)
        nodes_by_flow = nodes_of(self.streams)
        self.backbones = {
            flow: self._ready(cut(nodes, self.device, channels_of(flow)))
            for flow, nodes in nodes_by_flow.items()
        }
        self.batch_frames = self.settings.batch_frames or min(
            map(self._fitting_frames, nodes_by_flow), default=CPU_FRAMES
        )

    def _ready(self, backbone: load.Backbone) -> load.Backbone:
        network = backbone.network.to(precision(self.settings.precision, self.device))
        if self.settings.compile:
            network = torch.compile(network)
        return dataclasses.replace(backbone, network=network)

    def __call__(self, batch: pa.Table) -> pa.Table:
        with self.meter("describe"):
            if self.device != "cpu":
                return self._rows(batch)
            # Segment by segment: the last bits depend on the size of a forward pass, and must not
            # depend on how segments were dealt out. Fewer maps are held, too.
            return pa.concat_tables(self._rows(batch.slice(i, 1)) for i in range(len(batch)))

    def _rows(self, batch: pa.Table) -> pa.Table:
        with logs.naming(log, "describe", batch):
            return self._described(batch)

    def _described(self, batch: pa.Table) -> pa.Table:
        inputs = {flow: self._inputs(batch, flow) for flow in self.backbones}
        if self.clips:
            inputs[None] = inputs.get(None) or self._inputs(batch, None)
        starts = {flow: np.cumsum([0, *map(len, parts)]) for flow, parts in inputs.items()}
        read = [self._places(row) for row in batch["places"].to_pylist()]
        outputs, ends = {}, {}
        for name, stream in self.streams.items():
            windows = [indices[stream.window] for indices in read]
            ends[name] = np.cumsum([len(indices) for indices in windows])
            first = np.repeat(starts[stream.flow][:-1], [len(indices) for indices in windows])
            indices = np.concatenate(windows) + first[:, None]
            outputs[name] = _Descriptors(stream, indices, self.projections.get(name))
        own = [output for output in outputs.values() if not output.stream.clip]
        for flow, images in inputs.items():
            if flow in self.backbones:
                self._describe(np.concatenate(images), flow, own)
        if self.clips:
            clips = [output for output in outputs.values() if output.stream.clip]
            self.clips.describe(self._views(np.concatenate(inputs[None]), None), clips)
        table = batch.drop_columns(["images", "num_images", "places", "flows"])
        rows_by_stream = {
            name: np.split(output.rows, ends[name][:-1]) for name, output in outputs.items()
        }
        table, is_failed = _checked(table, rows_by_stream)
        frames = pc.list_value_length(table["frame_indices"])
        table = table.append_column("num_frames", frames.cast(pa.int32()))
        for name, stream in self.streams.items():
            columns = [
                None if failed else rows.reshape(-1, stream.width)
                for rows, failed in zip(rows_by_stream[name], is_failed, strict=True)
            ]
            table = table.append_column(name, descriptors_to_arrow(columns, stream.width))
        kinds = {name: descriptor_type(stream.width) for name, stream in self.streams.items()}
        schema = DESCRIPTORS.schema(**kinds)
        return table.select(schema.names).cast(schema)

    def _describe(
        self, images: np.ndarray, flow: FlowWindow | None, outputs: list["_Descriptors"]
    ) -> None:
        """Fill in the descriptors of these images, of all segments.

        Maps are held as long as a window needs them.
        """
        if not len(images):
            return
        for scale, sized in enumerate(self._sizes(images)):
            # Larger pictures take more memory each.
            area = (self.picture.sides[scale] / self.picture.sides[0]) ** 2
            most = max(1, int(self.batch_frames / area))
            for view, pictures in enumerate(self._views(sized, flow)):
                nodes = {
                    node: _Maps(
                        [d for d in outputs if (d.stream.node, d.stream.flow) == (node, flow)],
                        view,
                        scale,
                    )
                    for node in self.backbones[flow].nodes
                }
                for part in pictures.split(most):
                    for node, maps in self._forward(part, flow, most).items():
                        nodes[node].add(maps)
                for node_maps in nodes.values():
                    node_maps.describe()

    def _sizes(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the pictures [u, side, side, c] at each scale."""
        if not self.picture.scales:
            yield images
            return
        first = 0
        for side in self.picture.scales:
            rows = images[:, 0, first : first + side**2]
            yield rows.reshape(len(images), side, side, -1)
            first += side**2

    def _places(self, flat: list[list[int]]) -> dict[Window, np.ndarray]:
        """Return the images that each window reads for the segment's frames, [k, num_read] indices;
        none of a failed one.
        """
        # A failed segment has no lists. Any: the filler never stands for a window.
        none = cast(Any, [])
        return {
            window: np.array(indices, np.int64).reshape(-1, window.num_read)
            for window, indices in itertools.zip_longest(
                self.settings.windows, flat, fillvalue=none
            )
        }

    def _inputs(self, batch: pa.Table, flow: FlowWindow | None) -> list[np.ndarray]:
        """Return uint8 [u, *decoded_shape, c] of each segment: its pictures, or its stacks of
        flow.
        """
        shape, channels = self.picture.decoded_shape, flow.num_channels if flow else COLOURS
        values = batch["images"]
        if flow:
            index = [w for w in self.settings.windows if isinstance(w, FlowWindow)].index(flow)
            failed = pa.scalar(b"", pa.large_binary())
            values = [row[index] if len(row) else failed for row in batch["flows"]]
        buffers = (np.frombuffer(value.as_buffer(), np.uint8) for value in values)
        return [buffer.reshape(-1, *shape, channels) for buffer in buffers]

    def _views(self, images: np.ndarray, flow: FlowWindow | None) -> Iterator[torch.Tensor]:
        mirrored = mirrored_flow if flow else mirrored_picture
        kind = self.picture.views
        crop_px = images.shape[1] if self.picture.scales else self.picture.crop_px
        return views_of(torch.from_numpy(images), kind, crop_px, mirrored)

    def _forward(
        self, images: torch.Tensor, flow: FlowWindow | None, most: int
    ) -> dict[str, torch.Tensor]:
        count = len(images)
        if self.settings.compile and count < most:
            # Another size would be compiled anew.
            padding = images.new_zeros(most - count, *images.shape[1:])
            images = torch.cat([images, padding])
        return {node: maps[:count] for node, maps in self._run(images, flow).items()}

    def _run(self, images: torch.Tensor, flow: FlowWindow | None) -> dict[str, torch.Tensor]:
        backbone = self.backbones[flow]
        return backbone.flow_maps(images) if flow else backbone.maps(images)

    def _fitting_frames(self, flow: FlowWindow | None) -> int:
        """Return the number of frames, of the smallest scale, in a forward pass that take half of
        the GPU's free memory, at most MOST_FRAMES.
        """
        if self.device == "cpu":
            return CPU_FRAMES
        size = self.picture.sides[0]
        channels = flow.num_channels if flow else COLOURS
        trial = torch.zeros(8, size, size, channels, dtype=torch.uint8)
        self._run(trial, flow)
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        self._run(trial, flow)
        frame_bytes = (torch.cuda.max_memory_allocated() - allocated) / len(trial)
        free_bytes, _ = torch.cuda.mem_get_info()
        return max(1, min(MOST_FRAMES, int(free_bytes / 2 / frame_bytes)))


def _checked(
    table: pa.Table, rows_by_stream: dict[str, list[np.ndarray]]
) -> tuple[pa.Table, list[bool]]:
    """Return the rows of segments, and which of them have failed.

    One whose descriptors hold NaN or infinity fails here, and is named: one such value would end
    the fit of every codebook, which cannot say where it came from.

    Args:
        rows_by_stream: {stream: the descriptors of each segment}.
    """
    rows = table.to_pylist()
    for place, row in enumerate(rows):
        odd = [name for name, parts in rows_by_stream.items() if not _is_finite(parts[place])]
        if odd and row["status"] != "failed":
            row |= {
                "status": "failed",
                "stage": "describe",
                "error_type": "not_finite",
                "error": f"descriptors of {', '.join(odd)}: expected numbers, got NaN or infinity "
                "(float16 ends at 65504); look at the weights and describe.precision",
                "num_missing": 0,
                "frame_indices": [],
                "timestamps_s": [],
            }
            logs.of_video(log, row).warning("describe failed: %s", row["error"])
    return pa.Table.from_pylist(rows, table.schema), [row["status"] == "failed" for row in rows]


def _is_finite(rows: np.ndarray) -> bool:
    """Return whether float16 values are numbers: by their bits, which is ten times as fast."""
    return bool((rows.view(np.uint16) & 0x7C00 != 0x7C00).all())


class _Descriptors:
    """The descriptors of one stream, for all segments of a call.

    Args:
        indices: int64 [k, n], the images that each window reads, among those of all segments.

    Attributes:
        rows: float16 [k, V, T, C] of V views.
        starts, stops: int64 [k]: window i and those after it read no image before starts[i], window
            i and those before it none from stops[i] on.
    """

    def __init__(self, stream: Stream, indices: np.ndarray, pca: Pca | None = None) -> None:
        self.stream, self.indices, self.pca = stream, indices, pca
        self.rows = np.empty((len(indices), stream.views, stream.cells, stream.width), np.float16)
        self.starts = np.minimum.accumulate(indices.min(1)[::-1])[::-1]
        self.stops = np.maximum.accumulate(indices.max(1)) + 1


class _Maps:
    """One view's maps of a node at one scale, from when they come until no window reads them any
    more.
    """

    def __init__(self, outputs: list[_Descriptors], view: int, scale: int = 0) -> None:
        self.outputs, self.view, self.scale = outputs, view, scale
        self.done = [0] * len(outputs)
        self.start, self.stop, self.most = 0, 0, 1
        self.parts: list[torch.Tensor] = []

    def add(self, maps: torch.Tensor) -> None:
        """Take the maps [f, C, h, w] of the next images; make descriptors where many are held."""
        self.parts.append(maps)
        self.stop += len(maps)
        self.most = max(1, MAPS_BYTES // maps[0].nbytes)
        if sum(part.nbytes for part in self.parts) > MAPS_BYTES:
            self.describe()

    def describe(self) -> None:
        """Make the descriptors whose maps have all come, and drop maps that nothing more reads."""
        needed = [self._describe(output, i) for i, output in enumerate(self.outputs)]
        if (first := min(needed)) > self.start:
            # A copy: a part of a tensor would keep all of it.
            self.parts = [self._between(first, self.stop)] if first < self.stop else []
            self.start = first

    def _describe(self, output: _Descriptors, i: int) -> int:
        """Make the descriptors of one stream; return the first image from which on it needs all."""
        ready = int(np.searchsorted(output.stops, self.stop, side="right"))
        while (first := self.done[i]) < ready:
            start = output.starts[first]
            near = int(np.searchsorted(output.stops, start + self.most, side="right"))
            end = min(max(near, first + 1), ready)
            maps = self._between(start, output.stops[end - 1])
            indices = torch.from_numpy(output.indices[first:end] - start).to(maps.device)
            rows = output.stream.describe(maps, indices)
            if output.pca:
                rows = output.pca.transform(rows.float())
            own = output.rows[first:end, self.view, output.stream.spans[self.scale]]
            own[:] = rows.half().cpu().numpy()
            self.done[i] = end
        return min([self.stop, *output.starts[ready : ready + 1]])

    def _between(self, start: int, stop: int) -> torch.Tensor:
        """Return a copy of the maps of images start to stop - 1."""
        parts, start_of_part = [], self.start
        for part in self.parts:
            parts.append(part[max(0, start - start_of_part) : max(0, stop - start_of_part)])
            start_of_part += len(part)
        return torch.cat([part for part in parts if len(part)])
