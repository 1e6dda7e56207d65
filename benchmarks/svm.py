"""One-vs-rest SVMs on long dense vectors against scikit-learn's LinearSVC (LIBLINEAR).

    python -m benchmarks.svm [--quick] [--json FILE] [--threads 2] [--device cuda]

Each fit runs in a process of its own, from vectors in memory to weights; LIBLINEAR solves one class
after another on one core, so ten classes (with --quick two) are timed and the others are taken to
last as long.
Letters: N vectors, D their length, K classes, F folds.
"""

import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import (
    Disagreement,
    Options,
    Row,
    at_least,
    at_most,
    main,
    optional,
    parser,
    progress,
)
from benchmarks.products import with_best_blas
from encoders import matmul
from encoders.svm.classifiers import fit_weights
from encoders.svm.columns import Loss, one_vs_rest
from encoders.svm.gram import Gram, block_rows, centre_of, gram_strip, strip_rows

C = 100.0
TESTS = 200
"""Vectors on which the signs of both sides are compared."""

SLACK = 1.0001
"""An objective is no higher if it is below theirs times this."""


@dataclass(frozen=True)
class Sizes:
    """N, D, K, F; how many classes LIBLINEAR is timed on."""

    vectors: int
    dim: int
    classes: int
    folds: int = 1
    timed: int = 10


class Fit(NamedTuple):
    """What one process did: seconds, of which `setup_s` once for all classes (LIBLINEAR's copies,
    our Gram matrix); bytes at its peak; objectives [.] and decisions [TESTS, .] of the timed
    classes; operations a second of the best float32 product of such vectors."""

    seconds: float
    setup_s: float
    peak_bytes: int
    objectives: NDArray
    decisions: NDArray
    product_rate: float = 0.0


def vectors(sizes: Sizes) -> tuple[NDArray, NDArray]:
    """Like Fisher vectors: [N + TESTS, D] with a signed square root and length 1, and targets [..,
    K], several a row."""
    draw = torch.Generator().manual_seed(0)
    count = sizes.vectors + TESTS
    label = torch.randint(sizes.classes, (count,), generator=draw)
    centres = 0.25 * torch.randn(sizes.classes, sizes.dim, generator=draw)
    x = torch.empty(count, sizes.dim)
    for rows in torch.arange(count).split(256):
        part = centres[label[rows]]
        part += torch.randn(part.shape, generator=draw)
        roots = part.abs().sqrt_().copysign_(part)
        x[rows] = roots / roots.norm(dim=1, keepdim=True)
    targets = torch.nn.functional.one_hot(label, sizes.classes)
    targets[torch.rand(targets.shape, generator=draw) < 0.1 / sizes.classes] = 1
    return x.numpy(), targets.numpy()


def training(sizes: Sizes) -> NDArray:
    """[N, F]: the vectors that train each fold; all of them where there is one."""
    tested_by = np.arange(sizes.vectors)[:, None] % sizes.folds
    return (tested_by != np.arange(sizes.folds)) | (sizes.folds == 1)


def ours(sizes: Sizes, loss: Loss, threads: int) -> Fit:
    """All classes, of all folds on one matrix, in this process."""
    torch.set_num_threads(threads)
    x, targets = vectors(sizes)
    train, tests = x[: sizes.vectors], x[sizes.vectors :]
    known, inside = targets[: sizes.vectors], training(sizes)
    began = time.perf_counter()
    tensor = torch.from_numpy(train)
    columns = one_vs_rest(torch.from_numpy(known), torch.from_numpy(inside), c=C, loss=loss)
    blocks = partial(tensor.split, block_rows(sizes.dim))
    found = fit_weights(Gram.of(tensor), blocks, columns, tolerance=1e-6)
    weights, bias = (part[: sizes.timed].numpy() for part in (found.weights, found.bias))
    seconds, peak = time.perf_counter() - began, _peak_bytes()
    # Made again by itself: how much of the time it was.
    began = time.perf_counter()
    Gram.of(tensor)
    gram_s = time.perf_counter() - began
    rate = _product_rate(tensor)
    if sizes.folds > 1:
        train, known = train[inside[:, 0]], known[inside[:, 0]]
    fit = _fit((seconds, gram_s), peak, train, known, tests, (weights, bias), loss)
    return fit._replace(product_rate=rate)


def _product_rate(x: torch.Tensor) -> float:
    """Operations a second of the best way to a product of half of these vectors with the others."""
    left, right = x[: strip_rows(x.shape[1])].chunk(2)
    seconds = []
    for name in {"plain", matmul.chosen()}:
        for _ in range(3):
            began = time.perf_counter()
            with matmul.way(name):
                torch.mm(left, right.T)
            seconds.append(time.perf_counter() - began)
    return 2 * len(left) * right.numel() / min(seconds)


def theirs(sizes: Sizes, loss: Loss, threads: int) -> Fit:
    """LinearSVC for `timed` classes, of the first fold, in this process."""
    del threads
    svm = optional("sklearn.svm")
    x, targets = vectors(sizes)
    train, tests = x[: sizes.vectors], x[sizes.vectors :]
    known = targets[: sizes.vectors]
    if sizes.folds > 1:
        inside = training(sizes)[:, 0]
        train, known = train[inside], known[inside]
    weights, bias, times = [], [], []
    for k in (-1, *range(sizes.timed), -1):
        # One iteration is what the copies cost; a fit of many classes makes them once.
        options = {"max_iter": 1} if k < 0 else {"max_iter": 100_000}
        svc = svm.LinearSVC(C=C, loss=loss, dual=True, random_state=0, **options)
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            svc.fit(train, known[:, max(k, 0)])
        times.append(time.perf_counter() - began)
        if k >= 0:
            weights.append(svc.coef_[0])
            bias.append(svc.intercept_[0])
    found = np.array(weights, np.float32), np.array(bias, np.float32)
    seconds = median(times[1:-1]), min(times[0], times[-1])
    return _fit(seconds, _peak_bytes(), train, known, tests, found, loss)


def _peak_bytes() -> int:
    """Of this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _fit(
    times: tuple[float, float],
    peak: int,
    train: NDArray,
    known: NDArray,
    tests: NDArray,
    found: tuple[NDArray, NDArray],
    loss: Loss,
) -> Fit:
    """Objectives and decisions of what was found, in float64."""
    weights, bias = (part.astype(np.float64) for part in found)

    def decide(x: NDArray) -> NDArray:
        return np.concatenate([part @ weights.T for part in np.array_split(x, 16)]) + bias

    margins = (2.0 * known[:, : len(bias)] - 1) * decide(train)
    losses = np.maximum(0, 1 - margins) ** (2 if loss == "squared_hinge" else 1)
    objectives = (np.square(weights).sum(1) + bias**2) / 2 + C * losses.sum(0)
    return Fit(*times, peak, objectives, decide(tests))


@cache
def measured(side: Callable, sizes: Sizes, loss: Loss, threads: int) -> Fit:
    """One side in a fresh process, whose peak is its own."""
    progress(f"  {side.__name__}, {loss}, {sizes}")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(side, sizes, loss, threads).result()


def compare(sizes: Sizes, loss: Loss, target: float, options: Options) -> Row:
    """How many times faster we are, at an objective that is no higher."""
    mine, other = (measured(side, sizes, loss, options.threads) for side in (ours, theirs))
    ratios = mine.objectives / other.objectives
    if not (ratios <= SLACK).all():
        raise Disagreement(
            f"SVM {loss}: expected objectives at most {SLACK} x theirs, got {ratios}"
        )
    same = float((np.sign(mine.decisions) == np.sign(other.decisions)).mean())
    if same < 0.999:
        raise Disagreement(f"SVM {loss}: expected the same signs on 99.9 % of tests, got {same}")
    whole = other.setup_s + sizes.classes * (other.seconds - other.setup_s)
    folds = f", {sizes.folds} folds leave-group-out" if sizes.folds > 1 else ""
    return at_least(
        f"N {sizes.vectors:,}, D {sizes.dim:,}, {sizes.classes} classes{folds}, {loss}",
        "LinearSVC, extrapolated",
        sizes.folds * whole / mine.seconds,
        target,
        seconds={"ours": mine.seconds, "LinearSVC": sizes.folds * whole},
        gram_matrix={
            "seconds": mine.setup_s,
            "share": mine.setup_s / mine.seconds,
            "gflops": sizes.vectors**2 * sizes.dim / mine.setup_s / 1e9,
        },
        extrapolated=f"{sizes.folds} x (set-up {other.setup_s:.1f} s + {sizes.classes} x "
        f"{other.seconds - other.setup_s:.1f} s, the median of {sizes.timed} classes)",
        objectives_over_theirs=ratios.tolist(),
        same_signs=same,
        C=C,
        ours="from vectors in memory to weights, Gram matrix included",
        theirs="dual, default tolerance 1e-4, one core",
    )


def squared_hinge(options: Options) -> list[Row]:
    """All classes, squared hinge"""
    return [compare(_whole(options), "squared_hinge", 60.0, options)]


def hinge(options: Options) -> list[Row]:
    """All classes, hinge"""
    return [compare(_whole(options), "hinge", 50.0, options)]


def gram_matrix(options: Options) -> list[Row]:
    """The Gram matrix against a product"""
    sizes = _whole(options)
    mine = measured(ours, sizes, "squared_hinge", options.threads)
    rate = sizes.vectors**2 * sizes.dim / mine.setup_s
    return [
        at_least(
            f"Gram matrix, N {sizes.vectors:,}, D {sizes.dim:,}",
            "the best float32 product of its vectors",
            rate / mine.product_rate,
            0.8,
            GFLOP_per_s={"ours": rate / 1e9, "product": mine.product_rate / 1e9},
            counted="N^2 D: half of the products, as the matrix is symmetric",
        )
    ]


def leave_group_out(options: Options) -> list[Row]:
    """Ten folds on one Gram matrix"""
    sizes = (
        Sizes(300, 8192, 10, folds=10, timed=2)
        if options.quick
        else Sizes(2000, 131_072, 101, folds=10)
    )
    return [compare(sizes, "squared_hinge", 300.0, options)]


def peak_memory(options: Options) -> list[Row]:
    """Peak memory of the processes above"""
    sizes = _whole(options)
    mine, other = (
        measured(side, sizes, "squared_hinge", options.threads) for side in (ours, theirs)
    )
    return [
        at_most(
            f"N {sizes.vectors:,}, D {sizes.dim:,}: peak memory, the vectors included",
            "LinearSVC",
            mine.peak_bytes / other.peak_bytes,
            0.25,
            bytes={"ours": mine.peak_bytes, "LinearSVC": other.peak_bytes},
            vectors_bytes=4 * (sizes.vectors + TESTS) * sizes.dim,
        )
    ]


def by_blocks(options: Options) -> list[Row]:
    """N 45,000 by blocks: sampled on a CPU, run on a GPU"""
    sizes = Sizes(2000, 16_384, 30) if options.quick else Sizes(45_000, 131_072, 239)
    side = whole_run if options.device == "cuda" else sampled
    seconds, peak_bytes, detail = side(sizes, options)
    return [
        at_most(
            f"N {sizes.vectors:,}, D {sizes.dim:,}, {sizes.classes} classes by blocks: memory",
            "24 bytes a value, as LinearSVC",
            peak_bytes / (24 * sizes.vectors * sizes.dim),
            0.25,
            seconds=seconds,
            total_s=sum(seconds.values()),
            bytes={"ours": peak_bytes, "vectors_float32": 4 * sizes.vectors * sizes.dim},
            device=options.device,
            **detail,
        )
    ]


def sampled(sizes: Sizes, options: Options) -> tuple[dict[str, float], int, dict]:
    """Seconds of the whole from those of some blocks, of two products, and of two blocks of
    weights."""
    num, dim, num_columns = sizes.vectors, sizes.dim, sizes.classes
    draw = torch.Generator().manual_seed(0)
    strip, step = min(num, strip_rows(dim)), block_rows(dim)
    rows = torch.randn(strip, dim, generator=draw).half()
    block = torch.randn(step, dim, generator=draw).half()
    blocks = 2
    began = time.perf_counter()
    gram_strip(rows, [block] * blocks, centre_of(block), first=0, num_vectors=strip + blocks * step)
    pairs = strip * (strip + blocks * step)
    gram_s = (time.perf_counter() - began) * (num * (num + strip) / 2) / pairs

    part = min(num, 2000)
    products = Gram(
        torch.randn(part, part, generator=draw), torch.zeros(part, dtype=torch.float64), 1.0
    )
    beta = torch.randn(part, num_columns, generator=draw, dtype=torch.float64)
    products.product(beta)
    began = time.perf_counter()
    products.product(beta)
    product_s = (time.perf_counter() - began) * (num / part) ** 2

    began = time.perf_counter()
    weights = torch.zeros(num_columns, dim, dtype=torch.float64)
    weights.addmm_(
        torch.randn(num_columns, step, generator=draw, dtype=torch.float64), block.double()
    )
    block.double() @ weights.T
    weights_s = (time.perf_counter() - began) * num / step
    used = _peak_bytes()
    return (
        {
            "Gram matrix": gram_s,
            "solve": PRODUCTS * product_s,
            "weights and certificate": weights_s,
        },
        used + 4 * num**2 + STATES * 8 * num * num_columns,
        {
            "sampled": f"a strip of {strip} with {blocks} blocks of {step}; products of {part} "
            f"vectors, {PRODUCTS} of them; a block of weights",
            "measured_bytes": used,
            "bytes_counted": f"measured, the matrix, and {STATES} float64 arrays [N, K]",
        },
    )


def whole_run(sizes: Sizes, options: Options) -> tuple[dict[str, float], int, dict]:
    """The whole fit on the GPU, on vectors that are there in half precision."""
    num, dim = sizes.vectors, sizes.dim
    draw = torch.Generator("cuda").manual_seed(0)
    label = torch.randint(sizes.classes, (num,), generator=draw, device="cuda")
    centres = 0.25 * torch.randn(sizes.classes, dim, generator=draw, device="cuda")
    x = torch.empty(num, dim, dtype=torch.float16, device="cuda")
    for rows in torch.arange(num, device="cuda").split(block_rows(dim)):
        part = centres[label[rows]] + torch.randn(len(rows), dim, generator=draw, device="cuda")
        x[rows] = torch.nn.functional.normalize(part.abs().sqrt().copysign(part), dim=1).half()
    targets = torch.nn.functional.one_hot(label, sizes.classes)
    targets[torch.rand(targets.shape, generator=draw, device="cuda") < 0.1 / sizes.classes] = 1
    inside = torch.ones(num, 1, dtype=torch.bool, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    gram = Gram.of(x)
    torch.cuda.synchronize()
    gram_s = time.perf_counter() - began
    columns = one_vs_rest(targets, inside, c=C, loss="squared_hinge")
    found = fit_weights(gram, partial(x.split, block_rows(dim)), columns, tolerance=1e-6)
    torch.cuda.synchronize()
    seconds = {"Gram matrix": gram_s, "solve and weights": time.perf_counter() - began - gram_s}
    peak = torch.cuda.max_memory_allocated() - x.numel() * x.element_size()
    return (
        seconds,
        peak,
        {"largest_gap": float(found.gap.max()), "rounds": float(found.rounds.max())},
    )


PRODUCTS = 200
"""Products of the Gram matrix that a solution of the sampled size is taken to need; N 4,000 needs
fewer."""

STATES = 24
"""Arrays [N, K] of the solver at its peak."""


def _whole(options: Options) -> Sizes:
    return Sizes(400, 16_384, 10, timed=2) if options.quick else Sizes(4000, 131_072, 101)


CASES = (squared_hinge, gram_matrix, hinge, leave_group_out, peak_memory, by_blocks)

if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--device", default="cpu", help="cuda: N 45,000 is run, not sampled")
    given = arguments.parse_args()
    with_best_blas(given.threads)
    if given.device == "cuda" and not torch.cuda.is_available():
        progress("benchmarks.svm: expected a CUDA device, got none; leave --device out")
        sys.exit(2)
    sys.exit(main(CASES, given, given.device))
