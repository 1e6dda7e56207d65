"""Metrics of score matrices (METHODS 4). Letters: N videos, K classes, P steps of a curve, B weightings.

Scores are [N, K], the larger the likelier; targets are [N, K] of 0 and 1. In a video's ranking of
the classes, equal scores rank by the order of the classes; in a class's ranking of the videos, equal
scores are one step: all of them are found together.
"""

from collections.abc import Callable

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

VOC_LEVELS = 11
"""Levels of recall, 0 to 1, of the interpolated average precision of VOC 2007 (FK 4.3)."""


class Ranking:
    """The videos by the score of each class, sorted once, to be counted under many weightings.

    A weighting [N] says how often each video counts, in whole numbers: once in the data as they are, some
    times in a bootstrap draw, not at all outside a fold. B of them stand side by side in [N, B].

    A curve has a step at each score that a positive has. Videos between two of them change nothing but
    the number of videos taken, so it is added up per step: one sparse product [P, N] x [N, B] per class.
    """

    def __init__(self, scores: NDArray, targets: NDArray) -> None:
        _check(scores, targets)
        self._steps = [_steps(scores[:, k], targets[:, k] > 0) for k in range(scores.shape[1])]

    def average_precision(self, weights: NDArray) -> NDArray:
        """[K, B] areas under the precision-recall steps, all points, as scikit-learn defines them.

        NaN for a class without positives.

        Args:
            weights: [N, B], whole numbers.
        """
        return self._of_curves(weights, _area, ())

    def interpolated_precision(self, weights: NDArray, num_levels: int = VOC_LEVELS) -> NDArray:
        """[K, L, B] highest precision at recalls not below 0, 1 / (L - 1), ..., 1; NaN without positives.

        The mean over L = 11 levels is the average precision of VOC 2007.
        """
        return self._of_curves(weights, _interpolated, (num_levels,))

    def voc_average_precision(self, weights: NDArray) -> NDArray:
        """[K, B] 11-point interpolated average precision (VOC 2007, FK 4.3); NaN for a class without positives."""
        return self.interpolated_precision(weights).mean(1)

    def _of_curves(self, weights: NDArray, function: Callable, shape: tuple[int, ...]) -> NDArray:
        # Whole numbers up to 2^24 are exact in float32, and twice as fast as in float64.
        weights = np.ascontiguousarray(weights, np.float32)
        out = np.full((len(self._steps), *shape, weights.shape[1]), np.nan)
        for k, steps in enumerate(self._steps):
            if steps is not None:
                positives, videos = steps
                found = (positives @ weights).cumsum(0, dtype=np.float64)
                taken = (videos @ weights).cumsum(0, dtype=np.float64)
                out[k] = np.where(found[-1] > 0, function(found, taken, *shape), np.nan)
        return out


def _steps(
    score: NDArray, positive: NDArray
) -> tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix] | None:
    """Matrices [P, N] of 0 and 1: the positives, and all videos, that each step adds. None without positives."""
    if not positive.any():
        return None
    # Not stable, which is several times faster: videos of equal scores are one step in any order.
    order = np.argsort(-score).astype(np.int32)
    ranked, places = score[order], np.flatnonzero(positive[order])
    # A step ends with the last video of the score that its positives have.
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    ends = np.unique(last[np.searchsorted(last, places)]) + 1
    starts = np.append(0, ends)
    counts = np.append(0, np.searchsorted(places, ends))
    return _sums(order[places], counts, len(order)), _sums(order[: ends[-1]], starts, len(order))


def _sums(columns: NDArray, starts: NDArray, size: int) -> scipy.sparse.csr_matrix:
    ones = np.ones(len(columns), np.float32)
    return scipy.sparse.csr_matrix((ones, columns, starts), shape=(len(starts) - 1, size))


def _area(found: NDArray, taken: NDArray) -> NDArray:
    gained = np.diff(found, axis=0, prepend=0)
    return (gained * _precision(found, taken)).sum(0) / np.maximum(found[-1], 1)


def _interpolated(found: NDArray, taken: NDArray, num_levels: int) -> NDArray:
    best = np.maximum.accumulate(_precision(found, taken)[::-1])[::-1]
    # In whole numbers: found / total >= level / last, without a rounding that misses equality.
    last = num_levels - 1
    first = [(found * last < level * found[-1]).sum(0) for level in range(num_levels)]
    return np.take_along_axis(best, np.minimum(first, len(best) - 1), 0)


def _precision(found: NDArray, taken: NDArray) -> NDArray:
    return found / np.maximum(taken, 1)


def average_precision(scores: NDArray, targets: NDArray) -> NDArray:
    """[K] areas under the precision-recall steps, all points (scikit-learn's definition).

    NaN for a class without positives.
    """
    return Ranking(scores, targets).average_precision(np.ones((len(scores), 1)))[:, 0]


def mean_over_classes(values: NDArray) -> NDArray:
    """Return the mean of [K, ...] over the classes that have a value: mAP of APs; NaN if none has."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(total.shape, np.nan), where=known.any(0))


def accuracy(scores: NDArray, targets: NDArray) -> float:
    """Return the share of videos whose first-ranked class is one of theirs: accuracy, or Hit@1."""
    return top_k_accuracy(scores, targets, 1)


def top_k_accuracy(scores: NDArray, targets: NDArray, k: int) -> float:
    """Return the share of videos with one of their classes among the first k: Hit@k.

    Videos without a class are left out: there is nothing to hit. NaN if no video has one.

    Raises:
        ValueError: k is not in 1..K.
    """
    _check(scores, targets)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"top-k accuracy: expected 1 <= k <= {scores.shape[1]}, got {k}")
    hits = hit_ranks(scores, targets)[targets.any(1)] < k
    return float(hits.mean()) if len(hits) else float("nan")


def hit_ranks(scores: NDArray, targets: NDArray) -> NDArray[np.int64]:
    """[N] rank of the best ranked class that the video has, from 0; K where it has none."""
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(targets, order, 1) > 0
    return np.where(hits.any(1), hits.argmax(1), scores.shape[1])


def balanced_accuracy(scores: NDArray, targets: NDArray) -> float:
    """Return the mean over classes of the share of their videos that are recognised; one class a video.

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
