import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from encoders.scores import metrics
from tests.encoders.in_memory import mean_average_precision, voc_average_precision

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
    assert mean_average_precision(SCORES, MULTI) == pytest.approx(17 / 24)


def test_average_precision_of_equal_scores_does_not_depend_on_their_order() -> None:
    scores, targets = np.zeros((4, 1)), np.array([[1], [0], [0], [0]])
    np.testing.assert_allclose(metrics.average_precision(scores, targets), [1 / 4])
    np.testing.assert_allclose(metrics.average_precision(scores, targets[::-1]), [1 / 4])


def test_no_positives_at_all_is_nan_and_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(metrics.average_precision(SCORES, 0 * MULTI)).all()
        assert np.isnan(mean_average_precision(SCORES, 0 * MULTI))
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
    assert mean_average_precision(scores, targets) == pytest.approx(mean)


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
    with pytest.raises(ValueError, match=r"0, 1 and -1, got \[0, 2\]"):
        metrics.accuracy(SCORES, 2 * MULTI)
    with pytest.raises(ValueError, match=r"1 <= k <= 3, got 4"):
        metrics.top_k_accuracy(SCORES, SINGLE, 4)
    with pytest.raises(ValueError, match=r"one class a video, got 2 in row 1"):
        metrics.confusion_matrix(SCORES, np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]]))


def test_eleven_points_by_hand() -> None:
    # Ranks of the positives: 1, 3, 6 of 7. Precision 1, 2/3, 1/2 at recall 1/3, 2/3, 1, so the
    # highest at or above 0 ... 0.3 is 1 (4 levels), at 0.4 ... 0.6 it is 2/3 (3), at 0.7 ... 1 it
    # is 1/2 (4).
    scores = np.arange(7, 0, -1.0)[:, None]
    targets = np.array([1, 0, 1, 0, 0, 1, 0])[:, None]
    expected = (4 * 1 + 3 * 2 / 3 + 4 / 2) / 11
    np.testing.assert_allclose(voc_average_precision(scores, targets), [expected])
    # 10 positives: recall 0.3 after the third is level 0.3, which 3 / 10 in floats would miss.
    ten = np.array([1] * 3 + [0] * 7 + [1] * 7)[:, None]
    found = metrics.Ranking(np.arange(17, 0, -1.0)[:, None], ten)
    levels = found.interpolated_precision(np.ones((17, 1)))[0, :, 0]
    np.testing.assert_allclose(levels[:4], 1)
    assert levels[4] < 1


def voc2007(score: np.ndarray, target: np.ndarray) -> float:
    """As the VOC 2007 development kit: the highest precision where recall >= t, for t = 0, 0.1,
    ..., 1."""
    target = target[np.argsort(-score, kind="stable")]
    found = np.cumsum(target)
    precision = found / np.arange(1, len(target) + 1)
    highest = []
    for level in range(11):
        there = found * 10 >= level * found[-1]
        highest.append(precision[there].max())
    return float(np.mean(highest))


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_average_precisions_equal_scikit_learn_and_the_voc_kit(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = (rng.random((size, 2)) < 0.4).astype(int)
    # All different for the kit, which knows no equal scores; some equal for scikit-learn.
    scores = rng.permutation(size * 2).reshape(size, 2).astype(float)
    coarse = (scores // 5).astype(np.float32)
    for k in range(2):
        if targets[:, k].any():
            expected = sklearn.metrics.average_precision_score(targets[:, k], coarse[:, k])
            assert metrics.average_precision(coarse, targets)[k] == pytest.approx(expected)
            found = voc_average_precision(scores, targets)[k]
            assert found == pytest.approx(voc2007(scores[:, k], targets[:, k]))
        else:
            assert np.isnan(metrics.average_precision(scores, targets)[k])
            assert np.isnan(voc_average_precision(scores, targets)[k])


@given(st.integers(0, 2**32 - 1))
def test_a_weighting_is_a_data_set_with_repeated_videos(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, targets = rng.integers(6, size=(12, 3)).astype(float), rng.integers(2, size=(12, 3))
    counts = rng.integers(3, size=(12, 4))
    ranking = metrics.Ranking(scores, targets)
    found, eleven = ranking.average_precision(counts), ranking.voc_average_precision(counts)
    for b in range(4):
        rows = np.repeat(np.arange(12), counts[:, b])
        if len(rows):
            part = scores[rows], targets[rows]
            np.testing.assert_allclose(found[:, b], metrics.average_precision(*part))
            np.testing.assert_allclose(eleven[:, b], voc_average_precision(*part))


def test_hit_at_k_of_several_labels() -> None:
    # A video with classes 0 and 2 that ranks 1, 2, 0: its best class is second.
    ranks = metrics.hit_ranks(
        np.array([[0.1, 0.9, 0.5], [1.0, 2.0, 3.0]]), np.array([[1, 0, 1], [0, 0, 0]])
    )
    assert ranks.tolist() == [1, 3]


def test_a_video_that_does_not_count_for_a_class_is_not_in_its_ranking() -> None:
    draw = np.random.default_rng(5)
    scores, targets = draw.standard_normal((40, 3)), draw.integers(0, 2, (40, 3))
    targets[draw.random((40, 3)) < 0.3] = -1
    once = np.ones((40, 1))
    found, voc = metrics.average_precision(scores, targets), metrics.Ranking(scores, targets)
    for k in range(3):
        kept = targets[:, k] >= 0
        alone = scores[kept, k : k + 1], targets[kept, k : k + 1]
        assert found[k] == metrics.average_precision(*alone)[0]
        own = metrics.Ranking(*alone).voc_average_precision(np.ones((kept.sum(), 1)))[0, 0]
        assert voc.voc_average_precision(once)[k, 0] == own
    # In a video's ranking of the classes it is a class that the video does not have.
    as_negatives = np.where(targets < 0, 0, targets)
    assert metrics.accuracy(scores, targets) == metrics.accuracy(scores, as_negatives)


def test_a_class_whose_positives_do_not_count_has_no_value() -> None:
    assert np.isnan(
        metrics.average_precision(np.array([[1.0], [0.0]]), np.array([[-1], [0]]))
    ).all()
