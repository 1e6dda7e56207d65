"""The Ray callable that turns frames into descriptors, and what it makes.

Arrow table in, Arrow table out, one object per actor; an ordinary class that works without Ray. The only stage
that loads the network, and with it torchvision, whose import takes as long as torch's.
"""

import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from encoders import backbones
from encoders.descriptors import Stream, streams_of
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
    describe = config.describe
    try:
        shapes = backbones.node_shapes(describe.backbone, describe.nodes, config.picture.crop_px)
        return streams_of(shapes, describe.streams, describe.spp_levels)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        raise ConfigError(
            f"picture.crop_px: {describe.backbone} does not take {config.picture.crop_px} px: {error}"
        ) from error


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
        self.settings, self.crop_px = config.describe, config.picture.crop_px
        self.streams, self.meter = streams, meter
        meter.joined("describe")
        self.device = device(meter, config.cluster.allow_missing_gpu)
        if self.device == "cpu":
            torch.set_num_threads(num_threads)
        self.use(
            backbones.build(self.settings.backbone, self.settings.nodes, weights(), self.device)
        )

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
        counts = batch["num_images"].to_pylist()
        images = np.concatenate([self._images(value) for value in batch["images"]])
        failed = [status == "failed" for status in batch["status"].to_pylist()]
        maps = {} if all(failed) else self._maps(torch.from_numpy(images))
        starts = np.cumsum([0, *counts])
        columns: dict[str, list[np.ndarray | None]] = {name: [] for name in self.streams}
        halo = batch["has_predecessor"].to_pylist()
        for place, (start, count) in enumerate(zip(starts, counts, strict=False)):
            for name, stream in self.streams.items():
                own = None if failed[place] else maps[stream.node][start : start + count]
                columns[name].append(self._describe(own, stream, halo[place]))
        table = batch.drop_columns(["images", "num_images", "has_predecessor"])
        frames = [count - has for count, has in zip(counts, halo, strict=True)]
        table = table.append_column("num_frames", pa.array(frames, pa.int32()))
        for name, rows in columns.items():
            table = table.append_column(name, descriptors_to_arrow(rows, self.streams[name].width))
        kinds = {name: descriptor_type(stream.width) for name, stream in self.streams.items()}
        schema = DESCRIPTORS.schema(**kinds)
        return table.select(schema.names).cast(schema)

    def _images(self, value: pa.LargeBinaryScalar) -> np.ndarray:
        buffer = value.as_buffer()
        return np.frombuffer(buffer, np.uint8).reshape(-1, self.crop_px, self.crop_px, 3)

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
        trial = torch.zeros(8, self.crop_px, self.crop_px, 3, dtype=torch.uint8)
        self.backbone.maps(trial)
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        self.backbone.maps(trial)
        frame_bytes = (torch.cuda.max_memory_allocated() - held) / len(trial)
        free_bytes, _ = torch.cuda.mem_get_info()
        return max(1, min(MOST_FRAMES, int(free_bytes / 2 / frame_bytes)))

    def _describe(
        self, maps: torch.Tensor | None, stream: Stream, has_predecessor: bool
    ) -> np.ndarray | None:
        if maps is None:
            return None
        if stream.kind != "difference":
            maps = maps[int(has_predecessor) :]
        rows = stream.describe(maps, self.settings.scaling, self.settings.spp_levels)
        return rows.flatten(0, 1).half().cpu().numpy()
