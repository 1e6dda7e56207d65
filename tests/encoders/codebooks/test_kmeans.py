import pytest
import torch

from encoders.codebooks.kmeans import Assignment, fit_centroids, fit_kmeans
from encoders.codebooks.sample import FitSample
from encoders.settings import PcaSettings
from tests.encoders import oracles


def blobs(num_per_blob: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Descriptors around five corners of a cube of side 10, shuffled, and the corners."""
    corners = 10.0 * torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_per_blob, 5, 3, generator=generator)
    points = (corners + 0.1 * noise).flatten(0, 1)
    return points[torch.randperm(len(points), generator=generator)], corners


def nearest(centroids: torch.Tensor, descriptors: torch.Tensor) -> torch.Tensor:
    assignment = Assignment.to(centroids)
    return assignment.nearest(descriptors - assignment.centre)


def test_uses_every_point_and_ends_at_the_means_of_its_cells() -> None:
    # Far above the 256 points per centroid that faiss takes by itself; their means differ by 1e-3.
    points, _ = blobs(num_per_blob=1000)
    centroids = fit_kmeans(points, num_centroids=5, seed=3)
    assert (centroids.dtype, centroids.shape) == (torch.float32, (5, 3))
    cell = nearest(centroids, points)
    means = torch.stack([points[cell == k].double().mean(0) for k in range(5)])
    torch.testing.assert_close(centroids.double(), means, rtol=0, atol=1e-5)


def test_finds_separated_clusters() -> None:
    points, corners = blobs(num_per_blob=50)
    # One start in several ends in a local optimum; the best of a few is the right answer.
    fits = [fit_kmeans(points, 5, seed=seed) for seed in range(5)]
    errors = [(points - centroids[nearest(centroids, points)]).square().sum() for centroids in fits]
    best = fits[int(torch.stack(errors).argmin())]
    assert sorted(nearest(best, corners).tolist()) == [0, 1, 2, 3, 4]
    assert torch.cdist(corners, best).min(1).values.max() < 0.1


def test_seed_decides_and_repeats() -> None:
    points, _ = blobs(num_per_blob=40)
    first, again = (fit_kmeans(points, 7, seed=11, num_iterations=2) for _ in range(2))
    other = fit_kmeans(points, 7, seed=12, num_iterations=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_as_many_centroids_as_descriptors_is_allowed() -> None:
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0], [8.0, 9.0]])
    centroids = fit_kmeans(points, 3, seed=0)
    assert sorted(centroids.tolist()) == points.tolist()


def test_too_few_descriptors_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"fit section: expected at least 9 .* got 8; lower vlad.num_centroids"
    ):
        fit_kmeans(torch.zeros(8, 2), 9, seed=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    points, _ = blobs(num_per_blob=4)
    points[5, 1] = bad
    with pytest.raises(ValueError, match=r"expected finite descriptors .* got 1 of 20"):
        fit_kmeans(points, 2, seed=0)


def test_nearest_is_the_smallest_distance_with_a_large_common_offset() -> None:
    generator = torch.Generator().manual_seed(5)
    centroids = torch.randn(6, 4, generator=generator)
    points = torch.randn(200, 4, generator=generator)
    expected = torch.cdist(points.double(), centroids.double()).argmin(1)
    assert torch.equal(nearest(centroids, points), expected)
    # 512 is a power of two: adding it costs the inputs few digits, |x|^2 would cost all.
    shifted = (points + 512).double(), (centroids + 512).double()
    expected = torch.cdist(*shifted, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(nearest(centroids + 512, points + 512), expected)


def test_nearest_takes_the_first_of_equals() -> None:
    centroids = torch.tensor([[4.0], [1.0], [-1.0], [1.0]])
    assert nearest(centroids, torch.tensor([[0.0], [1.0], [9.0]])).tolist() == [1, 1, 0]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_worker_gets_the_centroids_of_the_first(
    num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, _ = blobs(num_per_blob=60)
    shares = points.view(6, 50, 3).tensor_split(num_workers)
    ranks = []

    def drifting(points: torch.Tensor, num_centroids: int, seed: int) -> torch.Tensor:
        # Another machine's rounding, made large enough to see.
        ranks.append(len(ranks))
        return fit_kmeans(points, num_centroids, seed) + 1e-3 * len(ranks)

    monkeypatch.setattr("encoders.codebooks.kmeans.fit_kmeans", drifting)

    def work(rank, all_reduce):
        sample = FitSample(
            frames=shares[rank],
            video=torch.full((len(shares[rank]),), rank),
            rank=rank,
            world_size=num_workers,
            all_reduce=all_reduce,
        )
        return fit_centroids(sample, num_centroids=5, settings=PcaSettings(pca_components=2))

    results = oracles.run_workers(num_workers, work)
    assert len(ranks) == num_workers
    for pca, centroids in results:
        assert centroids.shape == (5, 2)
        assert torch.equal(centroids, results[0][1])
        assert torch.equal(pca.components, results[0][0].components)
    # In the plane of the two components the corners stay apart, so each has a centroid near it.
    pca, centroids = results[0]
    assert torch.cdist(pca.transform(points), centroids).min(1).values.mean() < 5
