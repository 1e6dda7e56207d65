"""What is chosen for a fold on its training videos alone: by scores of inner folds that were held out.

Letters: N videos of a Gram matrix, n of them training, K classes, M parts (an encoder on a stream), U values
whose mean is a quality.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.scores.calibration import fit_sigmoid
from encoders.svm.classifiers import decisions_along
from encoders.svm.columns import ClassWeight, Loss, class_weights, one_vs_rest
from encoders.svm.gram import Gram

TOLERATED = 0.05
"""Difference in log loss, in nats, below which parts count as about equal however many videos there are: a weaker part
may know something else."""


def held_out_scores(
    gram: Gram,
    targets: Tensor,
    inner: NDArray,
    values: Sequence[float],
    *,
    loss: Loss,
    class_weight: ClassWeight,
    tolerance: float,
) -> Iterator[NDArray[np.float64]]:
    """For each C of `values`, ascending, the scores [n, K] of the training videos, each by the classifiers of the
    other inner folds.

    Args:
        targets: [N, K] of 0 and 1; those of videos outside change nothing.
        inner: [N], the inner fold of each video, 0 and up; -1 where it does not train.
    """
    parts, inside = np.unique(inner[inner >= 0]), inner >= 0
    training = torch.from_numpy(inside[:, None] & (inner[:, None] != parts))
    weights = class_weights(class_weight, targets, training)
    device = gram.centred.device
    for decisions in decisions_along(
        gram,
        lambda c: one_vs_rest(targets, training, c=c, loss=loss, weights=weights).to(device),
        values,
        tolerance=tolerance,
    ):
        by_part = decisions.cpu().numpy().reshape(len(inner), len(parts), -1)
        yield by_part[inside, inner[inside]]


def log_losses(scores: NDArray, targets: NDArray) -> NDArray[np.float64]:
    """[n] nats of the targets [n, K] of each video, added up over classes, by the probabilities of the scores' own
    sigmoid (`fit_sigmoid`).

    A video that is barely right and one that is barely wrong have nearly the same loss. To the accuracy they differ as
    much as can be, which makes it uncertain by several videos where there are a hundred.
    """
    if not len(scores):
        return np.zeros(0)
    sigmoid = fit_sigmoid(scores, targets)
    z = sigmoid.slope * scores + sigmoid.intercept
    return (np.logaddexp(0, z) - (targets > 0) * z).sum(1)


def weights_by_loss(
    held_out: Sequence[NDArray], *, errors: float = 1.0, tolerated: float = TOLERATED
) -> tuple[float, ...]:
    """[M] weights that sum to 1, of each part's held-out `log_losses`: exp(-(d / width)^2 / 2), where d is how much more the
    mean is than that of the best part, and width^2 = (`errors` standard errors of d)^2 + `tolerated`^2.

    So with few videos, where it may be chance which part is best, more of them count than with many.
    """
    losses = np.stack(held_out).astype(np.float64)
    if not losses.size:
        return (1 / len(losses),) * len(losses)
    more = losses - losses[losses.mean(1).argmin()]
    width = np.hypot(errors * more.std(1) / np.sqrt(more.shape[1]), tolerated)
    weights = np.exp(-((more.mean(1) / width) ** 2) / 2)
    return tuple((weights / weights.sum()).tolist())
