"""Combinations of results on Gram matrices, as Ray tasks: after the single results, whose matrices and scores they use.

matrices of the parts -> weights of each fold             on its training videos alone, where there is a choice
matrices, weights     -> one matrix -> classifiers, SOLUTIONS, FUSIONS and SCORES, as of a single result
matrices of the parts -> scores of inner folds            late rules
those, SCORES of the parts -> FUSIONS and SCORES          one task a fold
"""

import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import ray
import torch

from encoders.calibration import fit_sigmoid
from encoders.fusion import fuse
from encoders.kernels import kernel_sum
from encoders.nested import (
    held_out_scores,
    log_losses,
    qualities,
    select_parts,
    weights_by_loss,
)
from encoders.svm_gram import Gram
from pipelines import classify_gram
from pipelines.classify_gram import Prepared, Vectors, cuda_or_cpu, device_options, gram_of
from pipelines.classify_results import (
    CHOICE_TOLERANCE,
    Batch,
    Labels,
    Work,
    inner_folds,
    publish_scores,
    publish_weights,
)
from pipelines.combination import chooses, sums_kernels
from pipelines.errors import RunError
from pipelines.layout import Job
from pipelines.meter import Meter
from pipelines.progress import ProgressLine
from pipelines.run_settings import Classify
from pipelines.storage import Store

log = logging.getLogger(__name__)

Arrays = tuple[np.ndarray, np.ndarray, float]


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
    if sums_kernels(work.batch.stream):
        _sum_kernels(job, line, work, [prepared(part) for part in work.parts])
    else:
        _fuse_scores(job, line, work, prepared, scored)


def _check_videos(work: Work) -> None:
    if not ray.get(_same_videos.remote(*(part.labels for part in work.parts))):
        names = ", ".join(part.batch.name for part in work.parts)
        raise RunError(
            f"classify {work.batch.name}: expected vectors of the same videos, got other ones among {names}; "
            "delete their encodings and run it again"
        )


@ray.remote(max_retries=3)
def _same_videos(*labels: Labels) -> bool:
    return all(one.video_ids == labels[0].video_ids for one in labels)


# --- sums of kernels ---------------------------------------------------------------------------


def _sum_kernels(job: Job, line: ProgressLine, work: Work, parts: list[Prepared]) -> None:
    """Folds with equal weights are solved together, on one matrix."""
    batch, by_weights = work.batch, {}
    for fold, weights in _weights(job, work, parts).items():
        by_weights.setdefault(weights, []).append(fold)
    for weights, folds in by_weights.items():
        todo = tuple(fold for fold in batch.todo if fold in folds)
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
            work, batch=dataclasses.replace(batch, folds=tuple(folds), todo=todo)
        )
        classify_gram.train(job, line, own, Prepared(vectors, gram), weights)


def _weights(job: Job, work: Work, parts: list[Prepared]) -> dict[int, tuple[float, ...]]:
    """Weights of the parts for each fold."""
    batch, settings, seed = work.batch, job.config.classify, job.config.run.seed
    if not chooses(batch.stream):
        return dict.fromkeys(batch.folds, (1 / len(parts),) * len(parts))
    on = device_options(job.config.cluster)
    grams = [part.gram for part in parts]
    if batch.stream == "kernel_selected":
        tasks = [
            _select.options(**on).remote(work.labels, (fold, seed), settings, *grams)
            for fold in batch.folds
        ]
        return dict(zip(batch.folds, ray.get(tasks), strict=True))
    found = {
        fold: [_losses.options(**on).remote(work.labels, (fold, seed), settings, g) for g in grams]
        for fold in batch.folds
    }
    return {fold: weights_by_loss(ray.get(tasks)) for fold, tasks in found.items()}


@ray.remote(max_retries=3)
def _losses(
    labels: Labels, fold_and_seed: tuple[int, int], settings: Classify, arrays: Arrays
) -> np.ndarray:
    """A part's log losses [n] on the fold's inner folds, at the least C."""
    inner = _inner_folds(labels, *fold_and_seed)
    gram = gram_of(arrays).to(cuda_or_cpu())
    scores = _held_out(gram, labels, inner, min(settings.c), settings)
    return log_losses(scores, labels.targets[: labels.num_training][inner >= 0])


@ray.remote(max_retries=3)
def _summed(weights: tuple[float, ...], *grams: Arrays) -> Arrays:
    found = kernel_sum([gram_of(arrays) for arrays in grams], weights)
    return found.centred.numpy(), found.cross.numpy(), found.square


@ray.remote(max_retries=3)
def _select(
    labels: Labels, fold_and_seed: tuple[int, int], settings: Classify, *grams: Arrays
) -> tuple[float, ...]:
    """Equal weights of the parts that help on the fold's inner folds, at the least C."""
    matrices = [gram_of(arrays).to(cuda_or_cpu()) for arrays in grams]
    inner = _inner_folds(labels, *fold_and_seed)
    targets = labels.targets[: labels.num_training]

    def quality(chosen: tuple[int, ...]) -> np.ndarray:
        gram = kernel_sum([matrices[s] for s in chosen], [1 / len(chosen)] * len(chosen))
        scores = _held_out(gram, labels, inner, min(settings.c), settings)
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
    settings, seed = job.config.classify, job.config.run.seed
    scores_of = _scores_of.options(num_returns=2, **device_options(job.config.cluster))
    for part in work.parts:
        files = {fold: part.batch.scores_file(fold) for fold in work.batch.todo}
        missing = [fold for fold in files if files[fold] not in scored]
        gram = prepared(part).gram if missing else None
        for fold in missing:
            about = (part.labels, gram, (fold, seed), settings, line.meter)
            scored[files[fold]] = scores_of.remote(job.store, part.batch, *about)
    done = []
    for fold in work.batch.todo:
        scores = [scored[part.batch.scores_file(fold)] for part in work.parts]
        # The fold's own scores come last, and so cannot be taken for those that are chosen by.
        inner, own = zip(*scores, strict=True)
        done.append(
            _fuse.remote(job.store, work.batch, work.labels, (fold, seed), line.meter, *inner, *own)
        )
    ray.get(done)


@ray.remote(max_retries=3)
def _scores_of(
    store: Store,
    part: Batch,
    labels: Labels,
    gram: Arrays,
    fold_and_seed: tuple[int, int],
    settings: Classify,
    meter: Meter,
) -> tuple[np.ndarray, np.ndarray]:
    """A part's scores [n, K] of the training videos, each by classifiers of the other inner folds, and its
    published ones of the fold [tested, K]."""
    fold, _ = fold_and_seed
    with meter("read"):
        c, scores = _published(store, part, labels, fold)
    with meter("solve"):
        inner = _inner_folds(labels, *fold_and_seed)
        held_out = _held_out(gram_of(gram).to(cuda_or_cpu()), labels, inner, c, settings)
    return held_out, scores


def _published(store: Store, part: Batch, labels: Labels, fold: int) -> tuple[float, np.ndarray]:
    """C and SCORES of a fold.

    Raises:
        RunError: scores of other videos than those with a vector.
    """
    with store.open_parquet(part.solutions_file(fold)) as file:
        c = file.read(columns=["c"])["c"][0].as_py()
    with store.open_parquet(part.scores_file(fold)) as file:
        table = file.read(columns=["video_id", "score"])
    tested = np.flatnonzero(labels.tested(fold))
    wanted = [labels.video_ids[place] for place in tested for _ in labels.classes]
    if table["video_id"].to_pylist() != wanted:
        raise RunError(
            f"{store.uri(part.scores_file(fold))}: expected scores of all tested videos with a vector, got others; "
            "delete the folder and run step classify again"
        )
    return c, table["score"].to_numpy().reshape(len(tested), -1)


def _inner_folds(labels: Labels, fold: int, seed: int) -> np.ndarray:
    """As `inner_folds`; of videos where the training videos are of one group."""
    training = labels.training((fold,))[:, 0]
    if len({labels.groups[place] for place in np.flatnonzero(training)}) < 2:
        labels = dataclasses.replace(labels, groups=labels.video_ids)
    return inner_folds(labels, fold, seed)


def _held_out(
    gram: Gram, labels: Labels, inner: np.ndarray, c: float, settings: Classify
) -> np.ndarray:
    """Scores [n, K] of the training videos by classifiers of the other inner folds."""
    (scores,) = held_out_scores(
        gram,
        torch.from_numpy(labels.targets[: labels.num_training]),
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
    batch: Batch,
    labels: Labels,
    fold_and_seed: tuple[int, int],
    meter: Meter,
    *scores: np.ndarray,
) -> None:
    fold, _ = fold_and_seed
    held_out, own = scores[: len(batch.parts)], scores[len(batch.parts) :]
    targets = labels.targets[: labels.num_training][_inner_folds(labels, *fold_and_seed) >= 0]
    if batch.stream == "calibrated":
        sigmoids = tuple(fit_sigmoid(part, targets) for part in held_out)
        own = [sigmoid.probabilities(part) for sigmoid, part in zip(sigmoids, own, strict=True)]
        weights = (1 / len(own),) * len(own)
    else:
        sigmoids = ()
        weights = weights_by_loss([log_losses(part, targets) for part in held_out])
    fused = fuse(own, weights)
    with meter("write"):
        publish_weights(store, batch, fold, weights, sigmoids)
        publish_scores(store, batch, labels, fold, fused)
    meter.done({"ok": 1})
