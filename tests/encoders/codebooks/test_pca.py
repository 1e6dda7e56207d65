import numpy as np
import pytest
import torch

from encoders.codebooks.pca import Pca, fit_pca, fit_pca_of_parts, fit_sample_pca, input_width
from encoders.codebooks.sample import FitSample
from encoders.settings import (
    BilinearSettings,
    FvVaeSettings,
    GmmFvSettings,
    PcaSettings,
    VladSettings,
)
from tests.encoders import oracles


def data(num_rows: int = 40, width: int = 7, seed: int = 0) -> torch.Tensor:
    """Correlated rows far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(num_rows, width, generator=generator, dtype=torch.float64) @ mixing + 30


@pytest.mark.parametrize("num_rows", [40, 5], ids=["more rows than columns", "fewer"])
@pytest.mark.parametrize("whiten", [False, True])
def test_equals_the_eigenvectors_of_the_covariance(num_rows: int, whiten: bool) -> None:
    x = data(num_rows)
    mean, components, variances = oracles.principal_components(x.numpy(), 3)
    scale = 1 / np.sqrt(variances) if whiten else np.ones(3)
    expected = ((x.numpy() - mean) @ components.T) * scale
    pca = fit_pca(x, 3, whiten)
    np.testing.assert_allclose(pca.components.numpy(), components, atol=1e-9)
    np.testing.assert_allclose(pca.transform(x).numpy(), expected, atol=1e-8)


def test_components_are_orthonormal_with_fixed_signs() -> None:
    components = fit_pca(data(), 7).components
    torch.testing.assert_close(components @ components.T, torch.eye(7, dtype=torch.float64))
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    # Another order of the rows is another path through the solver.
    torch.testing.assert_close(fit_pca(data().flip(0), 7).components, components)


def test_whitened_outputs_have_variance_one_and_do_not_correlate() -> None:
    x = data()
    outputs = fit_pca(x, 4, whiten=True).transform(x)
    torch.testing.assert_close(torch.cov(outputs.T), torch.eye(4, dtype=torch.float64))


def test_float32_stays_near_float64_and_in_its_dtype() -> None:
    x = data()
    pca = fit_pca(x, 4)
    single = pca.transform(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), pca.transform(x), rtol=0, atol=1e-4)


def test_tensors_round_trip_and_none_without_any() -> None:
    pca = fit_pca(data(), 3, whiten=True)
    tensors = pca.tensors() | {"centroids": torch.zeros(1)}
    again = Pca.from_tensors(tensors)
    assert torch.equal(again.transform(data()), pca.transform(data()))
    assert Pca.from_tensors({"centroids": torch.zeros(1)}) is None


def test_width_before_the_codebook() -> None:
    pca = fit_pca(data(), 3)
    assert input_width(None, 5, "vlad") == 5
    assert input_width(pca, 3, "vlad") == 7
    with pytest.raises(ValueError, match=r"vlad: expected a PCA to 4 components .* got one to 3"):
        input_width(pca, 4, "vlad")


@pytest.mark.parametrize(("num_rows", "num_components"), [(40, 8), (5, 6), (40, 0)])
def test_impossible_number_of_components_is_refused(num_rows: int, num_components: int) -> None:
    with pytest.raises(ValueError, match=rf"fit section: .* got {num_components}; lower it or"):
        fit_pca(data(num_rows), num_components)


def test_values_that_are_not_finite_are_refused() -> None:
    x = data()
    x[3, 2] = torch.nan
    with pytest.raises(ValueError, match="expected finite rows"):
        fit_pca(x, 2)


@pytest.mark.parametrize("num_rows", [40, 5])
def test_whitening_a_direction_without_variance_is_refused(num_rows: int) -> None:
    x = data(num_rows)
    x[:, 3:] = x[:, :1]
    with pytest.raises(ValueError, match=r"expected 4 directions .* got 3; lower pca_components"):
        fit_pca(x, 4, whiten=True)
    assert fit_pca(x, 4).transform(x).isfinite().all()


def test_sample_pca_is_in_float32_and_of_all_descriptors() -> None:
    frames = data(60).view(6, 10, 7)
    sample = FitSample(frames=frames, video=torch.zeros(6, dtype=torch.int64))
    assert fit_sample_pca(sample, PcaSettings()) is None
    pca = fit_sample_pca(sample, PcaSettings(pca_components=3))
    assert {t.dtype for t in (pca.mean, pca.components, pca.scale)} == {torch.float32}
    expected = fit_pca(frames.flatten(0, 1), 3)
    torch.testing.assert_close(pca.components.double(), expected.components, rtol=0, atol=1e-6)
    white = fit_sample_pca(sample, PcaSettings(pca_components=3, pca_whiten=True))
    variance = white.transform(frames.flatten(0, 1).float()).var(0)
    torch.testing.assert_close(variance, torch.ones(3), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "record", [VladSettings, GmmFvSettings, BilinearSettings, FvVaeSettings], ids=str
)
def test_whitening_needs_components(record: type) -> None:
    assert record(pca_components=2, pca_whiten=True).pca_whiten
    with pytest.raises(ValueError, match=r"pca_whiten: expected false where .*pca_components is 0"):
        record(pca_whiten=True)


def test_rows_in_parts_give_the_components_of_all_rows() -> None:
    x = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.arange(1.0, 8)
    )
    x = (x + 3).half()
    whole, parts = fit_pca(x.float(), 4), fit_pca_of_parts(iter(x.split(33)), 4)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name], tensor.float(), rtol=0, atol=1e-5)


def test_too_few_rows_in_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and 3 for 3 rows of width 7, got 4"):
        fit_pca_of_parts(iter([torch.rand(2, 7), torch.rand(1, 7)]), 4)
    with pytest.raises(ValueError, match="got NaN or infinity"):
        fit_pca_of_parts(iter([torch.full((9, 3), float("nan"))]), 2)
