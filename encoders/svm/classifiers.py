"""One-vs-rest linear SVMs (DQ 5.2: C = 100; FK 4.3).

Letters: N vectors, D their length, K classes, F folds, J columns. Each class k minimises on its
own, with y = +-1,

    1/2 (|w|^2 + b^2) + C sum_i loss(y_i (w . x_i + b))

where loss(m) is max(0, 1 - m), for "squared_hinge" squared. That b is in the regulariser is
LIBLINEAR's convention: the vector has one more value, which is always 1.

There are two solvers, both for all classes at once: `encoders.svm.gram` if the Gram matrix of the
vectors fits in memory, and `encoders.svm.primal` for any number.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.svm.columns import Columns, Objectives, best_length, one_sided, unsolved
from encoders.svm.gram import Gram, Solution, block_rows, solve
from encoders.tensor_files import load_tensors, metadata_of, save_tensors

REFINEMENTS = 3
"""Most refinement solves after rounding errors in the Gram matrix (see `fit_weights`)."""


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """Weights [K, D] and bias [K] in float32, and the names of the K classes."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    classes: tuple[str, ...]

    def decision(self, x: NDArray) -> NDArray:
        """Return scores [N, K] of vectors [N, D]; above zero the class is predicted.

        Raises:
            ValueError: vectors of another length than the classifier was trained on.
        """
        if x.ndim != 2 or x.shape[1] != self.weights.shape[1]:
            raise ValueError(
                f"SVM: expected vectors of shape [N, {self.weights.shape[1]}], got "
                f"{list(x.shape)}; use the classifier that was trained on this encoding"
            )
        return x @ self.weights.T + self.bias

    def to_bytes(self, **header: object) -> bytes:
        """Return a safetensors file with the names of the classes and `header` in its header."""
        tensors = {"weights": torch.from_numpy(self.weights), "bias": torch.from_numpy(self.bias)}
        return save_tensors(tensors, "classifier", header | {"classes": self.classes})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Load a classifier that `to_bytes` wrote."""
        tensors = {name: tensor.numpy() for name, tensor in load_tensors(data).items()}
        header = json.loads(metadata_of(data)["classifier"])
        return cls(tensors["weights"], tensors["bias"], tuple(header["classes"]))


@dataclass(frozen=True, eq=False, kw_only=True)
class Fitted(Objectives):
    """The classifiers of J columns, and how near they are to the solution.

    Attributes:
        weights: [J, D] float32, of which the primal objective is. bias: [J] float32.
        decisions: [N, J] float64, of all vectors by exactly these weights.
    """

    weights: Tensor
    bias: Tensor
    decisions: Tensor


def fit_weights(
    gram: Gram,
    blocks: Callable[[], Iterable[Tensor]],
    columns: Columns,
    *,
    tolerance: float,
) -> Fitted:
    """Solve on the Gram matrix, and return the weights w = X^T beta of streamed vectors.

    The objectives are those of the float32 weights, computed by another pass in float64, not those
    of the matrix. If rounding of the matrix costs more than the tolerance, the differences in
    decision values become offsets of the problem, which is solved again from there, at most
    REFINEMENTS times.

    Args:
        blocks: returns the N vectors in order, as tensors [.., D], at each call.
    """
    side = one_sided(columns)
    todo = (side == 0).nonzero().flatten()
    part = columns.take(todo)
    dim = next(iter(blocks())).shape[1]
    fitted = _one_sided(side, len(columns.costs), dim)
    start, offset = None, torch.zeros_like(part.costs)
    for _ in range(1 + REFINEMENTS):
        if not len(todo):
            break
        solution = solve(gram, part, tolerance=tolerance / 2, start=start, offset=offset)
        decisions = _take_over(fitted, todo, part, solution, blocks)
        bad = fitted.gap[todo] > tolerance
        start = solution.beta[:, bad]
        offset = decisions[:, bad] - gram.product(start)
        todo, part = todo[bad], part.take(bad)
    return fitted


def _one_sided(side: Tensor, num_vectors: int, dim: int) -> Fitted:
    """Return the result before any column is solved; one-sided columns have a bias of +-1."""
    return Fitted(
        weights=side.new_zeros(len(side), dim, dtype=torch.float32),
        bias=side.float(),
        decisions=side.expand(num_vectors, -1).clone(),
        **unsolved(side),
    )


def _take_over(
    fitted: Fitted,
    index: Tensor,
    columns: Columns,
    solution: Solution,
    blocks: Callable[[], Iterable[Tensor]],
) -> Tensor:
    """Keep the weights of a solution for the columns whose gap they lower.

    Returns:
        The decision values [N, J] of X^T beta.
    """
    beta, first = solution.beta, 0
    weights = beta.new_zeros(beta.shape[1], fitted.weights.shape[1])
    for part in _doubles(blocks, weights):
        weights.addmm_(beta[first : first + len(part)].T, part)
        first += len(part)
    bias = beta.sum(0)
    half_norm = (torch.linalg.vector_norm(weights, dim=1).square() + bias.square()) / 2
    dual = columns.dual_terms(beta) - half_norm
    bias = bias.float()
    for column in weights:
        # Rounded in place, one by one: a second copy of all weights would double the memory.
        column.copy_(column.float())
    decisions = torch.cat([part @ weights.T for part in _doubles(blocks, weights)]) + bias
    primal, length = best_length(columns.scaled_losses(decisions), half_norm)
    fitted.rounds[index] += solution.rounds
    better, where = fitted.lowered(index, primal, dual)
    for column in better.nonzero().flatten().tolist():
        fitted.weights[index[column]] = weights[column] * length[column]
    fitted.bias[where] = (bias * length).float()[better]
    fitted.decisions[:, where] = (decisions * length)[:, better]
    return decisions


def _doubles(blocks: Callable[[], Iterable[Tensor]], weights: Tensor) -> Iterator[Tensor]:
    """Yield the vectors in chunks of float64 on the device of weights [J, D].

    A chunk is valid until the next one. It has at least a quarter as many vectors as there are
    columns: a product with fewer takes as long, because it reads all weights.
    """
    rows = max(-(-block_rows(weights.shape[1]) // 2), weights.shape[0] // 4)
    # One buffer for all: fresh memory costs more than the copy.
    buffer, filled = weights.new_empty(rows, weights.shape[1]), 0
    for block in blocks():
        for part in block.split(rows):
            fits = min(len(part), rows - filled)
            buffer[filled : filled + fits].copy_(part[:fits])
            filled += fits
            if filled == rows:
                yield buffer
                filled = len(part) - fits
                buffer[:filled].copy_(part[fits:])
    if filled:
        yield buffer[:filled]


def decisions_along(
    gram: Gram, problem: Callable[[float], Columns], values: Sequence[float], *, tolerance: float
) -> Iterator[Tensor]:
    """Yield decision values K' beta [N, J] of all vectors for each c, solved from the one before.

    Args:
        problem: returns the columns of a c; only their costs depend on it.
        values: the values of c, ascending.
    """
    start = None
    for c in values:
        columns = problem(c)
        side = one_sided(columns)
        todo = side == 0
        decisions = side.expand(len(columns.costs), -1).clone()
        if todo.any():
            start = solve(gram, columns.take(todo), tolerance=tolerance, start=start).beta
            decisions[:, todo] = gram.product(start)
        yield decisions
