"""Scores as probabilities: Platt's sigmoid, fitted on scores of videos that were held out.

Letters: n videos, K classes.
"""

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sigmoid:
    """p = 1 / (1 + exp(-(slope f + intercept))) of a score f, the same for all classes."""

    slope: float
    intercept: float

    def probabilities(self, scores: NDArray) -> NDArray[np.float64]:
        """Return the probabilities of scores of any shape."""
        return scipy.special.expit(self.slope * scores + self.intercept)


def fit_sigmoid(scores: NDArray, targets: NDArray) -> Sigmoid:
    """Fit the sigmoid of the largest likelihood to scores [n, K] and targets [n, K] of 0 and 1.

    There is one for all classes: a class of few videos has too few positives for its own. The
    likelihood is that of Platt's targets (1999, section 2.2), (N+ + 1) / (N+ + 2) and 1 / (N- + 2),
    so that the slope is finite even if scores separate the classes. The slope is not negative.
    Targets of -1 do not count.
    """
    counts = targets.ravel() >= 0
    f, positive = scores.astype(np.float64).ravel()[counts], targets.ravel()[counts] > 0
    num_positive = int(positive.sum())
    high = (num_positive + 1) / (num_positive + 2)
    soft_targets = np.where(positive, high, 1 / (len(f) - num_positive + 2))
    # Scores that lie far from 0 for their spread would leave the optimiser nowhere.
    centre, scale = f.mean(), f.std() or 1.0
    standard = (f - centre) / scale

    def loss(parameters: NDArray) -> tuple[float, NDArray]:
        z = parameters[0] * standard + parameters[1]
        error = scipy.special.expit(z) - soft_targets
        value = (np.logaddexp(0, z) - soft_targets * z).sum()
        return float(value), np.array([error @ standard, error.sum()])

    prior = np.log(soft_targets.mean() / (1 - soft_targets.mean()))
    fit = scipy.optimize.minimize(
        loss, [1.0, prior], jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)]
    )
    slope = fit.x[0] / scale
    return Sigmoid(float(slope), float(fit.x[1] - slope * centre))
