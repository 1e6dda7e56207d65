"""The Gaussian mixture with diagonal covariances, and its EM (METHODS 3.2).

    p(x) = sum_k w_k N(x; mu_k, diag v_k)

Letters: n descriptors, C channels, K components.

All that EM needs of the descriptors is a sum over them: `statistics` packs it into one tensor,
workers add theirs, and `update` makes the next mixture from the total. Everything is float64: the
variances are differences of sums, and fitting must not depend on how descriptors were dealt out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from encoders.kmeans import CHUNK_DESCRIPTORS, nearest

STARVED_SHARE = 1e-3
"""A component is starved if its weight is below this part of an even share, 1 / K."""


@dataclass(frozen=True, eq=False)
class Gmm:
    """A fitted mixture, float64: weights [K] with sum 1, means [K, C], variances [K, C] > 0."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        shapes = [list(tensor.shape) for tensor in (self.weights, self.means, self.variances)]
        if len(shapes[1]) != 2 or shapes[2] != shapes[1] or shapes[0] != shapes[1][:1]:
            raise ValueError(f"gmm: expected weights [K], means and variances [K, C], got {shapes}")
        if not ((self.weights > 0).all() and (self.variances > 0).all()):
            raise ValueError(
                "gmm: expected weights and variances above 0, got "
                f"{self.weights.min():g} and {self.variances.min():g}; fit with fit_gmm"
            )


class JointDensity(NamedTuple):
    """log w_k N(x; mu_k, v_k) of all components as one matrix product, up to an offset.

    With y = [x - centre, (x - centre)^2] it is y @ weight + bias, so that nothing of size n K C is
    ever made, and the sums that EM and the Fisher vector want are posterior^T @ y.
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor

    def expand(self, x: Tensor) -> Tensor:
        """y [n, 2C] of x [n, C]."""
        centred = x - self.centre
        return torch.cat([centred, centred.square()], 1)

    def log_joint(self, y: Tensor) -> Tensor:
        """[n, K] of y [n, 2C]."""
        return torch.addmm(self.bias, y, self.weight)


def joint_density(gmm: Gmm, centre: Tensor) -> JointDensity:
    """The float64 `JointDensity` about a centre [C] near the descriptors' mean, with offset 0."""
    offsets, precisions = gmm.means - centre, gmm.variances.reciprocal()
    weight = torch.cat([offsets * precisions, precisions / -2], 1).T
    log_norm = (gmm.variances * (2 * torch.pi)).log() + offsets.square() * precisions
    return JointDensity(centre, weight, gmm.weights.log() - log_norm.sum(1) / 2)


class Moments(NamedTuple):
    """The parts of a packed statistics tensor: moments are about a centre that both sides know."""

    count: Tensor
    log_likelihood: Tensor
    mass: Tensor
    first: Tensor
    second: Tensor


def _pack(count: int, log_likelihood: Tensor, posterior: Tensor, y: Tensor) -> Tensor:
    head = torch.stack([log_likelihood.new_tensor(count), log_likelihood])
    return torch.cat([head, posterior.sum(0), (posterior.T @ y).flatten()])


def _unpack(packed: Tensor, num_components: int) -> Moments:
    mass, moments = packed[2 : 2 + num_components], packed[2 + num_components :]
    first, second = moments.view(num_components, -1).chunk(2, 1)
    return Moments(packed[0], packed[1], mass, first, second)


def statistics(gmm: Gmm, x: Tensor) -> Tensor:
    """The E step over x [n, C], n may be 0: packed float64 [2 + K + 2KC], to be added up.

    In it: n, sum of log p(x), sums of posteriors, and per component the posterior-weighted sums of
    x - m and (x - m)^2, where m is the mean of the mixture: the same on every worker.
    """
    density = joint_density(gmm, gmm.weights @ gmm.means)
    total: Tensor | None = None
    for chunk in x.split(CHUNK_DESCRIPTORS):
        y = density.expand(chunk.double())
        log_joint = density.log_joint(y)
        log_likelihood = log_joint.logsumexp(1, keepdim=True)
        posterior = (log_joint - log_likelihood).exp()
        part = _pack(len(chunk), log_likelihood.sum(), posterior, y)
        total = part if total is None else total + part
    return total


def mean_log_likelihood(packed: Tensor) -> float:
    """The mean of log p(x) per descriptor that the total of `statistics` found."""
    return (packed[1] / packed[0]).item()


def assignment_statistics(centroids: Tensor, x: Tensor) -> Tensor:
    """As `statistics`, but each descriptor belongs to its nearest centroid [K, C], and m is their
    mean; the log-likelihood stays 0."""
    centroids = centroids.double()
    centre, none = centroids.mean(0), centroids.new_zeros(())
    total: Tensor | None = None
    for chunk in x.split(CHUNK_DESCRIPTORS):
        centred = chunk.double() - centre
        posterior = one_hot(nearest(centroids, chunk.double()), len(centroids)).double()
        part = _pack(len(chunk), none, posterior, torch.cat([centred, centred.square()], 1))
        total = part if total is None else total + part
    return total


def initial_gmm(centroids: Tensor, packed: Tensor, variance_floor: float) -> Gmm:
    """The mixture of the k-means cells: their shares, means and variances.

    Args:
        centroids: [K, C].
        packed: the total over all workers of `assignment_statistics` for these centroids.
        variance_floor: as in `update`.
    """
    return _maximise(centroids.double().mean(0), packed, len(centroids), variance_floor)


def update(gmm: Gmm, packed: Tensor, variance_floor: float) -> Gmm:
    """The M step: the next mixture from the total over all workers of `statistics` of this one.

    Variances stay above `variance_floor` times the variance of all descriptors, of that channel or
    averaged over channels, whichever is larger: so a channel that never fires is safe. The floor
    is the same in every round, which is why it cannot make the likelihood fall.

    K never changes. A starved component (`STARVED_SHARE`) is given up, and the heaviest one is
    split in two along its widest channel, half a standard deviation to each side, with that
    channel's variance lowered so that the pair keeps its moments: the likelihood hardly moves. The
    choice depends on the packed total alone, so that all workers make the same one.

    Raises:
        ValueError: the statistics are not finite, or the descriptors do not vary.
    """
    return _maximise(gmm.weights @ gmm.means, packed, len(gmm.weights), variance_floor)


def _maximise(centre: Tensor, packed: Tensor, num_components: int, variance_floor: float) -> Gmm:
    if not torch.isfinite(packed).all():
        raise ValueError(
            "fit section: expected finite descriptors for the GMM, got statistics with NaN or "
            "infinity; describe the videos they come from again"
        )
    moments = _unpack(packed, num_components)
    floor = variance_floor * _floor_unit(moments)
    mass = moments.mass.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(1)
    offsets = moments.first / mass
    variances = torch.maximum(moments.second / mass - offsets.square(), floor)
    weights = moments.mass / moments.count
    for starved in (weights < STARVED_SHARE / num_components).nonzero().flatten().tolist():
        _split_heaviest(weights, offsets, variances, into=starved)
    return Gmm(weights / weights.sum(), centre + offsets, torch.maximum(variances, floor))


def _floor_unit(moments: Moments) -> Tensor:
    """What the variance floor [C] is relative to."""
    mean, square = moments.first.sum(0) / moments.count, moments.second.sum(0) / moments.count
    variance = (square - mean.square()).clamp_min(0)
    if not variance.any():
        raise ValueError(
            f"fit section: expected descriptors that vary, got {int(moments.count)} equal ones; "
            "sample more videos"
        )
    return variance.clamp_min(variance.mean())


def _split_heaviest(weights: Tensor, means: Tensor, variances: Tensor, into: int) -> None:
    """Overwrites component `into` with one half of the heaviest component (see `update`)."""
    donor = int(weights.argmax())
    channel = int(variances[donor].argmax())
    step = variances[donor, channel].sqrt() / 2
    weights[donor] /= 2
    variances[donor, channel] -= step.square()
    for values in (weights, means, variances):
        values[into] = values[donor]
    means[donor, channel] -= step
    means[into, channel] += step


def fit_gmm(  # noqa: PLR0913 - a training run has this many independent inputs
    x: Tensor,
    centroids: Tensor,
    *,
    max_iterations: int,
    tolerance: float,
    variance_floor: float,
    all_reduce: Callable[[Tensor], Tensor] = lambda packed: packed,
    on_iteration: Callable[[int, float], None] = lambda iteration, log_likelihood: None,
    state: dict | None = None,
    on_update: Callable[[Callable[[], dict]], None] = lambda state: None,
) -> Gmm:
    """EM from k-means centroids [K, C] over x [n, C], this worker's descriptors; n may be 0.

    Args:
        tolerance: EM ends when the mean log-likelihood rises by less than this.
        variance_floor: see `update`.
        all_reduce: returns the sum of a tensor over all workers. Every worker calls it equally
            often, and errors in the descriptors are found after it, by all workers at once.
        on_iteration: called after each E step with its number and the mean log-likelihood.
        state: what `on_update`'s argument returned; EM goes on behind it, bit for bit.
        on_update: called after each M step with a function that returns the state: tensors and plain
            values, for torch.save and torch.load(weights_only=True).

    Raises:
        ValueError: the widths differ, a descriptor is not finite, or no descriptor differs.
    """
    if x.ndim != 2 or centroids.ndim != 2 or x.shape[1] != centroids.shape[1]:
        raise ValueError(
            f"fit section: expected descriptors of shape [n, {centroids.shape[-1]}] as the "
            f"centroids, got {list(x.shape)}; fit k-means on the same stream"
        )
    centroids = centroids.to(x.device)
    if state is None:
        packed = all_reduce(assignment_statistics(centroids, x))
        gmm = initial_gmm(centroids, packed, variance_floor)
        first, previous = 0, -torch.inf
    else:
        gmm = Gmm(*(state[name].to(x.device) for name in ("weights", "means", "variances")))
        first, previous = state["iteration"], state["log_likelihood"]
    for iteration in range(first, max_iterations):
        packed = all_reduce(statistics(gmm, x))
        log_likelihood = mean_log_likelihood(packed)
        on_iteration(iteration, log_likelihood)
        if log_likelihood - previous < tolerance:
            break
        gmm = update(gmm, packed, variance_floor)
        previous = log_likelihood
        on_update(partial(_state, gmm, iteration + 1, log_likelihood))
    return gmm


def _state(gmm: Gmm, iteration: int, log_likelihood: float) -> dict:
    learnt = {"weights": gmm.weights, "means": gmm.means, "variances": gmm.variances}
    return {"iteration": iteration, "log_likelihood": log_likelihood, **learnt}
