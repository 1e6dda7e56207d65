"""SCORES to METRICS: each encoder and stream, and their late fusions (METHODS 4)."""

import collections
import dataclasses
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray import ObjectRef

from pipelines.cluster.broadcast import task_errors
from pipelines.cluster.meter import Meter
from pipelines.cluster.pools import memory_options
from pipelines.cluster.progress import ProgressLine
from pipelines.errors import RunError
from pipelines.evaluate import clips, results
from pipelines.evaluate.best import Best, best_of
from pipelines.evaluate.names import result_words
from pipelines.evaluate.results import (
    SINGLE,
    ScoreMatrix,
    Wanted,
    chance_level,
    headline_metric,
    metric_rows,
)
from pipelines.ledger.accounts import Spent
from pipelines.run.job import Job
from pipelines.settings.sections import Evaluate
from pipelines.storage.store import Store
from pipelines.storage.tables import METRICS

NUM_BEST = 5
"""Results that a run tells of at its end."""


@dataclass(frozen=True)
class Evaluated:
    """METRICS of a run, the report's facts of the result with the highest headline metric, and the
    time spent.

    Attributes:
        started: when evaluation began, on the monotonic clock.
    """

    metrics: pa.Table
    best: Best
    spent: Spent
    started: float


def evaluate(job: Job) -> Evaluated:
    """Publish METRICS of every encoder, stream and fusion.

    Scores are read, fused and measured by tasks, and stay in Ray's object store; the driver has the
    rows of METRICS.

    Raises:
        RunError: there are no scores, or a video lacks that of a class.
    """
    started = time.monotonic()
    settings = job.config.evaluate
    to_make = results.wanted(job.singles, settings, job.fused)
    weighted = [result for result in job.fused if "fusions" in result.tables]
    shares = {
        combination.pair: (combination.stream, job.fusions(*combination.pair))
        for combination in weighted
    }
    with task_errors("evaluate"), ProgressLine("evaluate", len(to_make)) as line:
        scores: dict[tuple[str, str], ObjectRef] = {
            pair: _read.options(**matrix_memory(job, READ_BYTES)).remote(
                job.store, pair, job.scores(*pair), job.failures, shares.get(pair), line.meter
            )
            for pair in job.scored()
        }
        measure = _measure.options(num_returns=2, **matrix_memory(job, MEASURE_BYTES))
        # The order of `results.results`: of equally good parts both take the same one as best.
        order = [result.parts[0] for result in to_make if result.fusion == SINGLE]
        measured, parts = [], []
        for result in to_make:
            sources = [scores[pair] for pair in result.sources]
            parts.append([functools.reduce(_added.remote, sources)] if result.is_total else sources)
            measure_settings = (settings, job.protocol, job.config.run.seed, line.meter)
            best_part = None
            if result.fusion != SINGLE:
                own_parts = [scores[pair] for pair in sorted(result.parts, key=order.index)]
                best_part = cast(ObjectRef, functools.reduce(_better.remote, own_parts))
            measured.append(measure.remote(result, measure_settings, best_part, *parts[-1]))
        of_clips = [
            _of_clips.remote(
                job.store,
                job.clip_scores(*network.pair),
                scores[network.pair],
                job.protocol,
                settings.top_k,
            )
            for network in job.scored_by_networks()
        ]
        values = ray.get([value for _, value in measured])
        best = max(range(len(to_make)), key=lambda index: (values[index], -index))
        tables = ray.get([*(table for table, _ in measured), *of_clips])
        facts = ray.get(
            _best.options(**matrix_memory(job, MEASURE_BYTES)).remote(
                to_make[best], job.folds[0], *parts[best]
            )
        )
    # One chunk a column: the pages of the file are as if the table had been built at once.
    table = pa.concat_tables(tables).combine_chunks()
    footer = job.footer("evaluate")
    if job.left_out:
        footer["video_fisher.left_out"] = job.left_out
    # They may be there, and only the page is another run's.
    job.unmark(job.metrics)
    job.store.publish_table(f"{job.metrics}/metrics.parquet", table, footer)
    return Evaluated(table, facts, line.spent, started)


@ray.remote(max_retries=3)
def _of_clips(
    store: Store, folder: str, matrix: ScoreMatrix, protocol: str, top_k: Sequence[int]
) -> pa.Table:
    """Return the METRICS rows that the clips of a network give."""

    def read(name: str) -> pa.Table:
        with store.open_parquet(name) as file:
            return file.read(columns=list(clips.COLUMNS))

    return METRICS.build(clips.clip_rows(matrix, map(read, store.files(folder)), protocol, top_k))


READ_BYTES, MEASURE_BYTES = 32, 64
"""Memory of a task for each score of its matrix [N, K]: reading puts columns in order, measuring
sorts places."""


def matrix_memory(job: Job, score_bytes: int) -> dict[str, int]:
    """Return the memory that a Ray task with a score matrix asks for."""
    labels = job.manifest["labels"]
    num_classes = pc.count_distinct(pc.list_flatten(labels)).as_py()
    return memory_options(score_bytes * job.manifest.num_rows * num_classes)


@ray.remote(max_retries=3)
def _read(
    store: Store,
    pair: tuple[str, str],
    folder: str,
    failures: str,
    fused: tuple[str, str] | None,
    meter: Meter,
) -> ScoreMatrix:
    """Return the scores of a result; for a combination, `fused` is its rule and the folder of its
    FUSIONS."""
    with meter("read"):
        matrix = read_scores(store, *pair, folder, failures)
        return with_weights(matrix, *fused, store) if fused else matrix


def with_weights(matrix: ScoreMatrix, rule: str, folder: str, store: Store) -> ScoreMatrix:
    """Return a combination's scores with its rule and the weights of its parts, from FUSIONS."""
    weights: dict[int, tuple[float, ...]] = {}
    for row in store.read_table(folder, ["fold", "weight"]).to_pylist():
        weights[row["fold"]] = (*weights.get(row["fold"], ()), row["weight"])
    return dataclasses.replace(matrix, fusion=rule, weights=weights)


@ray.remote(max_retries=3)
def _better(best: ScoreMatrix, part: ScoreMatrix) -> ScoreMatrix:
    return results.better(best, part)


@ray.remote(max_retries=3)
def _added(total: ScoreMatrix, part: ScoreMatrix) -> ScoreMatrix:
    return results.added(total, part)


@ray.remote(max_retries=3)
def _measure(
    result: Wanted,
    measure_settings: tuple[Evaluate, str, int, Meter],
    best_part: ScoreMatrix | None,
    *parts: ScoreMatrix,
) -> tuple[pa.Table, float]:
    """Return METRICS rows of a result and its headline metric; no rows and -1 where it cannot be
    made."""
    settings, protocol, seed, meter = measure_settings
    with meter("measure"):
        matrix = result.make(parts)
        rows = metric_rows(matrix, settings, protocol, seed) if matrix else []
        rows += results.gain_rows(matrix, rows, best_part, settings, seed) if matrix else []
        table, value = METRICS.build(rows), -1.0
        if matrix:
            headline = ("all", headline_metric(matrix.multi_label))
            value = next(r["value"] for r in rows if (r["split"], r["metric"]) == headline) or 0.0
    meter.done({"ok": 1})
    return table, value


@ray.remote(max_retries=3)
def _best(result: Wanted, first_fold: int, *parts: ScoreMatrix) -> Best:
    matrix = result.make(parts)
    if matrix is None:
        raise RuntimeError(f"evaluate: expected the best result to exist, got none for {result}")
    return best_of(matrix, first_fold)


def read_scores(store: Store, encoder: str, stream: str, folder: str, failures: str) -> ScoreMatrix:
    """Return the score matrix of one encoder and stream, videos in order of their id.

    Args:
        folder: of SCORES. failures: the folder that a message sends the user to.

    Raises:
        RunError: there are no scores, or a video lacks that of a class.
    """
    videos, classes = _Codes(), _Codes()
    parts = []
    for name in store.files(folder):
        with store.open_parquet(name) as file:
            for group in range(file.num_row_groups):
                # Millions of rows repeat their texts: codes are a tenth of them.
                table = file.read_row_group(
                    group, ["video_id", "label", "fold", "is_true", "score"]
                )
                video, label = videos.of(table["video_id"]), classes.of(table["label"])
                fold, score = (table[n].to_numpy() for n in ("fold", "score"))
                # Null: the video does not count for the class.
                target = table["is_true"].cast(pa.int8()).fill_null(-1).to_numpy()
                parts.append((video, label, fold, target, score))
    if not sum(len(part[0]) for part in parts):
        raise RunError(
            f"{store.uri(folder)}: expected scores of tested videos, found none; are all of "
            f"them in {store.uri(failures)}?"
        )
    video_ids, rank = videos.sorted()
    labels, column = classes.sorted()
    shape = (len(video_ids), len(labels))
    scores, targets = np.full(shape, np.nan), np.zeros(shape, np.float32)
    folds = np.zeros(shape[0], np.int64)
    for video, label, fold, target, score in parts:
        row, class_index = rank[video], column[label]
        scores[row, class_index], targets[row, class_index], folds[row] = score, target, fold
    if np.isnan(scores).any():
        example = video_ids[int(np.isnan(scores).any(1).argmax())]
        raise RunError(
            f"{store.uri(folder)}: expected a score for each class of each video, got none for "
            f"some of {example[:200]!r}; delete the folder and run step classify again"
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
    """Numbers for texts, in order of their first appearance."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def of(self, column: pa.ChunkedArray) -> np.ndarray:
        """Return the codes [n] of a column of texts."""
        encoded = column.combine_chunks().dictionary_encode()
        known = self._codes
        codes = [known.setdefault(text, len(known)) for text in encoded.dictionary.to_pylist()]
        return np.array(codes, np.int32)[encoded.indices.to_numpy()]

    def sorted(self) -> tuple[list[str], np.ndarray]:
        """Return the texts in order, and the rank of each code among them."""
        texts = list(self._codes)
        order = sorted(range(len(texts)), key=texts.__getitem__)
        ranks = np.empty(len(texts), np.int64)
        ranks[order] = np.arange(len(texts))
        return [texts[i] for i in order], ranks


def closing_table(job: Job) -> list[str]:
    """Return the five best results for a terminal, the best one marked, beside chance."""
    rows = job.store.read_table(job.metrics).to_pylist()
    of_all = {
        (*(row[n] for n in ("encoder", "stream", "fusion")), row["metric"]): row
        for row in rows
        if row["split"] == "all" and row["class"] is None
    }
    labels = [
        names
        for names, fold in zip(
            job.manifest["labels"].to_pylist(), job.manifest["fold"].to_pylist(), strict=True
        )
        if fold >= 0
    ]
    multi_label = any(len(names) > 1 for names in labels)
    headline = headline_metric(multi_label)
    keys = list(dict.fromkeys(key[:3] for key in of_all))
    ranked = sorted(keys, key=lambda key: -(of_all[*key, headline]["value"] or 0.0))
    best = ranked[:NUM_BEST]
    names = [result_words(e, s, "" if f == SINGLE else f) for e, s, f in best]
    width = max(map(len, names), default=0)
    lines = [
        f"{'*' if key == ranked[0] else ' '} {name:<{width}}  accuracy "
        f"{with_interval(of_all[*key, 'accuracy'])}, mAP {with_interval(of_all[*key, 'mAP'])}"
        for key, name in zip(best, names, strict=True)
    ]
    counts = collections.Counter(name for names in labels for name in names)
    chance = chance_level((count / len(labels) for count in counts.values()), multi_label)
    head = f"{len(ranked)} results on {len(labels):,} tested videos"
    if len(ranked) > len(best):
        head += f", the {len(best)} best by {headline}"
    return [f"{head} (chance: {headline} {chance:.3f})", *lines]


def with_interval(row: dict) -> str:
    """Return a number with its interval, "0.883 [0.800, 0.950]", as far as METRICS has them."""
    if row["value"] is None:
        return "-"
    if row["ci_low"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
