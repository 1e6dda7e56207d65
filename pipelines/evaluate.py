"""Scores to METRICS: each encoder and stream, and their late fusions (DQ 5.3)."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from encoders import metrics
from encoders.fusion import fuse
from pipelines.layout import Job
from pipelines.tables import METRICS


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores of one encoder and stream: video_ids [N], fold [N], scores and targets [N, K]."""

    encoder: str
    stream: str
    video_ids: list[str]
    folds: np.ndarray
    classes: list[str]
    scores: np.ndarray
    targets: np.ndarray

    @property
    def multi_label(self) -> bool:
        return bool((self.targets.sum(1) > 1).any())


def evaluate(job: Job, matrices: list[ScoreMatrix]) -> int:
    """Publishes METRICS of every encoder, stream and fusion; returns the number of rows."""
    rows = [row for matrix in matrices for row in metric_rows(matrix, job.config.evaluate.top_k)]
    table = METRICS.build(rows)
    job.store.publish_table(f"{job.metrics}/metrics.parquet", table, job.footer("evaluate"))
    return table.num_rows


def all_scores(job: Job) -> list[ScoreMatrix]:
    """Score matrices of all results: single ones, each encoder over its local streams, then everything."""
    single = {pair: read_scores(job, *pair) for pair in job.pairs()}
    results = list(single.values())
    local = job.local_streams
    parts = {
        encoder: [single[encoder, stream] for stream in local if (encoder, stream) in single]
        for encoder in job.config.encode.encoders
    }
    weights = job.config.evaluate.stream_weights or None
    for encoder, matrices in parts.items():
        if len(matrices) > 1:
            results.append(fused(matrices, encoder, "+".join(local), weights))
    encoders = [encoder for encoder, matrices in parts.items() if matrices]
    if len(encoders) > 1:
        everything = [matrix for encoder in encoders for matrix in parts[encoder]]
        results.append(fused(everything, "+".join(encoders), "+".join(local), None))
    return results


def read_scores(job: Job, encoder: str, stream: str) -> ScoreMatrix:
    """The score matrix of one encoder and stream, videos in order of their id."""
    table = job.store.read_table(job.scores(encoder, stream))
    table = table.sort_by([("video_id", "ascending"), ("label", "ascending")])
    classes = sorted(set(table["label"].to_pylist()))
    size = len(classes)

    def grid(name: str) -> np.ndarray:
        return table[name].to_numpy().reshape(-1, size)

    return ScoreMatrix(
        encoder,
        stream,
        video_ids=table["video_id"].to_pylist()[::size],
        folds=grid("fold")[:, 0],
        classes=classes,
        scores=grid("score"),
        targets=grid("is_true").astype(np.float32),
    )


def fused(
    parts: list[ScoreMatrix], encoder: str, stream: str, weights: tuple[float, ...] | None
) -> ScoreMatrix:
    """The weighted mean of scores of the same videos and classes."""
    first = parts[0]
    if any(part.video_ids != first.video_ids for part in parts):
        raise ValueError("fusion: expected scores of the same videos; classify all of them again")
    scores = fuse([part.scores for part in parts], weights)
    return ScoreMatrix(
        encoder, stream, first.video_ids, first.folds, first.classes, scores, first.targets
    )


def metric_rows(matrix: ScoreMatrix, top_k: int) -> list[dict]:
    """METRICS rows over all tested videos together and, where there are several, per fold."""
    splits = {"all": np.ones(len(matrix.folds), bool)}
    folds = np.unique(matrix.folds)
    if len(folds) > 1:
        splits |= {f"fold:{fold}": matrix.folds == fold for fold in folds}
    return [
        {
            "encoder": matrix.encoder,
            "stream": matrix.stream,
            "split": split,
            "metric": metric,
            "class": label,
            "value": None if value is None or np.isnan(value) else float(value),
        }
        for split, rows in splits.items()
        for metric, label, value in _numbers(matrix, rows, top_k)
    ]


def _numbers(
    matrix: ScoreMatrix, rows: np.ndarray, top_k: int
) -> list[tuple[str, str | None, float]]:
    scores, targets = matrix.scores[rows], matrix.targets[rows]
    precision = metrics.average_precision(scores, targets)
    k = min(top_k, len(matrix.classes))
    numbers = [
        ("num_videos", None, len(scores)),
        ("accuracy", None, metrics.accuracy(scores, targets)),
        (f"top_{k}", None, metrics.top_k_accuracy(scores, targets, k)),
        ("mAP", None, metrics.mean_average_precision(scores, targets)),
        *(("AP", label, value) for label, value in zip(matrix.classes, precision, strict=True)),
    ]
    if not matrix.multi_label:
        numbers.append(("balanced_accuracy", None, metrics.balanced_accuracy(scores, targets)))
    return numbers


def results_table(metrics_table: pa.Table) -> list[dict]:
    """{encoder, stream, accuracy, mAP, ...} of split `all`, in the order of METRICS."""
    results: dict[tuple[str, str], dict] = {}
    for row in metrics_table.to_pylist():
        if row["split"] == "all" and row["class"] is None:
            named = {"encoder": row["encoder"], "stream": row["stream"]}
            results.setdefault((row["encoder"], row["stream"]), named)[row["metric"]] = row["value"]
    return list(results.values())


def text_table(job: Job) -> list[str]:
    """The results for a terminal: encoder x stream, accuracy and mAP."""
    results = results_table(job.store.read_table(job.metrics))
    lines = [f"{'encoder':<24} {'stream':<44} {'accuracy':>8} {'mAP':>6}"]
    lines += [
        f"{_short(row['encoder']):<24} {_short(row['stream'], 44):<44} {row['accuracy']:>8.3f} "
        f"{row['mAP']:>6.3f}"
        for row in results
    ]
    return lines


def _short(name: str, width: int = 24) -> str:
    return name if len(name) <= width else f"{name[: width - 2]}.."
