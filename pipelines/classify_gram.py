"""SVMs on the Gram matrix, as Ray tasks.

    ENCODINGS -> blocks of vectors in order of video_id        object store, as they are stored
    blocks    -> strips of the Gram matrix -> the matrix       object store, shared by the tasks of a node
    matrix    -> C of each fold, where there is a choice
    matrix, blocks -> weights, objectives and scores           some folds and classes each
    -> classifier, SOLUTIONS and SCORES of each fold           one task a fold

Blocks, strips and parts are cut by the sizes of the problem alone, and tasks have one CPU: results do not
depend on the cluster. Objects that are lost with a node are made again by Ray.
"""

import logging
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import ray
import torch
from ray import ObjectRef
from torch import Tensor

from encoders.compress import fit_compression
from encoders.kernels import joined
from encoders.metrics import average_precision
from encoders.nested import held_out_scores
from encoders.svm import fit_weights
from encoders.svm_columns import Columns, balanced, one_vs_rest
from encoders.svm_gram import Gram, Strip, block_rows, centre_of, gram_strip, strip_rows
from pipelines.classify_results import (
    CHOICE_TOLERANCE,
    Batch,
    Labels,
    Part,
    Places,
    Trained,
    Work,
    best_c,
    inner_folds,
    publish,
    read_vectors,
    warn_unsolved,
)
from pipelines.device import cuda_or_cpu
from pipelines.errors import RunError
from pipelines.layout import Job
from pipelines.meter import Meter
from pipelines.progress import ProgressLine
from pipelines.run_settings import Classify, Cluster
from pipelines.storage import Store

log = logging.getLogger(__name__)

COLUMNS = 128
"""Pairs of fold and class that one task solves together."""

READ_BYTES = 2**25
"""Of vectors that one task reads. Ray keeps what a task returns in the driver where it is less than 100 kB, so a task for each
file of short vectors would bring them all there."""

FILES_AT_ONCE = 8
"""Threads of a task that reads files: an object store takes as long for one as for several."""


@dataclass(frozen=True)
class Chunk:
    """Folds, and a range of classes, that one task solves together.

    Not `classes`: cloudpickle would take that for torch.classes, which cannot be pickled.
    """

    folds: tuple[int, ...]
    class_range: slice


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of some parts in the object store: blocks of those that train, and of those that are only tested.

    Attributes:
        weights: of the parts' kernels, where there are several; their vectors are then divided by their lengths,
            multiplied by sqrt(weight), and put one after the other.
    """

    training: tuple[list[ObjectRef], ...]
    tested: tuple[list[ObjectRef], ...]
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Prepared:
    """The vectors of a batch, and the Gram matrix of those that train."""

    vectors: Vectors
    gram: ObjectRef


def solve(job: Job, line: ProgressLine, work: Work) -> Prepared:
    """Classifies one batch; returns what its Gram matrix is of.

    Args:
        line: counts the folds that are finished.

    Raises:
        RunError: a vector is not finite, or C cannot be chosen.
    """
    prepared = prepare(job, line.meter, work)
    train(job, line, work, prepared)
    return prepared


def prepare(job: Job, meter: Meter, work: Work) -> Prepared:
    """Reads the vectors of a batch, compresses them where it says so, and multiplies them.

    Raises:
        RunError: a vector is not finite.
    """
    training, tested = _blocks(job.store, work, meter)
    if work.batch.compress.kind != "none":
        training, tested = _compressed(job, work.batch, training, tested)
    gram = _gram(training, work.places, meter, device_options(job.config.cluster))
    return Prepared(Vectors((training,), (tested,)), gram)


def train(
    job: Job, line: ProgressLine, work: Work, prepared: Prepared, weights: tuple[float, ...] = ()
) -> None:
    """Trains and publishes the classifiers of a batch.

    Args:
        weights: of the kernels of a combination's parts, also of those that are left out.

    Raises:
        RunError: C cannot be chosen.
    """
    settings, meter, on = job.config.classify, line.meter, device_options(job.config.cluster)
    batch, shared, gram = work.batch, work.labels, prepared.gram
    chosen = _choose(gram, work, (settings, job.config.run.seed), on)
    parts: dict[int, list[ObjectRef]] = {fold: [] for fold in batch.folds}
    for chunk in chunks(batch.folds, work.places.num_classes):
        if not set(chunk.folds) & set(batch.todo):
            continue
        c = [chosen[fold] for fold in chunk.folds]
        solved = _solve.options(num_returns=len(chunk.folds), **on).remote(
            gram, prepared.vectors, shared, (chunk, c), settings, meter
        )
        for fold, part in zip(chunk.folds, _listed(solved), strict=True):
            parts[fold].append(part)
    published = [
        _publish.remote(
            job.store, batch, shared, settings, (fold, chosen[fold], weights), meter, *parts[fold]
        )
        for fold in batch.todo
    ]
    ray.get(published)
    warn_unsolved(job.store, batch, settings.tolerance)


def chunks(folds: tuple[int, ...], num_classes: int) -> list[Chunk]:
    """All folds and classes, in chunks of about COLUMNS pairs: of several folds, or of some classes of one."""
    if num_classes >= COLUMNS:
        starts = range(0, num_classes, COLUMNS)
        return [
            Chunk((fold,), slice(k, min(k + COLUMNS, num_classes)))
            for fold in folds
            for k in starts
        ]
    step = COLUMNS // num_classes
    every = slice(0, num_classes)
    return [Chunk(folds[i : i + step], every) for i in range(0, len(folds), step)]


def device_options(settings: Cluster) -> dict[str, int]:
    """The resources of a task that multiplies matrices: no GPU of a node that would be kept or started for it alone."""
    has_gpu = ray.cluster_resources().get("GPU") and not settings.grows
    return {"num_gpus": 1} if has_gpu else {}


def _listed(returned: ObjectRef | list[ObjectRef]) -> list[ObjectRef]:
    """Ray returns one reference, not a list of one."""
    return returned if isinstance(returned, list) else [returned]


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor on an array of the object store, which is read-only; nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(array)


# --- blocks of vectors -------------------------------------------------------------------------


def _blocks(store: Store, work: Work, meter: Meter) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """Blocks of the training vectors, and of those that are only tested, each an array [n, D].

    Raises:
        RunError: a vector is not finite.
    """
    places = work.places
    size, total = strip_rows(places.dim), len(places.row)
    starts = [*range(0, places.num_training, size), *range(places.num_training, total, size)]
    block = np.searchsorted(starts, np.arange(total), side="right") - 1
    pieces: list[list[tuple[np.ndarray, ObjectRef]]] = [[] for _ in starts]
    files = max(1, int(READ_BYTES * len(places.files) / max(1, 4 * places.dim * total)))
    for first in range(0, len(places.files), files):
        names = places.files[first : first + files]
        mine = np.flatnonzero((places.file >= first) & (places.file < first + files))
        touched = np.unique(block[mine])
        groups = [mine[block[mine] == b] for b in touched]
        if groups:
            rows = [(places.file[group] - first, places.row[group]) for group in groups]
            parts = _read.options(num_returns=len(rows)).remote(store, names, rows, meter)
            for b, place, part in zip(touched, groups, _listed(parts), strict=True):
                pieces[b].append((place - starts[b], part))
    joined = [
        _join.options(num_returns=2).remote([place for place, _ in piece], *(p for _, p in piece))
        for piece in pieces
    ]
    bad = [
        start + place
        for start, (_, odd) in zip(starts, joined, strict=True)
        for place in ray.get(odd)
    ]
    if bad:
        video_ids = ray.get(work.labels).video_ids
        raise RunError(
            f"classify: expected finite vectors, got NaN or infinity in those of {len(bad)} videos, such as "
            f"{', '.join(video_ids[place] for place in bad[:5])}; delete their encodings, and run it again"
        )
    refs = [ref for ref, _ in joined]
    first_tested = int(np.searchsorted(starts, places.num_training))
    return refs[:first_tested], refs[first_tested:]


@ray.remote(max_retries=3)
def _read(
    store: Store, names: list[str], rows: list[tuple[np.ndarray, np.ndarray]], meter: Meter
) -> list[np.ndarray] | np.ndarray:
    """The vectors of some rows of some files, by the block they go to.

    Args:
        rows: for each block, which file and which row of it.
    """
    file, row = (np.concatenate(part) for part in zip(*rows, strict=True))
    wanted = [np.flatnonzero(file == number) for number in range(len(names))]

    def read(number: int) -> np.ndarray:
        return read_vectors(store, names[number], row[wanted[number]])

    with meter("read"), ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        touched = [number for number, places in enumerate(wanted) if len(places)]
        found = np.concatenate(list(pool.map(read, touched)))
    vectors = np.empty_like(found)
    vectors[np.concatenate(wanted)] = found
    parts = np.split(vectors, np.cumsum([len(file) for file, _ in rows])[:-1])
    return parts if len(parts) > 1 else parts[0]


@ray.remote(max_retries=3)
def _join(places: list[np.ndarray], *parts: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """A block [n, D], and the places of vectors in it that are not finite."""
    block = np.empty((sum(map(len, parts)), parts[0].shape[1]), parts[0].dtype)
    for place, part in zip(places, parts, strict=True):
        block[place] = part
    return block, np.flatnonzero(~np.isfinite(block).all(1)).tolist()


def _compressed(
    job: Job, batch: Batch, training: list[ObjectRef], tested: list[ObjectRef]
) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """The blocks after a compression that is fitted on the training vectors of the batch's one fold."""
    every = [*training, *tested]
    made = _compress.options(num_returns=len(every)).remote(
        job.store, batch, job.config.run.seed, len(training), *every
    )
    refs = _listed(made)
    return refs[: len(training)], refs[len(training) :]


@ray.remote(max_retries=3)
def _compress(
    store: Store, batch: Batch, seed: int, num_training: int, *blocks: np.ndarray
) -> list[np.ndarray] | np.ndarray:
    vectors = torch.cat([_tensor(block).float() for block in blocks[:num_training]])
    compression = fit_compression(vectors, batch.compress, seed)
    (fold,) = batch.folds
    store.publish(f"{batch.classifiers}/compression-{fold:05d}.safetensors", compression.to_bytes())
    made = [compression.transform(_tensor(block)).float().numpy() for block in blocks]
    return made if len(made) > 1 else made[0]


# --- the matrix --------------------------------------------------------------------------------


def _gram(blocks: list[ObjectRef], places: Places, meter: Meter, on: dict[str, int]) -> ObjectRef:
    """The Gram matrix of the blocks, a strip for each: arrays, which tasks of a node share."""
    if not blocks:
        raise RunError(
            "classify: expected labelled videos to train with, got none that has a vector; look into "
            "FAILURES"
        )
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
    # One block at a time: references in a list are not fetched before they are asked for.
    device = cuda_or_cpu()
    later = (_tensor(ray.get(ref)).to(device) for ref in blocks[number + 1 :])
    rows = _tensor(ray.get(blocks[number])).to(device)
    strip = gram_strip(rows, later, _centre(blocks), first=first, num_vectors=num_vectors)
    return first, strip.products.cpu().numpy(), strip.cross.cpu().numpy()


def _centre(blocks: list[ObjectRef]) -> Tensor:
    """The same for all strips, on any machine."""
    block = _tensor(ray.get(blocks[0]))
    return centre_of(block[: block_rows(block.shape[1])].float()).to(cuda_or_cpu())


@ray.remote(max_retries=3)
def _assemble(
    blocks: list[ObjectRef], strips: list[ObjectRef]
) -> tuple[np.ndarray, np.ndarray, float]:
    parts = (ray.get(ref) for ref in strips)
    gram = Gram.of_strips(
        [Strip(first, _tensor(products), _tensor(cross)) for first, products, cross in parts],
        _centre(blocks),
    )
    return gram.centred.numpy(), gram.cross.numpy(), gram.square


# --- solutions ---------------------------------------------------------------------------------


def _choose(
    gram: ObjectRef, work: Work, how: tuple[Classify, int], on: dict[str, int]
) -> dict[int, float]:
    """C of each fold: the one there is, or the best on held-out parts of the fold's training groups.

    Args:
        how: settings and seed. on: the resources of a task.
    """
    (settings, seed), batch = how, work.batch
    values = tuple(sorted(settings.c))
    if len(values) == 1:
        return dict.fromkeys(batch.folds, values[0])
    tasks = {
        fold: [
            _held_out.options(**on).remote(
                gram, work.labels, (fold, seed), chunk.class_range, values, settings
            )
            for chunk in chunks((fold,), work.places.num_classes)
        ]
        for fold in batch.folds
    }
    chosen = {}
    for fold, parts in tasks.items():
        chosen[fold], words = best_c(values, np.concatenate(ray.get(parts), axis=1))
        log.info("classify %s fold %d: %s", batch.name, fold, words)
    return chosen


@ray.remote(max_retries=3)
def _held_out(
    arrays: tuple[np.ndarray, np.ndarray, float],
    labels: Labels,
    fold_and_seed: tuple[int, int],
    classes: slice,
    values: tuple[float, ...],
    settings: Classify,
) -> np.ndarray:
    """AP [C, k] of some classes on the inner folds that were held out."""
    device, inner = cuda_or_cpu(), inner_folds(labels, *fold_and_seed)
    targets = labels.targets[: labels.num_training, classes]
    scores = held_out_scores(
        gram_of(arrays).to(device),
        torch.from_numpy(targets),
        inner,
        values,
        loss=settings.loss,
        class_weight=settings.class_weight,
        tolerance=max(settings.tolerance, CHOICE_TOLERANCE),
    )
    return np.array([average_precision(found, targets[inner >= 0]) for found in scores])


@ray.remote(max_retries=3)
def _solve(
    arrays: tuple[np.ndarray, np.ndarray, float],
    vectors: Vectors,
    labels: Labels,
    chunk_and_c: tuple[Chunk, list[float]],
    settings: Classify,
    meter: Meter,
) -> list[Part] | Part:
    """A part of each fold of the chunk."""
    with meter("solve"):
        parts = _parts(arrays, vectors, labels, *chunk_and_c, settings)
    return parts if len(parts) > 1 else parts[0]


def _parts(
    arrays: tuple[np.ndarray, np.ndarray, float],
    vectors: Vectors,
    labels: Labels,
    chunk: Chunk,
    c: list[float],
    settings: Classify,
) -> list[Part]:
    began, device = time.monotonic(), cuda_or_cpu()
    columns = _columns(
        torch.from_numpy(labels.targets[: labels.num_training, chunk.class_range]),
        torch.from_numpy(labels.training(chunk.folds)),
        torch.tensor(c),
        settings,
    )
    found = fit_weights(
        gram_of(arrays).to(device),
        lambda: _rows(vectors.training, vectors.weights),
        columns.to(device),
        tolerance=settings.tolerance,
    )
    tested = _rows(vectors.tested, vectors.weights)
    others = [part.double() @ found.weights.cpu().double().T for part in tested]
    others = [part + found.bias.cpu() for part in others]
    decisions = torch.cat([found.decisions.cpu(), *others]).numpy()
    seconds, size = time.monotonic() - began, chunk.class_range.stop - chunk.class_range.start
    parts = []
    for number, fold in enumerate(chunk.folds):
        own = slice(number * size, (number + 1) * size)
        arrays_of_part = (
            tensor[own].cpu().numpy()
            for tensor in (found.weights, found.bias, found.primal, found.dual, found.rounds)
        )
        weights, bias, primal, dual, rounds = arrays_of_part
        if vectors.weights:
            # Those that are published are for vectors of length 1.
            weights = weights * _scales(vectors.training, vectors.weights)
        scores = decisions[labels.tested(fold), own]
        parts.append(Part(weights, bias, scores, primal, dual, rounds, seconds))
    return parts


def _rows(parts: tuple[list[ObjectRef], ...], weights: tuple[float, ...]) -> Iterator[Tensor]:
    """All vectors of some parts, in pieces of some rows."""
    if not weights:
        yield from _vectors(parts[0])
        return
    if not parts[0]:
        return
    scales = torch.from_numpy(_scales(parts, weights))
    yield from (piece.mul_(scales) for piece in joined([_vectors(blocks) for blocks in parts]))


def _scales(parts: tuple[list[ObjectRef], ...], weights: tuple[float, ...]) -> np.ndarray:
    """[D] float32: sqrt(weight) for each value of the concatenated vectors."""
    widths = [ray.get(blocks[0]).shape[1] for blocks in parts]
    return np.repeat(np.sqrt(weights), widths).astype(np.float32)


def _vectors(blocks: list[ObjectRef]) -> Iterator[Tensor]:
    """All vectors of some blocks, in pieces."""
    for ref in blocks:
        block = _tensor(ray.get(ref))
        yield from block.split(block_rows(block.shape[1]))


def gram_of(arrays: tuple[np.ndarray, np.ndarray, float]) -> Gram:
    centred, cross, square = arrays
    return Gram(_tensor(centred), _tensor(cross), square)


def _columns(targets: Tensor, training: Tensor, c: float | Tensor, settings: Classify) -> Columns:
    weights = balanced(targets, training) if settings.class_weight == "balanced" else None
    return one_vs_rest(targets, training, c=c, loss=settings.loss, weights=weights)


@ray.remote(max_retries=3)
def _publish(
    store: Store,
    batch: Batch,
    labels: Labels,
    settings: Classify,
    how: tuple[int, float, tuple[float, ...]],
    meter: Meter,
    *parts: Part,
) -> None:
    fold, c, weights = how
    with meter("write"):
        trained = Trained(fold, c, "gram", list(parts), weights)
        publish(store, batch, labels, settings, trained)
    meter.done({"ok": 1})
