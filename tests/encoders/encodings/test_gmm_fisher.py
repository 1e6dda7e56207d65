from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.feature import fisher_vector
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.utils._pytree import tree_leaves

from encoders.codebooks.chunks import CHUNK_DESCRIPTORS
from encoders.codebooks.gmm import Gmm, fit_gmm
from encoders.codebooks.pca import fit_pca
from encoders.codebooks.sample import FitSample
from encoders.encodings.gmm_fisher import GmmFisher
from encoders.settings import GmmFvSettings
from tests.encoders import oracles
from tests.encoders.codebooks.test_gmm import LargestTensor, arrays, draw, mixture
from tests.encoders.encodings.test_contract import assert_same

K, C, N = 3, 4, 50


def encoder(gmm: Gmm | None = None) -> GmmFisher:
    return GmmFisher(gmm or mixture(K, C), normalisation="none")


def descriptors() -> Tensor:
    """Drawn from another mixture, so that no gradient is small by itself."""
    return draw(mixture(K, C, seed=8), N)


def test_equals_the_loops() -> None:
    gmm, x = mixture(K, C), descriptors()
    expected = oracles.fisher_vector(*arrays(gmm), x.numpy())
    np.testing.assert_allclose(encoder(gmm).encode(x), expected, rtol=1e-5, atol=1e-6)
    state = encoder(gmm).accumulate(x)
    np.testing.assert_allclose(encoder(gmm)._vector(*state), expected, rtol=1e-11, atol=1e-12)


def test_is_the_gradient_over_the_root_of_the_information() -> None:
    gmm, x = mixture(K, C), descriptors()
    means = gmm.means.clone().requires_grad_()
    deviations = gmm.variances.sqrt().requires_grad_()
    components = torch.distributions.Independent(torch.distributions.Normal(means, deviations), 1)
    mix = torch.distributions.Categorical(probs=gmm.weights)
    likelihood = torch.distributions.MixtureSameFamily(mix, components).log_prob(x).mean()
    mean_gradient, sigma_gradient = torch.autograd.grad(likelihood, (means, deviations))
    over_root = gmm.variances.sqrt() / gmm.weights.sqrt().unsqueeze(1)
    expected = torch.stack([mean_gradient * over_root, sigma_gradient * over_root / 2**0.5])
    vector = encoder(gmm)._vector(*encoder(gmm).accumulate(x))
    torch.testing.assert_close(vector, expected.flatten(), rtol=1e-10, atol=1e-12)


def test_equals_scikit_image_but_for_its_order_and_sign() -> None:
    gmm, x = mixture(K, C), descriptors()
    theirs = GaussianMixture(K, covariance_type="diag")
    theirs.weights_, theirs.means_, theirs.covariances_ = arrays(gmm)
    theirs.precisions_cholesky_ = 1 / np.sqrt(theirs.covariances_)
    vector = fisher_vector(x.numpy(), theirs)
    # First the weights' gradient, which is not ours; the sigma block has the opposite sign.
    mean, sigma = vector[K : K + K * C], -vector[K + K * C :]
    ours = encoder(gmm)._vector(*encoder(gmm).accumulate(x))
    np.testing.assert_allclose(ours, np.concatenate([mean, sigma]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("x", "mean", "sigma"), [(4.0, 1.0, 0.0), (8.0, 3.0, 8 / 2**0.5)])
def test_one_component_by_hand(x: float, mean: float, sigma: float) -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    gmm = Gmm(one[0], 2 * one, 4 * one)
    assert encoder(gmm).encode(torch.tensor([[x]])).tolist() == pytest.approx([mean, sigma])


def test_order_is_all_means_by_component_then_all_sigmas() -> None:
    gmm = Gmm(
        torch.tensor([0.3, 0.7], dtype=torch.float64),
        torch.tensor([[0, 0, 0], [100, 100, 100]], dtype=torch.float64),
        torch.ones(2, 3, dtype=torch.float64),
    )
    # One standard deviation from the second mean in its last channel: no sigma gradient there.
    vector = encoder(gmm).encode(torch.tensor([[100.0, 100.0, 101.0]]))
    assert vector[:6].nonzero().flatten().tolist() == [5]
    assert vector[6:].nonzero().flatten().tolist() == [3, 4]


def test_information_whitens_the_gradients_of_the_mixtures_own_draws() -> None:
    # E[g] = 0 and E[g g^T] = I, exactly so where components are far apart. The expectation is a
    # Gauss-Hermite rule of 3 nodes a channel, exact to degree 5; g g^T has degree 4.
    gmm = mixture(K, 3)
    gmm = Gmm(gmm.weights, 1000 * gmm.means, gmm.variances)
    nodes, node_weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(3))
    grid = torch.cartesian_prod(nodes, nodes, nodes)
    grid_weights = torch.cartesian_prod(*[node_weights / node_weights.sum()] * 3).prod(1)
    x = (gmm.means[:, None] + gmm.variances.sqrt()[:, None] * grid).flatten(0, 1)
    weights = torch.outer(gmm.weights, grid_weights).flatten()
    fisher = encoder(gmm)
    gradients = torch.stack([fisher._vector(*fisher.accumulate(row[None])) for row in x])
    identity = torch.eye(2 * K * 3, dtype=torch.float64)
    torch.testing.assert_close((gradients.T * weights) @ gradients, identity, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights @ gradients, 0 * identity[0], rtol=0, atol=1e-6)


def test_is_zero_on_what_the_mixture_was_fitted_on() -> None:
    x = draw(mixture(K, C), 400)
    gmm = fit_gmm(x, x[:K], max_iterations=2000, tolerance=1e-15, variance_floor=1e-9)
    assert encoder(gmm).encode(x).abs().max() < 1e-5
    assert encoder(gmm).encode(x[:100]).abs().max() > 1e-2


def overlapping() -> tuple[Gmm, Tensor]:
    """A mixture [16, 64] whose components share their descriptors, and float32 draws from it."""
    gmm = mixture(16, 64)
    gmm = Gmm(gmm.weights, gmm.means / 16, 1 + gmm.variances / 16)
    return gmm, draw(gmm, 3000).float()


@pytest.mark.parametrize("offset", [0.0, 1000.1])
def test_float32_costs_little_even_far_from_the_origin(offset: float) -> None:
    gmm, x = overlapping()
    moved = Gmm(gmm.weights, gmm.means + offset, gmm.variances)
    # The same float32 values for both, so that only the arithmetic differs.
    x = (x.double() + offset).float()
    single, double = (
        encoder(moved)._vector(*encoder(moved).accumulate(y)) for y in (x, x.double())
    )
    assert (single - double).norm() < 1e-5 * double.norm()


def test_a_common_scale_changes_nothing() -> None:
    gmm, x = overlapping()
    scale = 2.0**-20
    scaled = Gmm(gmm.weights, gmm.means * scale, gmm.variances * scale**2)
    expected, vector = encoder(gmm).encode(x), encoder(scaled).encode(x * scale)
    assert (vector - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = descriptors().to(dtype)
    assert torch.equal(encoder().encode(x), encoder().encode(x.float()))


def test_after_a_pca_the_descriptor_is_as_wide_as_before() -> None:
    wide = torch.cat([descriptors(), 3 + descriptors().flip(0)], 1)
    pca, gmm = fit_pca(wide, C, whiten=True), mixture(K, C)
    with_pca = GmmFisher(gmm, pca, "none")
    assert (with_pca.descriptor_dim, with_pca.output_dim) == (2 * C, 2 * K * C)
    expected = oracles.fisher_vector(*arrays(gmm), pca.transform(wide).numpy())
    np.testing.assert_allclose(with_pca.encode(wide), expected, rtol=1e-5, atol=1e-6)


def test_nothing_of_size_n_k_c_or_n_d_is_made() -> None:
    gmm = mixture(24, 32)
    x = draw(gmm, 3 * CHUNK_DESCRIPTORS).float()
    encode = encoder(gmm).encode
    with LargestTensor() as largest:
        encode(x)
    assert largest.numel <= CHUNK_DESCRIPTORS * 2 * 32


@pytest.mark.parametrize("pca_components", [0, 3])
@pytest.mark.parametrize("batch_descriptors", [0, 90])
def test_fit_is_the_same_on_any_number_of_workers_as_far_as_em_goes(
    pca_components: int, batch_descriptors: int
) -> None:
    frames = draw(mixture(K, C), 600).float().view(12, 50, C)
    settings = GmmFvSettings(
        num_components=K,
        max_iterations=8,
        pca_components=pca_components,
        batch_descriptors=batch_descriptors,
        tolerance=1e-9,
    )
    logged: list[tuple[str, int, float]] = []

    def work(num_workers: int):
        def one(rank, all_reduce):
            share = frames.tensor_split(num_workers)[rank]
            sample = FitSample(
                frames=share,
                video=torch.arange(12).tensor_split(num_workers)[rank] // 2,
                rank=rank,
                world_size=num_workers,
                all_reduce=all_reduce,
                log=lambda *row: logged.append(row) if rank == 0 else None,
            )
            return GmmFisher.fit(sample, settings, "none")

        return oracles.run_workers(num_workers, one)

    (alone,), (first, second) = work(1), work(2)
    assert_same(first, second)
    assert alone.output_dim == 2 * K * (pca_components or C)
    torch.testing.assert_close(alone.gmm.means, first.gmm.means, rtol=0, atol=1e-6)
    x = frames.flatten(0, 1)
    torch.testing.assert_close(alone.encode(x), first.encode(x), rtol=0, atol=1e-5)
    assert logged[0][:2] == ("mean_log_likelihood", 0)
    assert logged[1][2] > logged[0][2]


class LargestNew(LargestTensor):
    """As LargestTensor, of tensors that are not a part of `own`."""

    def __init__(self, own: Tensor) -> None:
        super().__init__()
        self.own = own.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() != self.own:
                self.numel = max(self.numel, leaf.numel())
        return out


@pytest.mark.parametrize("pca_components", [0, 3])
@pytest.mark.parametrize("batch_descriptors", [0, 2000])
def test_fit_reads_frames_that_lie_in_a_file_part_by_part(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pca_components: int,
    batch_descriptors: int,
) -> None:
    monkeypatch.setattr("encoders.codebooks.pca.MAX_ROWS", 5000)
    in_memory = draw(mixture(K, C), 60_000).half().view(1200, 50, C)
    in_memory.numpy().tofile(tmp_path / "frames")
    in_file = torch.from_file(str(tmp_path / "frames"), size=in_memory.numel(), dtype=torch.half)
    in_file = in_file.view(in_memory.shape)
    settings = GmmFvSettings(
        num_components=K,
        max_iterations=2,
        pca_components=pca_components,
        batch_descriptors=batch_descriptors,
    )

    def fit(frames: Tensor) -> GmmFisher:
        return GmmFisher.fit(FitSample(frames=frames, video=torch.arange(1200)), settings, "none")

    with LargestNew(in_file) as largest:
        found = fit(in_file)
    assert largest.numel < in_file.numel() / 4
    assert_same(found, fit(in_memory))
