"""The problems that the SVM solvers share: one-vs-rest, over the same vectors, as columns.

Letters: N vectors, D their length, K classes, F folds, J columns (a column is a class in a fold).

With y = +-1, costs c_i >= 0, x~ = [x, 1] (so the bias is in the regulariser, LIBLINEAR's
convention) and f = w . x~, a column's primal and dual are

    P(w)    = 1/2 |w|^2 + sum_i c_i loss(y_i f_i)                  loss(m) = max(0, 1 - m), or
    squared D(beta) = sum_i y_i beta_i - 1/2 |X~^T beta|^2 [- sum_i beta_i^2 / (4 c_i) if squared]

with 0 <= y_i beta_i, and y_i beta_i <= c_i for the hinge. P(w) >= D(beta) for all w and beta, with
equality at the solution, where w = X~^T beta. Both solvers look for the root of beta(f) - beta,
where beta(f) is the best dual for decision values f. The squared hinge has

    y beta(f) = max(0, (1 - y f) / q)                  q = 1 / (2 c)

The hinge has no such function, because its derivative jumps. It is solved by the proximal point
method (Rockafellar 1976: the augmented Lagrangian of the primal), which has one for each anchor b,
moved to beta(f) again and again; then q = sigma is a constant of choice:

    y beta(f) = min(c, max(0, y b + (1 - y f) / q))
"""

from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

Loss = Literal["squared_hinge", "hinge"]
ClassWeight = Literal["none", "balanced"]

SCALES = (0.0, *(factor * 10.0**-power for power in range(8, 1, -1) for factor in (1, 3)))
"""Relative lengthenings of w to try for a lower primal objective (see `Columns.scaled_losses`)."""


@dataclass(frozen=True, eq=False)
class Columns:
    """J problems over N vectors: signs [N, J] of +-1 and costs [N, J], both float64.

    Cost 0 leaves a vector out of a problem; so folds share one matrix.
    """

    signs: Tensor
    costs: Tensor
    loss: Loss

    @property
    def is_hinge(self) -> bool:
        return self.loss == "hinge"

    def take(self, columns: Tensor) -> Self:
        """Return some of the columns, by index or mask [J]."""
        return type(self)(self.signs[:, columns], self.costs[:, columns], self.loss)

    def rows(self, rows: slice) -> Self:
        """Return all columns over some of the vectors."""
        return type(self)(self.signs[rows], self.costs[rows], self.loss)

    def to(self, device: torch.device | str) -> Self:
        return type(self)(self.signs.to(device), self.costs.to(device), self.loss)

    def dual(self, decisions: Tensor, anchor: Tensor, sigma: float) -> Tensor:
        """Return beta(f) of decision values [N, J]; only the hinge uses anchor [N, J] and sigma."""
        if self.is_hinge:
            alpha = torch.addcmul(anchor, decisions, decisions.new_ones(()), value=-1 / sigma)
            alpha.mul_(self.signs).add_(1 / sigma).clamp_min_(0)
            torch.minimum(alpha, self.costs, out=alpha)
        else:
            alpha = (decisions * self.signs).neg_().add_(1).clamp_min_(0).mul_(self.costs).mul_(2)
        return alpha.mul_(self.signs)

    def free(self, beta: Tensor) -> Tensor:
        """Return the mask [N, J] of the beta(f) that change with f, by -1 / `curvature`."""
        free = beta != 0
        return free & (beta.abs() < self.costs) if self.is_hinge else free

    def curvature(self, sigma: float) -> Tensor:
        """Return q, [N, J] or one number expanded to it."""
        if self.is_hinge:
            return self.costs.new_full((1, 1), sigma).expand_as(self.costs)
        return torch.where(self.costs > 0, 0.5 / self.costs, 1.0)

    def losses(self, decisions: Tensor) -> Tensor:
        """Return sum_i c_i loss(y_i f_i), [J]."""
        return self._loss(self.signs * decisions)

    def dual_terms(self, beta: Tensor) -> Tensor:
        """Return the part [J] of the dual that is no norm: those of parts of the vectors add up."""
        linear = (self.signs * beta).sum(0)
        if self.is_hinge:
            return linear
        inside = self.costs > 0
        return linear - torch.where(inside, beta.square() / (4 * self.costs), 0.0).sum(0)

    def scaled_losses(self, decisions: Tensor, offset: Tensor | float = 0.0) -> Tensor:
        """Return `losses` of each (1 + scale) (f - offset) + offset, [len(SCALES), J].

        For the hinge with a large c, margins that are below 1 only by rounding cost more than all
        the rest. A slightly longer w avoids that cost: the primal of the best length is a far
        better bound.
        """
        margins = self.signs * decisions
        change = margins - self.signs * offset
        return torch.stack([self._loss(torch.add(margins, change, alpha=s)) for s in SCALES])

    def _loss(self, margins: Tensor) -> Tensor:
        hinge = (1 - margins).clamp_min_(0)
        return ((hinge if self.is_hinge else hinge.square_()).mul_(self.costs)).sum(0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Objectives:
    """Primal and dual objectives of J columns, which say how near they are to their solutions.

    Attributes:
        primal, dual: [J] float64, NaN for one-sided columns.
        rounds: [J] float64, Newton steps.
    """

    primal: Tensor
    dual: Tensor
    rounds: Tensor

    @property
    def gap(self) -> Tensor:
        """(P - D) / P, [J]; NaN for one-sided columns."""
        return (self.primal - self.dual) / self.primal

    def lowered(self, columns: Tensor, primal: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new objectives [J'] of some columns where their gap is smaller than before.

        Returns:
            Which these are, as a mask [J'] and as columns.
        """
        better = ~(primal - dual >= self.primal[columns] - self.dual[columns])
        where = columns[better]
        self.primal[where], self.dual[where] = primal[better], dual[better]
        return better, where


def unsolved(side: Tensor) -> dict[str, Tensor]:
    """Return the objectives of columns before they are solved, by their `one_sided` [J]."""
    unknown = torch.full_like(side, torch.inf).masked_fill(side != 0, torch.nan)
    return {"primal": unknown, "dual": -unknown, "rounds": torch.zeros_like(side)}


def best_length(losses: Tensor, half_norm: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least primal over the lengths of `scaled_losses` [S, J], and its factor, [J].

    Args:
        half_norm: |w|^2 / 2 of each column at length 1, [J].
    """
    factors = 1 + torch.tensor(SCALES, dtype=torch.float64, device=losses.device)
    primal, index = (factors.square().unsqueeze(1) * half_norm + losses).min(0)
    return primal, factors[index]


def class_weights(rule: ClassWeight, targets: Tensor, training: Tensor) -> Tensor | None:
    """Return the weights for `one_vs_rest`; None for "none".

    Args:
        targets: [N, K] of 0 and 1.
        training: [N, F] of booleans.
    """
    return balanced(targets, training) if rule == "balanced" else None


def balanced(targets: Tensor, training: Tensor) -> Tensor:
    """Return weights [2, F, K] of the negatives and the positives of each class.

    They are n / (2 n-) and n / (2 n+) for n training vectors of a fold, n+ of them with the class
    (scikit-learn's rule).

    Args:
        targets: [N, K] of 0 and 1.
        training: [N, F] of booleans.
    """
    training = training.double()
    count = training.T @ (targets >= 0).double()
    positives = training.T @ (targets > 0).double()
    return count / 2 / torch.stack([count - positives, positives]).clamp_min(1)


def one_vs_rest(
    targets: Tensor,
    training: Tensor,
    *,
    c: float | Tensor,
    loss: Loss,
    weights: Tensor | None = None,
) -> Columns:
    """Return the columns of all classes in all folds, fold by fold: J = F K.

    Args:
        targets: [N, K] of 0 and 1; -1 leaves a vector out of the problem of a class.
        training: [N, F] of booleans.
        c: one for all, or one for each fold, [F].
        weights: factors of c, [2, F, K] as from `balanced`.

    Raises:
        ValueError: no such loss, or a c that is not positive.
    """
    c = torch.as_tensor(c, dtype=torch.float64, device=targets.device).reshape(-1, 1)
    if loss not in get_args(Loss) or not ((c > 0) & torch.isfinite(c)).all():
        raise ValueError(
            f"SVM: expected a loss out of {get_args(Loss)} and a positive c, got {loss!r} and "
            f"{c.flatten().tolist()}"
        )
    positive = (targets > 0).unsqueeze(1)
    costs = c * training.unsqueeze(2)
    if weights is not None:
        costs = costs * torch.where(positive, weights[1], weights[0])
    costs = costs.expand(-1, -1, targets.shape[1]) * (targets >= 0).unsqueeze(1)
    signs = (2.0 * positive.double() - 1).expand_as(costs)
    return Columns(signs.flatten(1).contiguous(), costs.flatten(1).contiguous(), loss)


def one_sided(columns: Columns) -> Tensor:
    """Return +1 for columns with positives only, -1 for those without a positive, else 0: [J]."""
    inside = columns.costs > 0
    positive = ((columns.signs > 0) & inside).any(0)
    negative = ((columns.signs < 0) & inside).any(0)
    return (positive & ~negative).double() - (~positive).double()
