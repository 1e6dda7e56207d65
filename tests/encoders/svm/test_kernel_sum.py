"""Sums of kernels against plain loops and against the vectors that they are the inner products
of."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.svm.gram import Gram
from encoders.svm.kernel_sum import joined, kernel_sum, unit


def vectors(seed: int, num: int = 9, dims: tuple[int, ...] = (4, 7, 3)) -> list[torch.Tensor]:
    """Parts of different widths and scales, with a common part; one vector is zero."""
    draw = np.random.default_rng(seed)
    parts = [10.0**s * (draw.normal(size=(num, dim)) + 2) for s, dim in enumerate(dims)]
    parts[0][3] = 0
    return [torch.from_numpy(part.astype(np.float32)) for part in parts]


def full(gram: Gram) -> np.ndarray:
    """K' [N, N], the constant of the bias included."""
    kernel = gram.centred.double() + gram.cross[:, None] + gram.cross + gram.square
    return kernel.numpy()


def by_loops(parts: list[torch.Tensor], weights: list[float]) -> np.ndarray:
    num = len(parts[0])
    found = np.ones((num, num))
    for x, weight in zip(parts, weights, strict=True):
        x = x.double().numpy()
        for i in range(num):
            for j in range(num):
                lengths = np.linalg.norm(x[i]) * np.linalg.norm(x[j])
                found[i, j] += weight * (x[i] @ x[j] / lengths if lengths else 0)
    return found


@given(seed=st.integers(0, 99), shares=st.lists(st.integers(0, 5), min_size=3, max_size=3))
def test_the_sum_is_of_cosine_kernels(seed: int, shares: list[int]) -> None:
    weights = [share / max(1, sum(shares)) for share in shares] if sum(shares) else [1.0, 0, 0]
    parts = vectors(seed)
    found = kernel_sum([Gram.of(x) for x in parts], weights)
    np.testing.assert_allclose(full(found), by_loops(parts, weights), atol=1e-6)
    # Around the mean: what is left has no common part.
    np.testing.assert_allclose(found.centred.sum(0), np.zeros(9), atol=1e-6)


def test_early_fusion_is_the_sum_of_kernels() -> None:
    parts, weights = vectors(1), [0.5, 0.2, 0.3]
    side_by_side = torch.cat(
        [unit(x) * weight**0.5 for x, weight in zip(parts, weights, strict=True)], 1
    )
    summed = kernel_sum([Gram.of(x) for x in parts], weights)
    np.testing.assert_allclose(full(summed), full(Gram.of(side_by_side)), atol=1e-6)


def test_float32_matrices_keep_the_digits_that_differ() -> None:
    # Vectors that differ in the fourth digit, as those of deep features do.
    draw = np.random.default_rng(0)
    x = torch.from_numpy((1 + 1e-4 * draw.normal(size=(1100, 6))).astype(np.float32))
    gram = Gram.of(x)
    assert gram.centred.dtype == torch.float32
    found = kernel_sum([gram], [1.0])
    units = x.double() / x.double().norm(dim=1, keepdim=True)
    centred = units - units.mean(0)
    np.testing.assert_allclose(found.centred, centred @ centred.T, atol=2e-4 * 1e-8 * 600)


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [1.0]])
def test_wrong_weights_and_sizes_are_refused(weights: list[float]) -> None:
    grams = [Gram.of(x) for x in vectors(0)[:2]]
    with pytest.raises(ValueError, match="kernels: expected matrices of one size and as many"):
        kernel_sum(grams, weights)
    with pytest.raises(ValueError, match="matrices of one size"):
        kernel_sum([grams[0], Gram.of(vectors(0, num=5)[1])], [0.5, 0.5])


@given(seed=st.integers(0, 20), sizes=st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_pieces_may_be_cut_in_any_way(seed: int, sizes: list[int]) -> None:
    parts = vectors(seed)
    split = [iter(x.split(size)) for x, size in zip(parts, sizes, strict=True)]
    pieces = [piece.clone() for piece in joined(split)]
    expected = torch.cat([unit(x) for x in parts], 1)
    np.testing.assert_array_equal(torch.cat(pieces), expected)
