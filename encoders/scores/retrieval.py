"""Quality of a ranking of search results (METHODS 4 and 6). Letters: N videos of the collection.

The protocol of the data sets that VU 2.4 measures on: what is ignored is taken out of the ranking
as if it were not in the collection. On Holidays that is the query itself. On Oxford and Paris it is
"junk" alone, which is neither right nor wrong: there the query is one of its own right answers.
"""

import numpy as np
from numpy.typing import NDArray


def ranking(similarity: NDArray) -> NDArray:
    """Return the places [N] from the largest similarity to the smallest; of equal ones the first
    ranks first."""
    return np.argsort(-similarity, kind="stable")


def average_precision(
    similarity: NDArray,
    relevant: NDArray,
    ignored: NDArray | None = None,
    *,
    trapezoid: bool = True,
) -> float:
    """Return the area under the precision-recall curve of one query; NaN if nothing is relevant.

    With m relevant videos at the 1-based ranks r_1 < ... < r_m, and r_1 - 1 etc. seen before them,

        AP = 1/m sum_i (p_i + i / r_i) / 2,    p_i = (i - 1) / (r_i - 1), and 1 where r_i = 1,

    as the evaluation programs of the three data sets compute it.

    Args:
        similarity: [N], the larger the more alike.
        relevant: [N] bool, the right results.
        ignored: [N] bool, such as junk; relevant or not, they do not count.
        trapezoid: False leaves out p_i: AP = 1/m sum_i i / r_i, as in scikit-learn and
            `encoders.scores.metrics`.

    Raises:
        ValueError: shapes differ, or a similarity is not finite.
    """
    _check(similarity, relevant, ignored)
    counted = np.ones(len(similarity), bool) if ignored is None else ~ignored.astype(bool)
    order = ranking(similarity[counted])
    ranks = np.flatnonzero(relevant[counted][order]) + 1
    if not len(ranks):
        return float("nan")
    hits = np.arange(1, len(ranks) + 1)
    after = hits / ranks
    if not trapezoid:
        return float(after.mean())
    before = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
    return float((before + after).mean() / 2)


def mean_average_precision(precisions: NDArray) -> float:
    """Return the mean over the queries for which something is relevant; NaN if there is none."""
    known = precisions[~np.isnan(precisions)]
    return float(known.mean()) if len(known) else float("nan")


def _check(similarity: NDArray, relevant: NDArray, ignored: NDArray | None) -> None:
    shapes = [part.shape for part in (similarity, relevant, ignored) if part is not None]
    if similarity.ndim != 1 or len(set(shapes)) != 1:
        raise ValueError(
            f"retrieval: expected similarity, relevant and ignored of one shape [N], got {shapes}"
        )
    bad = np.flatnonzero(~np.isfinite(similarity))
    if len(bad):
        raise ValueError(
            f"retrieval: expected finite similarities, got NaN or infinity at {len(bad)} of "
            f"{len(similarity)} places, the first {bad[0]}; encode and search again"
        )
