"""One-vs-rest linear SVMs (DQ 5.2: C = 100; FK 4.3).

Letters: N vectors, D their length, K classes, F folds, J columns. Each class k minimises on its own, with
y = +-1,

    1/2 (|w|^2 + b^2) + C sum_i loss(y_i (w . x_i + b))

where loss(m) is max(0, 1 - m), for "squared_hinge" squared. That b is in the regulariser is
LIBLINEAR's convention: the vector has one more value, which is always 1.

There are two solvers, both for all classes at once: `encoders.svm_gram` for as many vectors as their
Gram matrix allows, and `encoders.svm_primal` for any number.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.svm_columns import Columns, Loss, balanced, best_length, one_sided, one_vs_rest
from encoders.svm_gram import Gram, Solution, block_rows, solve

log = logging.getLogger(__name__)

ClassWeight = Literal["none", "balanced"]

TOLERANCE = 1e-6
"""Relative gap at which a class is solved."""

REFINEMENTS = 3
"""Times that what rounding of the Gram matrix costs is mended (see `fit_weights`)."""


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

    def to_bytes(self, **header: object) -> bytes:
        """One safetensors file, with the names of the classes in its header, and whatever else is given."""
        # One entry: safetensors writes several in random order.
        named = json.dumps(header | {"classes": self.classes}, sort_keys=True)
        return safetensors.numpy.save(
            {"weights": self.weights, "bias": self.bias}, {"classifier": named}
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes`."""
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["classifier"])
        tensors = safetensors.numpy.load(data)
        return cls(tensors["weights"], tensors["bias"], tuple(header["classes"]))


def fit_one_vs_rest(
    x: NDArray,
    targets: NDArray,
    *,
    classes: Sequence[str] | None = None,
    c: float = 100.0,
    loss: Loss = "squared_hinge",
    class_weight: ClassWeight = "none",
    tolerance: float = TOLERANCE,
) -> LinearClassifier:
    """The K classifiers of vectors [N, D] and targets [N, K] of 0 and 1 (any number of 1 a row).

    It holds the Gram matrix [N, N] in memory, beside x. A class that every vector has, or none, has
    nothing to separate: its score is always +1, or -1.

    Args:
        classes: K names; "0", "1", ... where not given.
        class_weight: "balanced" gives the two signs of a class the same total cost, see
            `encoders.svm_columns.balanced`.
        tolerance: relative gap between primal and dual objective at which a class is solved; a
            class that is not solved is logged as a warning.

    Raises:
        ValueError: shapes, targets or settings are wrong, or a vector is not finite.
    """
    names = tuple(classes) if classes is not None else tuple(map(str, range(targets.shape[-1])))
    _check(x, targets, names)
    vectors, known = torch.from_numpy(x), torch.from_numpy(targets)
    training = torch.ones(len(x), 1, dtype=torch.bool)
    if class_weight not in get_args(ClassWeight):
        raise ValueError(
            f"SVM: expected a class weight out of {get_args(ClassWeight)}, got {class_weight!r}"
        )
    weights = balanced(known, training) if class_weight == "balanced" else None
    columns = one_vs_rest(known, training, c=c, loss=loss, weights=weights)
    found = fit_weights(
        Gram.of(vectors),
        lambda: vectors.split(block_rows(x.shape[1])),
        columns,
        tolerance=tolerance,
    )
    warn_unsolved(found, names, tolerance)
    return LinearClassifier(found.weights.numpy(), found.bias.numpy(), names)


@dataclass(frozen=True, eq=False)
class Fitted:
    """J columns: what their classifiers are, and how near to the solution.

    Attributes:
        weights: [J, D] float32. bias: [J] float32.
        decisions: [N, J] float64, of all vectors by exactly these weights.
        primal: [J] float64, of exactly these weights. dual: [J] float64. NaN for one-sided columns.
        rounds: [J] float64, Newton steps.
    """

    weights: Tensor
    bias: Tensor
    decisions: Tensor
    primal: Tensor
    dual: Tensor
    rounds: Tensor

    @property
    def gap(self) -> Tensor:
        """(P - D) / P, [J]; NaN for one-sided columns."""
        return (self.primal - self.dual) / self.primal


def fit_weights(
    gram: Gram,
    blocks: Callable[[], Iterable[Tensor]],
    columns: Columns,
    *,
    tolerance: float,
    start: Tensor | None = None,
) -> Fitted:
    """Solves on the Gram matrix, and returns the weights w = X^T beta of vectors that are streamed.

    The objectives it reports are not the matrix's but those of the float32 weights themselves, found
    by another pass in float64. Where rounding of the matrix costs more than the tolerance, the
    differences in decision values become offsets of the problem, and that is solved again from
    there, at most REFINEMENTS times.

    Args:
        blocks: gives the N vectors in order, as tensors [.., D], each time it is called.
        start: beta [N, J] to begin with.
    """
    side = one_sided(columns)
    todo = (side == 0).nonzero().flatten()
    part = columns.take(todo)
    start = None if start is None else start[:, todo]
    dim = next(iter(blocks())).shape[1]
    found = _one_sided(side, len(columns.costs), dim)
    offset = torch.zeros_like(part.costs)
    for _ in range(1 + REFINEMENTS):
        if not len(todo):
            break
        solution = solve(gram, part, tolerance=tolerance / 2, start=start, offset=offset)
        decisions = _take_over(found, todo, part, solution, blocks)
        bad = found.gap[todo] > tolerance
        start = solution.beta[:, bad]
        offset = decisions[:, bad] - gram.product(start)
        todo, part = todo[bad], part.take(bad)
    return found


def _one_sided(side: Tensor, num_vectors: int, dim: int) -> Fitted:
    """The result before any column is solved: those that need no solution have a bias of +-1."""
    unknown = torch.full_like(side, torch.inf).masked_fill(side != 0, torch.nan)
    return Fitted(
        weights=side.new_zeros(len(side), dim, dtype=torch.float32),
        bias=side.float(),
        decisions=side.expand(num_vectors, -1).clone(),
        primal=unknown,
        dual=-unknown,
        rounds=torch.zeros_like(side),
    )


def _take_over(
    found: Fitted,
    place: Tensor,
    columns: Columns,
    solution: Solution,
    blocks: Callable[[], Iterable[Tensor]],
) -> Tensor:
    """Puts the weights of a solution where they are better; returns the decision values of X^T beta."""
    beta, first = solution.beta, 0
    weights = beta.new_zeros(beta.shape[1], found.weights.shape[1])
    for part in _doubles(blocks, weights):
        weights.addmm_(beta[first : first + len(part)].T, part)
        first += len(part)
    bias = beta.sum(0)
    half_norm = (torch.linalg.vector_norm(weights, dim=1).square() + bias.square()) / 2
    dual = columns.dual_terms(beta) - half_norm
    bias = bias.float()
    for column in weights:
        # Rounded where they are, one by one: all once more would be as much memory as there is of everything else.
        column.copy_(column.float())
    decisions = torch.cat([part @ weights.T for part in _doubles(blocks, weights)]) + bias
    primal, length = best_length(columns.scaled_losses(decisions), half_norm)
    found.rounds[place] += solution.rounds
    better = primal - dual < found.primal[place] - found.dual[place]
    where = place[better]
    for column in better.nonzero().flatten().tolist():
        found.weights[place[column]] = weights[column] * length[column]
    found.bias[where] = (bias * length).float()[better]
    found.decisions[:, where] = (decisions * length)[:, better]
    found.primal[where], found.dual[where] = primal[better], dual[better]
    return decisions


def _doubles(blocks: Callable[[], Iterable[Tensor]], weights: Tensor) -> Iterator[Tensor]:
    """The vectors in float64, some at a time, on the device of weights [J, D]; each is valid until the next.

    A product with few vectors takes as long as reading all weights: a quarter as many as there are columns are
    gathered where a block has fewer.
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
    """Decision values K' beta [N, J] of all vectors for each c, each solved from the one before.

    Args:
        problem: the columns for a c; they differ in nothing but their costs.
        values: of c, ascending.
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


def warn_unsolved(found: Fitted, names: Sequence[str], tolerance: float) -> None:
    """Logs the classes whose gap is above the tolerance; says nothing if there are none."""
    bad = (found.gap > tolerance).nonzero().flatten().tolist()
    if bad:
        listed = ", ".join(f"{names[k]} ({found.gap[k]:.1e})" for k in bad)
        log.warning(
            "SVM: %d of %d classes are not solved to a relative gap of %g: %s; lower classify.c or "
            "raise classify.tolerance",
            len(bad),
            len(names),
            tolerance,
            listed,
        )


def primal_objective(
    x: NDArray, targets: NDArray, classifier: LinearClassifier, c: float, loss: Loss
) -> NDArray:
    """What each class's classifier minimises, [K] (see the top of this module), in float64."""
    weights, bias = classifier.weights.astype(np.float64), classifier.bias.astype(np.float64)
    margins = (2.0 * targets - 1) * (x.astype(np.float64) @ weights.T + bias)
    losses = np.maximum(0, 1 - margins) ** (2 if loss == "squared_hinge" else 1)
    return 0.5 * (np.square(weights).sum(1) + bias**2) + c * losses.sum(0)


def _check(x: NDArray, targets: NDArray, classes: tuple[str, ...]) -> None:
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
