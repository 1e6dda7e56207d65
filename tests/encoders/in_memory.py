"""Solvers and metrics on arrays in memory, as tests want them: whole, without folds or
weightings."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.scores import metrics
from encoders.svm.classifiers import LinearClassifier, fit_weights
from encoders.svm.columns import class_weights, one_vs_rest
from encoders.svm.gram import Gram


def fit_one_vs_rest(
    x: NDArray,
    targets: NDArray,
    *,
    classes: Sequence[str] = (),
    c: float = 100.0,
    loss: str = "squared_hinge",
    class_weight: str = "none",
    tolerance: float = 1e-6,
) -> LinearClassifier:
    """The classifiers of vectors [N, D] and targets [N, K] of 0 and 1."""
    vectors, known = torch.from_numpy(x), torch.from_numpy(targets)
    training = torch.ones(len(x), 1, dtype=torch.bool)
    weights = class_weights(class_weight, known, training)
    columns = one_vs_rest(known, training, c=c, loss=loss, weights=weights)
    found = fit_weights(Gram.of(vectors), lambda: [vectors], columns, tolerance=tolerance)
    return LinearClassifier(found.weights.numpy(), found.bias.numpy(), tuple(classes))


def voc_average_precision(scores: NDArray, targets: NDArray) -> NDArray:
    """[K] of scores and targets [N, K]."""
    return metrics.Ranking(scores, targets).voc_average_precision(np.ones((len(scores), 1)))[:, 0]


def mean_average_precision(scores: NDArray, targets: NDArray) -> float:
    """mAP of scores and targets [N, K]."""
    return float(metrics.mean_over_classes(metrics.average_precision(scores, targets)))
