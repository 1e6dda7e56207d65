import faiss
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from encoders.encodings import compress, random_maps
from encoders.encodings.compress import Compression, fit_compression, fit_whitening
from encoders.settings import CompressSettings
from tests.encoders import oracles


def vectors(num_vectors: int = 40, width: int = 7, seed: int = 0) -> Tensor:
    """Correlated rows away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    rows = torch.randn(num_vectors, width, generator=generator, dtype=torch.float64)
    return rows @ mixing + 3


def fitted(kind: str, num_features: int = 3, x: Tensor | None = None) -> Compression:
    settings = CompressSettings(kind=kind, num_features=num_features)
    return fit_compression([vectors() if x is None else x], settings, seed=5)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def test_whitening_for_a_search_is_that_of_faiss_up_to_signs() -> None:
    x, new = vectors(300, 30), vectors(5, 30, seed=1)
    other = faiss.PCAMatrix(30, 12, -0.5)
    other.train(x.float().numpy())
    expected = unit(other.apply(new.float().numpy()))
    found = fit_whitening(x, 12).transform(new).numpy()
    signs = np.sign((expected * found).sum(0))
    np.testing.assert_allclose(found, expected * signs, atol=2e-4)


@pytest.mark.parametrize("block", [50, 2000, 2**24], ids=lambda size: f"blocks of {size}")
@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (6, 6), (150, 140), (140, 150)])
def test_pca_is_that_of_scikit_learn(
    shape: tuple[int, int], whiten: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compress, "BLOCK_VALUES", block)
    x, new = vectors(*shape), vectors(5, shape[1], seed=1)
    settings = CompressSettings(kind="pca", num_features=4, whiten=whiten)
    other = PCA(4, whiten=whiten, svd_solver="full").fit(x.numpy())
    expected = unit(other.transform(new.numpy()))
    found = fit_compression([x], settings, seed=0).transform(new).numpy()
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=2e-6)


def in_memory(x: Tensor, num_features: int, whiten: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, components and scale by the singular values of one matrix [N, D] in float64."""
    mean = x.double().mean(0)
    _, values, components = torch.linalg.svd(x.double() - mean, full_matrices=False)
    values, components = values[:num_features], components[:num_features]
    signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
    scale = (len(x) - 1) ** 0.5 / values if whiten else torch.ones(num_features)
    return mean.float(), (components * signs).float(), scale.float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(150, 40), (40, 150)])
def test_blocks_give_the_pca_of_all_vectors_at_once(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compress, "BLOCK_VALUES", 3000)
    x = vectors(*shape).to(dtype)
    settings = CompressSettings(kind="pca", num_features=5, whiten=True)
    whole = fit_compression([x], settings, seed=0).map
    for size in (1, 7, 39):
        found = fit_compression(x.split(size), settings, seed=0).map
        for one, other in ((found, whole), (found, compress.Pca(*in_memory(x, 5, True)))):
            torch.testing.assert_close(one.tensors(), other.tensors(), rtol=1e-5, atol=1e-6)


def test_a_fit_holds_a_few_columns_beside_the_smaller_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither all vectors, nor a block of them in another type, are copied."""
    monkeypatch.setattr(compress, "BLOCK_VALUES", 1000)
    sizes = []
    join = torch.cat

    def watched(parts, *rest: object) -> Tensor:
        made = join(parts, *rest)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(torch, "cat", watched)
    settings = CompressSettings(kind="pca", num_features=3)
    fit_compression(vectors(20, 4000).half().split(6), settings, seed=0)
    assert sorted(sizes)[-2:] == [4000, 3 * 4000], "the mean, and the components"
    assert compress.fit_bytes(20, 4000, settings) > 32 * 20**2 + 3 * 4000 * 8
    maclaurin = CompressSettings(kind="random_maclaurin", num_features=3)
    assert compress.fit_bytes(20, 4000, maclaurin) == 0


def test_components_have_fixed_signs_and_do_not_depend_on_the_order() -> None:
    for x in (vectors(40, 7), vectors(7, 40)):
        components = fitted("pca", x=x).map.components
        assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
        torch.testing.assert_close(fitted("pca", x=x.flip(0)).map.components, components)


def test_whitened_directions_vary_alike() -> None:
    x = vectors(30, 50)
    settings = CompressSettings(kind="pca", num_features=6, whiten=True)
    outputs = fit_compression([x], settings, seed=0).map.transform(x)
    torch.testing.assert_close(torch.cov(outputs.T), torch.eye(6).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("block", [1, 40, 2**24], ids=lambda size: f"blocks of {size}")
def test_random_maclaurin_equals_the_loops(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_maps, "BLOCK_SIGNS", block)
    x = vectors(4)
    signs = torch.stack([random_maps.random_signs(5, 1 + p, 2, 7) for p in range(11)], 1).numpy()
    expected = [unit(oracles.random_maclaurin(signs, row[None])) for row in x.numpy()]
    np.testing.assert_allclose(fitted("random_maclaurin", 11).transform(x), expected, atol=1e-12)


def test_random_maclaurin_estimates_the_square_of_the_inner_product() -> None:
    x, y = (row / row.norm() for row in vectors(2))
    features = random_maps.SeededMaclaurin(7, 4000, seed=3)
    squared = float(x @ y) ** 2
    fourth = 1 + 2 * squared - 2 * float(x**2 @ y**2)
    error = 4 * np.sqrt((fourth**2 - squared**2) / 4000)
    estimate = float(features.transform(x) @ features.transform(y))
    assert 0 < error < 0.15
    assert estimate == pytest.approx(squared, abs=error)


@pytest.mark.parametrize("kind", ["pca", "random_maclaurin"])
def test_outputs_have_length_one_and_the_shape_of_the_input(kind: str) -> None:
    compression, x = fitted(kind), vectors(6).view(2, 3, 7)
    found = compression.transform(x)
    assert (found.shape, found.dtype) == ((2, 3, 3), torch.float64)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 3).double())
    torch.testing.assert_close(found[1, 2], compression.transform(x[1, 2]))
    single = compression.transform(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, rtol=0, atol=1e-5)
    assert compression.transform(x.half()).dtype == torch.float32


def test_a_zero_vector_stays_zero() -> None:
    assert not fitted("random_maclaurin").transform(torch.zeros(7)).any()
    pca = fitted("pca")
    assert not pca.transform(pca.map.mean).any()


@pytest.mark.parametrize("kind", ["pca", "random_maclaurin"])
def test_bytes_round_trip_keeps_every_bit(kind: str) -> None:
    compression, x = fitted(kind), vectors(6)
    data = compression.to_bytes()
    again = Compression.from_bytes(data)
    assert again.to_bytes() == data
    assert torch.equal(again.transform(x), compression.transform(x))


def test_the_file_of_random_features_does_not_grow_with_them() -> None:
    wide = vectors(2, 5).repeat(1, 4000)
    assert len(fitted("random_maclaurin", 4096, wide).to_bytes()) < 1000


def test_another_seed_gives_other_features_and_the_same_pca() -> None:
    x = vectors()
    for kind, same in (("pca", True), ("random_maclaurin", False)):
        settings = CompressSettings(kind=kind, num_features=3)
        first, second = (fit_compression([x], settings, seed).transform(x) for seed in (0, 1))
        assert torch.equal(first, second) == same


@pytest.mark.parametrize(("shape", "most"), [((40, 7), 7), ((5, 20), 4), ((1, 20), 0)])
def test_more_components_than_directions_are_refused(shape: tuple[int, int], most: int) -> None:
    message = rf"compress.num_features: expected at most {most}, .* got {most + 1}; lower it or"
    with pytest.raises(ValueError, match=message):
        fitted("pca", most + 1, vectors(*shape))
    if most:
        assert fitted("pca", most, vectors(*shape)).transform(vectors(3, shape[1])).isfinite().all()


@pytest.mark.parametrize(
    ("shape", "wanted", "expected"),
    [((40, 20), 128, 13), ((40, 20), 5, 5), ((60, 7), 128, 7), ((5, 20), 128, 1), ((2, 9), 128, 1)],
)
def test_whitening_for_a_search_takes_as_many_components_as_the_vectors_carry(
    shape: tuple[int, int], wanted: int, expected: int
) -> None:
    x = vectors(*shape)
    found = fit_whitening(x, wanted)
    settings = CompressSettings(kind="pca", num_features=expected, whiten=True)
    assert found.to_bytes() == fit_compression([x], settings, 0).to_bytes()


def test_whitening_of_equal_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compress.num_features: expected at most 0"):
        fit_whitening(torch.ones(9, 4), 128)


def test_constant_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at most 0, "):
        fitted("pca", 1, torch.full((4, 6), 0.1))


def test_values_that_are_not_finite_are_refused() -> None:
    x = vectors()
    x[3, 2] = -torch.inf
    with pytest.raises(ValueError, match="compress: expected finite vectors"):
        fitted("pca", 2, x)


def test_vectors_of_another_length_are_refused() -> None:
    message = r"compress: expected vectors of shape \[.., 7\], got \[4, 8\]; use the compression"
    for kind in ("pca", "random_maclaurin"):
        with pytest.raises(ValueError, match=message):
            fitted(kind).transform(torch.zeros(4, 8))


def test_nothing_is_fitted_without_a_kind() -> None:
    with pytest.raises(ValueError, match=r"compress.kind: expected 'pca' or .*, got 'none'"):
        fitted("none")


def test_other_files_are_refused() -> None:
    from encoders.encodings.pooling import Average

    with pytest.raises(ValueError, match=r"compression file: expected .*, got \['encoder'\]"):
        Compression.from_bytes(Average(3).to_bytes())
