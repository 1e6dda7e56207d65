"""k-means codebooks, and the assignment of descriptors to them (METHODS 3.3).

Letters: n descriptors, C channels, K centroids.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from encoders.codebooks.pca import Pca, fit_sample_pca, from_first_worker, projected
from encoders.codebooks.sample import FitSample
from encoders.settings import PcaSettings

MAX_POINTS_PER_CENTROID = 1024
"""k-means reads at most K times this many descriptors, drawn from all. FK 4.3 has 1,000."""


def fit_kmeans(
    descriptors: Tensor, num_centroids: int, seed: int, num_iterations: int = 25
) -> Tensor:
    """Fit centroids [K, C], float32 and on the CPU, to descriptors [n, C], by faiss.

    The same descriptors, seed and number of threads give the same bits. faiss uses a GPU if it
    finds one.

    Raises:
        ValueError: fewer descriptors than centroids, or a value that is not finite.
    """
    # Imported here because encoding needs the centroids, but not faiss.
    import faiss

    if len(descriptors) < num_centroids:
        raise ValueError(
            f"fit section: expected at least {num_centroids} descriptors for k-means, got "
            f"{len(descriptors)}; lower vlad.num_centroids or gmm_fv.num_components, or sample more"
        )
    num_bad = int((~torch.isfinite(descriptors)).any(1).sum())
    if num_bad:
        raise ValueError(
            f"fit section: expected finite descriptors for k-means, got {num_bad} of "
            f"{len(descriptors)} with NaN or infinity; describe the videos they come from again"
        )
    points = descriptors.detach().cpu().float().contiguous().numpy()
    kmeans = faiss.Kmeans(
        points.shape[1],
        num_centroids,
        niter=num_iterations,
        seed=seed,
        gpu=faiss.get_num_gpus() > 0,
        min_points_per_centroid=1,
        max_points_per_centroid=MAX_POINTS_PER_CENTROID,
    )
    kmeans.train(points)
    assert kmeans.centroids is not None  # train sets them
    return torch.from_numpy(kmeans.centroids.copy())


def fit_centroids(
    sample: FitSample, num_centroids: int, settings: PcaSettings
) -> tuple[Pca | None, Tensor]:
    """Fit a sample's PCA (None for 0 components) and centroids [K, C] after it, on worker 0."""
    pca = fit_sample_pca(sample, settings)
    points = projected(sample.gather(MAX_POINTS_PER_CENTROID * num_centroids), pca)
    return pca, from_first_worker(sample, fit_kmeans(points, num_centroids, sample.seed))


class Assignment(NamedTuple):
    """Assignment to the nearest centroid: argmin |x - c|^2 = argmax x.c - |c|^2 / 2.

    x and c are taken about the mean centroid, so that a common offset costs no digits.

    Attributes:
        centre: the mean centroid [C].
        offsets: the centroids about it, [K, C].
        bias: -|c|^2 / 2, [K].
    """

    centre: Tensor
    offsets: Tensor
    bias: Tensor

    @classmethod
    def to(cls, centroids: Tensor) -> Self:
        """Return the assignment to `centroids` [K, C], in their dtype."""
        centre = centroids.mean(0)
        offsets = centroids - centre
        return cls(centre, offsets, offsets.square().sum(1) / -2)

    def nearest(self, centred: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the index [n] of the nearest centroid of each x - centre [n, C].

        Of equally near ones it is the first.

        Args:
            out: [n, K], overwritten with the scores.
        """
        return torch.addmm(self.bias, centred, self.offsets.T, out=out).argmax(1)


def add_up_cells(rows: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Return the sums [num_cells, P] of the rows [n, P] of each cell.

    On any device a sum runs in the order of the rows; on a GPU that of index_add does not.

    Args:
        cell: the cell [n] of each row.
    """
    cell, order = cell.sort(stable=True)
    starts = torch.searchsorted(cell, torch.arange(num_cells, device=cell.device))
    return embedding_bag(order, rows, starts, mode="sum")
