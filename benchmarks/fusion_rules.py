"""Rules of fusing results that were compared with those of the project, and are not in it
(docs/fusion.md).

Letters: M parts, N videos, K classes, F folds, U values whose mean is a quality.
"""

import itertools
from collections.abc import Callable, Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray

from encoders.scores import metrics
from encoders.scores.fusion import fuse

MAX_CHOICES = 100
"""Points of the grid of weights that `choose_weights` tries, at most, where more than one step is
possible."""


def weight_grid(num_parts: int) -> NDArray[np.float64]:
    """[W, M] weights >= 0 that sum to 1: multiples of 1/10, coarser where that is more than
    MAX_CHOICES.

    The most even weights come first, so that they win where others do no better.
    """
    bars = num_parts - 1
    steps = next((s for s in (10, 8, 6, 5, 4, 3, 2) if comb(s + bars, bars) <= MAX_CHOICES), 1)
    # Where the bars stand among steps + bars places says how many steps each part has.
    places = np.array(list(itertools.combinations(range(steps + bars), bars)), np.int64)
    ends = np.full((len(places), 1), steps + bars)
    edges = np.hstack([np.full_like(ends, -1), places, ends])
    grid = (np.diff(edges) - 1) / steps
    return grid[np.argsort((grid**2).sum(1).round(9), kind="stable")]


def choose_weights(
    score_arrays: Sequence[NDArray], targets: NDArray, folds: NDArray
) -> dict[int, tuple[float, ...]]:
    """{fold: weights} for each fold's videos, chosen on the videos of the other folds alone.

    The best weights of `weight_grid` have the highest accuracy or, where videos have several
    classes, the highest mAP; the most even ones of them are taken.

    Each video that is chosen on has scores of classifiers that did not see it. But those
    classifiers were trained on this fold's videos with their labels, so the choice is not
    independent of them; `encoders.svm.inner_folds` chooses on scores of inner folds instead.

    Args:
        score_arrays: M of [N, K], each video scored by the classifier that left its fold out.
        folds: [N], at least two different ones.

    Raises:
        ValueError: there is one fold alone, so that nothing is left to choose on.
    """
    names, own = np.unique(folds, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"fusion: expected two folds or more to choose weights on, got {len(names)}; give"
            " weights"
        )
    others = own[:, None] != np.arange(len(names))
    grid = weight_grid(len(score_arrays))
    quality = np.stack([_quality(fuse(score_arrays, row), targets, others) for row in grid])
    # Rounded: means of the same precisions in another order must not decide.
    best = np.argmax(np.nan_to_num(quality, nan=-1).round(9), axis=0)
    return {int(fold): tuple(grid[row].tolist()) for fold, row in zip(names, best, strict=True)}


def _quality(scores: NDArray, targets: NDArray, others: NDArray) -> NDArray:
    """[F] accuracy, or mAP where videos have several classes, of the videos that `others` [N, F]
    names."""
    if (targets.sum(1) > 1).any():
        precision = metrics.Ranking(scores, targets).average_precision(others)
        return metrics.mean_over_classes(precision)
    labelled = others & targets.any(1)[:, None]
    hits = (metrics.hit_ranks(scores, targets) < 1)[:, None] & labelled
    return hits.sum(0) / np.maximum(labelled.sum(0), 1)


MARGIN = 1.0
"""Standard errors by which some parts must be better than all of them together to be taken
instead."""


def qualities(scores: NDArray, targets: NDArray) -> NDArray[np.float64]:
    """[U] values whose mean is the quality of scores: for each video 1 if its first class is right,
    else 0 (accuracy); where videos have several classes, the AP of each class that has a positive
    (mAP)."""
    if (targets.sum(1) > 1).any():
        precision = metrics.average_precision(scores, targets)
        return precision[~np.isnan(precision)]
    return (metrics.hit_ranks(scores, targets) < 1)[targets.any(1)].astype(np.float64)


def select_parts(quality: Callable[[tuple[int, ...]], NDArray], num_parts: int) -> tuple[int, ...]:
    """Greedy forward selection: the parts that are fused with equal weights, ascending.

    The best part alone, then the one that helps most beside it, and so on. Of the sets on this path
    the best one, the largest of equals, is taken only if it is better than all parts together by
    more than MARGIN standard
    errors of the paired difference: of many sets one is better by chance.

    Args:
        quality: of a set of parts, [U] as `qualities` has them.
    """
    every = tuple(range(num_parts))
    all_together = quality(every)
    best, highest = every, all_together.mean()
    best_quality, chosen = all_together, ()
    while len(chosen) < num_parts - 1:
        tried = [tuple(sorted((*chosen, part))) for part in every if part not in chosen]
        found = [quality(parts) for parts in tried]
        # Rounded: means of the same numbers in another order must not decide.
        place = int(np.argmax([values.mean().round(9) for values in found]))
        chosen, mean = tried[place], found[place].mean()
        if mean > highest + 1e-9 or (best != every and mean > highest - 1e-9):
            best, highest, best_quality = chosen, mean, found[place]
    gain = best_quality - all_together
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    return best if gain.mean() > MARGIN * error else every
