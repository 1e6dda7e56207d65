"""The projection of descriptors before they are stored (describe.pca_components; FK 4.3).

A pass of its own describes some segments of training videos and keeps random rows of each. The
principal components of these are published once, and the main pass stores that many values.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from torch import Tensor

from encoders.codebooks.pca import Pca, fit_pca_of_parts
from encoders.descriptors.streams import Stream
from encoders.tensor_files import save_tensors
from pipelines.cluster import pools as cluster_pools
from pipelines.cluster import sink
from pipelines.cluster.broadcast import SharedFile, task_errors
from pipelines.cluster.datasets import SEGMENTS_PER_FILE, describing, progress_line, write_tables
from pipelines.cluster.meter import Meter
from pipelines.describe.stage import DescribeFrames
from pipelines.errors import RunError
from pipelines.ledger.accounts import Spent
from pipelines.ledger.marks import remove_folder
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.storage.columns import descriptors_from_arrow, descriptors_to_arrow
from pipelines.storage.store import Store
from pipelines.storage.tables import DESCRIPTORS
from pipelines.video.stages import DecodeSegments

log = logging.getLogger(__name__)

MOST_VIDEOS, ROWS_EACH = 1000, 256
"""So many training videos, and rows of a segment of each: FK's 256,000 descriptors."""


def fit_projection(job: Job, plan: pa.Table) -> Spent:
    """Publish the projection of all streams, unless it is there.

    Args:
        plan: the segments of the run.

    Raises:
        RunError: there are fewer rows than components.
    """
    if not job.projection or job.store.exists(job.projection):
        return Spent(0.0, ())
    folder = job.projection_rows
    rows = _chosen(job, plan)
    todo = sink.pending(rows, job.store, folder, ("segment_id", "source"))
    config, pools = job.config, cluster_pools.pools(job.config.cluster).fitting(todo.num_rows)
    line = progress_line(job, "projection", todo.num_rows, {("describe",): pools.describe})
    decoding = (config.sampling, config.picture, config.decode, line.meter)
    weights, raw = SharedFile.of(job.store, job.weights.file), unprojected(job.described)
    network = (weights, config, raw, pools.describe.num_threads, line.meter)
    data = describing(
        todo,
        config,
        pools,
        (DecodeSegments, (*decoding, config.describe.windows, True)),
        (DescribeRows, network),
    )
    outputs = [sink.Output(DESCRIPTORS, folder, job.footer("describe"))]
    spent = write_tables(job, line, data, outputs, rows_per_file=SEGMENTS_PER_FILE)
    files, number = job.store.files(folder), config.describe.pca_components
    with task_errors("describe"):
        fitted = ray.get([_fit.remote(job.store, files, name, number) for name in raw])
    tensors = {
        f"{n}/{key}": t for n, own in zip(raw, fitted, strict=True) for key, t in own.items()
    }
    job.store.publish(job.projection, save_tensors(tensors, "projection", {}))
    remove_folder(job.store, folder)
    return spent


def unprojected(streams: dict[str, Stream]) -> dict[str, Stream]:
    """Return the streams as they are before the projection."""
    return {name: stream.unprojected for name, stream in streams.items()}


def _chosen(job: Job, plan: pa.Table) -> pa.Table:
    """Return a segment of each of MOST_VIDEOS training videos, drawn with the seed."""
    allowed = job.training_videos(None)
    of_video: dict[str, tuple[str, int]] = {}
    columns = (plan[name].to_pylist() for name in ("video_id", "segment_id", "status"))
    for place, (video, segment, status) in enumerate(zip(*columns, strict=True)):
        if video in allowed and status != "failed":
            drawn = (_draw(job.config.run.seed, segment), place)
            of_video[video] = min(of_video.get(video, drawn), drawn)
    places = sorted(place for _, place in sorted(of_video.values())[:MOST_VIDEOS])
    return plan.take(pa.array(places, pa.int64()))


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\n{name}".encode()).hexdigest()


class DescribeRows:
    """A mapper of segments' frames to rows of DESCRIPTORS that have at most ROWS_EACH descriptors
    of each stream, drawn with the seed.
    """

    def __init__(
        self,
        weights: Callable[[], bytes],
        config: Config,
        streams: dict[str, Stream],
        num_threads: int,
        meter: Meter,
    ) -> None:
        self.describe = DescribeFrames(weights, config, streams, num_threads, meter)
        self.streams, self.seed = streams, config.run.seed

    def __call__(self, batch: pa.Table) -> pa.Table:
        table = self.describe(batch)
        segments = table["segment_id"].to_pylist()
        for name, stream in self.streams.items():
            columns = []
            for segment, cell in zip(segments, table[name], strict=True):
                rows = descriptors_from_arrow(cell)
                if rows is not None and len(rows) > ROWS_EACH:
                    draw = np.random.default_rng(int(_draw(self.seed, segment)[:16], 16))
                    rows = rows[np.sort(draw.choice(len(rows), ROWS_EACH, replace=False))]
                columns.append(rows)
            place = table.column_names.index(name)
            field, values = table.schema.field(name), descriptors_to_arrow(columns, stream.width)
            table = table.set_column(place, field, values)
        return table


@ray.remote
def _fit(store: Store, files: list[str], stream: str, number: int) -> dict[str, Tensor]:
    """Return the tensors of the projection of one stream."""

    def parts() -> Iterator[Tensor]:
        for file in files:
            with store.open_parquet(file) as table:
                column = pc.drop_null(table.read([stream])[stream])
            for cell in column:
                rows = descriptors_from_arrow(cell)
                if rows is not None and len(rows):
                    yield torch.from_numpy(rows.copy())

    try:
        return fit_pca_of_parts(parts(), number).tensors()
    except ValueError as error:
        raise RunError(f"describe.pca_components of {stream}: {error}") from error


def trial_projections(streams: dict[str, Stream]) -> bytes:
    """Return a file of projections that take as long as fitted ones, for a plan."""
    tensors = {}
    for name, stream in streams.items():
        components = torch.eye(stream.width, stream.raw_width)
        pca = Pca(torch.zeros(stream.raw_width), components, torch.ones(stream.width))
        tensors |= {f"{name}/{key}": tensor for key, tensor in pca.tensors().items()}
    return save_tensors(tensors, "projection", {})
