"""Classifiers, SOLUTIONS and SCORES of trained folds, as files."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.svm.classifiers import LinearClassifier
from pipelines.classify.examples import Examples
from pipelines.classify.fold_sets import FINAL, FoldSet
from pipelines.settings.sections import Classify
from pipelines.storage.store import Store
from pipelines.storage.tables import FUSIONS, SCORES, SOLUTIONS

log = logging.getLogger(__name__)


def best_c(values: tuple[float, ...], precision: np.ndarray) -> tuple[float, str]:
    """Return the c with the largest mean AP over classes, of [C, K], the smallest one of equals;
    and all means in words."""
    known = ~np.isnan(precision).any(0)
    means = precision[:, known].mean(1) if known.any() else np.zeros(len(values))
    best = values[int(means.argmax())]
    table = ", ".join(f"{c:g}: {mean:.4f}" for c, mean in zip(values, means, strict=True))
    return best, f"held-out mAP by C: {table}; C = {best:g}"


@dataclass(frozen=True, eq=False)
class Part:
    """The solution for some classes of a fold: weights [k, D], bias [k], scores [tested, k];
    primal, dual and rounds [k]."""

    weights: np.ndarray
    bias: np.ndarray
    scores: np.ndarray
    primal: np.ndarray
    dual: np.ndarray
    rounds: np.ndarray
    seconds: float


@dataclass(frozen=True, eq=False)
class Trained:
    """A fold with its C and the form of its solution.

    Attributes:
        weights: of the kernels of a combination's parts.
        parts: of its classes, in order; none before they are solved.
    """

    fold: int
    c: float
    form: str
    weights: tuple[float, ...] = ()
    parts: tuple[Part, ...] = ()


def publish(
    store: Store, fold_set: FoldSet, examples: Examples, settings: Classify, trained: Trained
) -> None:
    """Publish the files of a fold, in this order: classifier where it is kept, SOLUTIONS, FUSIONS
    of a combination, SCORES. Of final classifiers, which test no video, only the first two."""
    fold, parts = trained.fold, trained.parts
    if fold_set.keeps:
        data = _classifier(fold_set, examples, settings, trained)
        store.publish(fold_set.classifier_file(fold), data)
    rows = list(_solution_rows(fold_set, examples, settings, trained))
    store.publish_table(fold_set.solutions_file(fold), SOLUTIONS.build(rows), fold_set.footer)
    if fold == FINAL:
        return
    if trained.weights:
        publish_weights(store, fold_set, fold, trained.weights)
    publish_scores(
        store, fold_set, examples, fold, np.concatenate([part.scores for part in parts], 1)
    )


def _classifier(
    fold_set: FoldSet, examples: Examples, settings: Classify, trained: Trained
) -> bytes:
    parts = trained.parts
    classifier = LinearClassifier(
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.bias for part in parts]),
        tuple(examples.classes),
    )
    header = {"c": trained.c, "loss": settings.loss, "class_weight": settings.class_weight}
    if trained.weights:
        # The classifier's vectors: those of these parts, each divided by its length, concatenated.
        used = zip(fold_set.parts, trained.weights, strict=True)
        header["parts"] = [[part.encoder, part.stream] for part, weight in used if weight > 0]
    return classifier.to_bytes(**header)


def publish_weights(store: Store, fold_set: FoldSet, fold: int, weights: tuple[float, ...]) -> None:
    """Publish FUSIONS of a combination's fold: the weight of each part."""
    rows = [
        {
            "encoder": fold_set.encoder,
            "stream": fold_set.stream,
            "fold": fold,
            "part_encoder": part.encoder,
            "part_stream": part.stream,
            "weight": weight,
            "slope": None,
            "intercept": None,
        }
        for part, weight in zip(fold_set.parts, weights, strict=True)
    ]
    store.publish_table(fold_set.fusions_file(fold), FUSIONS.build(rows), fold_set.footer)


def publish_scores(
    store: Store, fold_set: FoldSet, examples: Examples, fold: int, scores: np.ndarray
) -> None:
    """Publish SCORES of a fold, from an array [tested, K]."""
    table = _score_rows(fold_set, examples, fold, scores)
    store.publish_table(fold_set.scores_file(fold), table, fold_set.footer)


def warn_unsolved(store: Store, fold_set: FoldSet, tolerance: float) -> None:
    """Log the classes of each fold that SOLUTIONS marks as not solved."""
    for fold in fold_set.todo:
        with store.open_parquet(fold_set.solutions_file(fold)) as file:
            table = file.read(columns=["label", "gap", "is_solved"])
        bad = table.filter(pc.invert(table["is_solved"])).to_pylist()
        if bad:
            log.warning(
                "classify %s fold %d: %d classes are not solved to a relative gap of %g: %s; lower "
                "classify.c or raise classify.tolerance",
                fold_set.name,
                fold,
                len(bad),
                tolerance,
                ", ".join(f"{row['label']} ({row['gap']:.1e})" for row in bad),
            )


def _solution_rows(
    fold_set: FoldSet, examples: Examples, settings: Classify, trained: Trained
) -> Iterator[dict]:
    training = examples.training((trained.fold,))[:, 0]
    targets = examples.training_targets[training]
    positives, negatives = (targets > 0).sum(0), (targets == 0).sum(0)
    solved = ((part, column) for part in trained.parts for column in range(len(part.bias)))
    counted = zip(examples.classes, positives, negatives, solved, strict=True)
    for label, positive, negative, (part, column) in counted:
        primal, dual = float(part.primal[column]), float(part.dual[column])
        one_sided = math.isnan(primal)
        gap = None if one_sided else (primal - dual) / primal
        yield {
            "encoder": fold_set.encoder,
            "stream": fold_set.stream,
            "fold": trained.fold,
            "label": label,
            "form": trained.form,
            "loss": settings.loss,
            "c": trained.c,
            "num_positive": int(positive),
            "num_negative": int(negative),
            "primal": None if one_sided else primal,
            "dual": None if one_sided else dual,
            "gap": gap,
            "rounds": int(part.rounds[column]),
            "is_solved": bool(gap is None or gap <= settings.tolerance),
            "seconds": part.seconds,
        }


def _score_rows(fold_set: FoldSet, examples: Examples, fold: int, scores: np.ndarray) -> pa.Table:
    tested, classes = np.flatnonzero(examples.tested(fold)), examples.classes
    targets = examples.targets[tested].reshape(-1)
    count = len(tested) * len(classes)
    columns = {
        "video_id": pa.array([examples.video_ids[i] for i in tested for _ in classes], pa.string()),
        "encoder": pa.repeat(fold_set.encoder, count),
        "stream": pa.repeat(fold_set.stream, count),
        "fold": pa.repeat(pa.scalar(fold, pa.int32()), count),
        "label": pa.array(np.tile(np.array(classes, object), len(tested)), pa.string()),
        "is_true": pa.array(targets > 0, mask=targets < 0),
        "score": pa.array(scores.reshape(-1).astype(np.float64)),
    }
    schema = SCORES.schema()
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
