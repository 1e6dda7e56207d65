"""Index: videos and labels to VIDEOS and SEGMENTS."""

import logging

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cluster import pools, sink
from pipelines.cluster.datasets import dataset, progress_line, write_tables
from pipelines.index import current_rows
from pipelines.ledger.accounts import Account, Spent, settle
from pipelines.run.job import Job
from pipelines.storage.columns import file_name, names
from pipelines.storage.tables import ROWS_PER_FILE, SEGMENTS, VIDEOS
from pipelines.video import stages

log = logging.getLogger(__name__)


def index(job: Job) -> tuple[Account, Spent]:
    """Publish VIDEOS and SEGMENTS: headers are probed, and rows of unchanged files kept."""
    unchanged = current_rows.known_videos(job)
    if job.store.files(job.videos):
        # Their segments may be gone.
        there = _without(job.store.read_table(job.videos), unchanged)
        unchanged = pa.concat_tables([unchanged, there.cast(unchanged.schema)])
    fresh = _without(job.manifest, unchanged)
    log.debug("index: %d videos, %d of them to probe", job.manifest.num_rows, fresh.num_rows)
    outputs = [
        sink.Output(
            SEGMENTS,
            job.segments,
            job.footer("index"),
            stages.plan_segments,
            sink.visible_videos(fresh, job.store, job.segments),
        ),
        sink.Output(VIDEOS, job.videos, job.footer("index")),
    ]
    _publish_known(job, unchanged, outputs)
    pool = pools.pools(job.config.cluster).decode.fitting(fresh.num_rows)
    line = progress_line(job, "index", fresh.num_rows, {("probe",): pool})
    data = dataset(fresh, 64).map_batches(
        stages.ProbeVideos,
        fn_constructor_args=(job.config.sampling, job.config.decode, line.meter),
        **pool.options(batch_size=64),
    )
    spent = write_tables(job, line, data, outputs, rows_per_file=ROWS_PER_FILE["videos"])
    videos = job.store.read_table(job.videos, ["video_id", "status"])
    failed = videos.filter(pc.equal(videos["status"], "failed"))
    account = settle(
        "index", "videos", names(job.manifest), names(videos) - names(failed), names(failed)
    )
    return account, spent


def _without(rows: pa.Table, videos: pa.Table) -> pa.Table:
    return rows.filter(pc.invert(pc.is_in(rows["video_id"], videos["video_id"])))


def _publish_known(job: Job, unchanged: pa.Table, outputs: list[sink.Output]) -> None:
    """Publish into each output the rows of known videos that it does not have."""
    for output in outputs:
        rows = sink.pending(unchanged, job.store, output.folder, ("video_id",))
        if rows.num_rows:
            table = output.select(rows)
            name = file_name(table, output.table.key)
            job.store.publish_table(f"{output.folder}/{name}", table, output.footer)
