"""Principal components of descriptors, before a codebook (FK 4.3).

Letters: n rows, C width before, P width after.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from encoders import matmul
from encoders.codebooks.sample import FitSample
from encoders.settings import EncoderSettings

MAX_ROWS, MAX_VALUES = 262_144, 2**28
"""Most descriptors of a sample that the PCA of a codebook is estimated from (FK 4.3: 256,000), and
most values of them: 2 GiB in double precision."""

NEGLIGIBLE_VARIANCE = 1e-10
"""Least variance to whiten, relative to the first component's: below it there is only noise."""

BLOCK_COLUMNS = 128
"""Rows of x^T x in one product, which starts at their diagonal block: this saves half the work."""


@dataclass(frozen=True, eq=False)
class Pca:
    """A fitted projection: mean [C], orthonormal components [P, C], scale [P] (1, or whitening)."""

    mean: Tensor
    components: Tensor
    scale: Tensor

    @matmul.fastest()
    def transform(self, x: Tensor) -> Tensor:
        """Return (x - mean) components^T scale [n, P] of x [n, C], in its dtype, on its device."""
        return ((x - self.mean.to(x)) @ self.components.to(x).T) * self.scale.to(x)

    def tensors(self) -> dict[str, Tensor]:
        """Return the three tensors, named "pca.<name>", for an encoder to store with its own."""
        return {
            "pca.mean": self.mean,
            "pca.components": self.components,
            "pca.scale": self.scale,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self | None:
        """Build the PCA from `tensors`; None if no name begins with "pca."."""
        if "pca.mean" not in tensors:
            return None
        return cls(*(tensors[f"pca.{name}"] for name in ("mean", "components", "scale")))


def projected(x: Tensor, pca: Pca | None) -> Tensor:
    """Return x [.., C] after the PCA, or x itself without one."""
    return x if pca is None else pca.transform(x)


def input_width(pca: Pca | None, width: int, owner: str) -> int:
    """Return the width that an encoder of `width` channels accepts: that before its PCA, if any.

    Raises:
        ValueError: the PCA gives another width.
    """
    if pca is None:
        return width
    if len(pca.components) != width:
        raise ValueError(
            f"{owner}: expected a PCA to {width} components as its codebook, got one to "
            f"{len(pca.components)}; fit the codebook on descriptors after this PCA"
        )
    return len(pca.mean)


def fit_pca(x: Tensor, num_components: int, whiten: bool = False) -> Pca:
    """Fit the float64 principal components of x [n, C], by scikit-learn, on the CPU.

    Signs are fixed: the loading of largest magnitude of each component is positive. With `whiten`
    each output has variance 1 (n - 1 in the denominator) over the rows of x.

    Raises:
        ValueError: more components than min(n, C), a value that is not finite, or `whiten` of a
            component along which x does not vary.
    """
    # Imported here because encoding needs the projection, but not scikit-learn.
    from sklearn.decomposition import PCA

    num_rows, width = x.shape
    if not 1 <= num_components <= min(num_rows, width):
        raise ValueError(
            f"fit section: expected pca_components between 1 and {min(num_rows, width)} for "
            f"{num_rows} rows of width {width}, got {num_components}; lower it or sample more"
        )
    if not torch.isfinite(x).all():
        raise ValueError(
            "fit section: expected finite rows for PCA, got NaN or infinity; describe the videos "
            "they come from again"
        )
    # Both solvers are exact and not random. The first is fast for many rows, the second for few.
    solver = "covariance_eigh" if num_rows > width else "full"
    fitted = PCA(num_components, svd_solver=solver).fit(x.detach().cpu().double().numpy())
    variance = torch.from_numpy(fitted.explained_variance_)
    scale = torch.ones(num_components, dtype=torch.float64)
    if whiten:
        usable = int((variance > NEGLIGIBLE_VARIANCE * variance[0]).sum())
        if usable < num_components:
            raise ValueError(
                f"fit section: expected {num_components} directions with variance to whiten, got "
                f"{usable}; lower pca_components or sample more"
            )
        scale = variance.rsqrt()
    # Contiguous like a stored one: another memory layout would round differently.
    components = torch.from_numpy(fitted.components_).contiguous()
    return Pca(torch.from_numpy(fitted.mean_), components, scale)


def fit_pca_of_parts(parts: Iterable[Tensor], num_components: int) -> Pca:
    """Fit the principal components of rows [n, C] that come in parts, as `fit_pca` of all of them.

    Only sums are held, in float64: C x C values. The result is float32.

    Raises:
        ValueError: see `fit_pca`.
    """
    count, total, gram = 0, torch.zeros(0), torch.zeros(0, 0)
    for part in parts:
        x = part.double()
        if not torch.isfinite(x).all():
            raise ValueError("expected finite rows for PCA, got NaN or infinity")
        if not count:
            total, gram = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1], x.shape[1])
        count, total = count + len(x), total + x.sum(0)
        add_gram(gram, x)
    width = len(total)
    if not 1 <= num_components <= min(count, width):
        raise ValueError(
            f"expected components between 1 and {min(count, width)} for {count} rows of width "
            f"{width}, got {num_components}; lower it, or give more training videos"
        )
    mean, upper = total / count, gram.triu()
    covariance = upper + upper.triu(1).T - count * mean.outer(mean)
    # Ascending: the last are the first components.
    components = torch.linalg.eigh(covariance)[1].flip(1)[:, :num_components].T
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = (components * largest.sign()).contiguous()
    return Pca(mean.float(), components.float(), torch.ones(num_components))


def add_gram(sums: Tensor, x: Tensor) -> None:
    """Add x^T x of x [n, C] to the upper triangle of `sums` [C, C]; the rest is not defined."""
    for start in range(0, len(sums), BLOCK_COLUMNS):
        rows = slice(start, start + BLOCK_COLUMNS)
        sums[rows, start:] += x[:, rows].T @ x[:, start:]


def fit_sample_pca(sample: FitSample, settings: EncoderSettings) -> Pca | None:
    """Fit the float32 PCA of a sample's descriptors, on worker 0; None for 0 components."""
    if not settings.pca_components:
        return None
    most = min(MAX_ROWS, MAX_VALUES // sample.frames.shape[2])
    fitted = fit_pca(sample.gather(most), settings.pca_components, settings.pca_whiten)
    return Pca(
        *(
            from_first_worker(sample, t.float())
            for t in (fitted.mean, fitted.components, fitted.scale)
        )
    )


def from_first_worker(sample: FitSample, tensor: Tensor) -> Tensor:
    """Return worker 0's `tensor` on every worker, as libraries elsewhere may round differently."""
    return sample.all_reduce(tensor if sample.rank == 0 else torch.zeros_like(tensor))
