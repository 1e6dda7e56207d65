"""Choices on held-out scores: against separate fits, and that chance does not choose."""

import numpy as np
import pytest
import sklearn.metrics
import torch

from encoders.nested import (
    held_out_scores,
    qualities,
    select_parts,
    skill,
    weights_by_skill,
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


def test_weights_follow_skill_and_are_even_without_any() -> None:
    assert weights_by_skill([0.5, 0.5]) == (0.5, 0.5)
    assert weights_by_skill([0.0, 0.0, 0.0]) == pytest.approx((1 / 3,) * 3)
    high, low = weights_by_skill([0.8, 0.4])
    assert high / low == pytest.approx(64)


@pytest.mark.parametrize(("classes", "expected"), [(2, 0.2), (10, 0.4 / 0.9)])
def test_skill_is_what_is_right_above_chance(classes: int, expected: float) -> None:
    """Of 100 videos, equally many of each class; 60 or 50 are right."""
    truth = np.arange(100) % classes
    right = np.arange(100) < (60 if classes == 2 else 50)
    named = np.where(right, truth, (truth + 1) % classes)
    one_hot = np.eye(classes)
    assert skill(one_hot[named], one_hot[truth]) == pytest.approx(expected)
    assert skill(one_hot[(truth + 1) % classes], one_hot[truth]) == 0


def test_naming_the_most_frequent_class_is_no_skill() -> None:
    targets = np.eye(2)[[0, 0, 0, 1]]
    assert skill(np.tile([1.0, 0], (4, 1)), targets) == 0
    assert skill(np.eye(2)[[0, 0, 1, 1]], targets) == 0
    assert skill(targets, targets) == 1
    assert skill(np.ones((3, 1)), np.ones((3, 1))) == 0, "one class"
    assert skill(np.ones((3, 2)), np.zeros((3, 2))) == 0, "no class"


def test_skill_of_several_labels_is_of_average_precision() -> None:
    draws = np.random.default_rng(0)
    targets = (draws.random((400, 3)) < [0.1, 0.3, 0.5]).astype(float)
    assert skill(draws.random((400, 3)), targets) < 0.1
    assert skill(targets + 0.01 * draws.random((400, 3)), targets) == pytest.approx(1)
    scores = targets + draws.normal(size=(400, 3))
    found = [sklearn.metrics.average_precision_score(targets[:, k], scores[:, k]) for k in range(3)]
    chance = targets.mean(0).mean()
    assert skill(scores, targets) == pytest.approx((np.mean(found) - chance) / (1 - chance))
