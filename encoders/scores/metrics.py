"""Metrics of score matrices (METHODS 4).

Letters: N videos, K classes, P steps of a curve, B weightings.

Scores are [N, K], the larger the likelier; targets are [N, K] of 0 and 1, or -1 where a video does
not count for a class (VOC's difficult images): the class's ranking leaves it out. In a video's
ranking of the classes, equal scores rank by the order of the classes; in a class's ranking of the
videos, equal scores are one step: all of them are retrieved together.
"""

from collections.abc import Callable

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

VOC_LEVELS = 11
"""Levels of recall, 0 to 1, of the interpolated average precision of VOC 2007 (FK 4.3)."""


class Ranking:
    """The videos sorted by the score of each class, once, for evaluation under many weightings.

    A weighting [N] is how often each video counts, in whole numbers: once in the plain data,
    several times in a bootstrap draw, not at all outside a fold. B of them are [N, B].

    A curve has a step at each score that a positive has. Videos between two steps change only the
    number of videos taken, which is added up per step: one sparse product [P, N] x [N, B] per
        class.
    """

    def __init__(self, scores: NDArray, targets: NDArray) -> None:
        _check(scores, targets)
        self._steps = [_steps(scores[:, k], targets[:, k]) for k in range(scores.shape[1])]

    def average_precision(self, weights: NDArray) -> NDArray:
        """Return areas [K, B] under the precision-recall steps, all points, as scikit-learn does.

        NaN for a class without positives.

        Args:
            weights: [N, B], whole numbers.
        """
        return self._evaluate(weights, _area, ())

    def interpolated_precision(self, weights: NDArray, num_levels: int = VOC_LEVELS) -> NDArray:
        """Return the highest precision [K, L, B] at recalls of at least 0, 1 / (L - 1), ..., 1.

        It is NaN without positives. The mean over L = 11 levels is the average precision of VOC
        2007.
        """
        return self._evaluate(weights, _interpolated, (num_levels,))

    def voc_average_precision(self, weights: NDArray) -> NDArray:
        """Return the 11-point interpolated average precision [K, B] (VOC 2007, FK 4.3).

        It is NaN for a class without positives.
        """
        return self.interpolated_precision(weights).mean(1)

    def _evaluate(self, weights: NDArray, function: Callable, shape: tuple[int, ...]) -> NDArray:
        """Return a function [K, *shape, B] of each class's curve."""
        # Whole numbers up to 2^24 are exact in float32, and twice as fast as in float64.
        weights = np.ascontiguousarray(weights, np.float32)
        out = np.full((len(self._steps), *shape, weights.shape[1]), np.nan)
        for k, steps in enumerate(self._steps):
            if steps is not None:
                positives, videos = steps
                hits_so_far = (positives @ weights).cumsum(0, dtype=np.float64)
                taken = (videos @ weights).cumsum(0, dtype=np.float64)
                out[k] = np.where(hits_so_far[-1] > 0, function(hits_so_far, taken, *shape), np.nan)
        return out


def _steps(
    score: NDArray, target: NDArray
) -> tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix] | None:
    """Return the positives, and all videos, of each step as matrices [P, N] of 0 and 1.

    None without positives.
    """
    positive = target > 0
    if not positive.any():
        return None
    # Not stable, which is several times faster: videos of equal scores are one step in any order.
    order = np.argsort(-score).astype(np.int32)
    order = order[target[order] >= 0]
    ranked, ranks = score[order], np.flatnonzero(positive[order])
    # A step ends with the last video of the score that its positives have.
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    ends = np.unique(last[np.searchsorted(last, ranks)]) + 1
    starts = np.append(0, ends)
    counts = np.append(0, np.searchsorted(ranks, ends))
    size = len(score)
    return _sums(order[ranks], counts, size), _sums(order[: ends[-1]], starts, size)


def _sums(columns: NDArray, starts: NDArray, size: int) -> scipy.sparse.csr_matrix:
    ones = np.ones(len(columns), np.float32)
    return scipy.sparse.csr_matrix((ones, columns, starts), shape=(len(starts) - 1, size))


def _area(hits_so_far: NDArray, taken: NDArray) -> NDArray:
    gained = np.diff(hits_so_far, axis=0, prepend=0)
    return (gained * _precision(hits_so_far, taken)).sum(0) / np.maximum(hits_so_far[-1], 1)


def _interpolated(hits_so_far: NDArray, taken: NDArray, num_levels: int) -> NDArray:
    best = np.maximum.accumulate(_precision(hits_so_far, taken)[::-1])[::-1]
    # In whole numbers: hits / total >= level / last, without a rounding that misses equality.
    last = num_levels - 1
    first = [(hits_so_far * last < level * hits_so_far[-1]).sum(0) for level in range(num_levels)]
    return np.take_along_axis(best, np.minimum(first, len(best) - 1), 0)


def _precision(hits_so_far: NDArray, taken: NDArray) -> NDArray:
    return hits_so_far / np.maximum(taken, 1)


def average_precision(scores: NDArray, targets: NDArray) -> NDArray:
    """Return areas [K] under the precision-recall steps, all points (scikit-learn's definition).

    NaN for a class without positives.
    """
    return Ranking(scores, targets).average_precision(np.ones((len(scores), 1)))[:, 0]


def mean_over_classes(values: NDArray) -> NDArray:
    """Return the mean of [K, ...] over the classes with a value: mAP of APs; NaN without any."""
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
    hits = hit_ranks(scores, targets)[(targets > 0).any(1)] < k
    return float(hits.mean()) if len(hits) else float("nan")


def hit_ranks(scores: NDArray, targets: NDArray) -> NDArray[np.int64]:
    """Return the rank [N] from 0 of the best ranked class that each video has; K without one."""
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(targets, order, 1) > 0
    return np.where(hits.any(1), hits.argmax(1), scores.shape[1])


def balanced_accuracy(scores: NDArray, targets: NDArray) -> float:
    """Return the mean over classes of the share of their videos that are recognised.

    Classes without videos are left out; NaN if there are no videos.

    Raises:
        ValueError: a video does not have exactly one class.
    """
    confusion = confusion_matrix(scores, targets)
    present = confusion.sum(1) > 0
    recall = confusion.diagonal()[present] / confusion.sum(1)[present]
    return float(recall.mean()) if len(recall) else float("nan")


def confusion_matrix(scores: NDArray, targets: NDArray) -> NDArray[np.int64]:
    """Return counts [K, K] of videos, row = their class, column = the class ranked first.

    Raises:
        ValueError: a video does not have exactly one class.
    """
    _check(scores, targets)
    counts = (targets > 0).sum(1)
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
    if not np.isin(targets, (-1, 0, 1)).all():
        raise ValueError(
            f"metrics: expected targets of 0, 1 and -1, got {np.unique(targets)[:5].tolist()}"
        )
    bad = np.flatnonzero(~np.isfinite(scores).all(1))
    if len(bad):
        raise ValueError(
            f"metrics: expected finite scores, got NaN or infinity in {len(bad)} rows, the first "
            f"row {bad[0]}; classify again"
        )
