"""VLAD: sums of residuals to the nearest k-means centroid (METHODS 3.3; DQ 5.2, VU 2.3.3).

Letters: n descriptors, C channels (after PCA), K centroids, D = KC, one block of C per centroid.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from encoders.codebooks.chunks import CHUNK_DESCRIPTORS, Scratch, groups
from encoders.codebooks.kmeans import (
    MAX_POINTS_PER_CENTROID,
    Assignment,
    add_up_cells,
    fit_centroids,
)
from encoders.codebooks.pca import Pca, input_width, projected
from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder, FitWork
from encoders.encodings.normalise import l2
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
        self._assignments: dict[torch.dtype, tuple[Tensor, Assignment]] = {}

    @classmethod
    def fit(cls, sample: FitSample, settings: VladSettings, normalisation: str) -> Self:
        """Fit k-means; with `settings.intra` the normalisation is VU 2.3.3's, "l2"."""
        pca, centroids = fit_centroids(sample, settings.num_centroids, settings)
        return cls(centroids, pca, settings.intra, "l2" if settings.intra else normalisation)

    @classmethod
    def fit_work(cls, settings: VladSettings, num_frames: int, cells: int) -> FitWork:
        """k-means draws no more descriptors than it uses."""
        most = MAX_POINTS_PER_CENTROID * settings.num_centroids
        return FitWork(min(num_frames * cells, most))

    def _batch_sums(self, descriptors: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        sums = [torch.zeros_like(self.centroids, dtype=torch.float64) for _ in lengths]
        dtype = torch.promote_types(descriptors.dtype, torch.float32)
        centroids, assignment = self._assigning(dtype)
        scratch = Scratch(dtype, descriptors.device)
        for rows, pieces in groups(lengths, CHUNK_DESCRIPTORS, descriptors.device):
            x = projected(descriptors[rows].to(dtype), self.pca)
            residuals = torch.sub(x, assignment.centre, out=scratch("residuals", *x.shape))
            cell = assignment.nearest(residuals, scratch("scores", len(x), len(centroids)))
            nearest = torch.index_select(centroids, 0, cell, out=scratch("nearest", *x.shape))
            torch.sub(x, nearest, out=residuals)
            for number, (_, part) in enumerate(pieces):
                cell[part] += number * len(centroids)
            blocks = add_up_cells(residuals, cell, len(pieces) * len(centroids))
            for (video, _), added in zip(pieces, blocks.split(len(centroids)), strict=True):
                sums[video] += added
        return sums

    def _assigning(self, dtype: torch.dtype) -> tuple[Tensor, Assignment]:
        """Return the centroids in `dtype` and the assignment to them; computed once per dtype."""
        if dtype not in self._assignments:
            centroids = self.centroids.to(dtype)
            self._assignments[dtype] = centroids, Assignment.to(centroids)
        return self._assignments[dtype]

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        blocks = sums / count
        return (l2(blocks) if self.intra else blocks).flatten()

    def tensors(self) -> dict[str, Tensor]:
        return {"centroids": self.centroids} | (self.pca.tensors() if self.pca else {})

    def settings(self) -> dict[str, Any]:
        return {"intra": self.intra, "normalisation": self.normalisation}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        return cls(tensors["centroids"], Pca.from_tensors(tensors), **settings)
