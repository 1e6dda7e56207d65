"""Combinations of results on Gram matrices, as Ray tasks.

They come after the single results, whose matrices and scores they use.

kernel_sum      matrices of the parts -> one matrix -> classifiers, SOLUTIONS, FUSIONS and SCORES
late_weighted   matrices of the parts -> scores of inner folds, on training videos alone
                those, SCORES of the parts -> FUSIONS and SCORES, one task a fold
"""

import dataclasses
from collections.abc import Callable
from typing import cast

import numpy as np
import ray
import torch

from encoders.scores.fusion import fuse
from encoders.svm.gram import Gram
from encoders.svm.inner_folds import held_out_scores, log_losses, weights_by_loss
from encoders.svm.kernel_sum import kernel_sum
from pipelines.classify import gram as classify_gram
from pipelines.classify.examples import Examples, Work
from pipelines.classify.fold_sets import CHOICE_TOLERANCE, FoldSet
from pipelines.classify.gram import (
    Arrays,
    Prepared,
    arrays_of,
    cuda_or_cpu,
    device_options,
    gram_of,
)
from pipelines.classify.publish import publish_scores, publish_weights
from pipelines.classify.vectors import Vectors
from pipelines.cluster.meter import Meter
from pipelines.cluster.progress import ProgressLine
from pipelines.errors import RunError
from pipelines.run.combination import sums_kernels
from pipelines.run.job import Job
from pipelines.settings.sections import Classify
from pipelines.storage.store import Store

Scored = dict[str, list[ray.ObjectRef]]
"""Results of `_scores_of`, by the fold's file of SCORES: several combinations have the same
parts."""


def solve(
    job: Job,
    line: ProgressLine,
    work: Work,
    prepared: Callable[[Work], Prepared],
    scored: Scored,
) -> None:
    """Solve one combination and publish its results.

    Args:
        line: counts the folds that are finished.
        prepared: the vectors and the Gram matrix of a part.
        scored: parts of the combinations before; those of this one are added.

    Raises:
        RunError: parts are of different videos, or nothing can be chosen.
    """
    _check_videos(work)
    if sums_kernels(work.fold_set.stream):
        _sum_kernels(job, line, work, [prepared(part) for part in work.parts])
    else:
        _fuse_scores(job, line, work, prepared, scored)


def _check_videos(work: Work) -> None:
    if not ray.get(_same_videos.remote(*(part.examples for part in work.parts))):
        names = ", ".join(part.fold_set.name for part in work.parts)
        raise RunError(
            f"classify {work.fold_set.name}: expected vectors of the same videos, got other "
            f"ones among {names}; delete their encodings and run it again"
        )


@ray.remote(max_retries=3)
def _same_videos(*examples: Examples) -> bool:
    return all(part.video_ids == examples[0].video_ids for part in examples)


# --- sums of kernels ---------------------------------------------------------------------------


def _sum_kernels(job: Job, line: ProgressLine, work: Work, parts: list[Prepared]) -> None:
    """Train on the mean of the parts' cosine-normalised kernels, all folds on one matrix."""
    shares = (1 / len(parts),) * len(parts)
    gram = _summed.remote(shares, *(part.gram for part in parts))
    vectors = Vectors(
        tuple(part.vectors.training[0] for part in parts),
        tuple(part.vectors.tested[0] for part in parts),
        shares,
    )
    classify_gram.train(job, line, work, Prepared(vectors, gram), shares)


@ray.remote(max_retries=3)
def _summed(weights: tuple[float, ...], *grams: Arrays) -> Arrays:
    gram = kernel_sum([gram_of(arrays) for arrays in grams], weights)
    return arrays_of(gram)


# --- late fusion -------------------------------------------------------------------------------


def _fuse_scores(
    job: Job,
    line: ProgressLine,
    work: Work,
    prepared: Callable[[Work], Prepared],
    scored: Scored,
) -> None:
    settings = job.config.classify
    scores_of = _scores_of.options(num_returns=2, **device_options(job.config.cluster))
    for part in work.parts:
        files = {fold: part.fold_set.scores_file(fold) for fold in work.fold_set.todo}
        missing = [fold for fold in files if files[fold] not in scored]
        if not missing:
            continue
        gram = prepared(part).gram
        for fold in missing:
            arguments = (part.examples, gram, fold, settings, line.meter)
            refs = scores_of.remote(job.store, part.fold_set, *arguments)
            scored[files[fold]] = cast(list[ray.ObjectRef], refs)  # by num_returns
    done = []
    for fold in work.fold_set.todo:
        scores = [scored[part.fold_set.scores_file(fold)] for part in work.parts]
        # Weights are chosen by the inner scores alone; scores of the tested videos come last.
        inner, tested = zip(*scores, strict=True)
        done.append(
            _fuse.remote(job.store, work.fold_set, work.examples, fold, line.meter, *inner, *tested)
        )
    ray.get(done)


@ray.remote(max_retries=3)
def _scores_of(
    store: Store,
    part: FoldSet,
    examples: Examples,
    gram: Arrays,
    fold: int,
    settings: Classify,
    meter: Meter,
) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays of a part's scores: those of the training videos [n, K], each by
    classifiers of the other inner folds, and the published ones of the fold [tested, K]."""
    with meter("read"):
        c, scores = _published(store, part, examples, fold)
    with meter("solve"):
        inner = _inner_folds(examples, fold)
        held_out = _held_out(gram_of(gram).to(cuda_or_cpu()), examples, inner, c, settings)
    return held_out, scores


def _published(
    store: Store, part: FoldSet, examples: Examples, fold: int
) -> tuple[float, np.ndarray]:
    """Return C and the SCORES of a fold.

    Raises:
        RunError: scores of other videos than those with a vector.
    """
    with store.open_parquet(part.solutions_file(fold)) as file:
        c = file.read(columns=["c"])["c"][0].as_py()
    with store.open_parquet(part.scores_file(fold)) as file:
        table = file.read(columns=["video_id", "score"])
    tested = np.flatnonzero(examples.tested(fold))
    expected_ids = [examples.video_ids[index] for index in tested for _ in examples.classes]
    if table["video_id"].to_pylist() != expected_ids:
        raise RunError(
            f"{store.uri(part.scores_file(fold))}: expected scores of all tested videos with a "
            "vector, got others; delete the folder and run step classify again"
        )
    return c, table["score"].to_numpy().reshape(len(tested), -1)


def _inner_folds(examples: Examples, fold: int) -> np.ndarray:
    """Return `Examples.inner_folds`; where all training videos are of one group, each video counts
    as a group."""
    training = examples.training((fold,))[:, 0]
    if len({examples.groups[index] for index in np.flatnonzero(training)}) < 2:
        examples = dataclasses.replace(examples, groups=examples.video_ids)
    return examples.inner_folds(fold)


def _held_out(
    gram: Gram, examples: Examples, inner: np.ndarray, c: float, settings: Classify
) -> np.ndarray:
    """Return scores [n, K] of the training videos, each by classifiers of the other inner folds."""
    (scores,) = held_out_scores(
        gram,
        torch.from_numpy(examples.training_targets),
        inner,
        (c,),
        loss=settings.loss,
        class_weight=settings.class_weight,
        tolerance=max(settings.tolerance, CHOICE_TOLERANCE),
    )
    return scores


@ray.remote(max_retries=3)
def _fuse(
    store: Store,
    fold_set: FoldSet,
    examples: Examples,
    fold: int,
    meter: Meter,
    *scores: np.ndarray,
) -> None:
    held_out, tested = scores[: len(fold_set.parts)], scores[len(fold_set.parts) :]
    targets = examples.training_targets[_inner_folds(examples, fold) >= 0]
    weights = weights_by_loss([log_losses(part, targets) for part in held_out])
    fused = fuse(tested, weights)
    with meter("write"):
        publish_weights(store, fold_set, fold, weights)
        publish_scores(store, fold_set, examples, fold, fused)
    meter.done({"ok": 1})
