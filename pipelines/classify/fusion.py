"""Combinations of results on Gram matrices, as Ray tasks: after the single results, whose matrices and scores they use.

matrices of the parts -> weights of each fold             on its training videos alone, where there is a choice
matrices, weights     -> one matrix -> classifiers, SOLUTIONS, FUSIONS and SCORES, as of a single result
matrices of the parts -> scores of inner folds            late rules
those, SCORES of the parts -> FUSIONS and SCORES          one task a fold
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import ray
import torch

from encoders.scores.calibration import fit_sigmoid
from encoders.scores.fusion import fuse
from encoders.svm.gram import Gram
from encoders.svm.inner_folds import (
    held_out_scores,
    log_losses,
    qualities,
    select_parts,
    weights_by_loss,
)
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
from pipelines.run.combination import chooses, sums_kernels
from pipelines.run.job import Job
from pipelines.settings.sections import Classify
from pipelines.storage.store import Store

Scored = dict[str, list[ray.ObjectRef]]
"""What `_scores_of` gives, by the fold's file of SCORES: several combinations have the same parts."""


def solve(
    job: Job,
    line: ProgressLine,
    work: Work,
    prepared: Callable[[Work], Prepared],
    scored: Scored,
) -> None:
    """Makes one combination's results.

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
            f"classify {work.fold_set.name}: expected vectors of the same videos, got other ones among {names}; "
            "delete their encodings and run it again"
        )


@ray.remote(max_retries=3)
def _same_videos(*examples: Examples) -> bool:
    return all(one.video_ids == examples[0].video_ids for one in examples)


# --- sums of kernels ---------------------------------------------------------------------------


def _sum_kernels(job: Job, line: ProgressLine, work: Work, parts: list[Prepared]) -> None:
    """Folds with equal weights are solved together, on one matrix."""
    fold_set, by_weights = work.fold_set, {}
    for fold, weights in _weights(job, work, parts).items():
        by_weights.setdefault(weights, []).append(fold)
    for weights, folds in by_weights.items():
        todo = tuple(fold for fold in fold_set.todo if fold in folds)
        if not todo:
            continue
        used = [part for part, weight in zip(parts, weights, strict=True) if weight > 0]
        shares = tuple(weight for weight in weights if weight > 0)
        gram = _summed.remote(shares, *(part.gram for part in used))
        vectors = Vectors(
            tuple(part.vectors.training[0] for part in used),
            tuple(part.vectors.tested[0] for part in used),
            shares,
        )
        own = dataclasses.replace(
            work, fold_set=dataclasses.replace(fold_set, folds=tuple(folds), todo=todo)
        )
        classify_gram.train(job, line, own, Prepared(vectors, gram), weights)


def _weights(job: Job, work: Work, parts: list[Prepared]) -> dict[int, tuple[float, ...]]:
    """Weights of the parts for each fold."""
    fold_set, settings = work.fold_set, job.config.classify
    if not chooses(fold_set.stream):
        return dict.fromkeys(fold_set.folds, (1 / len(parts),) * len(parts))
    on = device_options(job.config.cluster)
    grams = [part.gram for part in parts]
    if fold_set.stream == "kernel_selected":
        tasks = [
            _select.options(**on).remote(work.examples, fold, settings, *grams)
            for fold in fold_set.folds
        ]
        return dict(zip(fold_set.folds, ray.get(tasks), strict=True))
    found = {
        fold: [_losses.options(**on).remote(work.examples, fold, settings, g) for g in grams]
        for fold in fold_set.folds
    }
    return {fold: weights_by_loss(ray.get(tasks)) for fold, tasks in found.items()}


@ray.remote(max_retries=3)
def _losses(examples: Examples, fold: int, settings: Classify, arrays: Arrays) -> np.ndarray:
    """A part's log losses [n] on the fold's inner folds, at the least C."""
    inner = _inner_folds(examples, fold)
    gram = gram_of(arrays).to(cuda_or_cpu())
    scores = _held_out(gram, examples, inner, min(settings.c), settings)
    return log_losses(scores, examples.training_targets[inner >= 0])


@ray.remote(max_retries=3)
def _summed(weights: tuple[float, ...], *grams: Arrays) -> Arrays:
    found = kernel_sum([gram_of(arrays) for arrays in grams], weights)
    return arrays_of(found)


@ray.remote(max_retries=3)
def _select(examples: Examples, fold: int, settings: Classify, *grams: Arrays) -> tuple[float, ...]:
    """Equal weights of the parts that help on the fold's inner folds, at the least C."""
    matrices = [gram_of(arrays).to(cuda_or_cpu()) for arrays in grams]
    inner = _inner_folds(examples, fold)
    targets = examples.training_targets

    def quality(chosen: tuple[int, ...]) -> np.ndarray:
        gram = kernel_sum([matrices[s] for s in chosen], [1 / len(chosen)] * len(chosen))
        scores = _held_out(gram, examples, inner, min(settings.c), settings)
        return qualities(scores, targets[inner >= 0])

    return equal_weights(select_parts(quality, len(grams)), len(grams))


def equal_weights(chosen: tuple[int, ...], num_parts: int) -> tuple[float, ...]:
    """[M] that sum to 1: of the chosen parts alike, 0 of the others."""
    return tuple(1 / len(chosen) if part in chosen else 0.0 for part in range(num_parts))


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
        gram = prepared(part).gram if missing else None
        for fold in missing:
            about = (part.examples, gram, fold, settings, line.meter)
            scored[files[fold]] = scores_of.remote(job.store, part.fold_set, *about)
    done = []
    for fold in work.fold_set.todo:
        scores = [scored[part.fold_set.scores_file(fold)] for part in work.parts]
        # Weights are chosen by the inner scores alone; the fold's own come behind them.
        inner, own = zip(*scores, strict=True)
        done.append(
            _fuse.remote(job.store, work.fold_set, work.examples, fold, line.meter, *inner, *own)
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
    """A part's scores [n, K] of the training videos, each by classifiers of the other inner folds, and its
    published ones of the fold [tested, K]."""
    with meter("read"):
        c, scores = _published(store, part, examples, fold)
    with meter("solve"):
        inner = _inner_folds(examples, fold)
        held_out = _held_out(gram_of(gram).to(cuda_or_cpu()), examples, inner, c, settings)
    return held_out, scores


def _published(
    store: Store, part: FoldSet, examples: Examples, fold: int
) -> tuple[float, np.ndarray]:
    """C and SCORES of a fold.

    Raises:
        RunError: scores of other videos than those with a vector.
    """
    with store.open_parquet(part.solutions_file(fold)) as file:
        c = file.read(columns=["c"])["c"][0].as_py()
    with store.open_parquet(part.scores_file(fold)) as file:
        table = file.read(columns=["video_id", "score"])
    tested = np.flatnonzero(examples.tested(fold))
    wanted = [examples.video_ids[place] for place in tested for _ in examples.classes]
    if table["video_id"].to_pylist() != wanted:
        raise RunError(
            f"{store.uri(part.scores_file(fold))}: expected scores of all tested videos with a vector, got others; "
            "delete the folder and run step classify again"
        )
    return c, table["score"].to_numpy().reshape(len(tested), -1)


def _inner_folds(examples: Examples, fold: int) -> np.ndarray:
    """As `Examples.inner_folds`, but each video counts as a group where the training videos are of one."""
    training = examples.training((fold,))[:, 0]
    if len({examples.groups[place] for place in np.flatnonzero(training)}) < 2:
        examples = dataclasses.replace(examples, groups=examples.video_ids)
    return examples.inner_folds(fold)


def _held_out(
    gram: Gram, examples: Examples, inner: np.ndarray, c: float, settings: Classify
) -> np.ndarray:
    """Scores [n, K] of the training videos by classifiers of the other inner folds."""
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
    held_out, own = scores[: len(fold_set.parts)], scores[len(fold_set.parts) :]
    targets = examples.training_targets[_inner_folds(examples, fold) >= 0]
    if fold_set.stream == "calibrated":
        sigmoids = tuple(fit_sigmoid(part, targets) for part in held_out)
        own = [sigmoid.probabilities(part) for sigmoid, part in zip(sigmoids, own, strict=True)]
        weights = (1 / len(own),) * len(own)
    else:
        sigmoids = ()
        weights = weights_by_loss([log_losses(part, targets) for part in held_out])
    fused = fuse(own, weights)
    with meter("write"):
        publish_weights(store, fold_set, fold, weights, sigmoids)
        publish_scores(store, fold_set, examples, fold, fused)
    meter.done({"ok": 1})
