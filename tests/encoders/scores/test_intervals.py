"""Intervals: the same draws, taken as arrays and measured by the plain functions, give the same
ends."""

import warnings

import numpy as np
import pytest

from encoders.scores import intervals as scores_intervals
from encoders.scores import metrics
from encoders.scores.intervals import gains, intervals
from tests.encoders.in_memory import mean_average_precision, voc_average_precision


def corpus(num_videos: int = 40, num_classes: int = 4, several: bool = False):
    rng = np.random.default_rng(7)
    targets = np.eye(num_classes)[rng.integers(num_classes, size=num_videos)]
    if several:
        targets = np.maximum(targets, rng.random(targets.shape) < 0.2)
        targets[:2] = 0
    # Rounded, so that many scores are equal.
    return (rng.normal(size=targets.shape) + targets).round(1), targets


def by_loop(scores: np.ndarray, targets: np.ndarray, num_draws: int, seed: int) -> dict:
    """Each draw taken as a data set of its own."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, list] = {}
    for _ in range(num_draws):
        rows = rng.integers(len(scores), size=len(scores))
        s, t = scores[rows], targets[rows]
        values = {
            "accuracy": metrics.accuracy(s, t),
            "top_2": metrics.top_k_accuracy(s, t, 2),
            "AP": metrics.average_precision(s, t),
            "AP_11": voc_average_precision(s, t),
            "mAP": mean_average_precision(s, t),
        }
        if (targets.sum(1) == 1).all():
            values["balanced_accuracy"] = metrics.balanced_accuracy(s, t)
        for name, value in values.items():
            drawn.setdefault(name, []).append(value)
    return {n: np.nanpercentile(np.array(v), (2.5, 97.5), axis=0).T for n, v in drawn.items()}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("memory_bytes", [1, 3 * 4 * 40, 2**26])
def test_ends_are_those_of_draws_taken_as_arrays(
    several: bool, memory_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_intervals, "MEMORY_BYTES", memory_bytes)
    scores, targets = corpus(several=several)
    found = intervals(scores, targets, top_k=(2,), num_draws=30, seed=3)
    expected = by_loop(scores, targets, 30, 3)
    assert set(found) == {*expected, "mAP_11"}
    for name, ends in expected.items():
        np.testing.assert_allclose(found[name], ends, rtol=1e-12, err_msg=name)


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    # 400 videos of two classes, 300 recognised: a standard error of sqrt(0.75 * 0.25 / 400).
    targets = np.eye(2)[np.arange(400) % 2]
    scores = np.where(np.arange(400)[:, None] < 300, targets, 1 - targets)
    low, high = intervals(scores, targets, top_k=(), num_draws=2000, seed=0)["accuracy"]
    error = np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - 1.96 * error, 0.75 + 1.96 * error), abs=0.003)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(100):
        targets = np.eye(2)[rng.integers(2, size=100)]
        scores = np.where(rng.random(100)[:, None] < 0.7, targets, 1 - targets)
        low, high = intervals(scores, targets, top_k=(), num_draws=200, seed=trial)["accuracy"]
        held += low <= 0.7 <= high
    assert 88 <= held <= 99


def test_a_class_without_positives_has_no_interval_and_no_warning() -> None:
    scores, targets = corpus()
    targets[:, 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = intervals(scores, targets, top_k=(), num_draws=20, seed=0)
        nothing = intervals(scores, 0 * targets, top_k=(1,), num_draws=20, seed=0)
    assert np.isnan(found["AP"]).tolist() == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    assert np.isfinite(found["mAP"]).all()
    assert all(np.isnan(ends).all() for ends in nothing.values())


def test_results_of_the_same_videos_share_their_draws() -> None:
    scores, targets = corpus()
    once = intervals(scores, targets, top_k=(2,), num_draws=50, seed=5)
    again = intervals(2 * scores, targets, top_k=(2,), num_draws=50, seed=5)
    other = intervals(scores, targets, top_k=(2,), num_draws=50, seed=6)
    np.testing.assert_array_equal(once["AP"], again["AP"])
    assert (once["AP"] != other["AP"]).any()


def test_a_gain_is_paired_over_videos() -> None:
    draw = np.random.default_rng(3)
    targets = np.eye(4)[np.arange(80) % 4]
    first = targets + draw.normal(size=targets.shape)
    second = first.copy()
    second[:8] = -second[:8]
    found = gains(first, second, targets, num_draws=400, seed=0)
    hits = [(scores.argmax(1) == targets.argmax(1)).astype(float) for scores in (first, second)]
    assert found["accuracy"].value == pytest.approx(hits[0].mean() - hits[1].mean())
    difference = hits[0] - hits[1]
    rows = np.random.default_rng(0).integers(80, size=(400, 80))
    expected = np.percentile(difference[rows].mean(1), (2.5, 97.5))
    np.testing.assert_allclose((found["accuracy"].low, found["accuracy"].high), expected, atol=1e-9)
    same = gains(first, first, targets, num_draws=50, seed=0)
    assert {(g.value, g.low, g.high) for g in same.values()} == {(0.0, 0.0, 0.0)}
    assert np.isnan(gains(first, second, targets, num_draws=0, seed=0)["mAP"].low)
