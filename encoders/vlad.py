"""VLAD: sums of residuals to the nearest k-means centroid (METHODS 3.3; DQ 5.2, VU 2.3.3).

Letters: n descriptors, C channels (after PCA), K centroids, D = KC, one block of C per centroid.
"""

from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from encoders.base import Encoder
from encoders.kmeans import CHUNK_DESCRIPTORS, fit_centroids, nearest
from encoders.normalise import l2
from encoders.pca import Pca, input_width
from encoders.sample import FitSample
from encoders.settings import VladSettings


class Vlad(Encoder):
    """VLAD of `centroids` [K, C], after `pca` where given.

    Args:
        intra: L2-normalise each centroid's block first ("intra-normalisation", VU 2.3.3).
        normalisation: of the whole vector; None is "l2" with `intra`, and without it DQ 5.2's,
            "signed_sqrt_l2".

    Raises:
        ValueError: the PCA gives another width than the centroids have.
    """

    name = "vlad"

    def __init__(
        self,
        centroids: Tensor,
        pca: Pca | None = None,
        intra: bool = False,
        normalisation: str | None = None,
    ) -> None:
        num_centroids, width = centroids.shape
        self.centroids, self.pca, self.intra = centroids.contiguous(), pca, intra
        self.normalisation = normalisation or ("l2" if intra else "signed_sqrt_l2")
        self.descriptor_dim = input_width(pca, width, self.name)
        self.output_dim = num_centroids * width

    @classmethod
    def fit(cls, sample: FitSample, settings: VladSettings, normalisation: str) -> Self:
        """k-means of the sample; with `settings.intra` the normalisation is VU 2.3.3's, "l2"."""
        pca, centroids = fit_centroids(sample, settings.num_centroids, settings.pca_components)
        return cls(centroids, pca, settings.intra, "l2" if settings.intra else normalisation)

    def _sums(self, descriptors: Tensor) -> Tensor:
        sums = self._zeros()
        for chunk in descriptors.split(CHUNK_DESCRIPTORS):
            x = chunk.to(torch.promote_types(chunk.dtype, torch.float32))
            x = x if self.pca is None else self.pca.transform(x)
            centroids = self.centroids.to(x.dtype)
            cell = nearest(centroids, x)
            # A product instead of index_add: on a GPU that one adds in no fixed order.
            members = one_hot(cell, len(centroids)).to(x.dtype)
            sums += members.T @ (x - centroids[cell])
        return sums

    def _zeros(self) -> Tensor:
        return torch.zeros_like(self.centroids, dtype=torch.float64)

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        blocks = sums / count
        return (l2(blocks) if self.intra else blocks).flatten()

    def tensors(self) -> dict[str, Tensor]:
        return {"centroids": self.centroids} | (self.pca.tensors() if self.pca else {})

    def settings(self) -> dict[str, object]:
        return {"intra": self.intra, "normalisation": self.normalisation}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, object]) -> Self:
        return cls(tensors["centroids"], Pca.from_tensors(tensors), **settings)
