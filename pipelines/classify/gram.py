"""SVMs on the Gram matrix, as Ray tasks.

    ENCODINGS -> blocks of vectors                             `classify_vectors`
    blocks    -> strips of the Gram matrix -> the matrix       object store, for tasks of a node
    matrix    -> C of each fold, where there is a choice
    matrix, blocks -> weights, objectives and scores           some folds and classes each
    -> classifier, SOLUTIONS and SCORES of each fold           one task a fold

Strips and chunks are cut by the sizes of the problem alone, and tasks have one CPU: results do not
depend on the cluster. Objects that are lost with a node are made again by Ray.
"""

import dataclasses
import logging
import time
from dataclasses import dataclass

import numpy as np
import ray
import torch
from ray import ObjectRef
from torch import Tensor

from encoders.scores.metrics import average_precision
from encoders.svm.classifiers import fit_weights
from encoders.svm.columns import Columns, class_weights, one_vs_rest
from encoders.svm.gram import Gram, Strip, block_rows, centre_of, gram_strip, strip_rows
from encoders.svm.inner_folds import held_out_scores
from pipelines.classify import vectors as classify_vectors
from pipelines.classify.examples import Examples, Places, Work
from pipelines.classify.fold_sets import CHOICE_TOLERANCE, FoldSet
from pipelines.classify.publish import Part, Trained, best_c, publish, warn_unsolved
from pipelines.classify.vectors import Vectors, listed, tensor_of
from pipelines.cluster.device import cuda_or_cpu
from pipelines.cluster.meter import Meter
from pipelines.cluster.progress import ProgressLine
from pipelines.run.job import Job
from pipelines.settings.sections import Classify, Cluster
from pipelines.storage.store import Store

log = logging.getLogger(__name__)

COLUMNS = 128
"""Pairs of fold and class that one task solves together."""

Arrays = tuple[np.ndarray, np.ndarray, float]
"""A Gram's fields: arrays in the object store are shared by the tasks of a node, tensors are
copied."""


@dataclass(frozen=True)
class Chunk:
    """Folds, and a range of classes, that one task solves together.

    Not `classes`: cloudpickle would take that for torch.classes, which cannot be pickled.
    """

    folds: tuple[int, ...]
    class_range: slice


@dataclass(frozen=True, eq=False)
class Prepared:
    """The vectors of a fold set, and the Gram matrix of those that train."""

    vectors: Vectors
    gram: ObjectRef


def solve(job: Job, line: ProgressLine, work: Work) -> Prepared:
    """Classify one fold set; return its vectors and their Gram matrix.

    Args:
        line: counts the folds that are finished.

    Raises:
        RunError: a vector is not finite, or C cannot be chosen.
    """
    prepared = prepare(job, line.meter, work)
    train(job, line, work, prepared)
    return prepared


def prepare(job: Job, meter: Meter, work: Work) -> Prepared:
    """Read the vectors of a fold set, compress them if its settings say so, and multiply them.

    Raises:
        RunError: a vector is not finite, or none trains.
    """
    vectors = classify_vectors.read(job, work, meter)
    (training,) = vectors.training
    gram = _gram(training, work.places, meter, device_options(job.config.cluster))
    return Prepared(vectors, gram)


def train(
    job: Job, line: ProgressLine, work: Work, prepared: Prepared, weights: tuple[float, ...] = ()
) -> None:
    """Train and publish the classifiers of a fold set.

    Args:
        weights: of the kernels of a combination's parts, also of those that are left out.

    Raises:
        RunError: C cannot be chosen.
    """
    settings, meter, on = job.config.classify, line.meter, device_options(job.config.cluster)
    fold_set, shared, gram = work.fold_set, work.examples, prepared.gram
    chosen = _choose(gram, work, settings, on)
    parts: dict[int, list[ObjectRef]] = {fold: [] for fold in fold_set.folds}
    for chunk in chunks(fold_set.folds, work.places.num_classes):
        if not set(chunk.folds) & set(fold_set.todo):
            continue
        c = [chosen[fold] for fold in chunk.folds]
        solved = _solve.options(num_returns=len(chunk.folds), **on).remote(
            gram, prepared.vectors, shared, chunk, c, settings, meter
        )
        for fold, part in zip(chunk.folds, listed(solved), strict=True):
            parts[fold].append(part)
    published = []
    for fold in fold_set.todo:
        trained = Trained(fold, chosen[fold], "gram", weights)
        published.append(
            _publish.remote(job.store, fold_set, shared, settings, trained, meter, *parts[fold])
        )
    ray.get(published)
    warn_unsolved(job.store, fold_set, settings.tolerance)


def chunks(folds: tuple[int, ...], num_classes: int) -> list[Chunk]:
    """Return all folds and classes in chunks of about COLUMNS pairs: several folds, or some classes
    of one fold."""
    if num_classes >= COLUMNS:
        starts = range(0, num_classes, COLUMNS)
        return [
            Chunk((fold,), slice(k, min(k + COLUMNS, num_classes)))
            for fold in folds
            for k in starts
        ]
    step = COLUMNS // num_classes
    all_classes = slice(0, num_classes)
    return [Chunk(folds[i : i + step], all_classes) for i in range(0, len(folds), step)]


def device_options(settings: Cluster) -> dict[str, int]:
    """Return the resources of a task that multiplies matrices.

    It asks for no GPU of a node that would be kept or started for it alone.
    """
    has_gpu = ray.cluster_resources().get("GPU") and not settings.grows
    return {"num_gpus": 1} if has_gpu else {}


# --- the matrix --------------------------------------------------------------------------------


def _gram(blocks: list[ObjectRef], places: Places, meter: Meter, on: dict[str, int]) -> ObjectRef:
    """Return the Gram matrix of the blocks, computed strip by strip, as arrays that tasks of a node
    share."""
    size = strip_rows(places.dim)
    strips = [
        _strip.options(**on).remote(blocks, number, number * size, places.num_training, meter)
        for number in range(len(blocks))
    ]
    return _assemble.remote(blocks[:1], strips)


@ray.remote(max_retries=3)
def _strip(
    blocks: list[ObjectRef], number: int, first: int, num_vectors: int, meter: Meter
) -> tuple[int, np.ndarray, np.ndarray]:
    with meter("gram"):
        return _products(blocks, number, first, num_vectors)


def _products(
    blocks: list[ObjectRef], number: int, first: int, num_vectors: int
) -> tuple[int, np.ndarray, np.ndarray]:
    # Ray fetches a reference inside a list only by ray.get: one block is in memory at a time.
    device = cuda_or_cpu()
    later = (tensor_of(ray.get(ref)).to(device) for ref in blocks[number + 1 :])
    rows = tensor_of(ray.get(blocks[number])).to(device)
    strip = gram_strip(rows, later, _centre(blocks), first=first, num_vectors=num_vectors)
    return first, strip.products.cpu().numpy(), strip.cross.cpu().numpy()


def _centre(blocks: list[ObjectRef]) -> Tensor:
    """Return the centre of the vectors. It is the same for all strips, on any machine."""
    block = tensor_of(ray.get(blocks[0]))
    return centre_of(block[: block_rows(block.shape[1])].float()).to(cuda_or_cpu())


@ray.remote(max_retries=3)
def _assemble(blocks: list[ObjectRef], strips: list[ObjectRef]) -> Arrays:
    parts = (ray.get(ref) for ref in strips)
    gram = Gram.of_strips(
        [Strip(first, tensor_of(products), tensor_of(cross)) for first, products, cross in parts],
        _centre(blocks),
    )
    return arrays_of(gram)


def arrays_of(gram: Gram) -> Arrays:
    return gram.centred.numpy(), gram.cross.numpy(), gram.square


def gram_of(arrays: Arrays) -> Gram:
    centred, cross, square = arrays
    return Gram(tensor_of(centred), tensor_of(cross), square)


# --- solutions ---------------------------------------------------------------------------------


def _choose(
    gram: ObjectRef, work: Work, settings: Classify, on: dict[str, int]
) -> dict[int, float]:
    """Return C of each fold: the only value, or the best on held-out parts of the fold's training
    groups.

    Args:
        on: the resources of a task.
    """
    fold_set, values = work.fold_set, tuple(sorted(settings.c))
    if len(values) == 1:
        return dict.fromkeys(fold_set.folds, values[0])
    tasks = {
        fold: [
            _held_out.options(**on).remote(
                gram, work.examples, fold, chunk.class_range, values, settings
            )
            for chunk in chunks((fold,), work.places.num_classes)
        ]
        for fold in fold_set.folds
    }
    chosen = {}
    for fold, parts in tasks.items():
        chosen[fold], words = best_c(values, np.concatenate(ray.get(parts), axis=1))
        log.debug("classify %s fold %d: %s", fold_set.name, fold, words)
    return chosen


@ray.remote(max_retries=3)
def _held_out(
    arrays: Arrays,
    examples: Examples,
    fold: int,
    classes: slice,
    values: tuple[float, ...],
    settings: Classify,
) -> np.ndarray:
    """Return AP [C, k] of some classes on the held-out inner folds."""
    inner, targets = examples.inner_folds(fold), examples.training_targets[:, classes]
    scores = held_out_scores(
        gram_of(arrays).to(cuda_or_cpu()),
        torch.from_numpy(targets),
        inner,
        values,
        loss=settings.loss,
        class_weight=settings.class_weight,
        tolerance=max(settings.tolerance, CHOICE_TOLERANCE),
    )
    return np.array([average_precision(scores_of_c, targets[inner >= 0]) for scores_of_c in scores])


@ray.remote(max_retries=3)
def _solve(
    arrays: Arrays,
    vectors: Vectors,
    examples: Examples,
    chunk: Chunk,
    c: list[float],
    settings: Classify,
    meter: Meter,
) -> list[Part] | Part:
    """Solve a chunk and return one part for each of its folds.

    Args:
        c: of each of these folds.
    """
    with meter("solve"):
        parts = _parts(arrays, vectors, examples, chunk, c, settings)
    return parts if len(parts) > 1 else parts[0]


def _parts(
    arrays: Arrays,
    vectors: Vectors,
    examples: Examples,
    chunk: Chunk,
    c: list[float],
    settings: Classify,
) -> list[Part]:
    began, device = time.monotonic(), cuda_or_cpu()
    columns = _columns(
        torch.from_numpy(examples.training_targets[:, chunk.class_range]),
        torch.from_numpy(examples.training(chunk.folds)),
        torch.tensor(c),
        settings,
    )
    solution = fit_weights(
        gram_of(arrays).to(device),
        vectors.training_rows,
        columns.to(device),
        tolerance=settings.tolerance,
    )
    weights_of, bias_of = solution.weights.cpu().double().T, solution.bias.cpu()
    tested_decisions = [rows.double() @ weights_of + bias_of for rows in vectors.tested_rows()]
    decisions = torch.cat([solution.decisions.cpu(), *tested_decisions]).numpy()
    seconds, size = time.monotonic() - began, chunk.class_range.stop - chunk.class_range.start
    parts = []
    for number, fold in enumerate(chunk.folds):
        columns_of_fold = slice(number * size, (number + 1) * size)
        arrays_of_part = (
            tensor[columns_of_fold].cpu().numpy()
            for tensor in (
                solution.weights,
                solution.bias,
                solution.primal,
                solution.dual,
                solution.rounds,
            )
        )
        weights, bias, primal, dual, rounds = arrays_of_part
        if vectors.weights:
            # Published weights are for vectors of length 1; the solver's vectors have the length
            # sqrt(weight).
            weights = weights * vectors.scales()
        scores = decisions[examples.tested(fold), columns_of_fold]
        parts.append(Part(weights, bias, scores, primal, dual, rounds, seconds))
    return parts


def _columns(targets: Tensor, training: Tensor, c: float | Tensor, settings: Classify) -> Columns:
    weights = class_weights(settings.class_weight, targets, training)
    return one_vs_rest(targets, training, c=c, loss=settings.loss, weights=weights)


@ray.remote(max_retries=3)
def _publish(
    store: Store,
    fold_set: FoldSet,
    examples: Examples,
    settings: Classify,
    trained: Trained,
    meter: Meter,
    *parts: Part,
) -> None:
    with meter("write"):
        publish(store, fold_set, examples, settings, dataclasses.replace(trained, parts=parts))
    meter.done({"ok": 1})
