"""The SVM solver on the Gram matrix: for N vectors of any length, all columns together.

With w = X~^T beta everything about the J problems of `encoders.svm_columns` is in K' = X~ X~^T:
decision values are f = K' beta. A semismooth Newton method solves beta(f) = beta for all columns at once (for
the squared hinge that is the finite Newton method of Keerthi and DeCoste 2005; for the hinge Newton
within a proximal point method, as Yan and Li 2020). A step solves, on the free vectors of each column,

    (K'_FF + q) d = right hand side

by conjugate gradients, in which one product of K' serves all columns, or directly where few are
free. The search along the step is exact and costs no product.

K' is kept as K_c + a 1^T + 1 a^T + s 1 1^T with the products K_c of vectors from which a centre m was
subtracted, a = (x - m) . m and s = 1 + |m|^2. Vectors with a large common part, such as those of
deep features, differ in digits that a float32 K' would not have.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders.svm_columns import Columns, Smooth, best_length

STRIP_BYTES = 2**29
"""Vectors of one strip, in float32."""

BLOCK_BYTES = 2**27
"""Vectors that a strip is multiplied with at a time."""

EXACT_VECTORS = 1024
"""Up to so many vectors the products are float64."""

MAX_ROUNDS = 300
"""Newton steps."""

FORCING = 1e-4
"""A step's right-hand side is met to this part."""

MAX_PRODUCTS = 200
"""Conjugate gradient iterations of one step."""

DIRECT_VECTORS = 256
"""Up to so many free vectors a step is solved by Cholesky's method."""

SMOOTHING = 0.1
"""The hinge's sigma as a part of the mean |x - m|^2."""

FULL_STEP = 1e-2
"""A whole step is kept where the slope at its end is at most this part of that at its beginning."""


def strip_rows(dim: int) -> int:
    """Vectors of a strip: of D alone, so that results do not depend on the machine."""
    return max(1, STRIP_BYTES // (4 * dim))


def block_rows(dim: int) -> int:
    """Vectors of a block that is read at a time."""
    return max(1, BLOCK_BYTES // (4 * dim))


@dataclass(frozen=True, eq=False)
class Strip:
    """Rows [first, first + n) of the upper triangle: products [n, N - first], cross [n]."""

    first: int
    products: Tensor
    cross: Tensor


def gram_strip(
    rows: Tensor, others: Iterable[Tensor], centre: Tensor, *, first: int, num_vectors: int
) -> Strip:
    """The products of rows [n, D] with themselves and with all later vectors.

    Args:
        others: blocks [.., D] of the vectors behind the rows, in order.
        centre: m [D], the same for all strips. It need not be the mean, only near it.
        first: the place of the first row among all vectors.
        num_vectors: N; decides the precision.
    """
    dtype = torch.float64 if num_vectors <= EXACT_VECTORS else torch.float32
    centre = centre.to(dtype)
    left = rows.to(dtype) - centre
    products = left.new_empty(len(rows), num_vectors - first)
    products[:, : len(rows)] = left @ left.T
    done = len(rows)
    for block in others:
        torch.mm(left, (block.to(dtype) - centre).T, out=products[:, done : done + len(block)])
        done += len(block)
    if done != num_vectors - first:
        raise ValueError(
            f"SVM: expected {num_vectors} vectors for the Gram matrix, got {first + done}"
        )
    cross = torch.cat(
        [part.double() @ centre.double() for part in left.split(block_rows(left.shape[1]))]
    )
    return Strip(first, products, cross)


@dataclass(frozen=True, eq=False)
class Gram:
    """K' of N vectors: centred [N, N] in float32 or float64, cross a [N], square s (see above)."""

    centred: Tensor
    cross: Tensor
    square: float

    @classmethod
    def of_strips(cls, strips: Sequence[Strip], centre: Tensor) -> "Gram":
        """The matrix of all strips, in order.

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
                f"SVM: expected finite vectors, got NaN or infinity in {len(rows)} of {num_vectors}, "
                f"the first in row {int(rows[0])}; encode these videos again"
            )
        square = 1 + float(centre.double().square().sum())
        return cls(centred, torch.cat([strip.cross for strip in strips]), square)

    @classmethod
    def of(cls, x: Tensor) -> "Gram":
        """The matrix of vectors [N, D] in memory."""
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
        """The diagonal [N] of K' - u u^T / s, u = s 1 + a: what the common direction leaves."""
        diagonal = self.centred.diagonal().double() - self.cross.square() / self.square
        return diagonal.clamp_min(0)

    def product(self, beta: Tensor) -> Tensor:
        """K' beta [N, J] of beta [N, J], float64."""
        total = beta.sum(0)
        common = self.cross @ beta + self.square * total
        product = (self.centred @ beta.to(self.centred.dtype)).double()
        return product.addr_(self.cross, total).add_(common)


def centre_of(x: Tensor) -> Tensor:
    """A centre near some vectors [n, D]: their mean, float64, without those that are not finite."""
    finite = torch.isfinite(x).all(1)
    return x[finite].sum(0, dtype=torch.float64) / finite.sum().clamp_min(1)


@dataclass(frozen=True, eq=False)
class Solution:
    """What was found for J columns: beta [N, J], and per column the primal and dual objective and the rounds."""

    beta: Tensor
    primal: Tensor
    dual: Tensor
    rounds: Tensor

    @property
    def gap(self) -> Tensor:
        """(P - D) / P, [J]."""
        return (self.primal - self.dual) / self.primal


@dataclass(eq=False)
class _Live:
    """The columns that are still worked on: w = X~^T v, decisions f, anchors of the hinge."""

    place: Tensor
    columns: Columns
    v: Tensor
    f: Tensor
    offset: Tensor
    anchor: Tensor

    def keep(self, kept: Tensor) -> None:
        self.columns = self.columns.take(kept)
        self.place = self.place[kept]
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
    max_rounds: int | None = None,
) -> Solution:
    """All columns on one Gram matrix, each until its relative gap (P - D) / P is within the tolerance.

    Each column needs vectors of both signs. One that is not solved in `max_rounds` (MAX_ROUNDS) steps shows
    in the `gap` of the solution.

    Args:
        start: beta [N, J] to begin with, such as that of a smaller c.
        offset: [N, J], added to the decision values K' beta.
    """
    sigma = SMOOTHING * (float(gram.spread.mean()) or 1.0)
    offset = torch.zeros_like(columns.costs) if offset is None else offset
    anchor = torch.zeros_like(columns.costs) if start is None else start
    if start is None and columns.is_hinge:
        start = _without_bound(gram, columns, sigma, offset)
    elif start is None:
        start = anchor
    place = torch.arange(columns.costs.shape[1], device=columns.costs.device)
    live = _Live(place, columns, start, gram.product(start) + offset, offset, anchor)
    empty = torch.full_like(columns.costs[0], torch.inf)
    found = Solution(torch.zeros_like(anchor), empty, -empty, torch.zeros_like(empty))
    for _ in range(MAX_ROUNDS if max_rounds is None else max_rounds):
        smooth = live.columns.smooth(live.f, live.anchor, sigma)
        residual = smooth.beta - live.v
        change = gram.product(residual)
        distance = (residual * change).sum(0) / 2
        primal, dual = _values(live, smooth.beta, live.f + change)
        _record(found, live.place, smooth.beta, primal, dual)
        if columns.is_hinge:
            # Rockafellar's criterion: the inner problem is solved well enough to move its anchor.
            moved = (sigma / 8 * (smooth.beta - live.anchor).square().sum(0)).maximum(
                0.1 * tolerance * primal
            )
            live.anchor = torch.where(distance <= moved, smooth.beta, live.anchor)
        kept = found.gap[live.place] > tolerance
        if not kept.any():
            break
        live.keep(kept)
        found.rounds[live.place] += 1
        _step(gram, live, sigma)
    return found


def _without_bound(gram: Gram, columns: Columns, sigma: float, offset: Tensor) -> Tensor:
    """A start for the hinge: its first inner problem without the upper bound, a squared hinge."""
    costs = (columns.costs > 0).double() * (0.5 / sigma)
    easier = Columns(columns.signs, costs, "squared_hinge")
    return solve(gram, easier, tolerance=1e-2, offset=offset).beta


def _values(live: _Live, beta: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor]:
    """Primal and dual of a feasible beta with these decision values, [J] each."""
    half = (beta * (decisions - live.offset)).sum(0) / 2
    dual = live.columns.dual_terms(beta) - (live.offset * beta).sum(0) - half
    if live.columns.is_hinge:
        primal, _ = best_length(live.columns.scaled_losses(decisions, live.offset), half)
    else:
        primal = half + live.columns.losses(decisions)
    return primal, dual


def _record(found: Solution, place: Tensor, beta: Tensor, primal: Tensor, dual: Tensor) -> None:
    """Keeps what has a smaller gap than before."""
    before = found.primal[place] - found.dual[place]
    better = ~(primal - dual >= before)
    where = place[better]
    found.beta[:, where] = beta[:, better]
    found.primal[where], found.dual[where] = primal[better], dual[better]


def _step(gram: Gram, live: _Live, sigma: float) -> None:
    """One Newton step of all live columns."""
    smooth = live.columns.smooth(live.f, live.anchor, sigma)
    residual = smooth.beta - live.v
    step = residual * ~smooth.free
    change = gram.product(step)
    free_step, free_change = _newton(
        gram, smooth, (smooth.curvature * residual - change) * smooth.free
    )
    step += free_step
    change += free_change
    length = _search(live, step, change, sigma)
    live.v = live.v + length * step
    live.f = live.f + length * change


def _search(live: _Live, step: Tensor, change: Tensor, sigma: float) -> Tensor:
    """How far to go along each column's step, [J]: to the least of what Newton's method minimises."""

    def slope(length: Tensor) -> Tensor:
        beta = live.columns.smooth(live.f + length * change, live.anchor, sigma).beta
        return (change * (live.v + length * step - beta)).sum(0)

    low = torch.zeros_like(change[0])
    high = torch.ones_like(low)
    whole = slope(high) <= FULL_STEP * slope(low).abs()
    if not whole.all():
        for _ in range(20):
            middle = (low + high) / 2
            beyond = slope(middle) > 0
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return torch.where(whole, 1.0, (low + high) / 2)


def _newton(gram: Gram, smooth: Smooth, target: Tensor) -> tuple[Tensor, Tensor]:
    """d [N, J] with (K'_FF + q) d = target on the free vectors of each column, and K' d."""
    # Rounding of K' must not make the matrix indefinite.
    floor = 8 * torch.finfo(gram.centred.dtype).eps * (float(gram.spread.mean()) or 1.0)
    curvature = smooth.curvature.clamp_min(floor)
    few = smooth.free.sum(0) <= DIRECT_VECTORS
    step, change = torch.zeros_like(target), torch.zeros_like(target)
    if few.any():
        step[:, few] = _direct(gram, smooth.free[:, few], curvature[:, few], target[:, few])
        change[:, few] = gram.product(step[:, few])
    if not few.all():
        step[:, ~few], change[:, ~few] = _conjugate_gradients(
            gram, smooth.free[:, ~few], curvature[:, ~few], target[:, ~few]
        )
    return step, change


def _direct(gram: Gram, free: Tensor, curvature: Tensor, target: Tensor) -> Tensor:
    """By Cholesky's method, column by column; the rows that fill up a batch are those of 1."""
    most = max(1, int(free.sum(0).max()))
    rows = free.to(torch.uint8).argsort(dim=0, descending=True, stable=True)[:most]
    used = free.gather(0, rows).T
    both = used.unsqueeze(2) & used.unsqueeze(1)
    place = rows.T
    matrix = gram.centred[place.unsqueeze(2), place.unsqueeze(1)].double()
    cross = gram.cross[place]
    matrix += cross.unsqueeze(2) + cross.unsqueeze(1) + gram.square
    matrix *= both
    matrix.diagonal(dim1=1, dim2=2).add_(torch.where(used, curvature.gather(0, rows).T, 1.0))
    right = (target.gather(0, rows).T * used).unsqueeze(2)
    solved = torch.cholesky_solve(right, torch.linalg.cholesky(matrix)).squeeze(2)
    return torch.zeros_like(target).scatter_(0, rows, (solved * used).T)


def _conjugate_gradients(
    gram: Gram, free: Tensor, curvature: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """With the inverse of (spread + q) + u u^T / s on the free vectors as preconditioner: the common direction
    has by far the largest eigenvalue. Columns leave as they are done."""
    common = (gram.square + gram.cross).unsqueeze(1)
    inverse = free / (curvature + gram.spread.unsqueeze(1))
    weight = gram.square + (common.square() * inverse).sum(0)

    def precondition(r: Tensor) -> Tensor:
        z = r * inverse
        return z - inverse * common * ((common * z).sum(0) / weight)

    solved, products = torch.zeros_like(target), torch.zeros_like(target)
    place = torch.arange(target.shape[1], device=target.device)
    step, change, r = torch.zeros_like(target), torch.zeros_like(target), target
    p = precondition(r)
    size = (r * p).sum(0)
    goal = FORCING**2 * size
    for _ in range(MAX_PRODUCTS):
        going = size > goal
        if not going.all():
            solved[:, place[~going]] = step[:, ~going]
            products[:, place[~going]] = change[:, ~going]
            place, size, goal, weight = (t[going] for t in (place, size, goal, weight))
            free, curvature, inverse, step, change, r, p = (
                t[:, going] for t in (free, curvature, inverse, step, change, r, p)
            )
        if not len(place):
            return solved, products
        product = gram.product(p)
        bent = (product + curvature * p) * free
        length = size / (p * bent).sum(0)
        step = step + length * p
        change = change + length * product
        r = r - length * bent
        z = precondition(r)
        before, size = size, (r * z).sum(0)
        p = z + (size / before) * p
    solved[:, place], products[:, place] = step, change
    return solved, products
