"""Platt's sigmoid against scikit-learn's logistic regression."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from encoders.scores.calibration import Sigmoid, fit_sigmoid


def test_probabilities_by_hand() -> None:
    found = Sigmoid(2.0, -1.0).probabilities(np.array([[0.5, 1.5]]))
    np.testing.assert_allclose(found, [[0.5, 1 / (1 + np.exp(-2))]])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_many_scores_give_the_logistic_regression(scale: float) -> None:
    draw = np.random.default_rng(0)
    targets = np.eye(4)[np.arange(4000) % 4]
    scores = scale * (targets * 1.5 + draw.normal(size=targets.shape))
    found = fit_sigmoid(scores, targets)
    expected = LogisticRegression(C=np.inf, tol=1e-10).fit(
        scores.reshape(-1, 1) / scale, targets.ravel()
    )
    assert found.slope * scale == pytest.approx(expected.coef_[0, 0], rel=5e-3)
    assert found.intercept == pytest.approx(expected.intercept_[0], rel=5e-3)


def test_scores_without_an_error_have_a_finite_slope() -> None:
    targets = np.eye(3)[np.arange(12) % 3]
    found = fit_sigmoid(2 * targets - 1, targets)
    assert 0 < found.slope < 100
    # Platt's targets: 13 / 14 of 12 positives.
    assert found.probabilities(np.array(1.0)) == pytest.approx(13 / 14, abs=1e-3)


def test_scores_that_are_wrong_or_alike_say_how_frequent_a_class_is() -> None:
    targets = np.eye(4)[np.arange(400) % 4]
    for scores in (1.0 - targets, np.ones_like(targets)):
        found = fit_sigmoid(scores, targets)
        assert found.slope >= 0
        assert found.probabilities(scores).mean() == pytest.approx(0.25, abs=0.01)
