"""SCORES to METRICS: each encoder and stream, and their late fusions (METHODS 4)."""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.config import RunError
from pipelines.layout import Job
from pipelines.results import SINGLE, ScoreMatrix, metric_rows, results
from pipelines.tables import METRICS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """METRICS of a run, and the scores of the result with the highest headline metric."""

    metrics: pa.Table
    best: ScoreMatrix


def evaluate(job: Job) -> Evaluated:
    """Publishes METRICS of every encoder, stream and fusion."""
    settings, rows = job.config.evaluate, []
    best, highest = None, -1.0
    found = results(job.pairs(), settings, lambda *pair: read_scores(job, *pair))
    for done, matrix in enumerate(found, start=1):
        own = metric_rows(matrix, settings, job.protocol, job.config.run.seed)
        rows += own
        headline = headline_metric(matrix.multi_label)
        value = next(r["value"] for r in own if (r["split"], r["metric"]) == ("all", headline))
        if best is None or (value or 0.0) > highest:
            best, highest = matrix, value or 0.0
        if done % 10 == 0:
            log.info("evaluate: %d results", done)
    table = METRICS.build(rows)
    job.store.publish_table(f"{job.metrics}/metrics.parquet", table, job.footer("evaluate"))
    return Evaluated(table, best)


def headline_metric(multi_label: bool) -> str:
    """The metric that results are compared by: VU 5.4 for several labels a video, DQ 5.3 for one."""
    return "mAP" if multi_label else "accuracy"


def read_scores(job: Job, encoder: str, stream: str) -> ScoreMatrix:
    """The score matrix of one encoder and stream, videos in order of their id.

    Raises:
        RunError: there are no scores, or a video lacks that of a class.
    """
    folder = job.scores(encoder, stream)
    videos, classes = _Codes(), _Codes()
    parts = []
    for name in job.store.files(folder):
        with job.store.open_parquet(name) as file:
            for group in range(file.num_row_groups):
                # Millions of rows repeat their texts: codes are a tenth of them.
                table = file.read_row_group(
                    group, ["video_id", "label", "fold", "is_true", "score"]
                )
                video, label = videos.of(table["video_id"]), classes.of(table["label"])
                values = (table[n].to_numpy() for n in ("fold", "is_true", "score"))
                parts.append((video, label, *values))
    if not sum(len(part[0]) for part in parts):
        raise RunError(
            f"{job.store.uri(folder)}: expected scores of tested videos, found none; are all of them in "
            f"{job.store.uri(job.failures)}?"
        )
    video_ids, rank = videos.sorted()
    labels, column = classes.sorted()
    shape = (len(video_ids), len(labels))
    scores, targets = np.full(shape, np.nan), np.zeros(shape, np.float32)
    folds = np.zeros(shape[0], np.int64)
    for video, label, fold, is_true, score in parts:
        row, place = rank[video], column[label]
        scores[row, place], targets[row, place], folds[row] = score, is_true, fold
    if np.isnan(scores).any():
        example = video_ids[int(np.isnan(scores).any(1).argmax())]
        raise RunError(
            f"{job.store.uri(folder)}: expected a score for each class of each video, got none for some of "
            f"{example[:200]!r}; delete the folder and run step classify again"
        )
    return ScoreMatrix(
        encoder=encoder,
        stream=stream,
        video_ids=video_ids,
        folds=folds,
        classes=labels,
        scores=scores,
        targets=targets,
    )


class _Codes:
    """Texts as numbers, in order of appearance."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def of(self, column: pa.ChunkedArray) -> np.ndarray:
        """[n] codes of a column of texts."""
        encoded = column.combine_chunks().dictionary_encode()
        known = self._codes
        own = [known.setdefault(text, len(known)) for text in encoded.dictionary.to_pylist()]
        return np.array(own, np.int32)[encoded.indices.to_numpy()]

    def sorted(self) -> tuple[list[str], np.ndarray]:
        """The texts in order, and the place of each code among them."""
        texts = list(self._codes)
        order = sorted(range(len(texts)), key=texts.__getitem__)
        place = np.empty(len(texts), np.int64)
        place[order] = np.arange(len(texts))
        return [texts[i] for i in order], place


def results_table(metrics_table: pa.Table) -> list[dict]:
    """{encoder, stream, fusion, num_videos, accuracy, mAP, ...} of split `all`, in the order of METRICS."""
    results: dict[tuple[str, ...], dict] = {}
    for row in metrics_table.to_pylist():
        if row["split"] == "all" and row["class"] is None:
            named = {name: row[name] for name in ("encoder", "stream", "fusion", "num_videos")}
            key = (row["encoder"], row["stream"], row["fusion"])
            results.setdefault(key, named)[row["metric"]] = row["value"]
    return list(results.values())


def text_table(job: Job) -> list[str]:
    """The results for a terminal: encoder x stream x fusion, accuracy and mAP with their intervals."""
    rows = job.store.read_table(job.metrics).to_pylist()
    lines = [f"{'encoder':<24} {'stream':<44} {'fusion':<10} {'accuracy':<20} {'mAP':<20}".rstrip()]
    of_all = {
        (*(row[n] for n in ("encoder", "stream", "fusion")), row["metric"]): row
        for row in rows
        if row["split"] == "all" and row["class"] is None
    }
    for encoder, stream, fusion in dict.fromkeys(key[:3] for key in of_all):
        accuracy, mean = (of_all[encoder, stream, fusion, m] for m in ("accuracy", "mAP"))
        lines.append(
            f"{_short(encoder):<24} {_short(stream, 44):<44} {'' if fusion == SINGLE else fusion:<10} "
            f"{with_interval(accuracy):<20} {with_interval(mean):<20}".rstrip()
        )
    return lines


def with_interval(row: dict) -> str:
    """ "0.883 [0.800, 0.950]", as far as METRICS has them."""
    if row["value"] is None:
        return "-"
    if row["ci_low"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def _short(name: str, width: int = 24) -> str:
    return name if len(name) <= width else f"{name[: width - 2]}.."
