"""Normalisations of finished vectors, by name (METHODS 3.5; DQ 5.2, VU 2.3.3).

Kernels normalise their vectors in float64 instead: `encoders.svm.kernel_sum.unit`.
"""

from torch import Tensor
from torch.nn import functional


def l2(vector: Tensor) -> Tensor:
    """Return `vector` [..., D] over its Euclidean length; a zero vector stays zero."""
    return functional.normalize(vector, dim=-1)


def signed_sqrt(vector: Tensor) -> Tensor:
    """Return sign(x) sqrt|x| of each value."""
    return vector.sign() * vector.abs().sqrt()


NORMALISATIONS = {
    "signed_sqrt_l2": lambda vector: l2(signed_sqrt(vector)),
    "signed_sqrt": signed_sqrt,
    "l2": l2,
    "none": lambda vector: vector,
}
"""Last step of `Encoder.finalise`, by name. `signed_sqrt_l2` is DQ 5.2's, and the default;
`signed_sqrt` keeps the length of a vector, which for the mean of differences is the amount of
motion."""
