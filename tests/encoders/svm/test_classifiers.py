import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.svm import LinearSVC

from encoders.svm import gram
from encoders.svm.classifiers import LinearClassifier, fit_weights
from encoders.svm.columns import one_vs_rest
from encoders.svm.gram import Gram
from tests.encoders import oracles
from tests.encoders.in_memory import fit_one_vs_rest

C = 10.0


def problem(num_vectors: int, dim: int, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Unit vectors, and three overlapping labels of each: multi-label, not quite separable."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_vectors, dim))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    noise = 0.3 * rng.normal(size=(num_vectors, 3)) / np.sqrt(dim)
    targets = (x @ rng.normal(size=(dim, 3)) / np.sqrt(dim) + noise > -0.02).astype(np.float32)
    return x, targets


def liblinear(x: NDArray, target: NDArray, loss: str, dual: bool) -> tuple[NDArray, float]:
    svc = LinearSVC(C=C, loss=loss, dual=dual, tol=1e-5, max_iter=200_000, random_state=3)
    svc.fit(x, target)
    return svc.coef_[0], svc.intercept_[0]


@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
@pytest.mark.parametrize(("num_vectors", "dim"), [(60, 700), (300, 8)])
def test_equals_liblinear_in_all_dimensions(loss: str, num_vectors: int, dim: int) -> None:
    x, targets = problem(num_vectors, dim)
    classifier = fit_one_vs_rest(x, targets, c=C, loss=loss)
    direct = [
        liblinear(x, target, loss, dual=num_vectors < dim or loss == "hinge")
        for target in targets.T
    ]
    weights, bias = (np.array(part, np.float32) for part in zip(*direct, strict=True))
    reference = LinearClassifier(weights, bias, classifier.classes)
    ours = oracles.svm_objective(x, targets, classifier, C, loss)
    np.testing.assert_allclose(
        ours, oracles.svm_objective(x, targets, reference, C, loss), rtol=1e-3
    )
    np.testing.assert_allclose(classifier.decision(x), reference.decision(x), atol=5e-3)
    assert classifier.weights.dtype == classifier.decision(x).dtype == np.float32


def test_objective_by_hand() -> None:
    x = np.array([[3.0, 0], [0, 2]], np.float32)
    classifier = LinearClassifier(
        np.array([[1, 0.5]], np.float32), np.array([-1], np.float32), ("one",)
    )
    # Decisions 2 and 0; y = -1, +1: margins -2 and 0, hinges 3 and 1; 1/2 (1 + 1/4 + 1) = 1.125.
    targets = np.array([[0], [1]])
    assert oracles.svm_objective(x, targets, classifier, 10, "hinge") == pytest.approx(1.125 + 40)
    assert oracles.svm_objective(x, targets, classifier, 10, "squared_hinge") == pytest.approx(
        101.125
    )


@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
def test_no_small_step_lowers_the_objective(loss: str) -> None:
    x, targets = problem(40, 90, seed=1)
    classifier = fit_one_vs_rest(x, targets, c=C, loss=loss)
    best = oracles.svm_objective(x, targets, classifier, C, loss)
    rng = np.random.default_rng(2)
    for _ in range(20):
        step = rng.normal(size=classifier.weights.shape).astype(np.float32)
        step *= 0.03 * np.linalg.norm(classifier.weights) / np.linalg.norm(step)
        moved = LinearClassifier(classifier.weights + step, classifier.bias, classifier.classes)
        assert (oracles.svm_objective(x, targets, moved, C, loss) > best).all()


def test_repeated_and_zero_vectors() -> None:
    x, targets = problem(20, 50)
    x, targets = np.concatenate([x, x, 0 * x[:5]]), np.concatenate([targets, targets, targets[:5]])
    classifier = fit_one_vs_rest(x, targets, c=C)
    direct = [liblinear(x, target, "squared_hinge", dual=True) for target in targets.T]
    for k, (weights, bias) in enumerate(direct):
        np.testing.assert_allclose(classifier.weights[k], weights, atol=2e-3)
        assert classifier.bias[k] == pytest.approx(bias, abs=2e-3)


@pytest.mark.parametrize("dim", [3, 50])
def test_all_zero_vectors_leave_the_bias(dim: int) -> None:
    targets = np.array([[1], [1], [0], [1]])
    classifier = fit_one_vs_rest(np.zeros((4, dim), np.float32), targets, c=C)
    # 1/2 b^2 + C (3 (1 - b)^2 + (1 + b)^2) is least at b = 4 C / (1 + 8 C).
    assert classifier.bias[0] == pytest.approx(4 * C / (1 + 8 * C), rel=1e-4)
    assert not classifier.weights.any()


def test_a_class_that_all_or_none_have() -> None:
    x, targets = problem(12, 30)
    targets[:, 0], targets[:, 1] = 0, 1
    classifier = fit_one_vs_rest(x, targets, c=C)
    scores = classifier.decision(x)
    assert (scores[:, 0] == -1).all()
    assert (scores[:, 1] == 1).all()
    assert np.ptp(scores[:, 2]) > 0.1


def test_bytes_round_trip() -> None:
    x, targets = problem(15, 40)
    classifier = fit_one_vs_rest(x, targets, classes=("l\u00e4ufer", "b", "a"))
    again = LinearClassifier.from_bytes(classifier.to_bytes())
    assert again.classes == ("l\u00e4ufer", "b", "a")
    np.testing.assert_array_equal(again.weights, classifier.weights)
    np.testing.assert_array_equal(again.bias, classifier.bias)


def test_same_input_same_bits() -> None:
    x, targets = problem(30, 60)
    assert fit_one_vs_rest(x, targets).to_bytes() == fit_one_vs_rest(x, targets).to_bytes()


def test_a_cap_of_rounds_shows_in_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "MAX_ROUNDS", 1)
    x, targets = (torch.from_numpy(part) for part in problem(60, 20))
    targets[:, 2] = 1
    columns = one_vs_rest(targets, torch.ones(60, 1, dtype=torch.bool), c=100, loss="hinge")
    found = fit_weights(Gram.of(x), lambda: [x], columns, tolerance=1e-6)
    assert (found.gap[:2] > 1e-6).all()
    assert found.gap[2].isnan()


def test_wrong_inputs() -> None:
    x, targets = problem(10, 20)
    with pytest.raises(ValueError, match=r"a positive c, got 'hinge' and \[0.0\]"):
        fit_one_vs_rest(x, targets, c=0, loss="hinge")
    with pytest.raises(ValueError, match=r"vectors of shape \[N, 20\], got \[10, 19\]"):
        fit_one_vs_rest(x, targets).decision(x[:, 1:])


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_a_vector_that_does_not_count_for_a_class_has_no_part_in_its_problem(
    class_weight: str,
) -> None:
    x, targets = problem(60, 20)
    ignored = np.zeros(targets.shape, bool)
    ignored[3:20, 1] = True
    signed = np.where(ignored, -1, targets).astype(np.int8)
    found = fit_one_vs_rest(x, signed, c=10, tolerance=1e-10, class_weight=class_weight)
    plain = fit_one_vs_rest(x, targets, c=10, tolerance=1e-10, class_weight=class_weight)
    kept = ~ignored[:, 1]
    alone = fit_one_vs_rest(
        x[kept], targets[kept], c=10, tolerance=1e-10, class_weight=class_weight
    )
    np.testing.assert_allclose(found.weights[[0, 2]], plain.weights[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(found.weights[1], alone.weights[1], atol=1e-5)
    assert np.abs(found.weights[1] - plain.weights[1]).max() > 1e-3
