"""Bootstrap confidence intervals of metrics, over videos. Letters: N videos, K classes, B draws.

A draw takes N of the N videos with replacement and computes every metric again; an interval holds
the middle 95 % of the draws (the percentile method). The classifiers stay the same, so an interval
shows how much the choice of test videos matters, not that of training videos. If a class has few
positives, draws repeat some and lack others: then AP is biased upwards, and its interval is rough.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.scores import metrics

PERCENTILES = (2.5, 97.5)
"""The ends of a 95 % interval."""

MEMORY_BYTES = 64 * 2**20
"""Memory of the counts of the draws that are evaluated together."""


def intervals(
    scores: NDArray, targets: NDArray, *, top_k: tuple[int, ...], num_draws: int, seed: int
) -> dict[str, NDArray]:
    """Return the ends of the intervals: {metric: [2]}, or [K, 2] for metrics of classes.

    They are NaN where there is no value. Metrics are accuracy, top_<k>, mAP, mAP_11, AP, AP_11 and,
    if every video has one class, balanced_accuracy. The draws depend on N and the seed only, so
    that several results of the same videos have the same draws. A class without a positive in a
    draw is left out of that draw's means.

    Memory is that of the scores, the order of all videos for each class, 2 K B values and
    MEMORY_BYTES.
    """
    ranking = metrics.Ranking(scores, targets)
    ranks = metrics.hit_ranks(scores, targets)
    hits = {"accuracy": ranks < 1} | {f"top_{k}": ranks < k for k in top_k}
    has_one_class = bool(((targets > 0).sum(1) == 1).all())
    drawn: dict[str, list[NDArray]] = {}
    for weights in _draws(len(scores), num_draws, seed):
        values = _hit_rates(hits, targets, weights)
        if has_one_class:
            values["balanced_accuracy"] = _balanced(hits["accuracy"], targets, weights)
        values["AP"] = ranking.average_precision(weights)
        values["AP_11"] = ranking.voc_average_precision(weights)
        for name in ("AP", "AP_11"):
            values[f"m{name}"] = metrics.mean_over_classes(values[name])
        for name, value in values.items():
            drawn.setdefault(name, []).append(value)
    return {name: _middle(np.concatenate(parts, -1)) for name, parts in drawn.items()}


@dataclass(frozen=True)
class Gain:
    """Difference of two results of the same videos, and the ends of its 95 % interval.

    The ends are NaN without draws.
    """

    value: float
    low: float
    high: float


def gains(
    scores: NDArray, others: NDArray, targets: NDArray, *, num_draws: int, seed: int
) -> dict[str, Gain]:
    """Return the gains in accuracy and mAP of scores [N, K] over other ones [N, K].

    They are paired: a draw takes the same videos for both, so that videos which are hard for both
        do
    not widen the interval.
    """
    rankings = [metrics.Ranking(result, targets) for result in (scores, others)]
    hits = [{"accuracy": metrics.hit_ranks(result, targets) < 1} for result in (scores, others)]
    once = np.ones((len(scores), 1), np.float32)
    drawn: dict[str, list[NDArray]] = {"accuracy": [], "mAP": []}
    for weights in (once, *_draws(len(scores), num_draws, seed)):
        rates = [_hit_rates(hit, targets, weights)["accuracy"] for hit in hits]
        means = [metrics.mean_over_classes(r.average_precision(weights)) for r in rankings]
        drawn["accuracy"].append(rates[0] - rates[1])
        drawn["mAP"].append(means[0] - means[1])
    result = {}
    for name, parts in drawn.items():
        low, high = _middle(np.concatenate(parts[1:])) if num_draws else (np.nan, np.nan)
        result[name] = Gain(float(parts[0][0]), float(low), float(high))
    return result


def _draws(num_videos: int, num_draws: int, seed: int) -> Iterator[NDArray]:
    """Yield parts [N, b] of the counts [N, B] of each video in each draw."""
    rng = np.random.default_rng(seed)
    size = max(1, MEMORY_BYTES // (4 * max(1, num_videos)))
    for start in range(0, num_draws, size):
        part = np.empty((min(size, num_draws - start), num_videos), np.float32)
        for row in part:
            row[:] = np.bincount(rng.integers(num_videos, size=num_videos), minlength=num_videos)
        yield np.ascontiguousarray(part.T)


def _hit_rates(hits: dict[str, NDArray], targets: NDArray, weights: NDArray) -> dict[str, NDArray]:
    """Return {metric: [b]} of the hits [N] of each metric, over the videos with a class."""
    labelled = _share(np.asarray((targets > 0).any(1)), weights)
    return {
        name: np.divide(
            _share(hit, weights), labelled, out=np.full(len(labelled), np.nan), where=labelled > 0
        )
        for name, hit in hits.items()
    }


def _share(mask: NDArray[np.bool], weights: NDArray) -> NDArray:
    return weights[mask].sum(0, dtype=np.float64)


def _balanced(hit: NDArray, targets: NDArray, weights: NDArray) -> NDArray:
    """Return the means [b] over classes of the share of their videos that are recognised."""
    classes = targets.argmax(1)
    recall = np.full((targets.shape[1], weights.shape[1]), np.nan)
    for k in np.unique(classes):
        of_class = np.asarray(classes == k)
        total = _share(of_class, weights)
        np.divide(_share(of_class & hit, weights), total, out=recall[k], where=total > 0)
    return metrics.mean_over_classes(recall)


def _middle(values: NDArray) -> NDArray:
    """Return percentiles [..., 2] of [..., B] over the draws with a value; NaN without any."""
    known = np.asarray(~np.isnan(values))
    filled = np.where(known.any(-1, keepdims=True), values, 0)
    ends = np.moveaxis(np.nanpercentile(filled, PERCENTILES, axis=-1), 0, -1)
    return np.where(known.any(-1, keepdims=True), ends, np.nan)
