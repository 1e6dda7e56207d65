"""The doctor's checks of SCORES and METRICS: what was tested, and every number from the scores.

A result is whatever has a folder of SCORES. Intervals are not computed again. Letters: N tested
videos, K classes. Some 10 N K bytes are in memory for each stream of an encoder, and 40 N K more
for their fusions, the sum over encoders and the targets.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.stream_specs import is_local
from pipelines.doctor.check import BY_HAND, Check
from pipelines.doctor.queries import each_kind, odd_results
from pipelines.doctor.scan import Folder, Run
from pipelines.evaluate.results import SINGLE, ScoreMatrix, gain_rows, metric_rows, results
from pipelines.settings.sections import Evaluate
from pipelines.storage.tables import METRICS, SCORES

CHECKS = [
    Check(check_id, "error", meaning, BY_HAND, functools.partial(odd_results, check_id=check_id))
    for check_id, meaning in {
        "counts.scores": "a tested video has a score for every class",
        "scores.truth": "is_true and fold of SCORES are those of VIDEOS",
        "metrics.values": "METRICS are what SCORES give, to 1e-9",
        "metrics.missing": "METRICS have every number of every result",
    }.items()
]
"""`read_results` finds the problems; those of other checks are asked for beside other tables."""

TOLERANCE = 1e-9
"""Between a value of METRICS and the same number computed again."""


# --- SCORES -----------------------------------------------------------------------------------

_TESTED = """
CREATE TABLE classes AS
    SELECT label, row_number() OVER (ORDER BY label) - 1 AS class
    FROM (SELECT DISTINCT unnest(labels) AS label FROM videos);
CREATE TABLE tested AS
    SELECT *, row_number() OVER (ORDER BY video_id) - 1 AS video
    FROM (FROM videos WHERE len(labels) > 0 AND fold >= 0
        QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY file, row) = 1)
"""

_SCORES = """
SELECT arrived.video_id, label, file, row, video, class, score,
    is_own AND video IS NOT NULL AND class IS NOT NULL AS is_known,
    is_true != list_contains(labels, label) OR arrived.fold != tested.fold AS is_untrue
FROM arrived LEFT JOIN (SELECT video_id, labels, fold, video FROM tested) AS tested USING (video_id)
LEFT JOIN classes USING (label)
"""

_ODD = {
    "orphans.rows": {
        "NOT is_known": "'rows of no tested video, or of another result or class'",
    },
    "vectors.not_finite": {"NOT isfinite(score)": "'scores are NaN or infinite'"},
    "scores.truth": {
        "is_known AND is_untrue": "'rows whose is_true or fold is not that of VIDEOS'"
    },
}
"""{check: what it finds of the rows of SCORES, see `each_kind`}."""

_AGAIN = """
SELECT *, 'rows have the key of another one' AS found
FROM scores SEMI JOIN
    (SELECT video, class FROM scores WHERE is_known GROUP BY ALL HAVING count(*) > 1)
    USING (video, class)
WHERE is_known QUALIFY row_number() OVER (PARTITION BY video, class ORDER BY file, row) > 1
"""

_COLUMNS = ["video_id", "fold", "label", "is_true", "score"]
_ARRIVED = pa.schema(
    [
        *(SCORES.schema().field(name) for name in _COLUMNS),
        ("is_own", pa.bool_()),
        ("file", pa.string()),
        ("row", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Tested:
    """The tested videos: ids and folds [N], targets [N, K].

    Attributes:
        wanted: [N], those that must have scores, because a segment of theirs is described; None
            where DESCRIPTORS cannot be read.
    """

    ids: list[str]
    folds: np.ndarray
    classes: list[str]
    targets: np.ndarray
    wanted: np.ndarray | None

    @classmethod
    def of(cls, run: Run) -> "Tested":
        """Those of VIDEOS; makes the tables `tested` and `classes`, which number them."""
        run.rows.db.execute(_TESTED)
        ids = _column(run, "SELECT video_id FROM tested ORDER BY video")
        classes = _column(run, "SELECT label FROM classes ORDER BY class")
        targets = np.zeros((len(ids), len(classes)), np.float32)
        labels = "(SELECT video, unnest(labels) AS label FROM tested)"
        for batch in _stream(run, f"SELECT video, class FROM {labels} JOIN classes USING (label)"):
            targets[batch["video"].to_numpy(), batch["class"].to_numpy()] = 1
        wanted = None
        if run.has_rows("segments", "descriptors"):
            described = "SELECT video_id FROM described WHERE is_described"
            query = f"SELECT video_id IN ({described}) FROM tested ORDER BY video"
            wanted = np.array(_column(run, query), bool)
        folds = np.array(_column(run, "SELECT fold FROM tested ORDER BY video"), np.int64)
        return cls(ids, folds, classes, targets, wanted)


def _scores(run: Run, folder: Folder, tested: Tested) -> ScoreMatrix | None:
    """Checks the SCORES of a result; gives them where they are complete and finite."""
    arrived = pa.RecordBatchReader.from_batches(_ARRIVED, _batches(run, folder))
    run.rows.fill("scores", arrived, _SCORES)
    shape = tested.targets.shape
    values, seen = np.full(shape, np.nan), np.zeros(shape, np.uint16)
    for batch in _stream(run, "SELECT video, class, score FROM scores WHERE is_known"):
        place = batch["video"].to_numpy(), batch["class"].to_numpy()
        values[place] = batch["score"].to_numpy()
        np.add.at(seen, place, 1)
    wanted = seen.any(1) if tested.wanted is None else tested.wanted
    lacking = (seen == 0).any(1) & wanted
    _keep_odd(run, folder, bool((seen > 1).any()))
    if run.is_done("classify") and folder.is_whole:
        _keep_lacking(run, folder, np.flatnonzero(lacking), int(wanted.sum()))
    there = ~np.isnan(values).any(1) & (len(tested.classes) > 0)
    is_complete = folder.is_whole and bool((seen[wanted] == 1).all())
    if not is_complete or not np.isfinite(values[seen > 0]).all() or not there.any():
        return None
    encoder, stream = folder.result
    rules = {one.pair: one.stream for one in run.combinations}
    return ScoreMatrix(
        encoder=encoder,
        stream=stream,
        video_ids=[tested.ids[video] for video in np.flatnonzero(there)],
        folds=tested.folds[there],
        classes=tested.classes,
        scores=values[there],
        targets=tested.targets[there],
        fusion=rules.get((encoder, stream), SINGLE),
    )


def _batches(run: Run, folder: Folder) -> Iterator[pa.RecordBatch]:
    """The rows of a folder, one row group at a time; `is_own` where they are of its result."""
    encoder, stream = folder.result
    for file in folder.usable:
        start = 0
        for rows in run.batches(folder, file):
            place = np.arange(start, start + rows.num_rows)
            start += rows.num_rows
            own = pc.and_(pc.equal(rows["encoder"], encoder), pc.equal(rows["stream"], stream))
            more = [own, pa.repeat(file.name, rows.num_rows), pa.array(place)]
            columns = [*rows.select(_COLUMNS).columns, *more]
            yield from pa.Table.from_arrays(columns, schema=_ARRIVED).to_batches()


def _keep_odd(run: Run, folder: Folder, has_duplicates: bool) -> None:
    queries = {check_id: each_kind("scores", kinds) for check_id, kinds in _ODD.items()}
    if has_duplicates:
        queries["keys.duplicate"] = _AGAIN
    example = "concat_ws(', ', video_id, label) || ' in ' || file AS example"
    for check_id, query in queries.items():
        _keep(run, check_id, f"SELECT *, $folder AS folder, {example} FROM ({query})", folder)


def _keep_lacking(run: Run, folder: Folder, lacking: np.ndarray, num_wanted: int) -> None:
    run.rows.fill("lacking", pa.table({"video": lacking}))
    query = f"""
        SELECT * REPLACE ($folder AS folder), 'of {num_wanted} tested videos lack scores' AS found
        FROM tested SEMI JOIN lacking USING (video)"""
    _keep(run, "counts.scores", query, folder)


def _keep(run: Run, check_id: str, query: str, folder: Folder | None = None) -> None:
    """Adds the rows of a query to `odd_results`; in it, $folder is the key of the folder."""
    columns = "folder, file, row, example, found"
    run.rows.db.execute(
        f"INSERT INTO odd_results SELECT '{check_id}', {columns} FROM ({query})",
        {"folder": folder.key} if folder else None,
    )


def _stream(run: Run, query: str) -> Iterator[pa.RecordBatch]:
    return run.rows.db.sql(query).to_arrow_reader()


def _column(run: Run, query: str) -> list[Any]:
    return [value for (value,) in run.rows.db.execute(query).fetchall()]


# --- METRICS ----------------------------------------------------------------------------------

_VALUES = ("encoder", "stream", "fusion", "split", "metric", "class", "value")

_SAME = " AND ".join(f'metrics."{n}" IS NOT DISTINCT FROM expected."{n}"' for n in METRICS.key)

_NAMED = """
CREATE MACRO is_named(text) AS
    text IN (FROM names) OR list_has_all((SELECT list(name) FROM names), string_split(text, '+'))
"""
"""Whether a text is the name of an encoder or a stream, or such names with + between them."""

_METRICS = {
    "metrics.values": f"""
        SELECT metrics.* REPLACE (concat(example, ': ', coalesce(metrics.value::VARCHAR, 'null'),
            ', not ', coalesce(expected.value::VARCHAR, 'null')) AS example),
            'values are not what the scores give' AS found
        FROM metrics JOIN expected ON {_SAME}
        WHERE (metrics.value IS NULL OR isnan(metrics.value)) != (expected.value IS NULL)
            OR abs(metrics.value - expected.value) > {TOLERANCE}""",
    "metrics.missing": f"""
        SELECT *, 'metrics' AS folder, '' AS file, 'numbers of results are missing' AS found,
            concat_ws(', ', encoder, stream, fusion, split, metric, "class") AS example
        FROM expected ANTI JOIN metrics ON {_SAME}""",
    # Of a split or class that their result has not, or of names that no result has.
    "orphans.rows": f"""
        SELECT *, 'rows of no result' AS found
        FROM metrics ANTI JOIN expected ON {_SAME}
        WHERE NOT is_named(encoder) OR NOT is_named(stream) OR (encoder, stream, fusion, metric)
            IN (SELECT (encoder, stream, fusion, metric) FROM expected)""",
}
"""{check: the rows of METRICS that it finds}; `expected` are those that the scores give."""


def read_results(run: Run) -> None:
    """One pass over SCORES: puts what is wrong with them, and with METRICS, into `odd_results`."""
    rows = _expected(run) if run.has_rows("videos") and run.folders("scores") else []
    schema = pa.schema([METRICS.schema().field(name) for name in _VALUES])
    expected = pa.Table.from_pylist(rows, schema)
    run.rows.fill("expected", expected.append_column("row", pa.array(np.arange(len(rows)))))
    names = sorted({name for result in run.scored for name in result})
    run.rows.fill("names", pa.table({"name": pa.array(names, pa.string())}))
    run.rows.db.execute(_NAMED)
    folder = run.folder("metrics")
    if folder and folder.is_whole:
        for check_id, query in _METRICS.items():
            if check_id != "metrics.missing" or run.is_done("evaluate"):
                _keep(run, check_id, query)


def _expected(run: Run) -> list[dict]:
    """Key and value of METRICS, of results whose scores are all there and finite."""
    tested, settings = Tested.of(run), _settings(run)
    # Fusions are of the same videos; where that is not so, scores are missing, which is said.
    videos: list[list[str]] = []

    def read(encoder: str, stream: str) -> ScoreMatrix | None:
        folder = run.folder(f"scores/{encoder}-{stream}")
        matrix = _scores(run, folder, tested) if folder else None
        if matrix is not None:
            videos.append(matrix.video_ids)
        return matrix if matrix is not None and matrix.video_ids == videos[0] else None

    found = []
    for matrix, best_part in results(run.pairs, settings, read, run.combinations):
        rows = metric_rows(matrix, settings, protocol="")
        rows += gain_rows(matrix, rows, best_part, settings)
        found += [{name: row[name] for name in _VALUES} for row in rows]
    return found


def _settings(run: Run) -> Evaluate:
    """The section evaluate of run.json, without intervals.

    Defaults where other code wrote it or values are wrong.
    """
    known: dict[str, Any] = {}
    for name in ("top_k", "fusions", "stream_weights"):
        value = run.setting("evaluate", name)
        if value is not None:
            known[name] = tuple(value) if isinstance(value, list) else value
    local = {stream for _, stream in run.pairs if is_local(stream)}
    if len(known.get("stream_weights", ())) != len(local):
        known.pop("stream_weights", None)
    try:
        return Evaluate(**known, bootstrap=0)
    except (TypeError, ValueError):
        return Evaluate(bootstrap=0)
