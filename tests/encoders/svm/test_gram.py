"""The Gram solver: against LIBLINEAR, against loops from the equations, and where matrices are
bad."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.svm import LinearSVC
from torch import Tensor

from encoders.svm import classifiers
from encoders.svm import gram as svm_gram
from encoders.svm.classifiers import LinearClassifier, decisions_along, fit_weights
from encoders.svm.columns import Columns, balanced, one_sided, one_vs_rest
from encoders.svm.gram import Gram, centre_of, gram_strip, solve
from tests.encoders import oracles

LOSSES = ["squared_hinge", "hinge"]
ALL = torch.ones(90, 1, dtype=torch.bool)


def vectors(kind: str, num_vectors: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors [N, D] and targets [N, 4], several a row: nearly orthogonal, nearly equal, or in few
    directions."""
    draw = np.random.default_rng(seed)
    label = draw.integers(4, size=num_vectors)
    x = draw.normal(size=(num_vectors, dim)) + 0.4 * draw.normal(size=(4, dim))[label]
    if kind == "fisher":
        x = np.sign(x) * np.sqrt(np.abs(x))
    elif kind == "deep":
        x = np.maximum(
            0, 6 + x / 3 + draw.normal(size=(num_vectors, 3)) @ draw.normal(size=(3, dim))
        )
    elif kind == "decaying":
        x = x / np.arange(1, dim + 1) + 0.5
    elif kind == "repeated":
        x[num_vectors // 2 :] = x[: num_vectors - num_vectors // 2]
        x[:5] = 0
        x[:, 3] = 7
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    targets = np.eye(4)[label]
    targets[draw.random(targets.shape) < 0.05] = 1
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(targets.astype(np.float32))


def fit(x: Tensor, columns: Columns, tolerance: float = 1e-6):
    return fit_weights(Gram.of(x), lambda: x.split(37), columns, tolerance=tolerance)


def liblinear(
    x: Tensor, target: Tensor, c: float, loss: str, **options: str
) -> tuple[LinearClassifier, bool]:
    """LIBLINEAR's classifier, and whether it says that it converged."""
    svc = LinearSVC(C=c, loss=loss, dual=True, tol=1e-7, max_iter=3000, random_state=1, **options)
    svc.fit(x.double().numpy(), target.numpy())
    weights, bias = svc.coef_.astype(np.float32), svc.intercept_.astype(np.float32)
    return LinearClassifier(weights, bias, ("one",)), svc.n_iter_ < svc.max_iter


@pytest.mark.filterwarnings("ignore:Liblinear failed to converge")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("kind", "dim", "c"),
    [
        ("fisher", 300, 100),
        ("fisher", 20, 1),
        ("deep", 300, 100),
        ("deep", 300, 0.01),
        ("decaying", 200, 100),
        ("repeated", 150, 10),
    ],
)
def test_no_objective_is_above_liblinears_and_signs_are_the_same(
    kind: str, dim: int, c: float, loss: str
) -> None:
    x, targets = vectors(kind, 90 + 300, dim)
    train, test = x[:90], x[90:]
    found = fit(train, one_vs_rest(targets[:90], ALL, c=c, loss=loss), 1e-8)
    assert (found.gap <= 1e-6).all()
    same = []
    for k, target in enumerate(targets[:90].T):
        theirs, converged = liblinear(train, target, c, loss)
        ours = LinearClassifier(found.weights[[k]].numpy(), found.bias[[k]].numpy(), theirs.classes)
        objectives = [
            oracles.svm_objective(train.numpy(), target[:, None].numpy(), one, c, loss)[0]
            for one in (ours, theirs)
        ]
        assert objectives[0] == pytest.approx(float(found.primal[k]), rel=1e-5)
        assert objectives[0] <= 1.0001 * objectives[1]
        if converged:
            decisions = [one.decision(test.numpy()) for one in (ours, theirs)]
            same.append(np.sign(decisions[0]) == np.sign(decisions[1]))
    assert not same or np.mean(same) >= 0.999


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["fisher", "deep", "decaying", "repeated"])
def test_a_float32_matrix_gives_weights_within_the_tolerance(
    kind: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, targets = vectors(kind, 90, 300)
    columns = one_vs_rest(targets, ALL, c=100, loss=loss)
    exact = fit(x, columns, 1e-9)
    monkeypatch.setattr(svm_gram, "EXACT_VECTORS", 0)
    assert Gram.of(x).centred.dtype == torch.float32
    found = fit(x, columns, 1e-6)
    assert (found.gap <= 1e-6).all()
    assert (found.primal <= (1 + 1e-6) * exact.primal).all()


def test_vectors_may_come_in_pieces_of_any_size() -> None:
    """And be gathered into larger ones: products with few vectors take as long as with many."""
    x, targets = vectors("fisher", 90, 30)
    columns = one_vs_rest(targets, ALL, c=10, loss="hinge")
    expected, gram = fit(x, columns), Gram.of(x)

    @settings(max_examples=25)
    @given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=90), room=st.integers(1, 200))
    def same(sizes: list[int], room: int) -> None:
        ends = [0, *(end for end in np.cumsum(sizes).tolist() if end < 90), 90]
        pieces = [x[first:end] for first, end in pairwise(ends)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(classifiers, "block_rows", lambda dim: room)
            found = fit_weights(gram, lambda: iter(pieces), columns, tolerance=1e-6)
        torch.testing.assert_close(found.decisions, expected.decisions, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=1e-6)
        assert (found.gap <= 1e-6).all()

    same()


@pytest.mark.parametrize("loss", LOSSES)
def test_what_a_wrong_matrix_costs_is_mended(loss: str) -> None:
    """The matrix only leads the way: objectives and offsets come from the vectors."""
    x, targets = vectors("fisher", 90, 300)
    columns = one_vs_rest(targets, ALL, c=10, loss=loss)
    gram = Gram.of(x)
    noise = 3e-4 * torch.randn(
        90, 90, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    wrong = Gram(gram.centred + noise + noise.T, gram.cross, gram.square)
    once = solve(wrong, columns, tolerance=1e-7).beta
    half = (once * gram.product(once)).sum(0) / 2
    primal = half + columns.losses(gram.product(once))
    dual = columns.dual_terms(once) - half
    assert ((primal - dual) / primal > 1e-5).all()
    found = fit_weights(wrong, lambda: x.split(90), columns, tolerance=1e-6)
    assert (found.gap <= 1e-6).all()


def test_the_matrix_is_that_of_the_vectors_in_any_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = vectors("deep", 90, 40)
    whole = Gram.of(x)
    monkeypatch.setattr(svm_gram, "STRIP_BYTES", 4 * 40 * 32)
    monkeypatch.setattr(svm_gram, "BLOCK_BYTES", 4 * 40 * 7)
    strips = Gram.of(x)
    beta = torch.randn(90, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (x.double() @ x.double().T + 1) @ beta
    for gram in (whole, strips):
        torch.testing.assert_close(gram.product(beta), expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(gram.centred, gram.centred.T)


def test_strips_say_which_vectors_are_bad_or_missing() -> None:
    x, _ = vectors("fisher", 30, 20)
    x[[4, 9], 3] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(ValueError, match="NaN or infinity in 2 of 30, the first in row 4"):
        Gram.of(x)
    with pytest.raises(ValueError, match="expected 30 vectors for the Gram matrix, got 25"):
        gram_strip(x[:10], [x[10:25]], centre_of(x), first=0, num_vectors=30)


@pytest.mark.parametrize("loss", LOSSES)
def test_folds_on_one_matrix_are_separate_problems(loss: str) -> None:
    x, targets = vectors("deep", 90, 60)
    fold = torch.arange(90) % 3
    training = fold.unsqueeze(1) != torch.arange(3)
    columns = one_vs_rest(
        targets,
        training,
        c=torch.tensor([10.0, 1, 10]),
        loss=loss,
        weights=balanced(targets, training),
    )
    together = fit(x, columns)
    assert together.weights.shape == (12, 60)
    for f in range(3):
        inside = training[:, f]
        weights = balanced(targets[inside], ALL[inside])
        alone = one_vs_rest(
            targets[inside], ALL[inside], c=1 if f == 1 else 10, loss=loss, weights=weights
        )
        expected = fit(x[inside], alone, 1e-9)
        columns = slice(4 * f, 4 * f + 4)
        decisions = x.double() @ expected.weights.double().T + expected.bias
        torch.testing.assert_close(together.primal[columns], expected.primal, rtol=2e-6, atol=0)
        torch.testing.assert_close(together.decisions[:, columns], decisions, rtol=0, atol=2e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_balanced_classes_are_scikit_learns(loss: str) -> None:
    x, targets = vectors("fisher", 90, 200)
    columns = one_vs_rest(targets, ALL, c=3, loss=loss, weights=balanced(targets, ALL))
    found = fit(x, columns, 1e-10)
    for k, target in enumerate(targets.T):
        theirs, _ = liblinear(x, target, 3, loss, class_weight="balanced")
        np.testing.assert_allclose(found.decisions[:, [k]], theirs.decision(x.numpy()), atol=2e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("c", [0.01, 1000.0])
def test_one_positive_and_two_vectors_and_one_dimension(loss: str, c: float) -> None:
    x, targets = vectors("fisher", 90, 200)
    single = torch.zeros(90, 1)
    single[7] = 1
    assert (fit(x, one_vs_rest(single, ALL, c=c, loss=loss)).gap <= 1e-6).all()
    two = one_vs_rest(targets[:2, :1] * 0 + torch.tensor([[1.0], [0]]), ALL[:2], c=c, loss=loss)
    assert (fit(x[:2], two).gap <= 1e-6).all()
    assert (fit(x[:, :1], one_vs_rest(targets, ALL, c=c, loss=loss)).gap <= 1e-6).all()


def test_a_start_from_a_smaller_c_ends_at_the_same_solution() -> None:
    x, targets = vectors("deep", 90, 100)
    gram = Gram.of(x)
    for loss in LOSSES:
        small, large = (one_vs_rest(targets, ALL, c=c, loss=loss) for c in (1, 100))
        cold = solve(gram, large, tolerance=1e-8)
        warm = solve(gram, large, tolerance=1e-8, start=solve(gram, small, tolerance=1e-4).beta)
        torch.testing.assert_close(warm.primal, cold.primal, rtol=2e-8, atol=0)


def test_decisions_along_c_are_those_of_each_c() -> None:
    x, targets = vectors("deep", 90, 100)
    targets[:, 3] = 0
    gram = Gram.of(x)

    def problem(c: float) -> Columns:
        return one_vs_rest(targets, ALL, c=c, loss="hinge")

    along = decisions_along(gram, problem, (0.1, 1.0, 10.0), tolerance=1e-10)
    for c, decisions in zip((0.1, 1.0, 10.0), along, strict=True):
        expected = fit(x, problem(c), 1e-10).decisions
        torch.testing.assert_close(decisions, expected, rtol=0, atol=2e-3)


def test_sides_of_columns_without_both_signs() -> None:
    targets = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 0]])
    training = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0]]).bool()
    columns = one_vs_rest(targets, training, c=1, loss="hinge")
    # Columns are fold by fold: all vectors; the first and the last; none.
    assert one_sided(columns).tolist() == [0, 1, -1, 1, 1, -1, -1, -1, -1]


def by_loops(columns: Columns, gram: Tensor, v: Tensor, beta: Tensor) -> tuple[list, list]:
    """P of w = X~^T v and D of beta, from the equations."""
    primal, dual = [], []
    for j in range(columns.costs.shape[1]):
        p = d = 0.0
        for i in range(len(gram)):
            decision = sum(float(gram[i, m] * v[m, j]) for m in range(len(gram)))
            p += 0.5 * float(v[i, j]) * decision
            hinge = max(0.0, 1 - float(columns.signs[i, j]) * decision)
            cost = float(columns.costs[i, j])
            p += cost * (hinge if columns.is_hinge else hinge**2)
            d += float(columns.signs[i, j] * beta[i, j])
            d -= 0.5 * sum(float(beta[i, j] * gram[i, m] * beta[m, j]) for m in range(len(gram)))
            if not columns.is_hinge and cost:
                d -= float(beta[i, j]) ** 2 / (4 * cost)
        primal.append(p)
        dual.append(d)
    return primal, dual


@pytest.mark.parametrize("loss", LOSSES)
@given(seed=st.integers(0, 10**6))
def test_the_dual_is_below_the_primal_whatever_the_two_points(loss: str, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, generator=draw)
    targets = torch.rand(6, 2, generator=draw) < 0.5
    training = torch.rand(6, 1, generator=draw) < 0.8
    columns = one_vs_rest(targets, training, c=2, loss=loss)
    gram = x.double() @ x.double().T + 1
    v = torch.randn(6, 2, generator=draw, dtype=torch.float64)
    decisions = torch.randn(6, 2, generator=draw, dtype=torch.float64)
    beta = columns.dual(decisions, torch.zeros_like(v), 0.3)
    primal, dual = by_loops(columns, gram, v, beta)
    half = (v * (gram @ v)).sum(0) / 2
    assert (half + columns.losses(gram @ v)).tolist() == pytest.approx(primal)
    half = (beta * (gram @ beta)).sum(0) / 2
    assert (columns.dual_terms(beta) - half).tolist() == pytest.approx(dual)
    assert all(d <= p + 1e-9 for p, d in zip(primal, dual, strict=True))
    assert not beta[~training[:, 0]].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_dual_has_the_slope_it_says(loss: str) -> None:
    draw = torch.Generator().manual_seed(3)
    columns = one_vs_rest(torch.rand(40, 3, generator=draw) < 0.5, ALL[:40], c=2, loss=loss)
    decisions, anchor = (torch.randn(40, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    beta = columns.dual(decisions, anchor, 0.3)
    slope = (columns.dual(decisions + 1e-7, anchor, 0.3) - beta) / 1e-7
    free = columns.free(beta)
    assert 0 < free.sum() < free.numel()
    expected = torch.where(free, -1 / columns.curvature(0.3), 0.0)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-6)
