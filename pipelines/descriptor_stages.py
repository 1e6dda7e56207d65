"""The Ray callable that turns frames into descriptors, and what it makes.

Arrow table in, Arrow table out, one object per actor; an ordinary class that works without Ray. The only stage
that loads the network, and with it torchvision, whose import takes as long as torch's.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from encoders import backbones
from encoders.descriptors import Stream, streams_of
from encoders.stream_specs import VIEWS, Window
from encoders.views import views_of
from pipelines import logs
from pipelines.config import Config, ConfigError
from pipelines.device import device
from pipelines.meter import SILENT, Meter
from pipelines.tables import DESCRIPTORS, descriptor_type, descriptors_to_arrow

log = logging.getLogger(__name__)


def described_streams(config: Config) -> dict[str, Stream]:
    """{column of DESCRIPTORS: what it holds}.

    Raises:
        ConfigError: the network has no such node, or does not take such pictures.
    """
    describe, size = config.describe, config.picture.crop_px
    try:
        named = functools.partial(backbones.expanded, describe.backbone, crop_px=size)
        shapes = backbones.node_shapes(describe.backbone, named(describe.used_nodes), size)
        entries = [
            (kind, spec, named(spec.nodes or describe.nodes)) for kind, spec in describe.specs
        ]
        levels, views = describe.spp_levels, VIEWS[config.picture.views]
        return streams_of(shapes, entries, describe.scaling, levels, views)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        raise ConfigError(
            f"picture.crop_px: {describe.backbone} does not take {config.picture.crop_px} px: {error}"
        ) from error


def nodes_of(streams: dict[str, Stream]) -> tuple[str, ...]:
    """The nodes that the network must give."""
    return tuple(dict.fromkeys(stream.node for stream in streams.values()))


CPU_FRAMES = 4
"""Of a forward pass on a CPU: what the layers hand on stays in its caches, and the allocator keeps the memory."""

MOST_FRAMES = 256
"""Of a forward pass on a GPU: more make it no faster."""


def precision(name: str, on: str) -> torch.dtype:
    """The dtype of the forward pass by describe.precision, on cuda or cpu."""
    if name == "auto":
        return torch.float32 if on == "cpu" else torch.bfloat16
    return getattr(torch, name)


class DescribeFrames:
    """Frames of several segments to DESCRIPTORS rows: one forward pass serves all nodes and streams.

    Args:
        weights: gives the network's, as `backbones.build` takes them.
    """

    def __init__(
        self,
        weights: Callable[[], bytes],
        config: Config,
        streams: dict[str, Stream],
        num_threads: int,
        meter: Meter = SILENT,
    ) -> None:
        logs.configure()
        self.settings, self.picture = config.describe, config.picture
        self.streams, self.meter = streams, meter
        meter.joined("describe")
        self.device = device(meter, config.cluster.allow_missing_gpu)
        if self.device == "cpu":
            torch.set_num_threads(num_threads)
        nodes = nodes_of(streams)
        self.use(backbones.build(self.settings.backbone, nodes, weights(), self.device))

    def use(self, backbone: backbones.Backbone) -> None:
        """Makes this the network, as the settings want it."""
        network = backbone.network.to(precision(self.settings.precision, self.device))
        if self.settings.compile:
            network = torch.compile(network)
        self.backbone = dataclasses.replace(backbone, network=network)
        self.batch_frames = self.settings.batch_frames or self._fitting_frames()

    def __call__(self, batch: pa.Table) -> pa.Table:
        with self.meter("describe"):
            if self.device != "cpu":
                return self._rows(batch)
            # Segment by segment: the last bits depend on the size of a forward pass, hence would on how segments
            # were dealt out; and fewer maps are held.
            return pa.concat_tables(self._rows(batch.slice(i, 1)) for i in range(len(batch)))

    def _rows(self, batch: pa.Table) -> pa.Table:
        with logs.naming(log, "describe", batch):
            return self._described(batch)

    def _described(self, batch: pa.Table) -> pa.Table:
        images = np.concatenate([self._images(value) for value in batch["images"]])
        failed = [status == "failed" for status in batch["status"].to_pylist()]
        starts = np.cumsum([0, *batch["num_images"].to_pylist()])
        read = [self._places(row) for row in batch["places"].to_pylist()]
        found: dict[str, list[list[np.ndarray]]] = {
            name: [[] for _ in failed] for name in self.streams
        }
        # One view after the other: the maps of one alone are held, and a difference is within it.
        for view in views_of(torch.from_numpy(images), self.picture.views, self.picture.crop_px):
            maps = {} if all(failed) else self._maps(view)
            for row in (row for row, is_failed in enumerate(failed) if not is_failed):
                for name, stream in self.streams.items():
                    own = maps[stream.node][starts[row] : starts[row + 1]]
                    rows = stream.describe(own, read[row][stream.window].to(own.device))
                    found[name][row].append(rows.half().cpu().numpy())
        table = batch.drop_columns(["images", "num_images", "places"])
        frames = pc.list_value_length(batch["frame_indices"])
        table = table.append_column("num_frames", frames.cast(pa.int32()))
        for name, rows in found.items():
            width = self.streams[name].width
            columns = [np.stack(views, 1).reshape(-1, width) if views else None for views in rows]
            table = table.append_column(name, descriptors_to_arrow(columns, width))
        kinds = {name: descriptor_type(stream.width) for name, stream in self.streams.items()}
        schema = DESCRIPTORS.schema(**kinds)
        return table.select(schema.names).cast(schema)

    def _places(self, flat: list[list[int]]) -> dict[Window, torch.Tensor]:
        """What each window reads for the segment's frames, places among its images [k, num_frames]."""
        return {
            window: torch.tensor(places, dtype=torch.int64).view(-1, window.num_frames)
            for window, places in zip(self.settings.windows, flat, strict=False)
        }

    def _images(self, value: pa.LargeBinaryScalar) -> np.ndarray:
        side = self.picture.decoded_px
        return np.frombuffer(value.as_buffer(), np.uint8).reshape(-1, side, side, 3)

    def _maps(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = [self._forward(part) for part in images.split(self.batch_frames)]
        return {node: torch.cat([part[node] for part in parts]) for node in parts[0]}

    def _forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        count = len(images)
        if self.settings.compile and count < self.batch_frames:
            # Another size would be compiled anew.
            rest = images.new_zeros(self.batch_frames - count, *images.shape[1:])
            images = torch.cat([images, rest])
        return {node: maps[:count] for node, maps in self.backbone.maps(images).items()}

    def _fitting_frames(self) -> int:
        """Frames of a forward pass that take half of the GPU's free memory, at most MOST_FRAMES."""
        if self.device == "cpu":
            return CPU_FRAMES
        size = self.picture.crop_px
        trial = torch.zeros(8, size, size, 3, dtype=torch.uint8)
        self.backbone.maps(trial)
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        self.backbone.maps(trial)
        frame_bytes = (torch.cuda.max_memory_allocated() - held) / len(trial)
        free_bytes, _ = torch.cuda.mem_get_info()
        return max(1, min(MOST_FRAMES, int(free_bytes / 2 / frame_bytes)))
