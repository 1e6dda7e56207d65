"""The doctor's checks of rows: keys, orphans, and counts between tables."""

from collections.abc import Iterator

from pipelines.doctor.check import AGAIN, Check, Problem, check
from pipelines.doctor.gather import ROWS
from pipelines.doctor.queries import each_kind, odd_results, odd_rows
from pipelines.doctor.scan import Run
from pipelines.storage.columns import Table
from pipelines.storage.tables import ATTENTION, VIDEOS

CHECKS: list[Check] = []


# --- keys and orphans -------------------------------------------------------------------------


@check(CHECKS, "keys.duplicate", "error", "a key names one row")
def duplicates(run: Run) -> Iterator[Problem]:
    for table in ROWS:
        names = _key(table)
        keys = ", ".join(names)
        same = " AND ".join(f"{table.name}.{n} IS NOT DISTINCT FROM several.{n}" for n in names)
        query = f"""
            SELECT *, 'rows have the key of another one' AS found
            FROM {table.name} SEMI JOIN
                (SELECT {keys} FROM {table.name} GROUP BY ALL HAVING count(*) > 1) AS several
                ON {same}
            QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY file, row) > 1"""
        yield from odd_rows(run, query, again="files")
    query = """
        SELECT *, 'videos have two rows of one frame' AS found
        FROM attention WHERE num_rows > num_frames"""
    yield from odd_rows(run, query, again="files")
    yield from odd_results(run, "keys.duplicate")


def _key(table: Table) -> list[str]:
    """Columns that name a row; of a file that has changed, or was tried again, there are more."""
    names = ["folder", *(f'"{name}"' for name in table.key)]
    if table is ATTENTION:
        names.remove('"frame_index"')
    versions = [n for n in ("source", "attempts") if n in ROWS[table] and table is not VIDEOS]
    return names + [name for name in versions if f'"{name}"' not in names]


@check(
    CHECKS,
    "orphans.rows",
    "error",
    "SEGMENTS, FAILURES, SCORES and METRICS have rows of known videos and results only",
)
def orphans(run: Run) -> Iterator[Problem]:
    if run.has_rows("videos", "segments"):
        yield from _strangers(run, "segments", "videos", "video_id, source", "rows of no video")
    if run.has_rows("segments"):
        columns = "segment_id, source"
        yield from _strangers(run, "failures", "segments", columns, "rows of no segment")
    for table in ("encodings", "attention"):
        columns = "folder, encoder, stream, fold"
        yield from _strangers(run, table, "folders", columns, "rows of another codebook")
    yield from odd_results(run, "orphans.rows")


@check(
    CHECKS,
    "orphans.old_source",
    "note",
    "DESCRIPTORS, ENCODINGS and ATTENTION have rows of today's files only",
    "kept on purpose, of videos that have changed or are not in this run: readers join on source",
)
def old_sources(run: Run) -> Iterator[Problem]:
    if run.has_rows("segments"):
        yield from _strangers(run, "descriptors", "segments", "segment_id, source", "rows")
    if run.has_rows("videos"):
        for table in ("encodings", "attention"):
            yield from _strangers(run, table, "videos", "video_id, source", "rows")


def _strangers(run: Run, table: str, known: str, columns: str, found: str) -> Iterator[Problem]:
    query = f"SELECT *, '{found}' AS found FROM {table} ANTI JOIN {known} USING ({columns})"
    return odd_rows(run, query)


# --- counts of segments -----------------------------------------------------------------------


@check(
    CHECKS,
    "counts.segments",
    "error",
    "a video has num_segments rows in SEGMENTS",
    f"delete the folders of VIDEOS and SEGMENTS and {AGAIN}: headers are read once more",
)
def segment_counts(run: Run) -> Iterator[Problem]:
    if not (run.is_done("index") and run.has_rows("videos", "segments")):
        return
    counted = "SELECT video_id, count(DISTINCT segment_id) AS num FROM segments GROUP BY ALL"
    query = f"""
        SELECT *, 'videos have not num_segments rows in SEGMENTS' AS found
        FROM videos LEFT JOIN ({counted}) USING (video_id)
        WHERE num_segments != coalesce(num, 0)"""
    yield from odd_rows(run, query)
    planned = "SELECT video_id, arg_min(num_segments, (file, row)) AS num FROM videos GROUP BY ALL"
    query = f"""
        SELECT *, 'rows whose segment or num_segments is not the video''s' AS found
        FROM segments LEFT JOIN ({planned}) USING (video_id)
        WHERE num_segments != num OR segment < 0 OR segment >= num_segments"""
    yield from odd_rows(run, query)


@check(
    CHECKS,
    "counts.descriptors",
    "error",
    "planned = ok + partial + failed: every planned segment has a row in DESCRIPTORS",
    f"delete the mark _done-*.json of the folder and {AGAIN}: the missing segments are described",
)
def planned_segments(run: Run) -> Iterator[Problem]:
    if not (run.is_done("describe") and run.has_rows("segments", "descriptors")):
        return
    is_planned = "SEMI JOIN videos USING (video_id, source)" if run.has_rows("videos") else ""
    query = f"""
        SELECT * REPLACE ('descriptors' AS folder),
            'of ' || (SELECT count(*) FROM segments) || ' planned segments have no row' AS found
        FROM segments ANTI JOIN descriptors USING (segment_id, source) {is_planned}"""
    yield from odd_rows(run, query)


_STATUS = {
    "status NOT IN ('ok', 'partial', 'failed')": "'rows with a status that is none'",
    "num_indices != num_frames OR num_times != num_frames": "'rows with another number of "
    "frame_indices or timestamps_s than num_frames'",
    "status = 'failed' AND num_frames > 0": "'rows with status failed, and frames'",
    "(status != 'ok') != has_reason": "'rows with status failed or partial without error_type, or "
    "ok with one'",
    "status != 'failed' AND (status != 'ok') != (num_missing > 0)": "'rows with status ok and "
    "missing frames, or partial and none'",
}
"""{condition on a row of DESCRIPTORS: what is found where it holds}."""

_LENGTH = {
    "(length IS NULL) != (status = 'failed')": "'rows with null in ' || name || ' though not "
    "failed, or not null though failed'",
    # Of source frames, a video that is too short for the window has none. Of sampled frames, the
    # first ones of a video are in no window; a segment that follows another has one for each.
    """
    CASE WHEN size IS NULL THEN length % greatest(num_frames, 1) != 0
        WHEN has_gap THEN length NOT IN (0, size * num_frames)
        ELSE length % size != 0 OR num_frames - length // size
            NOT BETWEEN 0 AND least(window_frames - 1, num_frames) END
    """: "'rows with another number of descriptors in ' || name || ' than its frames have'",
}
"""The same of one of its streams."""


@check(CHECKS, "counts.frames", "error", "status, frames and descriptors of a row agree")
def consistent_segments(run: Run) -> Iterator[Problem]:
    yield from odd_rows(run, each_kind("descriptors", _STATUS))
    yield from odd_rows(run, each_kind("lengths LEFT JOIN streams USING (name)", _LENGTH))


@check(
    CHECKS,
    "counts.failures",
    "error",
    "FAILURES are the failed and partial rows of DESCRIPTORS",
)
def failures(run: Run) -> Iterator[Problem]:
    listed = run.folder("failures")
    if not (run.is_done("describe") and run.has_rows("segments", "descriptors")):
        return
    if listed is None or not listed.is_whole:
        return
    bad = "(FROM last_attempts WHERE status IN ('partial', 'failed'))"
    columns = "segment_id, source, status, attempts, num_missing"
    query = f"""
        SELECT * REPLACE ('failures' AS folder),
            'failed or partial rows of DESCRIPTORS are not listed' AS found
        FROM {bad} ANTI JOIN failures USING ({columns})"""
    yield from odd_rows(run, query, again="folder")
    query = f"""
        SELECT *, 'rows that no row of DESCRIPTORS gives' AS found
        FROM failures SEMI JOIN segments USING (segment_id, source)
        ANTI JOIN {bad} USING ({columns})"""
    yield from odd_rows(run, query, again="folder")


# --- counts of encodings ----------------------------------------------------------------------


@check(
    CHECKS,
    "counts.encodings",
    "error",
    "a video with a described segment has a row per codebook, and no other video has",
)
def encoded_videos(run: Run) -> Iterator[Problem]:
    if not (run.is_done("encode") and run.has_rows("videos", "segments", "descriptors")):
        return
    described = "(FROM described WHERE is_described)"
    query = f"""
        SELECT known.* REPLACE (folders.folder AS folder), 'described videos have no row' AS found
        FROM folders
        CROSS JOIN (FROM videos SEMI JOIN {described} USING (video_id, source)) AS known
        ANTI JOIN encodings ON (encodings.folder, encodings.video_id, encodings.source)
            = (folders.folder, known.video_id, known.source)
        WHERE table_name = 'encodings' AND is_whole"""
    yield from odd_rows(run, query, again="nothing")
    # A video without any row in DESCRIPTORS is a matter of counts.descriptors.
    failed = "(FROM described SEMI JOIN videos USING (video_id, source) WHERE NOT is_described)"
    query = f"""
        SELECT *, 'rows of videos whose segments have all failed' AS found
        FROM encodings SEMI JOIN (FROM folders WHERE is_whole) USING (folder)
        SEMI JOIN {failed} USING (video_id, source)"""
    yield from odd_rows(run, query)


@check(
    CHECKS,
    "counts.num_descriptors",
    "error",
    "encodings are the sum of all descriptors of their video",
)
def descriptor_counts(run: Run) -> Iterator[Problem]:
    """Nothing in a quick run, which does not know the lengths of vector columns."""
    if not run.has_rows("videos", "segments", "descriptors"):
        return
    # Videos with a row of each planned segment.
    known = "described SEMI JOIN videos USING (video_id, source, num_segments)"
    query = f"""
        SELECT encodings.*, 'rows whose num_descriptors is not that of DESCRIPTORS' AS found
        FROM encodings JOIN folders USING (folder) JOIN
            (SELECT video_id, source, name, sum(coalesce(length, 0)) AS total
             FROM lengths SEMI JOIN last_attempts USING (file, row)
             SEMI JOIN (FROM {known} WHERE is_described) USING (video_id, source)
             GROUP BY ALL) AS sums
            ON (sums.video_id, sums.source, sums.name)
                = (encodings.video_id, encodings.source, folders.stream)
        WHERE num_descriptors != total"""
    yield from odd_rows(run, query, again="folder")


@check(CHECKS, "counts.attention", "error", "ATTENTION has a row per encoded frame")
def attention_counts(run: Run) -> Iterator[Problem]:
    """Rows of another codebook are passed over: orphans.rows tells of them."""
    if not run.is_done("encode"):
        return
    query = """
        SELECT encodings.* REPLACE (looks.folder AS folder),
            'videos have not one row per encoded frame' AS found
        FROM encodings JOIN folders AS own USING (folder)
        JOIN folders AS looks ON (looks.table_name, looks.encoder, looks.stream, looks.fold)
            = ('attention', own.encoder, own.stream, own.fold)
        JOIN streams ON streams.name = own.stream
        LEFT JOIN
            (SELECT folder, video_id, source, arg_min(num_frames, (file, row)) AS num_frames
             FROM attention SEMI JOIN folders USING (folder, encoder, stream, fold)
             GROUP BY ALL) AS seen
            ON (seen.folder, seen.video_id, seen.source)
                = (looks.folder, encodings.video_id, encodings.source)
        WHERE own.is_whole AND looks.is_whole
            AND coalesce(seen.num_frames, 0) * size != num_descriptors"""
    yield from odd_rows(run, query, again="nothing")
