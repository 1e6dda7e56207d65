"""The SVM solver on the weights: for any number of vectors, which are streamed, all columns together.

The same Newton method as `encoders.svm.gram`, in the weights and bias w [J, D + 1]. A pass over the vectors gives
the gradient w - X~^T beta(f), and with it P(w), D(beta) and the gap; each conjugate gradient
iteration of a step is a pass, and the search along the step is one. Workers read shards of the
vectors and add up their sums. The hinge's anchors, a number for each vector and column, are in a
file: memory does not grow with N.

Sums are float64. Products are float32, of vectors from which their mean was subtracted.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from encoders.svm.columns import SCALES, Columns, best_length
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
        shards: gives them, always in the same order; called once for each pass.
        num_rows: how many they are, 0 or more.
        dim: D. num_columns: J. is_hinge: the loss of the columns.
        all_reduce: the sum of a tensor over all workers, which all call it equally often.
    """

    shards: Callable[[], Iterable[Shard]]
    num_rows: int
    dim: int
    num_columns: int
    is_hinge: bool
    all_reduce: Callable[[Tensor], Tensor] = lambda total: total
    device: torch.device | str = "cpu"


@dataclass(frozen=True, eq=False)
class PrimalSolution:
    """weights [J, D] and bias [J] in float32; primal and dual objective and rounds [J] in float64.

    Columns with vectors of one sign have zero weights, a bias of +-1, and NaN objectives.
    """

    weights: Tensor
    bias: Tensor
    primal: Tensor
    dual: Tensor
    rounds: Tensor

    @property
    def gap(self) -> Tensor:
        """(P - D) / P, [J]; NaN for one-sided columns."""
        return (self.primal - self.dual) / self.primal


def solve_primal(
    data: Data,
    *,
    tolerance: float,
    start: Tensor | None = None,
    on_round: Callable[[int, float], None] = lambda number, gap: None,
) -> PrimalSolution:
    """Return all columns, each until its relative gap (P - D) / P is within the tolerance.

    Every worker calls it at the same time, and gets the same result. A column that is not solved
    in MAX_ROUNDS steps shows in the `gap` of the solution.

    Args:
        start: weights and bias [J, D + 1] to begin with, such as those of a smaller c.
        on_round: called in each round with its number and the largest gap.

    Raises:
        ValueError: a vector of any worker is not finite.
    """
    scene = _look(data)
    side = scene.side
    unknown = torch.full_like(side, torch.inf).masked_fill(side != 0, torch.nan)
    found = PrimalSolution(
        weights=torch.zeros(data.num_columns, data.dim, device=side.device),
        bias=side.float(),
        primal=unknown,
        dual=-unknown,
        rounds=torch.zeros_like(side),
    )
    live = (side == 0).nonzero().flatten()
    if start is None:
        w = side.new_zeros(len(live), data.dim + 1)
        if data.is_hinge and len(live):
            # Its first inner problem without the upper bound: a squared hinge.
            w = _newton(_Problem(scene, data, live, bounded=False), w, 1e-2, found, on_round)
            found.primal[live], found.dual[live] = torch.inf, -torch.inf
    else:
        w = start.to(side)[live]
    if len(live):
        _newton(_Problem(scene, data, live, bounded=True), w, tolerance, found, on_round)
    return found


class _Scene(NamedTuple):
    """What one pass over the vectors tells: their mean m [D], the mean of |x - m|^2, the sides [J]."""

    mean: Tensor
    spread: float
    side: Tensor


def _look(data: Data) -> _Scene:
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
    return _Scene(mean, spread if spread > 0 else 1.0, side)


class _Problem:
    """The passes of Newton's method for the columns `live` [J'], which become fewer.

    Decisions are f = (x - m) . w + (m . w + b).
    """

    def __init__(self, scene: _Scene, data: Data, live: Tensor, *, bounded: bool) -> None:
        self.scene, self.data, self.live, self.bounded = scene, data, live, bounded
        self.sigma = SMOOTHING * scene.spread
        self.has_anchors = data.is_hinge and bounded
        self.anchors, self.asked = (
            _file(data.num_rows, data.num_columns if self.has_anchors else 0) for _ in range(2)
        )

    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X~^T beta(f) [J', D + 1]; losses [len(SCALES), J']; the dual's terms [J']; |beta - anchor|^2 [J']."""
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
                self.asked[rows, self.live.cpu()] = beta.float().cpu()
        sums, values = self.data.all_reduce(sums), self.data.all_reduce(values)
        return sums, values[:-2], values[-2], values[-1]

    def curvature(self, w: Tensor, step: Tensor) -> Tensor:
        """(I + X~^T D X~) step, [J', D + 1], with D the slopes of -beta at w."""
        sums = torch.zeros_like(step)
        for rows, x, columns in self._shards():
            both = self._decide(x, torch.cat([w, step]))
            decisions, change = both.chunk(2, 1)
            free = columns.free(columns.dual(decisions, self._anchor(rows), self.sigma))
            self._add(sums, x, free * change / columns.curvature(self.sigma))
        return step + self.data.all_reduce(sums)

    def slopes(self, w: Tensor, step: Tensor) -> Tensor:
        """Return the slope of what is minimised at w + length * step, for each of LENGTHS, [len(LENGTHS), J']."""
        sums = w.new_zeros(len(LENGTHS), len(self.live))
        for rows, x, columns in self._shards():
            decisions, change = self._decide(x, torch.cat([w, step])).chunk(2, 1)
            anchor = self._anchor(rows)
            for total, length in zip(sums, LENGTHS, strict=True):
                beta = columns.dual(decisions + length * change, anchor, self.sigma)
                total -= (beta * change).sum(0)
        lengths = w.new_tensor(LENGTHS).unsqueeze(1)
        own = (w * step).sum(1) + lengths * step.square().sum(1)
        return own + self.data.all_reduce(sums)

    def move_anchors(self, moved: Tensor) -> None:
        """Make what the last `gradient` found the anchors of some columns [J']."""
        place = self.live[moved].cpu()
        for rows in torch.arange(self.data.num_rows).split(4096):
            self.anchors[rows[:, None], place] = self.asked[rows[:, None], place]

    def _shards(self) -> Iterator[tuple[slice, Tensor, Columns]]:
        """Places, centred float32 vectors and live columns of each shard."""
        first = 0
        for x, columns in self.data.shards():
            columns = columns.to(self.data.device).take(self.live)
            if not self.bounded:
                costs = (columns.costs > 0) * (0.5 / self.sigma)
                columns = Columns(columns.signs, costs.double(), "squared_hinge")
            x = x.to(self.data.device).float() - self.scene.mean.float()
            yield slice(first, first + len(x)), x, columns
            first += len(x)

    def _decide(self, x: Tensor, w: Tensor) -> Tensor:
        constant = w[:, :-1] @ self.scene.mean.float().double() + w[:, -1]
        return (x @ w[:, :-1].T.float()).double() + constant

    def _add(self, sums: Tensor, x: Tensor, beta: Tensor) -> None:
        """sums += beta^T [x + m, 1]."""
        total = beta.sum(0)
        sums[:, :-1] += (beta.T.float() @ x).double()
        sums[:, :-1].addr_(total, self.scene.mean.float().double())
        sums[:, -1] += total

    def _anchor(self, rows: slice) -> Tensor:
        if not self.has_anchors:
            return self.scene.side.new_zeros(())
        return self.anchors[rows][:, self.live.cpu()].to(self.scene.side)


def _file(num_rows: int, num_columns: int) -> Tensor:
    """Zeros [rows, columns] in a file without a name, which goes with the process."""
    if not num_rows * num_columns:
        return torch.zeros(num_rows, num_columns)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(num_rows, num_columns)))


def _newton(
    problem: _Problem,
    w: Tensor,
    tolerance: float,
    found: PrimalSolution,
    on_round: Callable[[int, float], None],
) -> Tensor:
    """Solve the columns of `problem` from w [J', D + 1]; puts them into `found`, and returns the last w of all."""
    last, places = w.clone(), torch.arange(len(w), device=w.device)
    for number in range(MAX_ROUNDS):
        sums, losses, terms, moved_by = problem.gradient(w)
        primal, length = best_length(losses, w.square().sum(1) / 2)
        dual = terms - sums.square().sum(1) / 2
        _keep_better(found, problem.live, w, length, primal, dual)
        last[places] = w
        on_round(number, float(found.gap[problem.live].max()))
        kept = found.gap[problem.live] > tolerance
        if problem.has_anchors:
            distance = (w - sums).square().sum(1) / 2
            moved = distance <= (problem.sigma / 8 * moved_by).maximum(0.1 * tolerance * primal)
            problem.move_anchors(moved)
        if not kept.any():
            break
        problem.live, places, w, sums = (t[kept] for t in (problem.live, places, w, sums))
        if problem.has_anchors and moved[kept].any():
            sums, *_ = problem.gradient(w)
        found.rounds[problem.live] += 1
        step = _conjugate_gradients(problem, w, sums - w)
        w = w + _search(problem.slopes(w, step)).unsqueeze(1) * step
    return last


def _keep_better(
    found: PrimalSolution, live: Tensor, w: Tensor, length: Tensor, primal: Tensor, dual: Tensor
) -> None:
    better = ~(primal - dual >= found.primal[live] - found.dual[live])
    where, scaled = live[better], (w[better] * length[better].unsqueeze(1)).float()
    found.weights[where], found.bias[where] = scaled[:, :-1], scaled[:, -1]
    found.primal[where], found.dual[where] = primal[better], dual[better]


def _conjugate_gradients(problem: _Problem, w: Tensor, target: Tensor) -> Tensor:
    """Return the Newton step [J', D + 1], to a relative residual of FORCING. Columns leave as they are done."""
    every = problem.live
    solved, place = torch.zeros_like(target), torch.arange(len(w), device=w.device)
    step, r, p = torch.zeros_like(target), target, target
    size = r.square().sum(1)
    goal = FORCING**2 * size
    for _ in range(MAX_PASSES):
        going = size > goal
        if not going.all():
            solved[place[~going]] = step[~going]
            problem.live, place, size, goal, w, step, r, p = (
                t[going] for t in (problem.live, place, size, goal, w, step, r, p)
            )
        if not len(place):
            break
        bent = problem.curvature(w, p)
        length = (size / (p * bent).sum(1)).unsqueeze(1)
        step = step + length * p
        r = r - length * bent
        before, size = size, r.square().sum(1)
        p = r + (size / before).unsqueeze(1) * p
    solved[place] = step
    problem.live = every
    return solved


def _search(slopes: Tensor) -> Tensor:
    """How far to go, [J']: to where the slopes [len(LENGTHS), J'], which rise, pass zero."""
    lengths = slopes.new_tensor(LENGTHS)
    whole = slopes[-1] <= FULL_STEP * slopes[0].abs()
    after = (slopes > 0).to(torch.uint8).argmax(0).clamp_min(1)
    low, high = (slopes.gather(0, (after - back).unsqueeze(0)).squeeze(0) for back in (1, 0))
    part = -low / (high - low)
    crossing = lengths[after - 1] + part * (lengths[after] - lengths[after - 1])
    return torch.where(whole, 1.0, crossing)
