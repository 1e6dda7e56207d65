"""The SVM solver on the Gram matrix: for N vectors of any length, all columns together.

With w = X~^T beta everything about the J problems of `encoders.svm.columns` is in K' = X~ X~^T:
decision values are f = K' beta. A semismooth Newton method solves beta(f) = beta for all columns at
once (for the squared hinge that is the finite Newton method of Keerthi and DeCoste 2005; for the
hinge Newton within a proximal point method, as Yan and Li 2020). A step solves, on the free vectors
of each column,

    (K'_FF + q) d = right hand side

by conjugate gradients, in which one product of K' serves all columns, or directly if few vectors
are free. The search along the step is exact and costs no product.

K' is kept as K_c + a 1^T + 1 a^T + s 1 1^T with the products K_c of vectors from which a centre m
was subtracted, a = (x - m) . m and s = 1 + |m|^2. Vectors with a large common part, such as those
of deep features, differ in digits that a float32 K' would not have.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders import matmul
from encoders.svm.columns import Columns, Objectives, best_length, unsolved

STRIP_BYTES = 3 * 2**27
"""Size of a strip's vectors in float32."""

BLOCK_BYTES = 2**27
"""Size, in float32, of the vectors that a strip is multiplied with at a time."""

PART_ROWS = 256
"""Most rows of a strip's product with itself: smaller ones leave out more of the lower triangle."""

EXACT_VECTORS = 1024
"""Most vectors whose products are float64."""

MAX_ROUNDS = 300
"""Most Newton steps."""

FORCING = 1e-4
"""Relative residual at which the conjugate gradients of a Newton step stop (the forcing term)."""

SEARCHES = 12
"""Most slopes to evaluate when a Newton step is too long and must be shortened."""

MAX_PRODUCTS = 200
"""Most conjugate gradient iterations of one Newton step."""

DIRECT_VECTORS = 256
"""Most free vectors of a step that is solved by Cholesky's method."""

SMOOTHING = 0.1
"""The hinge's sigma over the mean |x - m|^2, m being the mean vector."""

FULL_STEP = 1e-2
"""A Newton step keeps its full length if the slope at its end is at most this part of that at its
start."""


def strip_rows(dim: int) -> int:
    """Return the vectors of a strip; only D counts, so results do not depend on the machine."""
    return max(1, STRIP_BYTES // (4 * dim))


def block_rows(dim: int) -> int:
    """Return the vectors of a block that is read at a time."""
    return max(1, BLOCK_BYTES // (4 * dim))


@dataclass(frozen=True, eq=False)
class Strip:
    """Rows [first, first + n) of the upper triangle: products [n, N - first], cross [n]."""

    first: int
    products: Tensor
    cross: Tensor


@matmul.fastest()
def gram_strip(
    rows: Tensor, others: Iterable[Tensor], centre: Tensor, *, first: int, num_vectors: int
) -> Strip:
    """Return the products of rows [n, D] with themselves and with all later vectors.

    Args:
        others: blocks [.., D] of the vectors after the rows, in order.
        centre: m [D], the same for all strips, near the mean.
        first: the index of the first row among all vectors.
        num_vectors: N; the precision depends on it.
    """
    dtype = torch.float64 if num_vectors <= EXACT_VECTORS else torch.float32
    centre = centre.to(dtype)
    left = rows.to(dtype) - centre
    parts = left.split(min(PART_ROWS, block_rows(left.shape[1])))
    products = left.new_empty(len(rows), num_vectors - first)
    done = 0
    for part in parts:
        last = done + len(part)
        products[done:last, done : len(rows)] = part @ left[done:].T
        products[last : len(rows), done:last] = products[done:last, last : len(rows)].T
        done = last
    # One buffer for all blocks: to get new memory costs as much as the copy.
    buffer = left.new_empty(block_rows(left.shape[1]), left.shape[1])
    for part in (part for block in others for part in block.split(len(buffer))):
        right = buffer[: len(part)].copy_(part).sub_(centre)
        torch.mm(left, right.T, out=products[:, done : done + len(part)])
        done += len(part)
    if done != num_vectors - first:
        raise ValueError(
            f"SVM: expected {num_vectors} vectors for the Gram matrix, got {first + done}"
        )
    cross = torch.cat([part.double() @ centre.double() for part in parts])
    return Strip(first, products, cross)


@dataclass(frozen=True, eq=False)
class Gram:
    """K' of N vectors (see the top of this module).

    Attributes:
        centred: K_c, [N, N] in float32 or float64.
        cross: a, [N].
        square: s.
    """

    centred: Tensor
    cross: Tensor
    square: float

    @classmethod
    def of_strips(cls, strips: Sequence[Strip], centre: Tensor) -> "Gram":
        """Return the matrix of all strips, in order.

        Raises:
            ValueError: a product is not finite.
        """
        num_vectors = strips[0].products.shape[1]
        centred = strips[0].products.new_empty(num_vectors, num_vectors)
        for strip in strips:
            last = strip.first + len(strip.cross)
            centred[strip.first : last, strip.first :] = strip.products
            centred[last:, strip.first : last] = strip.products[:, len(strip.cross) :].T
        if not torch.isfinite(centred.diagonal()).all():
            rows = (~torch.isfinite(centred.diagonal())).nonzero().flatten()
            raise ValueError(
                f"SVM: expected finite vectors, got NaN or infinity in {len(rows)} of "
                f"{num_vectors}, the first in row {int(rows[0])}; encode these videos again"
            )
        square = 1 + float(centre.double().square().sum())
        return cls(centred, torch.cat([strip.cross for strip in strips]), square)

    @classmethod
    def of(cls, x: Tensor) -> "Gram":
        """Return the matrix of vectors [N, D] in memory."""
        size, step = strip_rows(x.shape[1]), block_rows(x.shape[1])
        centre = centre_of(x[:step])
        strips = [
            gram_strip(
                x[first : first + size],
                x[first + size :].split(step) if first + size < len(x) else (),
                centre,
                first=first,
                num_vectors=len(x),
            )
            for first in range(0, len(x), size)
        ]
        return cls.of_strips(strips, centre)

    def to(self, device: torch.device | str) -> "Gram":
        return Gram(self.centred.to(device), self.cross.to(device), self.square)

    @property
    def spread(self) -> Tensor:
        """The diagonal [N] of K' - u u^T / s, u = s 1 + a: that of K' after projecting out u."""
        diagonal = self.centred.diagonal().double() - self.cross.square() / self.square
        return diagonal.clamp_min(0)

    def product(self, beta: Tensor) -> Tensor:
        """Return K' beta [N, J] of beta [N, J], float64."""
        total = beta.sum(0)
        common = self.cross @ beta + self.square * total
        with matmul.fastest():
            product = (self.centred @ beta.to(self.centred.dtype)).double()
        return product.addr_(self.cross, total).add_(common)


def centre_of(x: Tensor) -> Tensor:
    """Return a centre near vectors [n, D]: the float64 mean of the finite ones."""
    finite = torch.isfinite(x).all(1)
    return x[finite].sum(0, dtype=torch.float64) / finite.sum().clamp_min(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Solution(Objectives):
    """The solution of J columns: beta [N, J], and how near it is."""

    beta: Tensor


@dataclass(eq=False)
class _Live:
    """The columns that are not solved yet: w = X~^T v, decisions f, anchors of the hinge."""

    index: Tensor
    columns: Columns
    v: Tensor
    f: Tensor
    offset: Tensor
    anchor: Tensor

    def keep(self, kept: Tensor) -> None:
        """Drop the columns that are not in a mask [J]."""
        self.columns = self.columns.take(kept)
        self.index = self.index[kept]
        self.v, self.f, self.offset, self.anchor = (
            tensor[:, kept] for tensor in (self.v, self.f, self.offset, self.anchor)
        )


def solve(
    gram: Gram,
    columns: Columns,
    *,
    tolerance: float,
    start: Tensor | None = None,
    offset: Tensor | None = None,
) -> Solution:
    """Solve all columns on one Gram matrix, to a relative gap (P - D) / P within the tolerance.

    Each column needs vectors of both signs. The `gap` of the solution shows a column that is not
    solved in MAX_ROUNDS steps.

    Args:
        start: beta [N, J] to start from, such as that of a smaller c.
        offset: [N, J], added to the decision values K' beta.
    """
    sigma = SMOOTHING * (float(gram.spread.mean()) or 1.0)
    offset = torch.zeros_like(columns.costs) if offset is None else offset
    anchor = torch.zeros_like(columns.costs) if start is None else start
    if start is None and columns.is_hinge:
        start = _without_bound(gram, columns, sigma, offset)
    elif start is None:
        start = anchor
    index = torch.arange(columns.costs.shape[1], device=columns.costs.device)
    live = _Live(index, columns, start, gram.product(start) + offset, offset, anchor)
    both_sides = torch.zeros_like(columns.costs[0])
    solution = Solution(beta=torch.zeros_like(anchor), **unsolved(both_sides))
    for _ in range(MAX_ROUNDS):
        beta = live.columns.dual(live.f, live.anchor, sigma)
        residual = beta - live.v
        change = gram.product(residual)
        primal, dual = _values(live, beta, live.f + change)
        better, where = solution.lowered(live.index, primal, dual)
        solution.beta[:, where] = beta[:, better]
        if columns.is_hinge:
            # Rockafellar's criterion: the inner problem is solved exactly enough to move its
            # anchor.
            distance = (residual * change).sum(0) / 2
            far = (sigma / 8 * (beta - live.anchor).square().sum(0)).maximum(
                0.1 * tolerance * primal
            )
            live.anchor = torch.where(distance <= far, beta, live.anchor)
        kept = solution.gap[live.index] > tolerance
        if not kept.any():
            break
        live.keep(kept)
        solution.rounds[live.index] += 1
        _step(gram, live, sigma)
    return solution


def _without_bound(gram: Gram, columns: Columns, sigma: float, offset: Tensor) -> Tensor:
    """Return a start for the hinge: its first inner problem without the upper bound."""
    costs = (columns.costs > 0).double() * (0.5 / sigma)
    easier = Columns(columns.signs, costs, "squared_hinge")
    return solve(gram, easier, tolerance=1e-2, offset=offset).beta


def _values(live: _Live, beta: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor]:
    """Return primal and dual [J] of a feasible beta with these decision values."""
    half = (beta * (decisions - live.offset)).sum(0) / 2
    dual = live.columns.dual_terms(beta) - (live.offset * beta).sum(0) - half
    if live.columns.is_hinge:
        primal, _ = best_length(live.columns.scaled_losses(decisions, live.offset), half)
    else:
        primal = half + live.columns.losses(decisions)
    return primal, dual


def _step(gram: Gram, live: _Live, sigma: float) -> None:
    """Take one Newton step of all live columns."""
    beta = live.columns.dual(live.f, live.anchor, sigma)
    free, curvature = live.columns.free(beta), live.columns.curvature(sigma)
    step = beta.sub_(live.v)
    target = (curvature * step).mul_(free)
    step.masked_fill_(free, 0)
    change = gram.product(step)
    target.sub_(change * free)
    free_step, free_change = _newton(gram, free, curvature, target)
    step += free_step
    change += free_change
    length = _search(live, step, change, sigma)
    live.v = torch.addcmul(live.v, step, length)
    live.f = torch.addcmul(live.f, change, length)


def _search(live: _Live, step: Tensor, change: Tensor, sigma: float) -> Tensor:
    """Return the length [J] of each column's step to the minimum of its objective.

    The slope rises and is piecewise linear: the search is false position, by the Illinois rule.
    """

    def slope(columns: Tensor, length: Tensor) -> Tensor:
        part = live.columns if len(columns) == step.shape[1] else live.columns.take(columns)
        f, v, anchor, s, c = (t[:, columns] for t in (live.f, live.v, live.anchor, step, change))
        beta = part.dual(torch.addcmul(f, c, length), anchor, sigma)
        return torch.addcmul(v, s, length).sub_(beta).mul_(c).sum(0)

    every = torch.arange(step.shape[1], device=step.device)
    best = torch.ones_like(step[0])
    beginning, end = slope(every, torch.zeros_like(best)), slope(every, best)
    every = (end > FULL_STEP * beginning.abs()).nonzero().flatten()
    low, high = torch.zeros_like(best)[every], best[every]
    below, above = beginning[every], end[every]
    for _ in range(SEARCHES):
        if not len(every):
            break
        best[every] = middle = low - below * (high - low) / (above - below)
        value = slope(every, middle)
        left = value < 0
        # An end that stays counts half the next time.
        below, above = torch.where(left, value, below / 2), torch.where(left, above / 2, value)
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        going = value.abs() > FULL_STEP * beginning[every].abs()
        every, low, high, below, above = (t[going] for t in (every, low, high, below, above))
    return best


def _newton(gram: Gram, free: Tensor, curvature: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return d [N, J] with (K'_FF + q) d = target on each column's free vectors, and K' d."""
    # Rounding of K' must not make the matrix indefinite.
    floor = 8 * torch.finfo(gram.centred.dtype).eps * (float(gram.spread.mean()) or 1.0)
    curvature = curvature.clamp_min(floor)
    few = free.sum(0) <= DIRECT_VECTORS
    if not few.any():
        return _conjugate_gradients(gram, free, curvature, target)
    step, change = torch.zeros_like(target), torch.zeros_like(target)
    step[:, few] = _direct(gram, free[:, few], curvature[:, few], target[:, few])
    change[:, few] = gram.product(step[:, few])
    many = ~few
    if many.any():
        step[:, many], change[:, many] = _conjugate_gradients(
            gram, free[:, many], curvature[:, many], target[:, many]
        )
    return step, change


def _direct(gram: Gram, free: Tensor, curvature: Tensor, target: Tensor) -> Tensor:
    """Solve by Cholesky's method, one system per column, padded with identity rows."""
    most = max(1, int(free.sum(0).max()))
    rows = free.to(torch.uint8).argsort(dim=0, descending=True, stable=True)[:most]
    used = free.gather(0, rows).T
    both = used.unsqueeze(2) & used.unsqueeze(1)
    index = rows.T
    matrix = gram.centred[index.unsqueeze(2), index.unsqueeze(1)].double()
    cross = gram.cross[index]
    matrix += cross.unsqueeze(2) + cross.unsqueeze(1) + gram.square
    matrix *= both
    matrix.diagonal(dim1=1, dim2=2).add_(torch.where(used, curvature.gather(0, rows).T, 1.0))
    right = (target.gather(0, rows).T * used).unsqueeze(2)
    solved = torch.cholesky_solve(right, torch.linalg.cholesky(matrix)).squeeze(2)
    return torch.zeros_like(target).scatter_(0, rows, (solved * used).T)


def _conjugate_gradients(
    gram: Gram, free: Tensor, curvature: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve by preconditioned conjugate gradients; solved columns leave.

    The preconditioner is the inverse of (spread + q) + u u^T / s on the free vectors: the common
    direction has by far the largest eigenvalue. Residuals are kept for all vectors, not only the
    free ones, because K' d = target - r - q d.
    """
    common = (gram.square + gram.cross).unsqueeze(1)
    inverse = free / (curvature + gram.spread.unsqueeze(1))
    along = inverse * common
    weight = gram.square + (common * along).sum(0)
    solved, left = torch.zeros_like(target), target.clone()
    index = torch.arange(target.shape[1], device=target.device)
    step, r = torch.zeros_like(target), target.clone()

    def precondition() -> Tensor:
        z = r * inverse
        return z.addcmul_(along, (common.T @ z) / weight, value=-1)

    p = precondition()
    size = (r * p).sum(0)
    goal, q = FORCING**2 * size, curvature
    for _ in range(MAX_PRODUCTS):
        going = size > goal
        if not going.all():
            solved[:, index[~going]], left[:, index[~going]] = step[:, ~going], r[:, ~going]
            index, size, goal, weight = (t[going] for t in (index, size, goal, weight))
            inverse, along, q, step, r, p = (t[:, going] for t in (inverse, along, q, step, r, p))
        if not len(index):
            break
        bent = gram.product(p).addcmul_(q, p)
        length = size / (p * bent).sum(0)
        step.addcmul_(p, length)
        r.addcmul_(bent, length, value=-1)
        z = precondition()
        before, size = size, (r * z).sum(0)
        p = z.addcmul_(p, size / before)
    solved[:, index], left[:, index] = step, r
    return solved, torch.sub(target, left, out=left).addcmul_(curvature, solved, value=-1)
