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
        """Of scores of any shape."""
        return scipy.special.expit(self.slope * scores + self.intercept)


def fit_sigmoid(scores: NDArray, targets: NDArray) -> Sigmoid:
    """Return the sigmoid of the largest likelihood of scores [n, K] and targets [n, K] of 0 and 1, all classes together: a
    class of few videos has too few positives for one of its own.

    The targets are those of Platt (1999, section 2.2), (N+ + 1) / (N+ + 2) and 1 / (N- + 2), so that scores that separate
    the classes without an error have a finite slope too. The slope is not negative.
    """
    f, positive = scores.astype(np.float64).ravel(), targets.ravel() > 0
    num_positive = int(positive.sum())
    high = (num_positive + 1) / (num_positive + 2)
    wanted = np.where(positive, high, 1 / (len(f) - num_positive + 2))
    scale = f.std() or 1.0

    def loss(parameters: NDArray) -> tuple[float, NDArray]:
        z = parameters[0] * f / scale + parameters[1]
        odd = scipy.special.expit(z) - wanted
        value = (np.logaddexp(0, z) - wanted * z).sum()
        return float(value), np.array([odd @ f / scale, odd.sum()])

    prior = np.log(wanted.mean() / (1 - wanted.mean()))
    found = scipy.optimize.minimize(
        loss, [1.0, prior], jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)]
    )
    return Sigmoid(float(found.x[0] / scale), float(found.x[1]))
