"""The SVM solver on the weights: for any number of streamed vectors, all columns together.

The same Newton method as `encoders.svm.gram`, in the weights and bias w [J, D + 1]. A pass over the
vectors gives the gradient w - X~^T beta(f), and with it P(w), D(beta) and the gap; each conjugate
gradient iteration of a step is a pass, and the search along the step is one. Workers read shards of
the vectors and add up their sums. The hinge's anchors, a number for each vector and column, are in
a file: memory does not grow with N.

Sums are float64. Products are float32, of vectors from which their mean was subtracted.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from encoders import matmul
from encoders.svm.columns import SCALES, Columns, Objectives, best_length, unsolved
from encoders.svm.gram import FULL_STEP, SMOOTHING

MAX_ROUNDS = 100
"""Most Newton steps."""

MAX_PASSES = 60
"""Most conjugate gradient iterations, each a pass over the vectors, of one Newton step."""

FORCING = 0.01
"""Relative residual at which the conjugate gradients of a Newton step stop (the forcing term)."""

LENGTHS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Lengths of a Newton step, 1 being the full one, at which the slope is evaluated."""


class Shard(NamedTuple):
    """Some vectors [n, D] of any float dtype, and their part of the problems."""

    x: Tensor
    columns: Columns


@dataclass(frozen=True, eq=False)
class Data:
    """One worker's share of the vectors.

    Attributes:
        shards: returns them, always in the same order; called once for each pass.
        num_rows: number of vectors, 0 or more.
        dim: D.
        num_columns: J.
        is_hinge: the loss of the columns is the hinge.
        all_reduce: returns the sum of a tensor over all workers, which call it equally often.
    """

    shards: Callable[[], Iterable[Shard]]
    num_rows: int
    dim: int
    num_columns: int
    is_hinge: bool
    all_reduce: Callable[[Tensor], Tensor] = lambda total: total
    device: torch.device | str = "cpu"


@dataclass(frozen=True, eq=False, kw_only=True)
class PrimalSolution(Objectives):
    """The solution of J columns: weights [J, D] and bias [J] in float32, and how near it is.

    Columns with vectors of one sign have zero weights and a bias of +-1.
    """

    weights: Tensor
    bias: Tensor


@matmul.fastest()
def solve_primal(
    data: Data,
    *,
    tolerance: float,
    start: Tensor | None = None,
    on_round: Callable[[int, float], None] = lambda number, gap: None,
) -> PrimalSolution:
    """Solve all columns to a relative gap (P - D) / P within the tolerance.

    Every worker calls it at the same time, and gets the same result. The `gap` of the solution
    shows a column that is not solved in MAX_ROUNDS steps.

    Args:
        start: weights and bias [J, D + 1] to start from, such as those of a smaller c.
        on_round: called in each round with its number and the largest gap.

    Raises:
        ValueError: a vector of any worker is not finite.
    """
    moments = _moments(data)
    side = moments.side
    solution = PrimalSolution(
        weights=torch.zeros(data.num_columns, data.dim, device=side.device),
        bias=side.float(),
        **unsolved(side),
    )
    live = (side == 0).nonzero().flatten()
    if start is None:
        w = side.new_zeros(len(live), data.dim + 1)
        if data.is_hinge and len(live):
            # Its first inner problem without the upper bound: a squared hinge.
            w = _newton(_Problem(moments, data, live, bounded=False), w, 1e-2, solution, on_round)
            solution.primal[live], solution.dual[live] = torch.inf, -torch.inf
    else:
        w = start.to(side)[live]
    if len(live):
        _newton(_Problem(moments, data, live, bounded=True), w, tolerance, solution, on_round)
    return solution


class _Moments(NamedTuple):
    """Moments from one pass over the vectors: mean m [D], mean of |x - m|^2, sides [J] as of
    `one_sided`."""

    mean: Tensor
    spread: float
    side: Tensor


def _moments(data: Data) -> _Moments:
    moments = torch.zeros(data.dim + 3, dtype=torch.float64, device=data.device)
    counts = torch.zeros(2, data.num_columns, dtype=torch.float64, device=data.device)
    for x, columns in data.shards():
        x = x.to(data.device)
        moments[0] += len(x)
        moments[1] += (~torch.isfinite(x).all(1)).sum()
        moments[2] += x.float().square().sum(dtype=torch.float64)
        moments[3:] += x.sum(0, dtype=torch.float64)
        inside = columns.costs > 0
        counts[0] += ((columns.signs > 0) & inside).sum(0).to(counts)
        counts[1] += ((columns.signs < 0) & inside).sum(0).to(counts)
    moments, counts = data.all_reduce(moments), data.all_reduce(counts)
    count, bad = int(moments[0]), int(moments[1])
    if bad:
        raise ValueError(
            f"SVM: expected finite vectors, got NaN or infinity in {bad} of {count}; encode these "
            "videos again"
        )
    mean = moments[3:] / max(1, count)
    spread = float(moments[2] / max(1, count) - mean.square().sum())
    side = torch.where(counts[0] == 0, -1.0, torch.where(counts[1] == 0, 1.0, 0.0)).to(counts)
    return _Moments(mean, spread if spread > 0 else 1.0, side)


class _Problem:
    """The passes of Newton's method for the columns `live` [J'], which become fewer.

    Decisions are f = (x - m) . w + (m . w + b).
    """

    def __init__(self, moments: _Moments, data: Data, live: Tensor, *, bounded: bool) -> None:
        self.moments, self.data, self.live, self.bounded = moments, data, live, bounded
        self.sigma = SMOOTHING * moments.spread
        self.has_anchors = data.is_hinge and bounded
        self.anchors, self.latest_beta = (
            _file(data.num_rows, data.num_columns if self.has_anchors else 0) for _ in range(2)
        )

    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the sums of one pass at w.

        They are X~^T beta(f) [J', D + 1], losses [len(SCALES), J'], the dual's terms [J'] and
        |beta - anchor|^2 [J'].
        """
        width, num = self.data.dim, len(self.live)
        sums = w.new_zeros(num, width + 1)
        values = w.new_zeros(len(SCALES) + 2, num)
        for rows, x, columns in self._shards():
            decisions = self._decide(x, w)
            anchor = self._anchor(rows)
            beta = columns.dual(decisions, anchor, self.sigma)
            self._add(sums, x, beta)
            values[:-2] += columns.scaled_losses(decisions)
            values[-2] += columns.dual_terms(beta)
            values[-1] += (beta - anchor).square().sum(0)
            if self.has_anchors:
                self.latest_beta[rows, self.live.cpu()] = beta.float().cpu()
        sums, values = self.data.all_reduce(sums), self.data.all_reduce(values)
        return sums, values[:-2], values[-2], values[-1]

    def curvature(self, w: Tensor, step: Tensor) -> Tensor:
        """Return (I + X~^T D X~) step, [J', D + 1], with D the slopes of -beta at w."""
        sums = torch.zeros_like(step)
        for rows, x, columns in self._shards():
            both = self._decide(x, torch.cat([w, step]))
            decisions, change = both.chunk(2, 1)
            free = columns.free(columns.dual(decisions, self._anchor(rows), self.sigma))
            self._add(sums, x, free * change / columns.curvature(self.sigma))
        return step + self.data.all_reduce(sums)

    def slopes(self, w: Tensor, step: Tensor) -> Tensor:
        """Return the slopes of the objective at w + length * step: [len(LENGTHS), J']."""
        sums = w.new_zeros(len(LENGTHS), len(self.live))
        for rows, x, columns in self._shards():
            decisions, change = self._decide(x, torch.cat([w, step])).chunk(2, 1)
            anchor = self._anchor(rows)
            for total, length in zip(sums, LENGTHS, strict=True):
                beta = columns.dual(decisions + length * change, anchor, self.sigma)
                total -= (beta * change).sum(0)
        lengths = w.new_tensor(LENGTHS).unsqueeze(1)
        norm_slopes = (w * step).sum(1) + lengths * step.square().sum(1)
        return norm_slopes + self.data.all_reduce(sums)

    def move_anchors(self, moved: Tensor) -> None:
        """Move the anchors of some columns [J'] to the beta of the last `gradient`."""
        index = self.live[moved].cpu()
        for rows in torch.arange(self.data.num_rows).split(4096):
            self.anchors[rows[:, None], index] = self.latest_beta[rows[:, None], index]

    def _shards(self) -> Iterator[tuple[slice, Tensor, Columns]]:
        """Yield row numbers, centred float32 vectors and live columns of each shard."""
        first = 0
        for x, columns in self.data.shards():
            columns = columns.to(self.data.device).take(self.live)
            if not self.bounded:
                costs = (columns.costs > 0) * (0.5 / self.sigma)
                columns = Columns(columns.signs, costs.double(), "squared_hinge")
            x = x.to(self.data.device).float() - self.moments.mean.float()
            yield slice(first, first + len(x)), x, columns
            first += len(x)

    def _decide(self, x: Tensor, w: Tensor) -> Tensor:
        constant = w[:, :-1] @ self.moments.mean.float().double() + w[:, -1]
        return (x @ w[:, :-1].T.float()).double() + constant

    def _add(self, sums: Tensor, x: Tensor, beta: Tensor) -> None:
        """Add beta^T [x + m, 1] to the sums."""
        total = beta.sum(0)
        sums[:, :-1] += (beta.T.float() @ x).double()
        sums[:, :-1].addr_(total, self.moments.mean.float().double())
        sums[:, -1] += total

    def _anchor(self, rows: slice) -> Tensor:
        if not self.has_anchors:
            return self.moments.side.new_zeros(())
        return self.anchors[rows][:, self.live.cpu()].to(self.moments.side)


def _file(num_rows: int, num_columns: int) -> Tensor:
    """Return zeros [rows, columns] in a file without a name, which ends with the process."""
    if not num_rows * num_columns:
        return torch.zeros(num_rows, num_columns)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(num_rows, num_columns)))


def _newton(
    problem: _Problem,
    w: Tensor,
    tolerance: float,
    solution: PrimalSolution,
    on_round: Callable[[int, float], None],
) -> Tensor:
    """Solve the columns of `problem` from w [J', D + 1], into `solution`.

    Returns:
        The last w of all columns.
    """
    last, indices = w.clone(), torch.arange(len(w), device=w.device)
    moved = torch.zeros(len(w), dtype=torch.bool, device=w.device)
    for number in range(MAX_ROUNDS):
        sums, losses, terms, moved_by = problem.gradient(w)
        primal, length = best_length(losses, w.square().sum(1) / 2)
        dual = terms - sums.square().sum(1) / 2
        _keep_better(solution, problem.live, w, length, primal, dual)
        last[indices] = w
        on_round(number, float(solution.gap[problem.live].max()))
        kept = solution.gap[problem.live] > tolerance
        if problem.has_anchors:
            distance = (w - sums).square().sum(1) / 2
            moved = distance <= (problem.sigma / 8 * moved_by).maximum(0.1 * tolerance * primal)
            problem.move_anchors(moved)
        if not kept.any():
            break
        problem.live, indices, w, sums = (t[kept] for t in (problem.live, indices, w, sums))
        if problem.has_anchors and moved[kept].any():
            sums, *_ = problem.gradient(w)
        solution.rounds[problem.live] += 1
        step = _conjugate_gradients(problem, w, sums - w)
        w = w + _search(problem.slopes(w, step)).unsqueeze(1) * step
    return last


def _keep_better(
    solution: PrimalSolution, live: Tensor, w: Tensor, length: Tensor, primal: Tensor, dual: Tensor
) -> None:
    better, where = solution.lowered(live, primal, dual)
    scaled = (w[better] * length[better].unsqueeze(1)).float()
    solution.weights[where], solution.bias[where] = scaled[:, :-1], scaled[:, -1]


def _conjugate_gradients(problem: _Problem, w: Tensor, target: Tensor) -> Tensor:
    """Return the Newton step [J', D + 1], to a relative residual of FORCING.

    Solved columns leave.
    """
    every = problem.live
    solved, index = torch.zeros_like(target), torch.arange(len(w), device=w.device)
    step, r, p = torch.zeros_like(target), target, target
    size = r.square().sum(1)
    goal = FORCING**2 * size
    for _ in range(MAX_PASSES):
        going = size > goal
        if not going.all():
            solved[index[~going]] = step[~going]
            problem.live, index, size, goal, w, step, r, p = (
                t[going] for t in (problem.live, index, size, goal, w, step, r, p)
            )
        if not len(index):
            break
        bent = problem.curvature(w, p)
        length = (size / (p * bent).sum(1)).unsqueeze(1)
        step = step + length * p
        r = r - length * bent
        before, size = size, r.square().sum(1)
        p = r + (size / before).unsqueeze(1) * p
    solved[index] = step
    problem.live = every
    return solved


def _search(slopes: Tensor) -> Tensor:
    """Return the lengths [J'] at which the rising slopes [len(LENGTHS), J'] pass zero."""
    lengths = slopes.new_tensor(LENGTHS)
    whole = slopes[-1] <= FULL_STEP * slopes[0].abs()
    after = (slopes > 0).to(torch.uint8).argmax(0).clamp_min(1)
    low, high = (slopes.gather(0, (after - back).unsqueeze(0)).squeeze(0) for back in (1, 0))
    part = -low / (high - low)
    crossing = lengths[after - 1] + part * (lengths[after] - lengths[after - 1])
    return torch.where(whole, 1.0, crossing)
