"""Metrics of score matrices (METHODS 4). Letters: N videos, K classes.

Scores are [N, K], the larger the likelier; targets are [N, K] of 0 and 1. Where scores are equal,
the class that comes first ranks first.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score


def average_precision(scores: NDArray, targets: NDArray) -> NDArray:
    """[K] areas under the precision-recall steps, all points (scikit-learn's definition).

    NaN for a class without positives.
    """
    _check(scores, targets)
    precision = np.full(targets.shape[1], np.nan)
    for k in np.flatnonzero(targets.any(0)):
        precision[k] = average_precision_score(targets[:, k], scores[:, k])
    return precision


def mean_average_precision(scores: NDArray, targets: NDArray) -> float:
    """The mean of `average_precision` over the classes that have positives; NaN if none has."""
    precision = average_precision(scores, targets)
    known = precision[~np.isnan(precision)]
    return float(known.mean()) if len(known) else float("nan")


def accuracy(scores: NDArray, targets: NDArray) -> float:
    """The share of videos whose first-ranked class is one of theirs: accuracy, or Hit@1."""
    return top_k_accuracy(scores, targets, 1)


def top_k_accuracy(scores: NDArray, targets: NDArray, k: int) -> float:
    """The share of videos with one of their classes among the first k: Hit@k.

    Videos without a class are left out: there is nothing to hit. NaN if no video has one.

    Raises:
        ValueError: k is not in 1..K.
    """
    _check(scores, targets)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"top-k accuracy: expected 1 <= k <= {scores.shape[1]}, got {k}")
    labelled = targets.any(1)
    first = np.argsort(-scores[labelled], axis=1, kind="stable")[:, :k]
    hits = np.take_along_axis(targets[labelled], first, 1).any(1)
    return float(hits.mean()) if len(hits) else float("nan")


def balanced_accuracy(scores: NDArray, targets: NDArray) -> float:
    """The mean over classes of the share of their videos that are recognised; one class a video.

    Classes without videos are left out; NaN if there are no videos.

    Raises:
        ValueError: a video has not exactly one class.
    """
    confusion = confusion_matrix(scores, targets)
    present = confusion.sum(1) > 0
    recall = confusion.diagonal()[present] / confusion.sum(1)[present]
    return float(recall.mean()) if len(recall) else float("nan")


def confusion_matrix(scores: NDArray, targets: NDArray) -> NDArray[np.int64]:
    """[K, K] counts of videos, row = the class it has, column = the class ranked first.

    Raises:
        ValueError: a video has not exactly one class.
    """
    _check(scores, targets)
    counts = targets.sum(1)
    if (counts != 1).any():
        row = int(np.flatnonzero(counts != 1)[0])
        raise ValueError(
            f"confusion matrix: expected one class a video, got {int(counts[row])} in row {row}; "
            "use average_precision for multi-label targets"
        )
    matrix = np.zeros((scores.shape[1],) * 2, np.int64)
    np.add.at(matrix, (targets.argmax(1), scores.argmax(1)), 1)
    return matrix


def _check(scores: NDArray, targets: NDArray) -> None:
    if scores.ndim != 2 or scores.shape != targets.shape or scores.shape[1] == 0:
        raise ValueError(
            f"metrics: expected scores and targets of one shape [N, K] with K at least 1, got "
            f"{list(scores.shape)} and {list(targets.shape)}"
        )
    if not np.isin(targets, (0, 1)).all():
        raise ValueError(
            f"metrics: expected targets of 0 and 1, got {np.unique(targets)[:5].tolist()}"
        )
    bad = np.flatnonzero(~np.isfinite(scores).all(1))
    if len(bad):
        raise ValueError(
            f"metrics: expected finite scores, got NaN or infinity in {len(bad)} rows, the first "
            f"row {bad[0]}; classify again"
        )
