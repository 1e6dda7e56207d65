"""Odd rows by SQL over the views of `doctor_gather`.

A query selects rows that should not be: `folder`, `file`, `row`, `example`, and `found`, the words
that follow their number.
"""

import re
from collections.abc import Iterator

import pyarrow as pa

from encoders.settings import UNIT_LENGTH
from pipelines.doctor.check import Problem, remake
from pipelines.doctor.scan import EXAMPLES, Run

_SHARED = """
CREATE TABLE last_attempts AS
    SELECT * FROM descriptors SEMI JOIN segments USING (segment_id, source)
    QUALIFY row_number()
        OVER (PARTITION BY segment_id, source ORDER BY attempts DESC, file, row) = 1;
CREATE TABLE described AS
    SELECT video_id, source, count(*) AS num_segments,
        bool_or(status != 'failed') AS is_described
    FROM last_attempts GROUP BY ALL;
CREATE VIEW lengths AS
    SELECT * EXCLUDE (lengths, entry), entry.key AS name, entry.value AS length
    FROM (SELECT *, unnest(map_entries(lengths)) AS entry FROM descriptors);
CREATE TABLE odd_results
    (check_id VARCHAR, folder VARCHAR, file VARCHAR, row BIGINT, example VARCHAR, found VARCHAR);
"""

_FOLDERS = pa.schema(
    {
        "folder": pa.string(),
        "table_name": pa.string(),
        "encoder": pa.string(),
        "stream": pa.string(),
        "fold": pa.int32(),
        "is_whole": pa.bool_(),
        "has_unit_length": pa.bool_(),
    }
)

_STREAMS = pa.schema(
    {"name": pa.string(), "size": pa.int64(), "has_gap": pa.bool_(), "window_frames": pa.int64()}
)


def prepare(run: Run) -> None:
    """Makes the tables that several checks ask for.

    last_attempts: the row of DESCRIPTORS that counts, of each planned segment. described: the
    videos that have such a row. lengths: DESCRIPTORS with one row for each stream. odd_results: see
    `odd_results`. folders, streams: as run.json has them; `size` are the descriptors of a frame.
    """
    run.rows.db.execute(_SHARED)
    folders = [
        {
            "folder": folder.key,
            "table_name": folder.table.name,
            "encoder": folder.result[0],
            "stream": folder.result[1],
            "fold": folder.fold,
            "is_whole": folder.is_whole,
            "has_unit_length": has_unit_length(run, folder.key),
        }
        for folder in run.all_folders()
    ]
    run.rows.fill("folders", pa.Table.from_pylist(folders, _FOLDERS))
    streams = [
        {
            "name": name,
            "size": facts["cells"] * facts["views"],
            "has_gap": bool(facts["window"]["gap"] or facts["window"]["gap_s"]),
            "window_frames": facts["window"]["num_frames"],
        }
        for name, facts in run.streams.items()
    ]
    run.rows.fill("streams", pa.Table.from_pylist(streams, _STREAMS))


def has_unit_length(run: Run, key: str) -> bool:
    """Whether the vectors of a key of ENCODINGS have length 1: a variant may have its own way."""
    own = re.match(r"encodings/[^@]*@(?:.*:)?normalisation=(\w+)", key)
    way = own[1] if own else run.setting("encode", "normalisation", "none")
    return way in UNIT_LENGTH


def odd_rows(
    run: Run, query: str, *, again: str = "", parameters: dict | None = None
) -> Iterator[Problem]:
    """One problem for each folder and kind of odd row.

    Args:
        query: see above.
        again: which files the advice has made again: "nothing" beside what is missing, the "files"
            of the examples, or the whole "folder"; "" gives the advice of the check.
    """
    found = run.rows.db.execute(
        f"SELECT folder, found, count(*), arg_min(example, (file, row), {EXAMPLES}), "
        f"arg_min(file, (file, row), {EXAMPLES}) FROM ({query}) GROUP BY ALL ORDER BY ALL",
        parameters,
    ).fetchall()
    for key, text, count, examples, files in found:
        folder = run.by_key[key]
        every = [file.name for file in folder.files]
        made = {"nothing": [], "files": list(dict.fromkeys(files)), "folder": every}
        advice = remake(run, folder, made[again]) if again else ""
        yield Problem(folder.name, f"{count} {text}", count, tuple(examples), advice)


def each_kind(source: str, conditions: dict[str, str]) -> str:
    """The query of the rows of `source` where a condition holds.

    Args:
        conditions: {condition: what is found where it holds, as SQL}.
    """
    kinds = ", ".join(f"if({condition}, {text}, NULL)" for condition, text in conditions.items())
    every = f"SELECT *, unnest([{kinds}]) AS found FROM {source}"
    return f"FROM ({every}) WHERE found IS NOT NULL"


def odd_results(run: Run, check_id: str) -> Iterator[Problem]:
    """What `doctor_score_checks.read_results` has found of SCORES and METRICS for a check."""
    query = "FROM odd_results WHERE check_id = $check_id"
    yield from odd_rows(run, query, again="folder", parameters={"check_id": check_id})
