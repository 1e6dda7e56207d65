"""Late fusion: the weighted mean of the scores of several streams or encoders (DQ 5.3).

Letters: M streams, N videos, K classes, F folds.
"""

import itertools
from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray

from encoders.scores import metrics

TWO_STREAM = (1.0, 1.5)
"""Weights of a stream of pictures and of one of motion, after L1 normalisation (VU 5.3.3: RGB and flow)."""

EPSILON = 1e-12
"""Scores whose absolute values add up to less stay as they are instead of being blown up."""

MAX_CHOICES = 100
"""Points of the grid of weights that `choose_weights` tries, at most, where more than one step is possible."""


def fuse(
    score_arrays: Sequence[NDArray],
    weights: Sequence[float] | None = None,
    *,
    l1_normalise: bool = False,
) -> NDArray:
    """sum_m w_m s_m / sum_m w_m of score arrays [N, K], in float64.

    Args:
        weights: one each, none negative; equal where not given.
        l1_normalise: divide each video's scores by the sum of their absolute values first, so that
            no stream wins by its scale (VU 5.3.3, with RGB : flow = 1 : 1.5). Zero stays zero.

    Raises:
        ValueError: no arrays, arrays of different shapes, or wrong weights.
    """
    shapes = {np.shape(scores) for scores in score_arrays}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"fusion: expected score arrays of one shape [N, K], got {sorted(shapes)}; fuse scores "
            "of the same videos and classes"
        )
    parts = np.stack(score_arrays).astype(np.float64)
    weighting = np.ones(len(parts)) if weights is None else np.asarray(weights, np.float64)
    valid = weighting.shape == (len(parts),) and (weighting >= 0).all()
    if not (valid and 0 < weighting.sum() < np.inf):
        raise ValueError(
            f"fusion: expected {len(parts)} weights >= 0 that are not all zero, got {weights}"
        )
    if l1_normalise:
        parts /= np.maximum(np.abs(parts).sum(-1, keepdims=True), EPSILON)
    return np.tensordot(weighting / weighting.sum(), parts, axes=1)


def weight_grid(num_parts: int) -> NDArray[np.float64]:
    """[W, M] weights >= 0 that sum to 1: multiples of 1/10, coarser where that is more than MAX_CHOICES.

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

    The best weights of `weight_grid` have the highest accuracy or, where videos have several classes, the highest mAP;
    the most even ones of them are taken.

    Each video that is chosen on has scores of classifiers that did not see it. But those classifiers were trained
    on this fold's videos with their labels, so the choice is not independent of them; `encoders.svm.inner_folds` chooses on
    scores of inner folds instead.

    Args:
        score_arrays: M of [N, K], each video scored by the classifier that left its fold out.
        folds: [N], at least two different ones.

    Raises:
        ValueError: there is one fold alone, so that nothing is left to choose on.
    """
    names, own = np.unique(folds, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"fusion: expected two folds or more to choose weights on, got {len(names)}; give weights"
        )
    others = own[:, None] != np.arange(len(names))
    grid = weight_grid(len(score_arrays))
    quality = np.stack([_quality(fuse(score_arrays, row), targets, others) for row in grid])
    # Rounded: means of the same precisions in another order must not decide.
    best = np.argmax(np.nan_to_num(quality, nan=-1).round(9), axis=0)
    return {int(fold): tuple(grid[row].tolist()) for fold, row in zip(names, best, strict=True)}


def _quality(scores: NDArray, targets: NDArray, others: NDArray) -> NDArray:
    """[F] accuracy, or mAP where videos have several classes, of the videos that `others` [N, F] names."""
    if (targets.sum(1) > 1).any():
        precision = metrics.Ranking(scores, targets).average_precision(others)
        return metrics.mean_over_classes(precision)
    labelled = others & targets.any(1)[:, None]
    hits = (metrics.hit_ranks(scores, targets) < 1)[:, None] & labelled
    return hits.sum(0) / np.maximum(labelled.sum(0), 1)
