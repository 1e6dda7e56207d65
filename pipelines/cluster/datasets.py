"""Ray Data for the steps: the rows of a table in blocks, through pools of actors, into other
tables.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import ray
from ray.data import Dataset
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from pipelines.cluster import connect, sink
from pipelines.cluster import pools as cluster_pools
from pipelines.cluster.broadcast import task_errors
from pipelines.cluster.pools import Growth
from pipelines.cluster.progress import ProgressLine
from pipelines.errors import RunError
from pipelines.ledger import compaction
from pipelines.ledger.accounts import Spent
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.storage.columns import Table
from pipelines.storage.store import Store
from pipelines.storage.tables import ROWS_PER_FILE

SEGMENTS_PER_FILE = ROWS_PER_FILE["descriptors"]
"""Fewest rows of a file of DESCRIPTORS, tens of megabytes of a network's last layer; also the most
of a decoding task.
"""

BATCHES_PER_TASK = 8
"""Most batches of videos in an encoding task."""


def dataset(rows: pa.Table, rows_per_block: int) -> Dataset:
    """Return a dataset of blocks of so many rows: small blocks spread the work, and a lost task
    costs little.
    """
    parts = [rows.slice(i, rows_per_block) for i in range(0, max(1, rows.num_rows), rows_per_block)]
    return ray.data.from_arrow([part.combine_chunks() for part in parts])


def describing(
    rows: pa.Table,
    config: Config,
    pools: cluster_pools.Pools,
    decoder: tuple[type, tuple],
    network: tuple[type, tuple],
) -> Dataset:
    """Map segments to rows of DESCRIPTORS, by the decoders and the networks.

    Args:
        decoder, network: the two stages, each a class and its constructor's arguments.
    """
    # A CPU describes segment by segment: blocks need not be put together for it.
    on_gpu = pools.describe.num_gpus > 0
    if pools.together:
        size = segments_at_a_time(rows.num_rows, pools.describe.size)
        # With GPUs Ray Data wants a number.
        options = pools.describe.options(size if on_gpu else None)
        return dataset(rows, size).map_batches(
            Chain, fn_constructor_args=(decoder, network), **options
        )
    size = config.describe.batch_segments if on_gpu else None
    return (
        dataset(rows, segments_at_a_time(rows.num_rows, pools.decode.size))
        .map_batches(decoder[0], fn_constructor_args=decoder[1], **pools.decode.options(None))
        .map_batches(network[0], fn_constructor_args=network[1], **pools.describe.options(size))
    )


class Chain:
    """Two stages, each a class and its constructor's arguments, in one actor: nothing is copied
    between processes.
    """

    def __init__(self, first: tuple[type, tuple], second: tuple[type, tuple]) -> None:
        self.first, self.second = (kind(*arguments) for kind, arguments in (first, second))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for part in self.first(batch):
            yield self.second(part)


def segments_at_a_time(total: int, num_decoders: int) -> int:
    """Return the segments of a decoding task: few, so that work is spread evenly and the network
    starts soon; more where there are many segments, because each task costs milliseconds.
    """
    return min(SEGMENTS_PER_FILE, max(4, total // (64 * num_decoders)))


def batches_at_a_time(total: int, num_encoders: int) -> int:
    """Return the batches of videos in an encoding task: many hide the wait at its start, when
    nothing was read ahead; few spread the work evenly.
    """
    return min(BATCHES_PER_TASK, max(1, total // (8 * num_encoders)))


def progress_line(
    job: Job, step: str, total: int, pools: dict[tuple[str, ...], cluster_pools.Pool]
) -> ProgressLine:
    """Return the progress line of a step, which also warns where its pools stay too small.

    Args:
        total: rows that the step has to do.
        pools: as in `pipelines.cluster.pools.Growth`.
    """
    return ProgressLine(step, total, Growth(pools, job.config.cluster.grow_warning_s))


def write_tables(
    job: Job, line: ProgressLine, data: Dataset, outputs: list[sink.Output], *, rows_per_file: int
) -> Spent:
    """Run the pipeline into its tables, with a progress line.

    Raises:
        RunError: an actor says that the step cannot go on, or nothing has been done for too long.
    """
    if not line.total:
        return line.spent
    table_sink = sink.TableSink(job.store, outputs, line.counter, rows_per_file)
    cpus = cluster_pools.pools(job.config.cluster).write_cpus
    with running(job, line):
        data.write_datasink(table_sink, ray_remote_args={"num_cpus": cpus})
    return line.spent


@contextmanager
def running(job: Job, line: ProgressLine) -> Iterator[None]:
    """Show the progress line, and raise what ends a pipeline as a user's error.

    Raises:
        RunError: an actor says that the step cannot go on, or nothing has been done for too long.
    """
    settings = job.config.cluster
    try:
        with line:
            yield
    except (RayError, ExecutionTimeoutError) as error:
        if reason := line.failure():
            raise RunError(f"{line.step}: {reason}") from error
        if isinstance(error, ExecutionTimeoutError):
            raise RunError(f"{line.step}: {connect.stalled(settings)}") from error
        cause: BaseException | None = error
        while cause := getattr(cause, "cause", None) or cause.__cause__:
            if isinstance(cause, RunError):
                raise cause from error
        raise


def compact(job: Job, table: Table, folder: str, sized_by: tuple[str, float]) -> None:
    """Put the rows of the small files of a folder into few large ones, at least one for each node.

    To be called when all rows are there, and before the folder is marked as complete.

    Args:
        sized_by: see `pipelines.ledger.compaction.plan`.
    """
    store = job.store

    def replan() -> pa.Table | None:
        nodes = sum(node["Alive"] for node in ray.nodes())
        planned = compaction.plan(store, folder, table.key, sized_by, nodes)
        if planned is not None:
            # Marks of other videos' runs may name the files that go.
            job.unmark(folder)
        return planned

    def write_all(parts: list[pa.Table]) -> None:
        with task_errors(f"compaction of {folder}"):
            ray.get([_write_compacted.remote(store, part) for part in parts])

    compaction.compact(store, folder, replan, write_all)


@ray.remote(max_retries=3)
def _write_compacted(store: Store, part: pa.Table) -> None:
    compaction.write(store, part)
