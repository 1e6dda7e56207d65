"""Videos of a training, decoded by Ray Data in the order in which it asks for them: no picture is
stored (network.stream)."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import DataContext
from ray.data.collate_fn import ArrowBatchCollateFn

from pipelines.cluster import pools
from pipelines.cluster.datasets import dataset
from pipelines.errors import RunError
from pipelines.networks.clips import decoding
from pipelines.settings.config import Config
from pipelines.settings.sections import Network

EXAMPLES = 4096
"""Examples of one Ray Data run; the next one begins when they are learned."""

EXAMPLES_AT_A_TIME = 4
"""Of a task that decodes."""

Video = tuple[torch.Tensor, torch.Tensor | None]
"""Frames of a video, and the flow of its runs, as `encoders.networks.fit.ClipSample` has them."""


@dataclass(frozen=True, eq=False)
class Streamed:
    """Frames of a worker's training videos.

    Attributes:
        rows: of `pipelines.networks.clips.clip_plan`, a video each.
        counts: [v] kept frames of each video, as CLIPS say.
        stream: rgb or flow.
        num_workers: that share the cluster.
    """

    config: Config
    rows: pa.Table
    counts: list[int]
    stream: str
    learns_flow: bool
    num_workers: int

    def __call__(self, numbers: Iterator[int]) -> Iterator[Video]:
        """Yield the videos of these numbers, in their order."""
        while part := list(itertools.islice(numbers, EXAMPLES)):
            yield from self._decoded(part)

    def _decoded(self, numbers: list[int]) -> Iterator[Video]:
        context = DataContext.get_current()
        context.execution_options.preserve_order, context.enable_progress_bars = True, False
        data = dataset(self.rows.take(pa.array(numbers)), EXAMPLES_AT_A_TIME)
        pool = _pool(self.num_workers)
        stage, arguments = decoding(self.config)
        data = data.map_batches(
            stage, fn_constructor_args=arguments, **pool.options(batch_size=EXAMPLES_AT_A_TIME)
        )
        batches = data.iter_torch_batches(
            batch_size=EXAMPLES_AT_A_TIME, prefetch_batches=2, collate_fn=_Rows()
        )
        rest = iter(numbers)
        for batch in batches:
            for row in cast(list[dict], batch):
                yield self._video(row, next(rest))

    def _video(self, row: dict, number: int) -> Video:
        network = self.config.network
        video = self.rows["video_id"][number].as_py()
        count = len(row["frame_indices"]) if self.stream == "rgb" else row["num_flows"]
        if (row["video_id"], count) != (video, self.counts[number]):
            raise RunError(
                f"network.stream: expected the {self.counts[number]} frames of {video}, got "
                f"{count} of {row['video_id']} ({row['error']}); give the command again"
            )
        side = network.side_px
        shape = (-1, side, side, channels(network, self.stream))
        flows = None
        if self.learns_flow:
            flows = _tensor(row["flow"]).view(-1, side, side, 2 * (self.config.run_frames - 1))
        return _tensor(row[column(self.stream)]).view(shape), flows


class _Rows(ArrowBatchCollateFn):
    """Rows as they are: videos have frames of different numbers."""

    def __call__(self, batch: pa.Table) -> list[dict]:
        return batch.to_pylist()


def _tensor(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _pool(num_workers: int) -> pools.Pool:
    """Return the decoders of one of so many workers: they take the CPUs that workers leave."""
    own = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    left = ray.cluster_resources().get("CPU", 1) - num_workers * own
    size = max(1, int(left / num_workers))
    return pools.Pool(size, max(0.01, min(1, 0.9 * left / num_workers / size)))


def channels(network: Network, stream: str) -> int:
    """Return the channels of a frame: colours, or u and v of a stack of flows."""
    return 3 if stream == "rgb" else 2 * network.flow_stack


def column(stream: str) -> str:
    """Return the column of CLIPS with the frames of a stream."""
    return "pictures" if stream == "rgb" else "flow"
