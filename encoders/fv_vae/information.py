"""Fisher information of the FV-VAE: estimated by sums, applied by whitening (DQ Eq. 12).

Letters: n descriptors, C channels, L latents. A gradient G is [C, L + 1] (see
`encoders.fv_vae.encoder`). The statistics are packed float64 tensors that add, so that workers can
sum them with one all-reduce; the constructors `from_statistics` take the total.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from encoders.encodings.base import State
from encoders.settings import FvVaeSettings


class HasGradients(Protocol):
    """An encoding by gradients, such as `encoders.fv_vae.encoder.FvVae`.

    Attributes:
        width: C.
    """

    width: int

    def accumulate(self, descriptors: Tensor) -> State:
        """Sum the gradients [C, L + 1] of descriptors [n, C]."""
        ...

    def gradient_factors(self, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        """Return [n, C] and [n, L + 1], whose outer products are the gradients."""
        ...


SQUARED_ROWS = 2048
"""Descriptors of one product, in their precision; the products add up in float64."""


def diagonal_statistics(fv_vae: HasGradients, descriptors: Tensor) -> Tensor:
    """Return packed [1 + C (L + 1)] of one training set: 1, and the square of its mean gradient.

    Args:
        fv_vae: the encoder of the gradients; its own information has no effect.
        descriptors: [n, C], all sampled frames of one video. No descriptors give zeros.
    """
    return _squared_mean(fv_vae.accumulate(descriptors))


def _squared_mean(state: State) -> Tensor:
    gradient = state.sums / max(state.count, 1)
    num_sets = gradient.new_tensor([float(state.count > 0)])
    return torch.cat([num_sets, gradient.square().flatten()])


def kronecker_statistics(fv_vae: HasGradients, descriptors: Tensor) -> Tensor:
    """Return packed [1 + C^2 + (L + 1)^2]: n, sums of delta delta^T and of [z,1][z,1]^T."""
    delta, code = fv_vae.gradient_factors(descriptors)
    num_descriptors = delta.new_tensor([float(len(descriptors))], dtype=torch.float64)
    squares = [_square(factor).flatten() for factor in (delta, code)]
    return torch.cat([num_descriptors, *squares])


def _square(x: Tensor) -> Tensor:
    """Return x^T x of [n, D], added up in float64.

    Products in float64 would take most of the time of a codebook.
    """
    total = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for few in x.split(SQUARED_ROWS):
        total += few.T @ few
    return total


@dataclass(frozen=True)
class DiagonalInformation:
    """F = mean over training sets of G^2, entry by entry.

    Attributes:
        mean_square: [C, L + 1] float64.
        damping: relative to the mean of `mean_square`.

    Raises:
        ValueError: `mean_square` is zero everywhere or not finite.
    """

    kind: ClassVar[str] = "diagonal"
    mean_square: Tensor
    damping: float

    def __post_init__(self) -> None:
        _check(self.kind, "mean_square", self.mean_square.mean(), self.damping)

    @classmethod
    def from_statistics(cls, statistics: Tensor, descriptor_dim: int, damping: float) -> Self:
        """Build it from the total of `diagonal_statistics` over the training sets."""
        mean = _mean(statistics, "diagonal_statistics")
        return cls(mean.reshape(descriptor_dim, -1), damping)

    def whiten(self, gradient: Tensor) -> Tensor:
        """Return G / sqrt(F + damping mean(F)) of gradient [C, L + 1]."""
        return gradient * self._inverse_root

    def tensors(self) -> dict[str, Tensor]:
        """Return the estimated tensors by name."""
        return {"mean_square": self.mean_square}

    @cached_property
    def _inverse_root(self) -> Tensor:
        return (self.mean_square + self.damping * self.mean_square.mean()).rsqrt()


@dataclass(frozen=True)
class KroneckerInformation:
    """F = A (x) B with A = E[delta delta^T], B = E[[z,1][z,1]^T] over descriptors.

    It is the information of one descriptor if delta and z are independent. Unlike the diagonal form
    it has correlations of channels and of latents. It is not in the paper.

    Attributes:
        a: [C, C] float64.
        b: [L + 1, L + 1] float64.
        damping: relative to the mean eigenvalue of each factor.

    Raises:
        ValueError: a factor is zero or not finite.
    """

    kind: ClassVar[str] = "kronecker"
    a: Tensor
    b: Tensor
    damping: float

    def __post_init__(self) -> None:
        _check(self.kind, "a", self.a.trace(), self.damping)
        _check(self.kind, "b", self.b.trace(), self.damping)

    @classmethod
    def from_statistics(cls, statistics: Tensor, descriptor_dim: int, damping: float) -> Self:
        """Build it from the total of `kronecker_statistics` over training descriptors."""
        mean = _mean(statistics, "kronecker_statistics")
        a, b = mean.split([descriptor_dim**2, len(mean) - descriptor_dim**2])
        num_codes = isqrt(len(b))
        return cls(
            a.reshape(descriptor_dim, descriptor_dim), b.reshape(num_codes, num_codes), damping
        )

    def whiten(self, gradient: Tensor) -> Tensor:
        """Return A^(-1/2) G B^(-1/2) of gradient [C, L + 1], both factors damped."""
        left, right = self._inverse_roots
        return left @ gradient @ right

    def tensors(self) -> dict[str, Tensor]:
        """Return the estimated tensors by name."""
        return {"a": self.a, "b": self.b}

    @cached_property
    def _inverse_roots(self) -> tuple[Tensor, Tensor]:
        return _inverse_root(self.a, self.damping), _inverse_root(self.b, self.damping)


Information = DiagonalInformation | KroneckerInformation
INFORMATION = {form.kind: form for form in (DiagonalInformation, KroneckerInformation)}


class Sums:
    """Statistics of both forms, summed over videos whose descriptors come in parts.

    Attributes:
        totals: {form: packed sum}; those of other videos may be added.
    """

    def __init__(self, fv_vae: HasGradients) -> None:
        self.fv_vae, self.totals = fv_vae, dict[str, Tensor]()
        self._state: State | None = None

    def add(self, descriptors: Tensor) -> None:
        """Add some descriptors [n, C] of a video."""
        state = self.fv_vae.accumulate(descriptors)
        self._state = state if self._state is None else self._state + state
        self._count("kronecker", kronecker_statistics(self.fv_vae, descriptors))

    def end_video(self) -> None:
        """Count the parts since the last one as a whole video."""
        if self._state is not None:
            self._count("diagonal", _squared_mean(self._state))
        self._state = None

    def _count(self, kind: str, part: Tensor) -> None:
        self.totals[kind] = self.totals[kind] + part if kind in self.totals else part


def estimate(
    fv_vae: HasGradients,
    videos: Iterable[Tensor],
    all_reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> dict[str, Tensor]:
    """Estimate the tensors of both forms, by name, in one pass over the sample, for `choose`.

    Args:
        videos: the sampled descriptors [n, C] of each of this worker's videos, at least one.
        all_reduce: sums a tensor over workers and gives each the sum.
    """
    sums = Sums(fv_vae)
    for descriptors in videos:
        sums.add(descriptors)
        sums.end_video()
    totals = {kind: all_reduce(sums.totals[kind]) for kind in INFORMATION}
    return estimated(totals, fv_vae.width)


def estimated(totals: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Return the tensors of both forms, by name, of the totals of `Sums`."""
    tensors = {}
    for kind, total in totals.items():
        information = INFORMATION[kind].from_statistics(total, width, damping=0.0)
        tensors |= {f"{kind}.{name}": value for name, value in information.tensors().items()}
    return tensors


def choose(tensors: dict[str, Tensor], settings: FvVaeSettings) -> Information | None:
    """Build the information that the settings name from `estimate`'s tensors; None for "none"."""
    kind = settings.information
    if kind == "none":
        return None
    parameters = {
        name.removeprefix(f"{kind}."): value
        for name, value in tensors.items()
        if name.startswith(f"{kind}.")
    }
    return INFORMATION[kind](**parameters, damping=settings.damping)


def _mean(statistics: Tensor, name: str) -> Tensor:
    if not statistics[0] > 0:
        raise ValueError(
            f"Fisher information: expected {name} of at least one descriptor, got a count of "
            f"{statistics[0].item():g}; is the training sample empty?"
        )
    return statistics[1:] / statistics[0]


def _check(kind: str, name: str, scale: Tensor, damping: float) -> None:
    if not (torch.isfinite(scale) and scale > 0):
        raise ValueError(
            f"{kind} Fisher information: expected {name} to be finite and not all zero, got a mean "
            f"or trace of {scale.item():g}; is the FV-VAE trained, and on these descriptors?"
        )
    if not damping >= 0:
        raise ValueError(f"{kind} Fisher information: expected damping >= 0, got {damping}")


def _inverse_root(matrix: Tensor, damping: float) -> Tensor:
    """Return (M + damping mean_eigenvalue(M) I)^(-1/2) of a positive semi-definite M."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = len(values) * torch.finfo(values.dtype).eps * values[-1]
    damped = values.clamp_min(floor) + damping * values.mean()
    return (vectors * damped.rsqrt()) @ vectors.T
