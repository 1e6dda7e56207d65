"""Describe: SEGMENTS to DESCRIPTORS and FAILURES."""

import dataclasses
import logging

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cluster import pools as cluster_pools
from pipelines.cluster import sink
from pipelines.cluster.broadcast import SharedFile
from pipelines.cluster.datasets import (
    SEGMENTS_PER_FILE,
    compact,
    describing,
    progress_line,
    write_tables,
)
from pipelines.describe import stage
from pipelines.describe.projection import fit_projection
from pipelines.index import current_rows
from pipelines.ledger.accounts import Account, Spent, merged, settle
from pipelines.run.job import Job
from pipelines.storage.columns import names
from pipelines.storage.tables import DESCRIPTORS, FAILURES
from pipelines.video import stages as video_stages

log = logging.getLogger(__name__)


def describe(job: Job) -> tuple[Account, Spent]:
    """Publish DESCRIPTORS: frames are decoded once, and all streams of all nodes written
    together.
    """
    job.weights.keep(job.store)
    plan = current_rows.segment_plan(job)
    rows = current_rows.to_describe(job, plan)
    before = fit_projection(job, plan)
    log.debug("describe: %d segments, %d of them to describe", plan.num_rows, rows.num_rows)
    if rows.num_rows:
        job.unmark(job.descriptors)
    pools, config = cluster_pools.pools(job.config.cluster).fitting(rows.num_rows), job.config
    stages = ("read", "decode")
    watched = {(*stages, "describe"): pools.describe}
    if not pools.together:
        watched = {stages: pools.decode, ("describe",): pools.describe}
    line = progress_line(job, "describe", rows.num_rows, watched)
    windows = config.describe.windows
    decoding = (config.sampling, config.picture, config.decode, line.meter, windows, True)
    weights = SharedFile.of(job.store, job.weights.file)
    network = (weights, config, job.described, pools.describe.num_threads, line.meter)
    if job.projection:
        network = (*network, SharedFile.of(job.store, job.projection))
    data = describing(
        rows,
        config,
        pools,
        (video_stages.DecodeSegments, decoding),
        (stage.DescribeFrames, network),
    )
    outputs = [sink.Output(DESCRIPTORS, job.descriptors, job.footer("describe"))]
    spent = merged(
        [before, write_tables(job, line, data, outputs, rows_per_file=SEGMENTS_PER_FILE)]
    )
    account = _write_failures(job, plan)
    frame_bytes = sum(
        2.0 * stream.cells * stream.views * stream.width for stream in job.described.values()
    )
    compact(job, DESCRIPTORS, job.descriptors, ("num_frames", frame_bytes))
    return account, dataclasses.replace(spent, on_gpu=pools.describe.num_gpus > 0)


def _write_failures(job: Job, plan: pa.Table) -> Account:
    """Publish FAILURES: the rows of DESCRIPTORS that are not ok."""
    columns = [column.name for column in FAILURES.columns]
    rows = current_rows.current(plan, job.store.read_table(job.descriptors, columns))
    bad = rows.filter(pc.not_equal(rows["status"], "ok")).sort_by("segment_id")
    failed = bad.filter(pc.equal(bad["status"], "failed"))
    named = [names(part, "segment_id") for part in (plan, rows, failed)]
    account = settle("describe", "segments", named[0], named[1] - named[2], named[2])
    job.store.publish_table(
        f"{job.failures}/failures.parquet", bad.cast(FAILURES.schema()), job.footer("describe")
    )
    return account
