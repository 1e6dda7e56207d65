"""GMM-FV: the Fisher vector of a Gaussian mixture (METHODS 3.2; FK 2.1, DQ 5.2).

Letters: n descriptors, C channels (after PCA), K components, D = 2KC.

With posteriors g_ik and standard deviations s_k, the gradient of the mean log-likelihood over the
root of the closed-form Fisher information (w_k / s_k^2 for the mean, 2 w_k / s_k^2 for s_k) is

    mean block k:   1 / (n sqrt(w_k))   sum_i g_ik (x_i - mu_k) / s_k
    sigma block k:  1 / (n sqrt(2 w_k)) sum_i g_ik ((x_i - mu_k)^2 / s_k^2 - 1)

The vector is all mean blocks, then all sigma blocks; there is no block for the weights.
"""

from typing import Self

import torch
from torch import Tensor

from encoders.base import Encoder
from encoders.gmm import Gmm, JointDensity, fit_gmm, joint_density
from encoders.kmeans import CHUNK_DESCRIPTORS, fit_centroids
from encoders.pca import Pca, input_width
from encoders.sample import FitSample
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
        # Rounded, so that the float32 products are about exactly the m that `_vector` undoes.
        self._centre = (gmm.weights @ gmm.means).float().double()
        exact = joint_density(gmm, self._centre)
        self._densities = {torch.float64: exact, torch.float32: _to_float32(exact)}

    @classmethod
    def fit(cls, sample: FitSample, settings: GmmFvSettings, normalisation: str) -> Self:
        """EM over all workers from k-means; logs "mean_log_likelihood" of each iteration."""
        pca, centroids = fit_centroids(sample, settings.num_components, settings.pca_components)
        x = sample.descriptors()
        gmm = fit_gmm(
            x if pca is None else pca.transform(x),
            centroids,
            max_iterations=settings.max_iterations,
            tolerance=settings.tolerance,
            variance_floor=settings.variance_floor,
            all_reduce=sample.all_reduce,
            on_iteration=lambda step, value: sample.log("mean_log_likelihood", step, value),
            state=sample.state,
            on_update=sample.checkpoint,
        )
        on_cpu = Gmm(gmm.weights.cpu(), gmm.means.cpu(), gmm.variances.cpu())
        return cls(on_cpu, pca, normalisation)

    def _sums(self, descriptors: Tensor) -> Tensor:
        sums = self._zeros()
        for chunk in descriptors.split(CHUNK_DESCRIPTORS):
            x = chunk.to(torch.promote_types(chunk.dtype, torch.float32))
            x = x if self.pca is None else self.pca.transform(x)
            density = self._densities[x.dtype]
            y = density.expand(x)
            posterior = density.log_joint(y).softmax(1)
            sums += torch.cat([posterior.sum(0), (posterior.T @ y).flatten()])
        return sums

    def _zeros(self) -> Tensor:
        return self.gmm.weights.new_zeros(len(self.gmm.weights) + self.output_dim)

    def _vector(self, sums: Tensor, count: int) -> Tensor:
        weights, variances = self.gmm.weights.unsqueeze(1), self.gmm.variances
        offsets = self.gmm.means - self._centre
        mass = sums[: len(weights)].unsqueeze(1)
        first, second = sums[len(weights) :].view(len(weights), -1).chunk(2, 1)
        mean = (first - offsets * mass) / variances.sqrt()
        spread = second - 2 * offsets * first + offsets.square() * mass
        sigma = (spread / variances - mass) / 2**0.5
        return (torch.stack([mean, sigma]) / (count * weights.sqrt())).flatten()

    def tensors(self) -> dict[str, Tensor]:
        own = {
            "weights": self.gmm.weights,
            "means": self.gmm.means,
            "variances": self.gmm.variances,
        }
        return own | (self.pca.tensors() if self.pca else {})

    def settings(self) -> dict[str, object]:
        return {"normalisation": self.normalisation}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, object]) -> Self:
        gmm = Gmm(tensors["weights"], tensors["means"], tensors["variances"])
        return cls(gmm, Pca.from_tensors(tensors), **settings)


def _to_float32(density: JointDensity) -> JointDensity:
    """For posteriors only: they do not change with the bias's offset, which would cost digits."""
    bias = density.bias - density.bias.max()
    return JointDensity(density.centre.float(), density.weight.float(), bias.float())
