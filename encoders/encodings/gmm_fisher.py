"""GMM-FV: the Fisher vector of a Gaussian mixture (METHODS 3.2; FK 2.1, DQ 5.2).

Letters: n descriptors, C channels (after PCA), K components, D = 2KC.

With posteriors g_ik and standard deviations s_k, the gradient of the mean log-likelihood over the
root of the closed-form Fisher information (w_k / s_k^2 for the mean, 2 w_k / s_k^2 for s_k) is

    mean block k:   1 / (n sqrt(w_k))   sum_i g_ik (x_i - mu_k) / s_k
    sigma block k:  1 / (n sqrt(2 w_k)) sum_i g_ik ((x_i - mu_k)^2 / s_k^2 - 1)

The vector is all mean blocks, then all sigma blocks; there is no block for the weights.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Self

import torch
from torch import Tensor

from encoders.codebooks.chunks import CHUNK_DESCRIPTORS, Scratch, add_products, groups
from encoders.codebooks.gmm import Gmm, JointDensity, fit_gmm, fit_gmm_stepwise, joint_density
from encoders.codebooks.kmeans import fit_centroids
from encoders.codebooks.pca import Pca, input_width, projected
from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder, FitWork
from encoders.settings import GmmFvSettings


class GmmFisher(Encoder):
    """The Fisher vector of `gmm`, after `pca` where given.

    The state is the sums of the posteriors [K], then [K, 2C] of posterior-weighted x - m and
    (x - m)^2, m being the mean of the mixture: two matrix products in the dtype of the descriptors
    (float32 at least), whose chunks are added in float64.

    Raises:
        ValueError: the PCA gives another width than the mixture has.
    """

    name = "gmm_fv"

    def __init__(
        self, gmm: Gmm, pca: Pca | None = None, normalisation: str = "signed_sqrt_l2"
    ) -> None:
        num_components, width = gmm.means.shape
        self.gmm, self.pca, self.normalisation = gmm, pca, normalisation
        self.descriptor_dim = input_width(pca, width, self.name)
        self.output_dim = 2 * num_components * width
        # Rounded to float32, so that the products have exactly the m that `_vector` assumes.
        self._centre = (gmm.weights @ gmm.means).float().double()
        exact = joint_density(gmm, self._centre)
        self._densities = {torch.float64: exact, torch.float32: _to_float32(exact)}

    @classmethod
    def fit(cls, sample: FitSample, settings: GmmFvSettings, normalisation: str) -> Self:
        """Fit by EM over all workers, from k-means; log each iteration's "mean_log_likelihood"."""
        pca, centroids = fit_centroids(sample, settings.num_components, settings)
        options = {
            "tolerance": settings.tolerance,
            "variance_floor": settings.variance_floor,
            "pca": pca,
            "all_reduce": sample.all_reduce,
            "state": sample.state,
            "on_update": sample.checkpoint,
        }
        log = partial(sample.log, "mean_log_likelihood")
        if settings.batch_descriptors:
            steps_per_pass, batch = sample.batches(settings.batch_descriptors)
            gmm = fit_gmm_stepwise(
                sample.descriptors(),
                centroids,
                batch=batch,
                steps_per_pass=steps_per_pass,
                step_exponent=settings.step_exponent,
                max_passes=settings.max_iterations,
                on_pass=log,
                **options,
            )
        else:
            gmm = fit_gmm(
                sample.descriptors(),
                centroids,
                max_iterations=settings.max_iterations,
                on_iteration=log,
                **options,
            )
        on_cpu = Gmm(gmm.weights.cpu(), gmm.means.cpu(), gmm.variances.cpu())
        return cls(on_cpu, pca, normalisation)

    @classmethod
    def fit_work(cls, settings: GmmFvSettings, num_frames: int, cells: int) -> FitWork:
        """An iteration of EM reads all descriptors, a step of stepwise EM a batch."""
        total = num_frames * cells
        batch = min(settings.batch_descriptors, total) or total
        return FitWork(total, settings.max_iterations * math.ceil(total / batch), batch)

    @classmethod
    def short_fit(cls, settings: GmmFvSettings, steps: int) -> GmmFvSettings:
        """Iterations are passes over all descriptors; a small sample must not end them earlier."""
        return replace(settings, max_iterations=steps, tolerance=1e-12)

    def _batch_sums(self, descriptors: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        num_components = len(self.gmm.weights)
        sums = [self.gmm.weights.new_zeros(num_components + self.output_dim) for _ in lengths]
        moments = [total[num_components:].view(num_components, -1) for total in sums]
        dtype = torch.promote_types(descriptors.dtype, torch.float32)
        density, scratch = self._densities[dtype], Scratch(dtype, descriptors.device)
        for rows, pieces in groups(lengths, CHUNK_DESCRIPTORS, descriptors.device):
            y = density.expand(projected(descriptors[rows].to(dtype), self.pca), scratch)
            posterior = density.posterior(density.log_joint(y, scratch), scratch)
            for video, part in pieces:
                sums[video][:num_components] += posterior[part].sum(0)
            add_products(moments, posterior, y, pieces)
        return sums

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        num_components = len(self.gmm.weights)
        mass = sums[:num_components].unsqueeze(1) / count
        first, second = (sums[num_components:].view(num_components, -1) / count).chunk(2, 1)
        to_mean, mean_offset, to_sigma, twice_offset, sigma_offset = self._whitening
        vector = first.new_empty(2, *first.shape)
        torch.mul(first, to_mean, out=vector[0]).addcmul_(mass, mean_offset)
        sigma = torch.mul(second, to_sigma, out=vector[1])
        sigma.addcmul_(first, twice_offset).addcmul_(mass, sigma_offset)
        return vector.flatten()

    @cached_property
    def _whitening(self) -> tuple[Tensor, ...]:
        """Factors [K, C] of the mean moments about m: for the mean block of x - m and of the mass,
        for the sigma block of (x - m)^2, of x - m and of the mass."""
        offsets, variances = self.gmm.means - self._centre, self.gmm.variances
        root = self.gmm.weights.sqrt().unsqueeze(1)
        to_mean = 1 / (variances.sqrt() * root)
        to_sigma = 1 / (2**0.5 * variances * root)
        sigma_offset = (offsets.square() - variances) * to_sigma
        return to_mean, -offsets * to_mean, to_sigma, -2 * offsets * to_sigma, sigma_offset

    def tensors(self) -> dict[str, Tensor]:
        mixture = {
            "weights": self.gmm.weights,
            "means": self.gmm.means,
            "variances": self.gmm.variances,
        }
        return mixture | (self.pca.tensors() if self.pca else {})

    def settings(self) -> dict[str, Any]:
        return {"normalisation": self.normalisation}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Self:
        gmm = Gmm(tensors["weights"], tensors["means"], tensors["variances"])
        return cls(gmm, Pca.from_tensors(tensors), **settings)


def _to_float32(density: JointDensity) -> JointDensity:
    """Return a float32 density for posteriors only.

    The bias has no common offset, which would cost digits and does not change posteriors.
    """
    bias = density.bias - density.bias.max()
    return JointDensity(density.centre.float(), density.weight.float(), bias.float())
