"""Choices on held-out scores: against separate fits, and that chance does not choose."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from encoders.scores.calibration import fit_sigmoid
from encoders.svm.gram import Gram
from encoders.svm.inner_folds import TOLERATED, held_out_scores, log_losses, weights_by_loss
from tests.encoders.in_memory import fit_one_vs_rest


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


def test_losses_are_those_of_the_sigmoids_probabilities() -> None:
    draws = np.random.default_rng(1)
    targets = (draws.random((50, 3)) < 0.3).astype(float)
    scores = targets + draws.normal(size=targets.shape)
    likely = fit_sigmoid(scores, targets).probabilities(scores)
    expected = [
        sum(-math.log(p if t else 1 - p) for p, t in zip(*rows, strict=True))
        for rows in zip(likely, targets, strict=True)
    ]
    np.testing.assert_allclose(log_losses(scores, targets), expected, rtol=1e-9)


@example(slope=0.01, shift=-3.59375)
@given(slope=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_neither_scale_nor_offset_of_scores_makes_a_loss(slope: float, shift: float) -> None:
    draws = np.random.default_rng(2)
    targets = np.eye(3)[draws.integers(3, size=40)]
    scores = targets + draws.normal(size=targets.shape)
    np.testing.assert_allclose(
        log_losses(slope * scores + shift, targets), log_losses(scores, targets), atol=2e-3
    )


def test_scores_that_know_nothing_cost_what_the_classes_do() -> None:
    targets = np.eye(4)[np.arange(400) % 4]
    entropy = -4 * (0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    scores = np.random.default_rng(0).normal(size=targets.shape)
    assert log_losses(scores, targets).mean() == pytest.approx(entropy, rel=0.01)
    assert log_losses(-targets, targets).mean() == pytest.approx(entropy, rel=0.01), "no worse"
    assert log_losses(targets, targets).mean() < 0.05


def test_weights_follow_losses_and_are_even_without_any() -> None:
    assert weights_by_loss([np.zeros(0)] * 3) == (1 / 3,) * 3
    assert weights_by_loss([np.ones(9)] * 2) == (0.5, 0.5)
    high, low, none = weights_by_loss([np.ones(9), np.ones(9) + TOLERATED, np.ones(9) + 1])
    assert low / high == pytest.approx(math.exp(-0.5))
    assert high + low + none == pytest.approx(1)
    assert none < 1e-9


def test_more_parts_count_where_less_is_known() -> None:
    """Of the same two losses, one of them uneven: the weaker part counts the more, the fewer videos
    they are of."""
    shares = []
    for num in (4, 40, 400_000):
        better = np.zeros(num)
        worse = np.where(np.arange(num) % 2, 1.2, -0.8)
        shares.append(weights_by_loss([better, worse])[1])
    width = [math.hypot(1 / math.sqrt(num), TOLERATED) for num in (4, 40, 400_000)]
    ratios = [math.exp(-((0.2 / one) ** 2) / 2) for one in width]
    assert shares == pytest.approx([one / (1 + one) for one in ratios])
    assert shares == sorted(shares, reverse=True)
