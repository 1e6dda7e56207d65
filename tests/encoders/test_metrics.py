import warnings

import numpy as np
import pytest
import sklearn.metrics

from encoders import metrics

SCORES = np.array([[0.9, 0.5, 0.1], [0.2, 0.8, 0.3], [0.6, 0.4, 0.7], [0.1, 0.3, 0.2]])
SINGLE = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 1, 0]])
MULTI = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]])


def random_scores(num_videos: int = 60, num_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    labels = rng.integers(num_classes, size=num_videos)
    scores = rng.normal(size=(num_videos, num_classes)) + np.eye(num_classes)[labels]
    return scores, labels


def test_average_precision_by_hand() -> None:
    # Class 0 ranks videos 0, 2, 1, 3: positives 1 and 3 stand 3rd and 4th: (1/3 + 2/4) / 2.
    # Class 1 ranks videos 1, 0, 2, 3: positives 0 and 1 stand first: 1. Class 2 has no positives.
    precision = metrics.average_precision(SCORES, MULTI)
    np.testing.assert_allclose(precision, [5 / 12, 1, np.nan])
    assert metrics.mean_average_precision(SCORES, MULTI) == pytest.approx(17 / 24)


def test_average_precision_of_equal_scores_does_not_depend_on_their_order() -> None:
    scores, targets = np.zeros((4, 1)), np.array([[1], [0], [0], [0]])
    np.testing.assert_allclose(metrics.average_precision(scores, targets), [1 / 4])
    np.testing.assert_allclose(metrics.average_precision(scores, targets[::-1]), [1 / 4])


def test_no_positives_at_all_is_nan_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(metrics.average_precision(SCORES, 0 * MULTI)).all()
        assert np.isnan(metrics.mean_average_precision(SCORES, 0 * MULTI))
        assert np.isnan(metrics.accuracy(SCORES, 0 * MULTI))
        assert np.isnan(metrics.balanced_accuracy(SCORES[:0], SINGLE[:0]))


def test_accuracy_and_top_k_by_hand() -> None:
    assert metrics.accuracy(SCORES, SINGLE) == 3 / 4
    assert metrics.top_k_accuracy(SCORES, SINGLE, 2) == 1
    # Firsts are 0, 1, 2, 1; of the three videos with labels only video 1 has its first.
    assert metrics.accuracy(SCORES, MULTI) == 1 / 3
    assert metrics.top_k_accuracy(SCORES, MULTI, 2) == 2 / 3
    assert metrics.top_k_accuracy(SCORES, MULTI, 3) == 1


def test_equal_scores_rank_by_class_order() -> None:
    scores = np.array([[1.0, 1.0, 1.0]])
    assert metrics.accuracy(scores, np.array([[1, 0, 0]])) == 1
    assert metrics.top_k_accuracy(scores, np.array([[0, 0, 1]]), 2) == 0


def test_confusion_and_balanced_accuracy_by_hand() -> None:
    np.testing.assert_array_equal(
        metrics.confusion_matrix(SCORES, SINGLE), [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    )
    assert metrics.balanced_accuracy(SCORES, SINGLE) == pytest.approx((1 + 1 + 1 / 2) / 3)


def test_agrees_with_scikit_learn() -> None:
    scores, labels = random_scores()
    targets, first = np.eye(5)[labels], scores.argmax(1)
    assert metrics.accuracy(scores, targets) == sklearn.metrics.accuracy_score(labels, first)
    top3 = sklearn.metrics.top_k_accuracy_score(labels, scores, k=3)
    assert metrics.top_k_accuracy(scores, targets, 3) == pytest.approx(top3)
    balanced = sklearn.metrics.balanced_accuracy_score(labels, first)
    assert metrics.balanced_accuracy(scores, targets) == pytest.approx(balanced)
    confusion = sklearn.metrics.confusion_matrix(labels, first)
    np.testing.assert_array_equal(metrics.confusion_matrix(scores, targets), confusion)
    mean = sklearn.metrics.average_precision_score(targets, scores, average="macro")
    assert metrics.mean_average_precision(scores, targets) == pytest.approx(mean)


def test_absent_class_is_left_out_of_balanced_accuracy() -> None:
    scores, labels = random_scores()
    labels[labels == 2] = 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sklearn.metrics.balanced_accuracy_score(labels, scores.argmax(1))
    assert metrics.balanced_accuracy(scores, np.eye(5)[labels]) == pytest.approx(expected)


def test_wrong_inputs() -> None:
    broken = SCORES.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 rows, the first row 2"):
        metrics.average_precision(broken, MULTI)
    with pytest.raises(ValueError, match=r"one shape \[N, K\].*got \[4, 3\] and \[4, 2\]"):
        metrics.accuracy(SCORES, MULTI[:, :2])
    with pytest.raises(ValueError, match=r"0 and 1, got \[0, 2\]"):
        metrics.accuracy(SCORES, 2 * MULTI)
    with pytest.raises(ValueError, match=r"1 <= k <= 3, got 4"):
        metrics.top_k_accuracy(SCORES, SINGLE, 4)
    with pytest.raises(ValueError, match=r"one class a video, got 2 in row 1"):
        metrics.confusion_matrix(SCORES, np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]]))
