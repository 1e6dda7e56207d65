"""Facts of the best result for the report, so that the report can be written without the scores."""

from dataclasses import dataclass

import numpy as np

from encoders.scores.metrics import Ranking, confusion_matrix, mean_over_classes
from pipelines.evaluate.results import ScoreMatrix, chance_level


@dataclass(frozen=True)
class Confusion:
    """`matrix[i][j]`: number of videos of class i that were taken for class j.

    Raises:
        ValueError: the matrix is not K x K for K labels.
    """

    labels: tuple[str, ...]
    matrix: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if {len(self.matrix), *map(len, self.matrix)} - {len(self.labels)}:
            raise ValueError(
                f"Confusion: expected a matrix of {len(self.labels)} x {len(self.labels)}, got "
                f"{len(self.matrix)} rows of {sorted({len(row) for row in self.matrix})}"
            )


@dataclass(frozen=True)
class Curve:
    """One line of a training curve; curves of the same `chart` share one pair of axes."""

    chart: str
    name: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(
                f"Curve {self.name!r}: expected as many x as y, got {len(self.x)} and {len(self.y)}"
            )


NUM_SAMPLES = 12
NUM_QUERIES = 6

NUM_LEVELS = 101
"""Levels of recall of a drawn precision-recall curve."""


@dataclass(frozen=True)
class Pick:
    """A tested video that is shown with pictures: the fold that tests it, and the guess with its
    score."""

    video_id: str
    fold: int
    predicted: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Best:
    """Facts of the best result.

    Attributes:
        key: encoder, stream and fusion, as in METRICS.
        chance: accuracy of always naming the most frequent class; with several labels a video, mAP
            of a random order.
        confusion: None where videos have several labels.
        picks: the most confident wrong videos first, then the most confident right ones.
        queries: some tested videos, evenly spread.
        first_queries: the same of the first fold's videos alone.
    """

    key: tuple[str, str, str]
    classes: tuple[str, ...]
    multi_label: bool
    chance: float
    precision_recall: tuple[Curve, ...]
    confusion: Confusion | None
    picks: tuple[Pick, ...]
    queries: tuple[str, ...]
    first_queries: tuple[str, ...]


def best_of(matrix: ScoreMatrix, first_fold: int) -> Best:
    """Return the facts of a result."""
    shares, ids = (matrix.targets > 0).mean(0), np.array(matrix.video_ids, object)
    return Best(
        key=matrix.key,
        classes=tuple(matrix.classes),
        multi_label=matrix.multi_label,
        chance=float(chance_level(shares, matrix.multi_label)),
        precision_recall=precision_recall(matrix),
        confusion=None if matrix.multi_label else _confusion(matrix),
        picks=_picks(matrix),
        queries=_spread(ids),
        first_queries=_spread(ids[matrix.folds == first_fold]),
    )


def precision_recall(matrix: ScoreMatrix) -> tuple[Curve, ...]:
    """Return interpolated precision against recall: the mean of all classes, the two best, the
    middle and the two worst."""
    ranking, once = Ranking(matrix.scores, matrix.targets), np.ones((len(matrix.scores), 1))
    precision = ranking.average_precision(once)[:, 0]
    curves = ranking.interpolated_precision(once, NUM_LEVELS)[..., 0]
    known = np.flatnonzero(~np.isnan(precision))
    if not len(known):
        return ()
    order = known[np.argsort(-precision[known], kind="stable")]
    picked = dict.fromkeys([0, 1, len(order) // 2, len(order) - 2, len(order) - 1])
    chosen = [order[index] for index in sorted(picked) if 0 <= index < len(order)]
    mean = mean_over_classes(precision)
    named_curves = [(f"mean of {len(known)} classes, mAP {mean:.3f}", mean_over_classes(curves))]
    named_curves += [(f"{matrix.classes[k]}, AP {precision[k]:.3f}", curves[k]) for k in chosen]
    recall = tuple(np.linspace(0, 1, NUM_LEVELS).tolist())
    return tuple(
        Curve("Precision against recall", name, "recall", "precision", recall, tuple(y.tolist()))
        for name, y in named_curves
    )


def _confusion(matrix: ScoreMatrix) -> Confusion:
    counts = confusion_matrix(matrix.scores, matrix.targets)
    return Confusion(tuple(matrix.classes), tuple(tuple(int(n) for n in row) for row in counts))


def _picks(matrix: ScoreMatrix) -> tuple[Pick, ...]:
    first, top = matrix.scores.argmax(1), matrix.scores.max(1)
    order = np.argsort(-top, kind="stable")
    right = matrix.targets[np.arange(len(order)), first] > 0
    wrong = order[~right[order]][: NUM_SAMPLES // 2]
    chosen = [*wrong, *order[right[order]][: NUM_SAMPLES - len(wrong)]]
    return tuple(
        Pick(
            matrix.video_ids[index],
            int(matrix.folds[index]),
            matrix.classes[first[index]],
            float(top[index]),
        )
        for index in chosen
    )


def _spread(ids: np.ndarray) -> tuple[str, ...]:
    if not len(ids):
        return ()
    return tuple(ids[np.unique(np.linspace(0, len(ids) - 1, NUM_QUERIES).astype(int))].tolist())
