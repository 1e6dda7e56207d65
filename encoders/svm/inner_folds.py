"""Choices for a fold on its training videos only: by scores of inner folds that were held out.

Letters: N videos of a Gram matrix, n of them training, K classes, M parts (an encoder on a stream),
U values whose mean is a quality.
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
"""Difference in log loss, in nats, below which parts count as about equal, however many videos
there are: a weaker part may know something that the others do not."""


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
    """Yield held-out scores [n, K] of the training videos for each C of `values`, ascending.

    A video is scored by the classifiers of the other inner folds.

    Args:
        targets: [N, K] of 0 and 1; those of other videos have no effect.
        inner: [N], the inner fold of each video from 0; -1 if it is no training video.
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
    """Return the log loss [n] of each video in nats, summed over classes, with targets [n, K].

    The probabilities are those of a sigmoid fitted to the scores (`fit_sigmoid`). A video that is
    barely right and one that is barely wrong have nearly the same loss. For the accuracy they are
    opposite, which makes it uncertain by several videos in a hundred.
    """
    if not len(scores):
        return np.zeros(0)
    sigmoid = fit_sigmoid(scores, targets)
    z = sigmoid.slope * scores + sigmoid.intercept
    return ((np.logaddexp(0, z) - (targets > 0) * z) * (targets >= 0)).sum(1)


def weights_by_loss(
    held_out: Sequence[NDArray], *, errors: float = 1.0, tolerated: float = TOLERATED
) -> tuple[float, ...]:
    """Return weights [M] of parts, which sum to 1, from their held-out `log_losses`.

    A weight is exp(-(d / width)^2 / 2), where d is the difference of the mean loss to that of the
    best part, and width^2 = (`errors` standard errors of d)^2 + `tolerated`^2. So with few videos,
    where chance may decide which part is best, more parts have weight than with many videos.
    """
    losses = np.stack(held_out).astype(np.float64)
    if not losses.size:
        return (1 / len(losses),) * len(losses)
    more = losses - losses[losses.mean(1).argmin()]
    width = np.hypot(errors * more.std(1) / np.sqrt(more.shape[1]), tolerated)
    weights = np.exp(-((more.mean(1) / width) ** 2) / 2)
    return tuple((weights / weights.sum()).tolist())
