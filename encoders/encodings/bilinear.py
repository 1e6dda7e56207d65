"""Bilinear pooling: the sum of x x^T over descriptors (DQ 5.2 BP, METHODS 3.4).

The inner product of two vectors of the forms "full" and "upper" is the sum of (x . y)^2 over all
pairs of a descriptor of the one and a descriptor of the other; that of the sketches estimates it.

Letters: n descriptors, C channels (after PCA), P features of a sketch. D is C^2 ("full"),
C (C + 1) / 2 ("upper") or P.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from encoders.codebooks.chunks import CHUNK_DESCRIPTORS
from encoders.codebooks.pca import Pca, add_gram, fit_sample_pca, input_width, projected
from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder
from encoders.encodings.random_maps import SKETCHES, Sketch
from encoders.settings import BilinearSettings


class Bilinear(Encoder):
    """The mean of x x^T of descriptors of `width` channels, after `pca` where given.

    The state is [C, C] in every form (32 MiB at C = 2048) and only its upper triangle counts. A
    sketch is taken of it at the end: that is exact, because a sketch is linear in x x^T, and avoids
    P values for each descriptor.

    Args:
        form: "full", or "upper": the triangle row by row, with sqrt(2) times the values off the
            diagonal; or a sketch of `encoders.encodings.random_maps`.

    Raises:
        ValueError: the PCA gives another width, or the form is not known.
    """

    name = "bilinear"

    def __init__(
        self,
        width: int,
        form: str | Sketch = "full",
        pca: Pca | None = None,
        normalisation: str = "signed_sqrt_l2",
    ) -> None:
        lengths = {"full": width**2, "upper": width * (width + 1) // 2}
        if isinstance(form, str) and form not in lengths:
            raise ValueError(
                f"bilinear: expected a form out of {sorted(lengths)} or a sketch, got {form!r}"
            )
        self.width, self.form, self.pca, self.normalisation = width, form, pca, normalisation
        self.descriptor_dim = input_width(pca, width, self.name)
        self.output_dim = lengths[form] if isinstance(form, str) else form.num_features

    @classmethod
    def fit(cls, sample: FitSample, settings: BilinearSettings, normalisation: str) -> Self:
        """Fit the PCA; the sketch is drawn with the sample's seed."""
        width = settings.pca_components or sample.frames.shape[2]
        pca = fit_sample_pca(sample, settings)
        form: str | Sketch = settings.form
        if settings.form in SKETCHES:
            form = SKETCHES[settings.form].draw(width, settings.num_features, sample.seed)
        return cls(width, form, pca, normalisation)

    def _batch_sums(self, descriptors: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        return [self._moment(video) for video in descriptors.split(lengths)]

    def _moment(self, descriptors: Tensor) -> Tensor:
        """Return the upper triangle of the sum of x x^T over descriptors [n, C]; n may be 0."""
        sums = torch.zeros(self.width, self.width, dtype=torch.float64, device=descriptors.device)
        for chunk in descriptors.split(CHUNK_DESCRIPTORS):
            x = chunk.to(torch.promote_types(chunk.dtype, torch.float32))
            add_gram(sums, projected(x, self.pca))
        return sums.triu()

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        upper = sums / count
        if self.form == "upper":
            scaled = upper.mul(2**0.5).diagonal_scatter(upper.diagonal())
            return scaled[torch.ones_like(scaled, dtype=torch.bool).triu()]
        moment = upper + upper.triu(1).T
        return moment.flatten() if isinstance(self.form, str) else self.form.of_moment(moment)

    def tensors(self) -> dict[str, Tensor]:
        sketch = {} if isinstance(self.form, str) else self.form.tensors()
        return sketch | (self.pca.tensors() if self.pca else {})

    def settings(self) -> dict[str, Any]:
        form = self.form if isinstance(self.form, str) else self.form.name
        settings = {"width": self.width, "form": form, "normalisation": self.normalisation}
        return (
            settings if isinstance(self.form, str) else settings | {"num_features": self.output_dim}
        )

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        form = settings["form"]
        if form in SKETCHES:
            form = SKETCHES[form].from_tensors(tensors, settings["num_features"])
        return cls(settings["width"], form, Pca.from_tensors(tensors), settings["normalisation"])
