"""One-vs-rest linear SVMs (DQ 5.2: C = 100; FK 4.3).

Letters: N vectors, D their length, K classes. Each class k minimises on its own, with y = +-1,

    1/2 (|w|^2 + b^2) + C sum_i loss(y_i (w . x_i + b))

where loss(m) is max(0, 1 - m), for "squared_hinge" squared. That b is in the regulariser is
LIBLINEAR's convention: the vector has one more value, which is always 1.
"""

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

log = logging.getLogger(__name__)

Loss = Literal["squared_hinge", "hinge"]

CHUNK_COLUMNS = 8192
"""Columns of x that are in float64 at a time."""

TOLERANCE = 1e-6
MAX_ITERATIONS = 100_000


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """Weights [K, D] and bias [K] in float32, and the names of the K classes."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    classes: tuple[str, ...]

    def decision(self, x: NDArray) -> NDArray:
        """Scores [N, K] of vectors [N, D]; above zero where the class is thought to be there.

        Raises:
            ValueError: vectors of another length than the classifier was trained on.
        """
        if x.ndim != 2 or x.shape[1] != self.weights.shape[1]:
            raise ValueError(
                f"SVM: expected vectors of shape [N, {self.weights.shape[1]}], got "
                f"{list(x.shape)}; use the classifier that was trained on this encoding"
            )
        return x @ self.weights.T + self.bias

    def to_bytes(self) -> bytes:
        """One safetensors file, with the names of the classes in its header."""
        return safetensors.numpy.save(
            {"weights": self.weights, "bias": self.bias}, {"classes": json.dumps(self.classes)}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes`."""
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])["__metadata__"]
        tensors = safetensors.numpy.load(data)
        return cls(tensors["weights"], tensors["bias"], tuple(json.loads(header["classes"])))


def fit_one_vs_rest(
    x: NDArray,
    targets: NDArray,
    *,
    classes: Sequence[str] | None = None,
    c: float = 100.0,
    loss: Loss = "squared_hinge",
) -> LinearClassifier:
    """The K classifiers of vectors [N, D] and targets [N, K] of 0 and 1 (one or several 1 a row).

    With fewer vectors than dimensions it solves in the space that the vectors span, which has at
    most N dimensions and holds the solution: the same up to rounding, and many times cheaper. A
    class that every vector has, or none, has nothing to separate: its score is always +1, or -1.

    Args:
        classes: K names; "0", "1", ... where not given.

    Raises:
        ValueError: shapes or targets are wrong, or a vector is not finite.
    """
    names = tuple(classes) if classes is not None else tuple(map(str, range(targets.shape[-1])))
    _check(x, targets, names, c, loss)
    num_vectors, dim = x.shape
    bias = np.where(targets.all(0), 1.0, -1.0)
    separable = [k for k in range(len(names)) if 0 < targets[:, k].sum() < num_vectors]
    points, back = _span(x) if num_vectors < dim else (x.astype(np.float64), None)
    solved = np.zeros((len(names), points.shape[1]))
    for k in separable:
        solved[k], bias[k] = _solve(points, targets[:, k], c, loss, names[k])
    if back is None:
        weights = solved.astype(np.float32)
    else:
        dual, weights = solved @ back, np.empty((len(names), dim), np.float32)
        for start in range(0, dim, CHUNK_COLUMNS):
            columns = slice(start, start + CHUNK_COLUMNS)
            weights[:, columns] = dual @ x[:, columns].astype(np.float64)
    return LinearClassifier(weights, bias.astype(np.float32), names)


def primal_objective(
    x: NDArray, targets: NDArray, classifier: LinearClassifier, c: float, loss: Loss
) -> NDArray:
    """What each class's classifier minimises, [K] (see the top of this module), in float64."""
    weights, bias = classifier.weights.astype(np.float64), classifier.bias.astype(np.float64)
    margins = (2.0 * targets - 1) * (x.astype(np.float64) @ weights.T + bias)
    losses = np.maximum(0, 1 - margins) ** (2 if loss == "squared_hinge" else 1)
    return 0.5 * (np.square(weights).sum(1) + bias**2) + c * losses.sum(0)


def _span(x: NDArray) -> tuple[NDArray, NDArray]:
    """Coordinates [N, R] of x in an orthonormal basis of its rows, and B [R, N]: B x is that basis.

    By the Gram matrix x x^T = U S U^T, which needs one pass over the long axis: coordinates are
    U S^(1/2), the basis is S^(-1/2) U^T x.
    """
    gram = np.zeros((len(x), len(x)))
    for start in range(0, x.shape[1], CHUNK_COLUMNS):
        columns = x[:, start : start + CHUNK_COLUMNS].astype(np.float64)
        gram += columns @ columns.T
    values, vectors = np.linalg.eigh(gram)
    # Directions below rounding hold nothing; one always stays, for vectors that are all zero.
    kept = values > len(x) * np.finfo(np.float64).eps * values[-1]
    kept[-1] = True
    roots, vectors = np.sqrt(np.maximum(values[kept], 0)), vectors[:, kept]
    inverse = np.divide(1, roots, out=np.zeros_like(roots), where=roots > 0)
    return np.ascontiguousarray(vectors * roots), (vectors * inverse).T


def _solve(
    points: NDArray, target: NDArray, c: float, loss: Loss, name: str
) -> tuple[NDArray, float]:
    # LIBLINEAR's Newton method is quick with many vectors and has no hinge; its coordinate descent
    # in the dual is quick with few.
    svc = LinearSVC(
        C=c,
        loss=loss,
        dual=loss == "hinge" or len(points) < 2 * points.shape[1],
        tol=TOLERANCE,
        max_iter=MAX_ITERATIONS,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said below, with the class's name
        svc.fit(points, target > 0)
    if svc.n_iter_ >= svc.max_iter:
        log.warning(
            "SVM of class %s: not converged after %d iterations; lower classify.c (%g)",
            name,
            svc.n_iter_,
            c,
        )
    return svc.coef_[0], float(svc.intercept_[0])


def _check(x: NDArray, targets: NDArray, classes: tuple[str, ...], c: float, loss: str) -> None:
    if x.ndim != 2 or targets.shape != (len(x), len(classes)) or 0 in (*x.shape, len(classes)):
        raise ValueError(
            f"SVM: expected vectors [N, D] and targets [N, {len(classes)}] with N, D, K > 0, "
            f"got {list(x.shape)} and {list(targets.shape)}; has each training video a vector and "
            "labels?"
        )
    if not np.isin(targets, (0, 1)).all():
        raise ValueError(
            f"SVM: expected targets of 0 and 1, got {np.unique(targets)[:5].tolist()}; pass one "
            "column per class"
        )
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    if len(bad):
        raise ValueError(
            f"SVM: expected finite vectors, got NaN or infinity in {len(bad)} of {len(x)}, the "
            f"first in row {bad[0]}; encode these videos again"
        )
    if loss not in get_args(Loss) or not 0 < c < np.inf:
        raise ValueError(
            f"SVM: expected a loss out of {get_args(Loss)} and a positive c, got {loss!r} and {c}"
        )
