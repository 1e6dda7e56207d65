"""One-vs-rest SVMs: one Ray task per encoder, stream and fold trains, scores and publishes."""

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from encoders.compress import fit_compression
from encoders.settings import CompressSettings
from encoders.svm import fit_one_vs_rest
from pipelines.config import Classify
from pipelines.layout import Job
from pipelines.storage import Store
from pipelines.tables import SCORES, vectors_from_arrow

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """What one classifier is trained and tested on, and where its scores go."""

    encoder: str
    stream: str
    fold: int
    encodings: str
    scores: str
    classifier: str
    compression: str
    compress: CompressSettings
    footer: dict[str, str]


def classify(job: Job) -> int:
    """Trains all classifiers and publishes their SCORES; returns the number of rows."""
    labels = job.manifest.select(["video_id", "source", "labels", "fold"])
    shared = ray.put(labels)
    tasks = []
    for encoder, stream in job.pairs():
        scores = job.scores(encoder, stream)
        for fold in job.folds:
            task = Fold(
                encoder,
                stream,
                fold,
                encodings=job.encodings(job.codebook(encoder, stream, fold)),
                scores=f"{scores}/fold-{fold:05d}.parquet",
                classifier=f"{job.classifiers(encoder, stream)}/fold-{fold:05d}.safetensors",
                compression=f"{job.classifiers(encoder, stream)}/compression-{fold:05d}.safetensors",
                compress=job.variants[encoder].compress,
                footer=job.footer("classify"),
            )
            if not job.store.exists(task.scores):
                tasks.append(
                    _classify_fold.remote(
                        job.store, task, shared, job.config.classify, job.config.run.seed
                    )
                )
    rows = 0
    for done, task in enumerate(tasks, start=1):
        rows += ray.get(task)
        if done % 10 == 0 or done == len(tasks):
            log.info("classify %d/%d", done, len(tasks))
    return rows


@ray.remote(max_retries=3)
def _classify_fold(
    store: Store, task: Fold, labels: pa.Table, settings: Classify, seed: int
) -> int:
    videos, vectors = read_encodings(store, task.encodings, labels)
    classes = sorted({name for names in labels["labels"].to_pylist() for name in names})
    targets = target_matrix(videos["labels"].to_pylist(), classes)
    labelled = targets.any(1)
    tests = np.asarray(videos["fold"]) == task.fold
    train, test = labelled & ~tests, labelled & tests
    if task.compress.kind != "none":
        # Fitted on training videos alone, like everything that the test videos are judged by.
        compression = fit_compression(torch.from_numpy(vectors[train]), task.compress, seed)
        store.publish(task.compression, compression.to_bytes())
        vectors = compression.transform(torch.from_numpy(vectors)).float().numpy()
    classifier = fit_one_vs_rest(
        vectors[train], targets[train], classes=classes, c=settings.c, loss=settings.loss
    )
    store.publish(task.classifier, classifier.to_bytes())
    scores = classifier.decision(vectors[test])
    table = _score_rows(videos.filter(pa.array(test)), classes, scores, targets[test], task)
    store.publish_table(task.scores, table, task.footer)
    return table.num_rows


def read_encodings(store: Store, folder: str, labels: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Rows of `labels` that have a vector, by video_id, and their vectors [N, D] in float32.

    A vector of a file that has changed since, by its `source`, is not read.
    """
    table = store.read_table(folder, ["video_id", "source", "vector"]).sort_by("video_id")
    row = pc.index_in(table["video_id"], labels["video_id"])
    table, row = table.filter(pc.is_valid(row)), row.drop_null()
    videos = labels.take(row)
    current = pc.equal(table["source"], videos["source"])
    vectors = vectors_from_arrow(table.filter(current)["vector"]).astype(np.float32)
    return videos.filter(current), vectors


def target_matrix(labels: list[list[str]], classes: list[str]) -> np.ndarray:
    """[N, K] of 0 and 1."""
    place = {name: k for k, name in enumerate(classes)}
    targets = np.zeros((len(labels), len(classes)), np.float32)
    for row, names in enumerate(labels):
        targets[row, [place[name] for name in names]] = 1
    return targets


def _score_rows(
    videos: pa.Table, classes: list[str], scores: np.ndarray, targets: np.ndarray, task: Fold
) -> pa.Table:
    count = videos.num_rows * len(classes)
    columns = {
        "video_id": videos["video_id"].take(np.repeat(np.arange(videos.num_rows), len(classes))),
        "encoder": pa.repeat(task.encoder, count),
        "stream": pa.repeat(task.stream, count),
        "fold": pa.repeat(pa.scalar(task.fold, pa.int32()), count),
        "label": pa.array(np.tile(np.array(classes, object), videos.num_rows), pa.string()),
        "is_true": pa.array(targets.reshape(-1).astype(bool)),
        "score": pa.array(scores.reshape(-1).astype(np.float64)),
    }
    schema = SCORES.schema()
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
