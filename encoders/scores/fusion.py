"""Late fusion: the weighted mean of the scores of several streams or encoders (DQ 5.3).

Letters: M streams, N videos, K classes, F folds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TWO_STREAM = (1.0, 1.5)
"""Weights of a stream of pictures and of a stream of motion, after L1 normalisation (VU 5.3.3: RGB
and flow)."""

EPSILON = 1e-12
"""Least divisor of scores, so that scores near zero are not blown up."""


def fuse(
    score_arrays: Sequence[NDArray],
    weights: Sequence[float] | None = None,
    *,
    l1_normalise: bool = False,
) -> NDArray:
    """Return sum_m w_m s_m / sum_m w_m of score arrays [N, K], in float64.

    Args:
        weights: one for each array, none negative; equal if not given.
        l1_normalise: divide each video's scores by the sum of their absolute values first, so that
            no stream wins by its scale (VU 5.3.3, with RGB : flow = 1 : 1.5). Zero stays zero.

    Raises:
        ValueError: no arrays, arrays of different shapes, or wrong weights.
    """
    shapes = {np.shape(scores) for scores in score_arrays}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"fusion: expected score arrays of one shape [N, K], got {sorted(shapes)}; fuse scores "
            "of the same videos and classes"
        )
    parts = np.stack(score_arrays).astype(np.float64)
    weighting = np.ones(len(parts)) if weights is None else np.asarray(weights, np.float64)
    valid = weighting.shape == (len(parts),) and (weighting >= 0).all()
    if not (valid and 0 < weighting.sum() < np.inf):
        raise ValueError(
            f"fusion: expected {len(parts)} weights >= 0 that are not all zero, got {weights}"
        )
    if l1_normalise:
        parts /= np.maximum(np.abs(parts).sum(-1, keepdims=True), EPSILON)
    return np.tensordot(weighting / weighting.sum(), parts, axes=1)
