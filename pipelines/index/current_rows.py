"""Current rows of the tables: of planned videos and segments, of their present files, by their last
attempt.

Tables keep the rows of files that have changed, of other videos and of earlier attempts; the steps
read past them through here.
"""

from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger.accounts import Outcome
from pipelines.run.job import Job
from pipelines.storage.columns import places_of
from pipelines.storage.store import Store
from pipelines.storage.tables import VIDEOS
from pipelines.video import stages
from pipelines.video.header import VideoFacts

ROWS_AT_A_TIME = 10_000
"""Rows of VIDEOS that the driver makes together."""


def known_videos(job: Job) -> pa.Table:
    """Return VIDEOS rows of an earlier index whose files have not changed, with today's labels and
    plan.
    """
    empty = VIDEOS.schema().empty_table()
    folders = [f for f in job.older("videos") if job.store.files(f)]
    if not folders:
        return empty
    columns = ["video_id", "source", "status", *stages.FACTS]
    facts = job.store.read_table(folders[-1], columns)
    facts = facts.filter(pc.equal(facts["status"], "ok"))
    for column in ("listed_by", "is_mirrored"):
        if column not in facts.column_names:
            # An index of before this column.
            kind = VIDEOS.schema().field(column).type
            facts = facts.append_column(column, pa.nulls(facts.num_rows, kind))
    row = places_of(job.manifest, facts, ("video_id", "source"))
    rows, facts = job.manifest.filter(pc.is_valid(row)), facts.take(row.drop_null())
    parts = [empty]
    # Rows of Python take many times the memory of columns: some at a time.
    for start in range(0, rows.num_rows, ROWS_AT_A_TIME):
        pairs = zip(
            rows.slice(start, ROWS_AT_A_TIME).to_pylist(),
            facts.slice(start, ROWS_AT_A_TIME).select(stages.FACTS).to_pylist(),
            strict=True,
        )
        facts_of_rows = [(row, VideoFacts(**fact)) for row, fact in pairs]
        sampling = job.config.sampling
        planned = [
            stages.videos_row(row, fact, stages.planned_segments(row, fact, sampling))
            for row, fact in facts_of_rows
        ]
        parts.append(VIDEOS.build(planned))
    return pa.concat_tables(parts).combine_chunks()


def segment_plan(job: Job) -> pa.Table:
    """Return SEGMENTS with the columns of VIDEOS that decoding needs, and the number of the
    attempt.
    """
    columns = ["video_id", "uri", "start_s", "end_s", *stages.BOX, "width_px", "height_px"]
    columns += ["status", "stage", "error_type", "error"]
    segments = job.store.read_table(job.segments)
    # VIDEOS of before lack some.
    plan = segments.join(job.store.read_table(job.videos, columns), "video_id")
    attempt = pa.repeat(pa.scalar(job.retries.passes + 1, pa.int32()), plan.num_rows)
    return plan.append_column("attempts", attempt).sort_by("segment_id")


def to_describe(job: Job, plan: pa.Table) -> pa.Table:
    """Return the segments without a row; after `--retry-failed` also those not yet tried again.

    These have its decoder in a column `decoder`, which is empty for segments of videos that are new
    here.
    """
    if not job.store.files(job.descriptors):
        return plan
    columns = ["segment_id", "video_id", "source", "status", "attempts"]
    rows = current(plan, job.store.read_table(job.descriptors, columns))
    tried = pc.greater(rows["attempts"], job.retries.passes)
    described = rows.filter(pc.or_(pc.equal(rows["status"], "ok"), tried))
    left = plan.filter(pc.invert(pc.is_in(plan["segment_id"], described["segment_id"])))
    again = pc.is_in(left["video_id"], rows["video_id"])
    return left.append_column("decoder", pc.if_else(again, job.retries.decoder, ""))


def current(plan: pa.Table, rows: pa.Table) -> pa.Table:
    """Return the rows that the plan asks for, each once, by its last attempt: not of other videos,
    nor of a file that has changed.
    """
    key = ["segment_id", "source"]
    rows = rows.join(plan.select(key), key, join_type="inner")
    rows = rows.sort_by([("segment_id", "ascending"), ("attempts", "descending")])
    ids = rows["segment_id"]
    later = pc.equal(ids[1:], ids[:-1]).to_numpy()
    return rows.filter(np.concatenate([np.ones(min(1, len(ids)), bool), ~later]))


class Described(Protocol):
    """The tables that `places` reads: those of a Job, or of a run that is opened later."""

    @property
    def store(self) -> Store: ...
    @property
    def segments(self) -> str: ...
    @property
    def descriptors(self) -> str: ...


def places(job: Described) -> pa.Table:
    """Return the rows of DESCRIPTORS that are described: segment_id, video_id, source, segment,
    file, row.
    """
    columns = ["segment_id", "video_id", "source", "segment", "num_frames", "status", "attempts"]

    def read(name: str) -> pa.Table:
        with job.store.open_parquet(name) as file:
            table = file.read(columns=columns).replace_schema_metadata(None)
        table = table.append_column("file", pa.array([name] * table.num_rows, pa.string()))
        return table.append_column("row", pa.array(np.arange(table.num_rows)))

    rows = job.store.gather(read, job.store.files(job.descriptors))
    plan = job.store.read_table(job.segments, ["segment_id", "source"])
    described = current(plan, rows)
    return described.filter(pc.not_equal(described["status"], "failed")).sort_by("segment_id")


def places_by_video(job: Job) -> pa.Table:
    """Return video_id, source, files and rows (of its segments, in order of time), by file for
    locality.
    """
    grouped = places(job).group_by(["video_id", "source"], use_threads=False)
    table = grouped.aggregate([("file", "list"), ("row", "list"), ("file", "min")])
    table = table.rename_columns(["video_id", "source", "files", "rows", "first"])
    return table.sort_by([("first", "ascending"), ("video_id", "ascending")]).drop_columns(
        ["first"]
    )


def outcome(job: Job, did_work: bool) -> Outcome:
    """Return the count of segments by status; all zero before they are described."""
    counts = {"ok": 0, "partial": 0, "failed": 0}
    planned = 0
    if job.is_complete("index"):
        plan = job.store.read_table(job.segments, ["segment_id", "source"])
        planned = plan.num_rows
        if job.store.files(job.descriptors):
            described = current(
                plan,
                job.store.read_table(
                    job.descriptors, ["segment_id", "source", "status", "attempts"]
                ),
            )
            for item in pc.value_counts(described["status"]).to_pylist():
                counts[item["values"]] = item["counts"]
    return Outcome(did_work, planned, **counts)
