"""Choices on held-out scores: against separate fits, and that chance does not choose."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch

from encoders.nested import (
    held_out_scores,
    mean_quality,
    qualities,
    select_parts,
    weights_by_quality,
)
from encoders.svm import fit_one_vs_rest
from encoders.svm_gram import Gram


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors [40, 6], targets [40, 3], inner folds; the last ten videos are outside."""
    draw = np.random.default_rng(0)
    targets = np.eye(3, dtype=np.uint8)[np.arange(40) % 3]
    x = (targets @ draw.normal(size=(3, 6)) + draw.normal(size=(40, 6))).astype(np.float32)
    inner = np.arange(40) // 3 % 3
    inner[30:] = -1
    return x, targets, inner


@pytest.mark.parametrize("loss", ["hinge", "squared_hinge"])
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_each_video_is_scored_by_the_other_inner_folds(loss: str, class_weight: str) -> None:
    x, targets, inner = problem()
    settings = {"loss": loss, "class_weight": class_weight, "tolerance": 1e-7}
    values = (0.1, 10.0)
    found = held_out_scores(
        Gram.of(torch.from_numpy(x)), torch.from_numpy(targets), inner, values, **settings
    )
    for c, scores in zip(values, found, strict=True):
        assert scores.shape == (30, 3)
        for part in range(3):
            other = (inner >= 0) & (inner != part)
            own = fit_one_vs_rest(x[other], targets[other], c=c, **settings)
            expected = own.decision(x[inner == part])
            np.testing.assert_allclose(scores[inner[:30] == part], expected, atol=2e-3)


def test_labels_outside_change_nothing() -> None:
    x, targets, inner = problem()
    gram, settings = Gram.of(torch.from_numpy(x)), {"loss": "hinge", "class_weight": "balanced"}
    poisoned = targets.copy()
    poisoned[30:] = 1 - poisoned[30:]
    found = [
        next(held_out_scores(gram, torch.from_numpy(t), inner, (1.0,), tolerance=1e-3, **settings))
        for t in (targets, poisoned)
    ]
    np.testing.assert_array_equal(*found)


def test_quality_is_of_videos_or_with_several_labels_of_classes() -> None:
    scores = np.array([[3.0, 1, 0], [0, 1, 2], [0, 2, 1], [1, 0, 0]])
    targets = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(qualities(scores, targets), [1, 0, 1])
    targets[0] = [1, 1, 0]
    expected = [
        sklearn.metrics.average_precision_score(targets[:, k], scores[:, k]) for k in (0, 1)
    ]
    np.testing.assert_allclose(qualities(scores, targets), expected)


def hits(rate: float, num: int = 200) -> np.ndarray:
    return (np.arange(num) < round(rate * num)).astype(float)


def test_selection_takes_what_is_clearly_better_than_all_together() -> None:
    rates = {(1,): 0.8, (0, 1): 0.7, (1, 2): 0.95}
    chosen = select_parts(lambda parts: hits(rates.get(parts, 0.6)), 4)
    assert chosen == (1, 2)


def test_selection_leaves_all_together_where_the_gain_may_be_chance() -> None:
    rates = {(0, 1, 2): 0.8, (1,): 0.805}
    assert select_parts(lambda parts: hits(rates.get(parts, 0.5)), 3) == (0, 1, 2)
    assert select_parts(lambda parts: hits(0.8), 3) == (0, 1, 2), "equal: all of them"
    # Each set is as good as another, and differs from it by noise.
    draws = np.random.default_rng(0)
    kept = 0
    for _ in range(100):
        kept += len(select_parts(lambda parts: (draws.random(60) < 0.7).astype(float), 2)) == 2
    assert kept > 60


def test_weights_follow_quality_and_are_even_without_any() -> None:
    assert weights_by_quality([(0.5, 0.1), (0.5, 0.0)]) == (0.5, 0.5)
    assert weights_by_quality([(0.0, 0.0)] * 3) == pytest.approx((1 / 3,) * 3)
    width = math.hypot(2 * 0.03, 0.05)
    high, low, none = weights_by_quality([(0.8, 0.03), (0.8 - width, 0.2), (0.0, 0.0)])
    assert low / high == pytest.approx(math.exp(-0.5))
    assert high + low == pytest.approx(1)
    assert none < 1e-9


def test_more_parts_count_where_less_is_known() -> None:
    """Of the same two accuracies: the weaker part counts the more, the fewer videos they are of; never nothing."""
    shares = []
    for num in (20, 200, 20_000):
        targets = np.eye(2)[np.arange(num) % 2]
        named = [np.where(np.arange(num) < rate * num, 0, 1) for rate in (0.7, 0.6)]
        parts = [targets[:, ::-1] * own[:, None] + targets * (1 - own)[:, None] for own in named]
        found = [mean_quality(part, targets) for part in parts]
        assert found[0] == pytest.approx((0.7, math.sqrt(0.7 * 0.3 / num)))
        shares.append(weights_by_quality(found)[1])
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.4
    assert shares[2] == pytest.approx(1 / (1 + math.exp(2)), abs=0.01)


def test_the_quality_of_nothing_is_none() -> None:
    assert mean_quality(np.ones((3, 2)), np.zeros((3, 2))) == (0, 0)
