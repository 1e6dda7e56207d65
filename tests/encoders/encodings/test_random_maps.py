import numpy as np
import pytest
import torch

from encoders.encodings.random_maps import (
    SKETCHES,
    RandomMaclaurin,
    Sketch,
    TensorSketch,
    random_signs,
)
from tests.encoders import oracles

C = 5


def rows(num_rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, C, generator=generator, dtype=torch.float64)


def features(sketch: Sketch, x: torch.Tensor) -> torch.Tensor:
    return sketch.of_moment(x.T @ x)


@pytest.mark.parametrize("num_features", [1, 3, 8])
def test_tensor_sketch_equals_the_convolution(num_features: int) -> None:
    sketch, x = TensorSketch.draw(C, num_features, seed=4), rows(6)
    expected = oracles.tensor_sketch(
        sketch.bins.numpy(), sketch.signs.numpy(), num_features, x.numpy()
    )
    np.testing.assert_allclose(features(sketch, x), expected, atol=1e-12)


# The last has more features than one block.
@pytest.mark.parametrize("num_features", [1, 3, 1030])
def test_random_maclaurin_equals_the_loops(num_features: int) -> None:
    sketch, x = RandomMaclaurin.draw(C, num_features, seed=4), rows(6)
    expected = oracles.random_maclaurin(sketch.signs.numpy(), x.numpy())
    np.testing.assert_allclose(features(sketch, x), expected, atol=1e-12)


def products(kind: str, num_features: int, num_draws: int) -> np.ndarray:
    """The estimates of <x, y>^2 for one pair x, y, of many seeds."""
    x, y = rows(2)
    draws = (SKETCHES[kind].draw(C, num_features, seed) for seed in range(num_draws))
    return np.array([float(features(s, x[None]) @ features(s, y[None])) for s in draws])


@pytest.mark.parametrize("kind", SKETCHES)
def test_inner_product_is_unbiased_and_varies_as_one_over_the_features(kind: str) -> None:
    x, y = rows(2)
    variances = {}
    for num_features in (8, 64):
        estimates = products(kind, num_features, num_draws=1500)
        variances[num_features] = estimates.var(ddof=1)
        error = estimates.mean() - float(x @ y) ** 2
        assert abs(error) < 4 * np.sqrt(variances[num_features] / len(estimates))
    assert variances[8] / variances[64] == pytest.approx(8, rel=0.25)


def test_variance_of_random_maclaurin_is_that_of_independent_signs() -> None:
    x, y = rows(2)
    fourth = float(x @ x) * float(y @ y) + 2 * float(x @ y) ** 2 - 2 * float(x**2 @ y**2)
    expected = (fourth**2 - float(x @ y) ** 4) / 16
    assert products("random_maclaurin", 16, 1500).var() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("kind", SKETCHES)
def test_a_seed_is_one_map(kind: str) -> None:
    first, again, other = (SKETCHES[kind].draw(C, 7, seed).tensors() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_every_bin_of_a_tensor_sketch_is_as_likely() -> None:
    bins = TensorSketch.draw(20_000, 5, seed=0).bins
    assert bins.unique().tolist() == [0, 1, 2, 3, 4]
    shares = [torch.bincount(row).double() / 20_000 for row in bins]
    assert max(float((share - 0.2).abs().max()) for share in shares) < 0.012
    assert float((bins[0] == bins[1]).double().mean()) == pytest.approx(0.2, abs=0.012)


def test_signs_are_the_same_on_every_machine_and_version() -> None:
    signs = random_signs(7, 1, 2, 3, 4).flatten().tolist()
    assert "".join("-+"[sign > 0] for sign in signs) == "---+++-+-++-++++-+++++++"
    # A shorter draw is the beginning of a longer one.
    assert random_signs(7, 1, 24).tolist() == signs


def test_signs_are_balanced_and_streams_and_seeds_independent() -> None:
    draws = [random_signs(seed, stream, 100_000) for seed in (0, 1) for stream in (0, 1)]
    assert {draw.dtype for draw in draws} == {torch.int8}
    assert all(set(draw.unique().tolist()) == {-1, 1} for draw in draws)
    correlations = torch.corrcoef(torch.stack(draws).double())
    assert (correlations - torch.eye(4, dtype=torch.float64)).abs().max() < 0.015
    assert max(abs(float(draw.double().mean())) for draw in draws) < 0.015
