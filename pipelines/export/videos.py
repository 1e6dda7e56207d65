"""The videos of a run as other tools take them: ids, labels, one vector each, and its scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.errors import ConfigError, near
from pipelines.reading import views
from pipelines.run.saved import Encodings, SavedRun

ROWS_PER_BATCH = 256
"""Vectors of a million values take 1 GB then."""


@dataclass(frozen=True)
class Videos:
    """Current videos that have a vector, in the order of their ids.

    Attributes:
        name: encoder and stream of the vectors.
        classes: in the order of the scores; none without labels.
        rows: video_id, uri, labels, fold, vector float32 [D], and scores float32 [k], null for a
            video that no classifier was tested on.
    """

    name: str
    classes: list[str]
    rows: pa.RecordBatchReader


Exporter = Callable[[Videos, Path], None]
"""Writes videos into an empty folder."""


def open_videos(out: str, encoder: str | None, stream: str | None) -> Videos:
    """Return the videos of a run with the vectors of one result.

    Args:
        encoder, stream: of the vectors; None: those with the best mAP.

    Raises:
        ConfigError: there is no run, or it has no such vectors, or they are not complete.
    """
    saved = SavedRun.open(out)
    pairs = [
        pair
        for pair in saved.best_first()
        if encoder in (None, pair[0]) and stream in (None, pair[1])
    ]
    if not pairs:
        known = ["-".join(pair) for pair in saved.encodings]
        asked = "-".join(name or "*" for name in (encoder, stream))
        raise ConfigError(f"--encoder, --stream: no vectors of {asked}{near(asked, known)}")
    encodings = saved.encodings[pairs[0]]
    if not saved.is_encoded(encodings):
        raise ConfigError(
            f"--out {out}: expected complete vectors of {'-'.join(pairs[0])}, found some missing; "
            "run the job again"
        )
    connection = views.connect(out)
    key, scores = _key(encodings), f"scores/{'-'.join(pairs[0])}"
    names = {row[0] for row in connection.sql("SELECT view_name FROM duckdb_views()").fetchall()}
    classes = []
    if scores in names:
        labels = connection.sql(f'SELECT DISTINCT label FROM "{scores}" ORDER BY label')
        classes = [row[0] for row in labels.fetchall()]
    rows = connection.sql(_query(key, scores, len(classes))).to_arrow_reader(ROWS_PER_BATCH)
    return Videos("-".join(pairs[0]), classes, rows)


def _key(encodings: Encodings) -> str:
    fold = "" if encodings.fold < 0 else f"/fold-{encodings.fold}"
    return f"encodings/{encodings.encoder}-{encodings.stream}{fold}"


def _query(key: str, scores: str, num_classes: int) -> str:
    given, joined = "", ""
    if num_classes:
        given = ", scores"
        joined = f"""
            LEFT JOIN (
                SELECT video_id, list(score ORDER BY label)::FLOAT[{num_classes}] AS scores
                FROM "{scores}" GROUP BY video_id
            ) USING (video_id)"""
    return f"""
        SELECT video_id, uri, labels, videos.fold, vector{given}
        FROM "{key}" AS vectors JOIN videos USING (video_id){joined}
        WHERE num_descriptors > 0 ORDER BY video_id"""
