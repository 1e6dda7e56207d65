import numpy as np
import pytest
import torch
from torch import Tensor

from encoders.codebooks.pca import fit_pca
from encoders.codebooks.sample import FitSample
from encoders.encodings.vlad import Vlad
from encoders.settings import VladSettings
from tests.encoders import oracles
from tests.encoders.encodings.test_contract import assert_same

K, C, N = 5, 3, 40


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Centroids [K, C] and descriptors [N, C], float64; the last centroid is nobody's."""
    generator = torch.Generator().manual_seed(seed)
    centroids = torch.randn(K, C, generator=generator, dtype=torch.float64)
    centroids[-1] = 50
    return centroids, torch.randn(N, C, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("intra", [False, True])
def test_equals_the_loops(intra: bool) -> None:
    centroids, x = example()
    vector = Vlad(centroids, intra=intra).encode(x)
    expected = oracles.vlad(centroids.numpy(), x.numpy(), intra)
    np.testing.assert_allclose(vector, expected, rtol=1e-6, atol=1e-7)
    assert not vector[-C:].any()


def test_raw_residual_sums_by_hand() -> None:
    centroids = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    x = torch.tensor([[1.0, 2.0], [9.0, -1.0], [3.0, 0.0], [12.0, 5.0]])
    vector = Vlad(centroids, normalisation="none").encode(x)
    assert vector.tolist() == [1.0, 0.5, 0.25, 1.0]  # (4, 2) and (1, 4) over four descriptors


def test_intra_gives_every_visited_centroid_the_same_weight() -> None:
    centroids, x = example()
    lengths = Vlad(centroids, intra=True).encode(x).view(K, C).norm(dim=1)
    visited = torch.cdist(x, centroids).argmin(1).unique()
    assert 1 < len(visited) < K
    np.testing.assert_allclose(lengths[visited], 1 / np.sqrt(len(visited)), rtol=1e-6)


@pytest.mark.parametrize(
    ("intra", "given", "expected"),
    [(False, None, "signed_sqrt_l2"), (True, None, "l2"), (True, "none", "none")],
)
def test_normalisation_follows_intra_unless_given(
    intra: bool, given: str | None, expected: str
) -> None:
    assert Vlad(example()[0], intra=intra, normalisation=given).normalisation == expected


def test_float32_residuals_far_from_the_origin_keep_their_digits() -> None:
    centroids, x = example()
    # Multiples of 1/256 stay exact in float32 after adding 4096.
    centroids, x = ((256 * y).round() / 256 + 4096 for y in (centroids, x))
    single = Vlad(centroids.float(), normalisation="none").encode(x.float())
    double = Vlad(centroids, normalisation="none").encode(x)
    torch.testing.assert_close(single, double, rtol=1e-6, atol=1e-7)


def test_after_a_pca_the_descriptor_is_as_wide_as_before() -> None:
    centroids, x = example()
    wide = torch.cat([x, 3 + x.flip(0).square()], 1)
    pca = fit_pca(wide, C)
    with_pca = Vlad(centroids, pca)
    assert (with_pca.descriptor_dim, with_pca.output_dim) == (2 * C, K * C)
    expected = Vlad(centroids).encode(pca.transform(wide))
    torch.testing.assert_close(with_pca.encode(wide), expected)


@pytest.mark.parametrize(
    ("settings", "normalisation"),
    [
        (VladSettings(num_centroids=4), "none"),
        (VladSettings(num_centroids=6, intra=True, pca_components=2), "l2"),
    ],
)
def test_fit_makes_what_the_settings_say_on_every_worker(
    settings: VladSettings, normalisation: str
) -> None:
    frames = example()[1].view(8, 5, C)

    def work(rank, all_reduce):
        share = frames.tensor_split(2)[rank]
        sample = FitSample(
            frames=share,
            video=torch.full((len(share),), rank),
            rank=rank,
            world_size=2,
            all_reduce=all_reduce,
        )
        return Vlad.fit(sample, settings, "none")

    first, second = oracles.run_workers(2, work)
    assert_same(first, second)
    assert first.output_dim == settings.num_centroids * (settings.pca_components or C)
    assert (first.intra, first.normalisation) == (settings.intra, normalisation)
    # k-means ends where the residuals of what it was fitted on cancel.
    raw = Vlad(first.centroids, first.pca, normalisation="none")
    assert raw.encode(frames.flatten(0, 1)).abs().max() < 1e-5
