"""The work of a run's classifiers and the size of their files, estimated before training for
`--plan`.

Right within a factor of two or so where there are many vectors (docs/plan.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.classify.fold_sets import INNER_FOLDS
from pipelines.classify.step import choose_form
from pipelines.run.combination import Combination, chooses, combinations, sums_kernels
from pipelines.settings.sections import Classify

SOLVER_PRODUCTS, SVM_PASSES = 200, 60
"""Products of the Gram matrix with all columns, or passes over all vectors, that a solution is
taken to need."""

TASKS_OF_BATCH = 6
"""Ray tasks of an encoder and stream, beside one for each fold."""

STORE_BYTES = 20 * 2**30
"""Object store of a node, by which `classify` chooses its form: a third of 64 GiB."""


@dataclass(frozen=True)
class Cost:
    """The cost of all classifiers of a run.

    Attributes:
        form: gram or primal. fused: the combinations.
        single, double: operations in float32 and in float64.
        weight_bytes: of all classifiers. peak_bytes: of the largest process, beside what it loads.
    """

    form: str
    fused: tuple[Combination, ...]
    single: float
    double: float
    tasks: int
    weight_bytes: float
    peak_bytes: float


def cost(
    dims: Mapping[tuple[str, str], int],
    settings: Classify,
    *,
    num_training: float,
    num_classes: int,
    num_folds: int,
) -> Cost:
    """Return the cost of classifiers, from inner products, rounds of the solver and weights.

    Args:
        dims: {(encoder, stream): length of its vectors}.
        num_training: videos with labels and a vector.
    """
    form, _ = choose_form(settings, round(num_training), STORE_BYTES)
    fused = combinations(list(dims), settings, on_gram=form == "gram")
    # The matrices of single results serve combinations too.
    sums = [
        sum(dims[pair] for pair in combination.parts)
        for combination in fused
        if sums_kernels(combination.stream)
    ]
    # Scores of inner folds, which weights are chosen by, are computed once for each part.
    inner = len(
        {part for combination in fused if chooses(combination.stream) for part in combination.parts}
    )
    lengths, n, columns = [*dims.values(), *sums], num_training, num_classes * num_folds
    single, double = 0.0, 0.0
    if form == "gram":
        single = sum(n**2 * dim for dim in dims.values())
        double = sum(columns * n * (SOLVER_PRODUCTS * 2 * n + 4 * dim) for dim in lengths)
        double += inner * INNER_FOLDS * columns * SOLVER_PRODUCTS * 2 * n**2
    else:
        single = sum(SVM_PASSES * 4.0 * columns * n * dim for dim in lengths)
    return Cost(
        form=form,
        fused=fused,
        single=single,
        double=double,
        tasks=(len(dims) + len(fused)) * (TASKS_OF_BATCH + num_folds) + inner * num_folds,
        weight_bytes=4.0 * sum(lengths) * columns,
        peak_bytes=8.0 * n**2 if form == "gram" else 40.0 * num_classes * max(dims.values()),
    )
