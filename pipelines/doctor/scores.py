"""SCORES, result by result: their rows for queries, and the METRICS that they give.

A result is whatever has a folder of SCORES. Intervals are not computed again. Letters: N tested
videos, K classes. Some 10 N K bytes are in memory for each stream of an encoder, and 40 N K more
for their fusions, the sum over encoders and the targets.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from encoders.stream_specs import NETWORK_STREAMS, is_local
from pipelines.doctor.scan import Scan
from pipelines.evaluate.results import SINGLE, ScoreMatrix, gain_rows, metric_rows, results
from pipelines.settings.sections import Evaluate
from pipelines.storage.tables import METRICS, SCORES


def read_results(run: Scan, inspect: Callable[[], None]) -> None:
    """Pass over SCORES once, and fill the table `expected`.

    Args:
        inspect: called for each result while `scores` has its rows.
    """
    run.database.insert("names", ((name,) for pair in run.record.scored for name in pair))
    if not run.is_whole("videos"):
        return
    blank, settings = _blank(run), _settings(run)

    def read(encoder: str, stream: str) -> ScoreMatrix | None:
        return _matrix(run, replace(blank, encoder=encoder, stream=stream), inspect)

    rows = []
    for matrix, best_part in results(run.record.pairs, settings, read, run.record.combinations):
        numbers = metric_rows(matrix, settings, protocol="")
        rows += [*numbers, *gain_rows(matrix, numbers, best_part, settings)]
    columns = (*METRICS.key, "value")
    values = ((*(row[name] for name in columns), place) for place, row in enumerate(rows))
    if not run.record.config_error:
        run.database.insert("expected", values)


def _settings(run: Scan) -> Evaluate:
    """Return the section evaluate of the run, without intervals."""
    settings = replace(run.record.config.evaluate, bootstrap=0)
    local = {stream for _, stream in run.record.pairs if is_local(stream)}
    local -= NETWORK_STREAMS.keys()
    is_known = len(settings.stream_weights) in (0, len(local))
    return settings if is_known else replace(settings, stream_weights=())


def _blank(run: Scan) -> ScoreMatrix:
    """Return a result of all tested videos without scores."""
    database = run.database
    ids = database.column("SELECT video_id FROM tested ORDER BY video")
    folds = database.column("SELECT fold FROM tested ORDER BY video")
    classes = database.column("SELECT label FROM classes ORDER BY class")
    targets = np.zeros((len(ids), len(classes)), np.float32)
    labels = "(SELECT video, unnest(labels) AS label FROM tested)"
    for batch in database.stream(f"SELECT video, class FROM {labels} JOIN classes USING (label)"):
        targets[batch["video"].to_numpy(), batch["class"].to_numpy()] = 1
    return ScoreMatrix(
        encoder="",
        stream="",
        video_ids=ids,
        folds=np.array(folds, np.int64),
        classes=classes,
        scores=np.full(targets.shape, np.nan),
        targets=targets,
    )


def _matrix(run: Scan, blank: ScoreMatrix, inspect: Callable[[], None]) -> ScoreMatrix | None:
    """Read and inspect the scores of a result; None where some are missing, twice or not finite."""
    folder = run.folders.get(f"scores/{blank.encoder}-{blank.stream}")
    if folder is None or not folder.files:
        return None
    database = run.database
    database.execute("TRUNCATE all_scores; TRUNCATE result")
    for file in folder.files:
        if file not in run.damaged:
            run.add_rows(folder, file)
    database.flush(SCORES)
    database.insert("result", [(folder.key, run.is_whole(folder.key))])
    inspect()
    values, num_rows = blank.scores.copy(), 0
    for batch in database.stream("SELECT video, class, score FROM known_scores"):
        values[batch["video"].to_numpy(), batch["class"].to_numpy()] = batch["score"].to_numpy()
        num_rows += batch.num_rows
    targets = blank.targets.copy()
    ignored = "SELECT video, class FROM known_scores WHERE is_true IS NULL"
    for batch in database.stream(ignored):
        targets[batch["video"].to_numpy(), batch["class"].to_numpy()] = -1
    there = np.asarray(~np.isnan(values).any(1) & (len(blank.classes) > 0))
    described = database.column("SELECT is_described FROM tested ORDER BY video")
    scored = np.asarray(~np.isnan(values).all(1))
    # A described video may have no pictures for a network.
    sees_pictures = blank.stream in NETWORK_STREAMS
    must = scored if None in described or sees_pictures else np.array(described, bool)
    is_complete = num_rows == np.isfinite(values).sum() and there[must].all() and there.any()
    if not (run.is_whole(folder.key) and is_complete):
        return None
    rules = {combination.pair: combination.stream for combination in run.record.combinations}
    return replace(
        blank,
        video_ids=[blank.video_ids[video] for video in np.flatnonzero(there)],
        folds=blank.folds[there],
        scores=values[there],
        targets=targets[there],
        fusion=rules.get((blank.encoder, blank.stream), SINGLE),
    )
