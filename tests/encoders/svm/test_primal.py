"""The streaming solver against the Gram solver, however the vectors are dealt out."""

import pytest
import torch
from torch import Tensor

from encoders.svm import primal as svm_primal
from encoders.svm.classifiers import fit_weights
from encoders.svm.columns import Columns, balanced, one_vs_rest
from encoders.svm.gram import Gram
from encoders.svm.primal import Data, PrimalSolution, Shard, solve_primal
from tests.encoders.oracles import run_workers

N = 60
LOSSES = ["squared_hinge", "hinge"]


def problem(kind: str, c: float, loss: str) -> tuple[Tensor, Columns]:
    """Vectors of two folds and three classes, nearly orthogonal or nearly equal; the last class is
    everywhere."""
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(N, 90, generator=draw)
    label = torch.arange(N) % 3
    x += 0.5 * torch.randn(3, 90, generator=draw)[label]
    x = torch.nn.functional.normalize(x + 4 if kind == "deep" else x, dim=1)
    targets = torch.nn.functional.one_hot(label, 3)
    targets[::7, 0] = 1
    targets[:, 2] = 1
    training = torch.arange(N).unsqueeze(1) % 4 != torch.arange(2)
    return x, one_vs_rest(targets, training, c=c, loss=loss, weights=balanced(targets, training))


def data(x: Tensor, columns: Columns, size: int, **options: object) -> Data:
    def shards() -> list[Shard]:
        return [
            Shard(x[first : first + size], columns.rows(slice(first, first + size)))
            for first in range(0, len(x), size)
        ]

    num_columns = columns.costs.shape[1]
    return Data(shards, len(x), x.shape[1], num_columns, columns.is_hinge, **options)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("kind", "c"), [("fisher", 100.0), ("deep", 1.0)])
def test_the_solution_is_that_of_the_gram_matrix(kind: str, c: float, loss: str) -> None:
    x, columns = problem(kind, c, loss)
    gram = fit_weights(Gram.of(x), lambda: [x], columns, tolerance=1e-9)
    gaps = []
    found = solve_primal(
        data(x.half(), columns, 17),
        tolerance=1e-5,
        on_round=lambda number, gap: gaps.append((number, gap)),
    )
    open_columns = ~gram.gap.isnan()
    assert open_columns.tolist() == [True, True, False] * 2
    assert (found.gap[open_columns] <= 1e-5).all()
    assert gaps[-1][1] <= 1e-5
    # The vectors were read in half precision, which moves the optimum itself.
    torch.testing.assert_close(found.primal, gram.primal, rtol=2e-3, atol=0, equal_nan=True)
    assert found.bias[~open_columns].tolist() == [1, 1]
    assert not found.weights[~open_columns].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_objectives_are_those_of_the_weights(loss: str) -> None:
    x, columns = problem("fisher", 100.0, loss)
    gram = fit_weights(Gram.of(x), lambda: [x], columns, tolerance=1e-9)
    found = solve_primal(data(x, columns, 20), tolerance=1e-5)
    weights = found.weights.double()
    decisions = x.double() @ weights.T + found.bias
    primal = (weights.square().sum(1) + found.bias.double().square()) / 2 + columns.losses(
        decisions
    )
    kept = ~found.gap.isnan()
    torch.testing.assert_close(found.primal[kept], primal[kept], rtol=2e-5, atol=0)
    assert (found.primal[kept] <= (1 + 1e-5) * gram.primal[kept]).all()
    assert (found.dual[kept] <= (1 + 1e-6) * gram.primal[kept]).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_workers_with_any_shares_find_the_same(loss: str) -> None:
    x, columns = problem("fisher", 10.0, loss)
    alone = solve_primal(data(x, columns, 60), tolerance=1e-6)
    shares = (slice(0, 41), slice(41, 41), slice(41, 60))

    def work(rank, all_reduce) -> PrimalSolution:
        share = shares[rank]
        part = data(x[share], columns.rows(share), 13, all_reduce=all_reduce)
        return solve_primal(part, tolerance=1e-6)

    results = run_workers(3, work)
    for result in results:
        assert torch.equal(result.weights, results[0].weights)
        torch.testing.assert_close(result.primal, alone.primal, rtol=2e-6, atol=0, equal_nan=True)


def test_a_start_near_the_solution_needs_fewer_rounds() -> None:
    x, columns = problem("fisher", 100.0, "hinge")
    cold = solve_primal(data(x, columns, 30), tolerance=1e-5)
    start = torch.cat([cold.weights, cold.bias.unsqueeze(1)], 1)
    warm = solve_primal(data(x, columns, 30), tolerance=1e-5, start=start)
    assert warm.rounds.sum() < cold.rounds.sum()
    torch.testing.assert_close(warm.primal, cold.primal, rtol=2e-5, atol=0, equal_nan=True)


def test_a_cap_shows_in_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svm_primal, "MAX_ROUNDS", 2)
    x, columns = problem("fisher", 100.0, "squared_hinge")
    found = solve_primal(data(x, columns, 30), tolerance=1e-8)
    assert (found.gap[[0, 1, 3, 4]] > 1e-8).all()
    assert (found.dual[[0, 1, 3, 4]] < found.primal[[0, 1, 3, 4]]).all()


def test_vectors_that_are_not_finite() -> None:
    x, columns = problem("fisher", 1.0, "hinge")
    x[[3, 50], 7] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in 2 of 60; encode these"):
        solve_primal(data(x, columns, 9), tolerance=1e-3)
