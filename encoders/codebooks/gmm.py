"""The Gaussian mixture with diagonal covariances, and its EM (METHODS 3.2).

    p(x) = sum_k w_k N(x; mu_k, diag v_k)

Letters: n descriptors, C channels, K components.

All that EM needs of the descriptors is a sum over them: `statistics` packs it into one tensor,
workers add theirs, and `update` makes the next mixture from the total. Everything is float64: the
variances are differences of sums, and the result must not depend on the distribution of the
descriptors over workers.

`fit_gmm` reads all descriptors in each round. `fit_gmm_stepwise` is for samples too large for that:
each step reads a random batch, and moves the statistics towards those of the batch (stepwise EM:
Cappe and Moulines 2009; Liang and Klein 2009).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from encoders.codebooks.chunks import Scratch, group_rows
from encoders.codebooks.kmeans import Assignment, add_up_cells
from encoders.codebooks.pca import Pca, input_width

CHUNK_DESCRIPTORS = 1024
"""Rows per chunk of the E step on a CPU: their float64 products fit its cache."""

NUM_PARTS = 8
"""Products that each chunk is split into: MKL is a tenth faster with one for each thread."""

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
    ever made, and the sums that EM and the Fisher vector need are posterior^T @ y.
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor

    def expand(self, x: Tensor, scratch: Scratch) -> Tensor:
        """Return y [n, 2C] of x [n, C]."""
        y = scratch("y", len(x), 2 * x.shape[1])
        centred, squared = y.chunk(2, 1)
        torch.sub(x, self.centre, out=centred)
        torch.mul(centred, centred, out=squared)
        return y

    def log_joint(self, y: Tensor, scratch: Scratch) -> Tensor:
        """Return the log densities [n, K] of y [n, 2C]."""
        out = scratch("log joint", len(y), len(self.bias))
        return torch.addmm(self.bias, y, self.weight, out=out)

    def posterior(self, log_joint: Tensor, scratch: Scratch) -> Tensor:
        """Return the posteriors [n, K] of log densities [n, K]; rows have sum 1."""
        return torch.softmax(log_joint, 1, out=scratch("posterior", *log_joint.shape))


def joint_density(gmm: Gmm, centre: Tensor) -> JointDensity:
    """Return the float64 density about a centre [C] near the descriptors' mean, with offset 0."""
    offsets, precisions = gmm.means - centre, gmm.variances.reciprocal()
    weight = torch.cat([offsets * precisions, precisions / -2], 1).T
    log_norm = (gmm.variances * (2 * torch.pi)).log() + offsets.square() * precisions
    return JointDensity(centre, weight, gmm.weights.log() - log_norm.sum(1) / 2)


class Moments(NamedTuple):
    """The parts of a packed statistics tensor, with moments about a centre that its users know."""

    num_descriptors: Tensor
    log_likelihood: Tensor
    mass: Tensor
    first: Tensor
    second: Tensor


def _unpack(packed: Tensor, num_components: int) -> Moments:
    mass, moments = packed[2 : 2 + num_components], packed[2 + num_components :]
    first, second = moments.view(num_components, -1).chunk(2, 1)
    return Moments(packed[0], packed[1], mass, first, second)


def statistics(gmm: Gmm, x: Tensor, pca: Pca | None = None, centre: Tensor | None = None) -> Tensor:
    """Return the E step over x [n, C], n may be 0: packed float64 [2 + K + 2KC], which add up.

    It holds n, the sum of log p(x), the sums of posteriors, and for each component the
    posterior-weighted sums of x - m and (x - m)^2. x is converted chunk by chunk, so that it may be
    of any dtype and lie in a file.

    Args:
        pca: applied to x first.
        centre: m [C], the same on every worker; None is the mean of the mixture.
    """
    density = joint_density(gmm, _mean(gmm) if centre is None else centre)
    num_components, width = gmm.means.shape
    head = gmm.means.new_zeros(2 + num_components)
    parts = gmm.means.new_zeros(NUM_PARTS, num_components, 2 * width)
    scratch = Scratch(torch.float64, x.device)
    for chunk in _chunks(x, pca):
        y = density.expand(chunk, scratch)
        log_joint = density.log_joint(y, scratch)
        posterior = density.posterior(log_joint, scratch)
        # The largest posterior is exp(largest log joint) / p(x): that saves another exponential.
        log_likelihood = log_joint.amax(1) - posterior.amax(1).log_()
        head[0] += len(chunk)
        head[1] += log_likelihood.sum()
        head[2:] += posterior.sum(0)
        size = len(chunk) // NUM_PARTS
        whole, rest = slice(size * NUM_PARTS), slice(size * NUM_PARTS, None)
        left, right = (f[whole].unflatten(0, (NUM_PARTS, size)) for f in (posterior, y))
        parts.baddbmm_(left.mT, right)
        parts[0].addmm_(posterior[rest].T, y[rest])
    return torch.cat([head, parts.sum(0).flatten()])


def mean_log_likelihood(packed: Tensor) -> float:
    """Return the mean log p(x) of a descriptor from the total of `statistics`."""
    return (packed[1] / packed[0]).item()


def assignment_statistics(centroids: Tensor, x: Tensor, pca: Pca | None = None) -> Tensor:
    """Return `statistics` of hard assignments: each descriptor to its nearest centroid [K, C].

    m is the mean of the centroids; the log-likelihood stays 0.
    """
    centroids = centroids.double()
    assignment = Assignment.to(centroids)
    head = centroids.new_zeros(2 + len(centroids))
    moments = centroids.new_zeros(len(centroids), 2 * centroids.shape[1])
    for chunk in _chunks(x, pca):
        centred = chunk.double() - assignment.centre
        cell = assignment.nearest(centred)
        head[0] += len(chunk)
        head[2:] += cell.bincount(minlength=len(centroids))
        moments += add_up_cells(torch.cat([centred, centred.square()], 1), cell, len(centroids))
    return torch.cat([head, moments.flatten()])


def _chunks(x: Tensor, pca: Pca | None) -> Iterator[Tensor]:
    for chunk in x.split(group_rows(CHUNK_DESCRIPTORS, x.device)):
        if len(chunk):
            yield chunk if pca is None else pca.transform(chunk.float())


def _mean(gmm: Gmm) -> Tensor:
    return gmm.weights @ gmm.means


def initial_gmm(centroids: Tensor, packed: Tensor, variance_floor: float) -> Gmm:
    """Return the mixture of the k-means cells: their shares, means and variances.

    Args:
        centroids: [K, C].
        packed: the total over all workers of `assignment_statistics` for these centroids.
        variance_floor: as in `update`.
    """
    floor = _floor(packed, len(centroids), variance_floor)
    return _maximise(centroids.double().mean(0), packed, len(centroids), floor)


def update(gmm: Gmm, packed: Tensor, variance_floor: float) -> Gmm:
    """Return the next mixture (M step) from the total over all workers of `statistics` of `gmm`.

    Variances stay above `variance_floor` times the variance of all descriptors, of that channel or
    averaged over channels, whichever is larger: this protects a channel that never fires. The floor
    is the same in every round, which is why it cannot make the likelihood fall.

    K never changes. A starved component (`STARVED_SHARE`) is dropped, and the heaviest one is
    split in two along its widest channel, half a standard deviation to each side, with that
    channel's variance lowered so that the pair keeps its moments: the likelihood hardly moves. The
    choice depends on the packed total alone, so that it is the same on all workers.

    Raises:
        ValueError: the statistics are not finite, or the descriptors do not vary.
    """
    floor = _floor(packed, len(gmm.weights), variance_floor)
    return _maximise(_mean(gmm), packed, len(gmm.weights), floor)


def _maximise(centre: Tensor, packed: Tensor, num_components: int, floor: Tensor) -> Gmm:
    """Return the M step from statistics about a centre [C], with a floor [C] of the variances."""
    if not torch.isfinite(packed).all():
        raise ValueError(
            "fit section: expected finite descriptors for the GMM, got statistics with NaN or "
            "infinity; describe the videos they come from again"
        )
    moments = _unpack(packed, num_components)
    mass = moments.mass.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(1)
    offsets = moments.first / mass
    variances = torch.maximum(moments.second / mass - offsets.square(), floor)
    weights = moments.mass / moments.num_descriptors
    for starved in (weights < STARVED_SHARE / num_components).nonzero().flatten().tolist():
        _split_heaviest(weights, offsets, variances, into=starved)
    return Gmm(weights / weights.sum(), centre + offsets, torch.maximum(variances, floor))


def _floor(packed: Tensor, num_components: int, variance_floor: float) -> Tensor:
    """Return the variance floor [C] of descriptors with these statistics.

    It is NaN where they are not finite.
    """
    moments = _unpack(packed, num_components)
    mean, square = (
        moments.first.sum(0) / moments.num_descriptors,
        moments.second.sum(0) / moments.num_descriptors,
    )
    variance = (square - mean.square()).clamp_min(0)
    if not variance.any():
        raise ValueError(
            "fit section: expected descriptors that vary, got "
            f"{int(moments.num_descriptors)} equal ones; sample more videos"
        )
    return variance_floor * variance.clamp_min(variance.mean())


def _split_heaviest(weights: Tensor, means: Tensor, variances: Tensor, into: int) -> None:
    """Overwrite component `into` with one half of the heaviest component (see `update`)."""
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
    pca: Pca | None = None,
    all_reduce: Callable[[Tensor], Tensor] = lambda packed: packed,
    on_iteration: Callable[[int, float], None] = lambda iteration, log_likelihood: None,
    state: dict | None = None,
    on_update: Callable[[Callable[[], dict]], None] = lambda state: None,
) -> Gmm:
    """Fit a mixture by EM from k-means centroids [K, C] to x [n, C]; n may be 0.

    Args:
        x: this worker's descriptors, of any float dtype; may lie in a file, and is read chunk by
            chunk in each round.
        tolerance: EM ends when the mean log-likelihood rises by less than this.
        variance_floor: see `update`.
        pca: applied to x first; the centroids are those of its outputs.
        all_reduce: returns the sum of a tensor over all workers. Every worker calls it equally
            often, and all workers find errors in the descriptors after it, at the same time.
        on_iteration: called after each E step with its number and the mean log-likelihood.
        state: the state that `on_update`'s argument returned; EM goes on from it, bit for bit.
        on_update: called after each M step with a function that returns the state: tensors and
            plain values, for torch.save and torch.load(weights_only=True).

    Raises:
        ValueError: the widths differ, a descriptor is not finite, or no descriptor differs.
    """
    centroids = _check_widths(x, centroids, pca)
    if state is None:
        packed = all_reduce(assignment_statistics(centroids, x, pca))
        gmm = initial_gmm(centroids, packed, variance_floor)
        first, previous = 0, -torch.inf
    else:
        gmm = _gmm_of(state, x.device)
        first, previous = state["iteration"], state["log_likelihood"]
    for iteration in range(first, max_iterations):
        packed = all_reduce(statistics(gmm, x, pca))
        log_likelihood = mean_log_likelihood(packed)
        on_iteration(iteration, log_likelihood)
        if log_likelihood - previous < tolerance:
            break
        gmm = update(gmm, packed, variance_floor)
        previous = log_likelihood
        progress = {"iteration": iteration + 1, "log_likelihood": log_likelihood}
        on_update(partial(_state, gmm, progress))
    return gmm


def fit_gmm_stepwise(  # noqa: PLR0913 - as fit_gmm
    x: Tensor,
    centroids: Tensor,
    *,
    batch: Callable[[int], Tensor],
    steps_per_pass: int,
    step_exponent: float,
    max_passes: int,
    tolerance: float,
    variance_floor: float,
    pca: Pca | None = None,
    all_reduce: Callable[[Tensor], Tensor] = lambda packed: packed,
    on_pass: Callable[[int, float], None] = lambda number, log_likelihood: None,
    state: dict | None = None,
    on_update: Callable[[Callable[[], dict]], None] = lambda state: None,
) -> Gmm:
    """Fit a mixture by stepwise EM: like `fit_gmm`, but after the start only `batch` reads x.

    Step t = 0, 1, .. has the weight eta = (t + 2)^-step_exponent: the statistics per descriptor
    become (1 - eta) those of the mixture + eta those of the batch. The statistics of the mixture
    are its exact moments, so that they include a split or a floor.

    Args:
        batch: step -> this worker's part [m, C] of the descriptors of that step; m may be 0.
        steps_per_pass: steps that read as many descriptors as all workers have.
        step_exponent: above 0.5, at most 1; smaller values forget old batches faster.
        max_passes: most passes.
        tolerance: EM ends when the mean log-likelihood of a pass, each batch under the mixture
            before its step, rises by less than this over the pass before.
        variance_floor: see `update`; relative to the variance of x.
        on_pass: called after each pass with its number and that likelihood.
        state, on_update: as in `fit_gmm`; after each step.

    Raises:
        ValueError: as `fit_gmm`.
    """
    centroids = _check_widths(x, centroids, pca)
    num_components = len(centroids)
    if state is None:
        packed = all_reduce(assignment_statistics(centroids, x, pca))
        floor = _floor(packed, num_components, variance_floor)
        gmm = initial_gmm(centroids, packed, variance_floor)
        first, sum_of_pass, previous = 0, 0.0, -torch.inf
    else:
        gmm, floor = _gmm_of(state, x.device), state["floor"].to(x.device)
        first, sum_of_pass, previous = (state[key] for key in ("step", "sum_of_pass", "previous"))
    for step in range(first, max_passes * steps_per_pass):
        centre, eta = _mean(gmm), (step + 2) ** -step_exponent
        packed = all_reduce(statistics(gmm, batch(step), pca, centre))
        sum_of_pass += mean_log_likelihood(packed)
        blended = torch.lerp(_expected_statistics(gmm, centre), packed / packed[0], eta)
        gmm = _maximise(centre, blended, num_components, floor)
        if (step + 1) % steps_per_pass == 0:
            log_likelihood, sum_of_pass = sum_of_pass / steps_per_pass, 0.0
            on_pass(step // steps_per_pass, log_likelihood)
            if log_likelihood - previous < tolerance:
                break
            previous = log_likelihood
        progress = {"step": step + 1, "sum_of_pass": sum_of_pass, "previous": previous}
        on_update(partial(_state, gmm, progress | {"floor": floor}))
    return gmm


def _expected_statistics(gmm: Gmm, centre: Tensor) -> Tensor:
    """Return the expected `statistics` of one descriptor that is drawn from the mixture."""
    weights, offsets = gmm.weights.unsqueeze(1), gmm.means - centre
    moments = torch.cat([offsets, gmm.variances + offsets.square()], 1) * weights
    return torch.cat([weights.new_tensor([1.0, 0.0]), gmm.weights, moments.flatten()])


def _check_widths(x: Tensor, centroids: Tensor, pca: Pca | None) -> Tensor:
    """Return the centroids on the device of x; raise ValueError if their widths do not fit."""
    width = input_width(pca, centroids.shape[-1], "gmm")
    if x.ndim != 2 or centroids.ndim != 2 or x.shape[1] != width:
        raise ValueError(
            f"fit section: expected descriptors of shape [n, {width}] as the "
            f"centroids, got {list(x.shape)}; fit k-means on the same stream"
        )
    return centroids.to(x.device)


def _state(gmm: Gmm, progress: dict) -> dict:
    parameters = {"weights": gmm.weights, "means": gmm.means, "variances": gmm.variances}
    return progress | parameters


def _gmm_of(state: dict, device: torch.device) -> Gmm:
    return Gmm(*(state[name].to(device) for name in ("weights", "means", "variances")))
