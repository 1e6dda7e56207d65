"""Normalisations of finished vectors, by name (METHODS 3.5; DQ 5.2, VU 2.3.3).

Vectors whose inner products are summed as kernels have their length taken in float64: `encoders.svm.kernel_sum.unit`.
"""

from torch import Tensor
from torch.nn import functional


def l2(vector: Tensor) -> Tensor:
    """`vector` [..., D] over its Euclidean length; a zero vector stays zero."""
    return functional.normalize(vector, dim=-1)


def signed_sqrt(vector: Tensor) -> Tensor:
    """sign(x) sqrt|x| of each value."""
    return vector.sign() * vector.abs().sqrt()


NORMALISATIONS = {
    "signed_sqrt_l2": lambda vector: l2(signed_sqrt(vector)),
    "signed_sqrt": signed_sqrt,
    "l2": l2,
    "none": lambda vector: vector,
}
"""What `Encoder.finalise` may do last. `signed_sqrt_l2` is DQ 5.2's, and the default; `signed_sqrt` keeps
how long a vector is, which for the mean of differences is how much moves."""
