"""Vectors of ENCODINGS as blocks in the object store, by Ray tasks.

Blocks are in order of video_id and cut by the sizes of the problem alone: results do not depend on
how vectors were dealt into files.
"""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

import numpy as np
import ray
import torch
from ray import ObjectRef
from torch import Tensor

from encoders.codebooks.pca import Pca
from encoders.encodings.compress import Compression, fit_bytes, fit_compression
from encoders.encodings.random_maps import SeededMaclaurin
from encoders.svm.gram import block_rows, strip_rows
from encoders.svm.kernel_sum import joined
from pipelines.classify.examples import Work, read_vectors
from pipelines.classify.fold_sets import FoldSet
from pipelines.cluster.meter import Meter
from pipelines.cluster.pools import memory_options
from pipelines.errors import RunError
from pipelines.run.job import Job
from pipelines.storage.store import Store

READ_TASK_BYTES = 2**25
"""Bytes of vectors that one task reads. Ray keeps what a task returns in the driver where it is
less than 100 kB, so a task for each file of short vectors would bring them all there."""

FILES_AT_ONCE = 8
"""Threads of a task that reads files: an object store takes as long for one as for several."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of some parts in the object store.

    Attributes:
        training: of each part the blocks, arrays [n, D], of the videos that train.
        tested: the same of those that are only tested.
        weights: of the parts' kernels, where there are several; their vectors are then divided by
            their lengths, multiplied by sqrt(weight), and put one after the other.
    """

    training: tuple[list[ObjectRef], ...]
    tested: tuple[list[ObjectRef], ...]
    weights: tuple[float, ...] = ()

    def training_rows(self) -> Iterator[Tensor]:
        """Yield the training vectors in pieces [.., D]."""
        return self._rows(self.training)

    def tested_rows(self) -> Iterator[Tensor]:
        """Yield the vectors that are only tested in pieces [.., D]."""
        return self._rows(self.tested)

    def scales(self) -> np.ndarray:
        """Return sqrt(weight) for each value of the concatenated vectors, [D] float32."""
        widths = [ray.get(blocks[0]).shape[1] for blocks in self.training]
        return np.repeat(np.sqrt(self.weights), widths).astype(np.float32)

    def _rows(self, parts: tuple[list[ObjectRef], ...]) -> Iterator[Tensor]:
        if not self.weights:
            return _pieces(parts[0])
        scales = torch.from_numpy(self.scales())
        return (piece.mul_(scales) for piece in joined([_pieces(blocks) for blocks in parts]))


def _pieces(blocks: list[ObjectRef]) -> Iterator[Tensor]:
    for ref in blocks:
        block = tensor_of(ray.get(ref))
        yield from block.split(block_rows(block.shape[1]))


def read(job: Job, work: Work, meter: Meter) -> Vectors:
    """Read the vectors of a fold set, and compress them if its settings say so.

    Raises:
        RunError: a vector is not finite, or none trains.
    """
    training, tested = _blocks(job.store, work, meter)
    if not training:
        raise RunError(
            "classify: expected labelled videos to train with, got none that has a vector; look "
            "into FAILURES"
        )
    if work.fold_set.compress.kind != "none":
        training, tested = _compressed(job, work, training, tested)
    return Vectors((training,), (tested,))


def _blocks(store: Store, work: Work, meter: Meter) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """Return blocks of the training vectors, and of those that are only tested.

    Raises:
        RunError: a vector is not finite.
    """
    places = work.places
    size, total = strip_rows(places.dim), len(places.row)
    starts = [*range(0, places.num_training, size), *range(places.num_training, total, size)]
    block = np.searchsorted(starts, np.arange(total), side="right") - 1
    pieces: list[list[tuple[np.ndarray, ObjectRef]]] = [[] for _ in starts]
    files = max(1, int(READ_TASK_BYTES * len(places.files) / max(1, 4 * places.dim * total)))
    for first in range(0, len(places.files), files):
        names = places.files[first : first + files]
        chunk = np.flatnonzero((places.file >= first) & (places.file < first + files))
        touched = np.unique(block[chunk])
        groups = [chunk[block[chunk] == b] for b in touched]
        if groups:
            rows = [(places.file[group] - first, places.row[group]) for group in groups]
            parts = _read.options(num_returns=len(rows)).remote(store, names, rows, meter)
            for b, group, part in zip(touched, groups, listed(parts), strict=True):
                pieces[b].append((group - starts[b], part))
    join = _join.options(num_returns=2)
    joined_blocks = [
        cast(list[ObjectRef], join.remote([rows for rows, _ in piece], *(p for _, p in piece)))
        for piece in pieces
    ]
    bad = [
        start + row
        for start, (_, odd) in zip(starts, joined_blocks, strict=True)
        for row in ray.get(odd)
    ]
    if bad:
        video_ids = ray.get(work.examples).video_ids
        raise RunError(
            f"classify: expected finite vectors, got NaN or infinity in those of {len(bad)} "
            f"videos, such as {', '.join(video_ids[row] for row in bad[:5])}; delete their "
            "encodings, and run it again"
        )
    refs = [ref for ref, _ in joined_blocks]
    first_tested = int(np.searchsorted(starts, places.num_training))
    return refs[:first_tested], refs[first_tested:]


@ray.remote(max_retries=3)
def _read(
    store: Store, names: list[str], rows: list[tuple[np.ndarray, np.ndarray]], meter: Meter
) -> list[np.ndarray] | np.ndarray:
    """Return the vectors of some rows of some files, split by their block.

    Args:
        rows: for each block, which file and which row of it.
    """
    file, row = (np.concatenate(part) for part in zip(*rows, strict=True))
    of_file = [np.flatnonzero(file == number) for number in range(len(names))]

    def read(number: int) -> np.ndarray:
        return read_vectors(store, names[number], row[of_file[number]])

    with meter("read"), ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        touched = [number for number, places in enumerate(of_file) if len(places)]
        unsorted = np.concatenate(list(pool.map(read, touched)))
    vectors = np.empty_like(unsorted)
    vectors[np.concatenate(of_file)] = unsorted
    parts = np.split(vectors, np.cumsum([len(file) for file, _ in rows])[:-1])
    return parts if len(parts) > 1 else parts[0]


@ray.remote(max_retries=3)
def _join(rows: list[np.ndarray], *parts: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return a block [n, D], and the rows in it that are not finite."""
    block = np.empty((sum(map(len, parts)), parts[0].shape[1]), parts[0].dtype)
    for row, part in zip(rows, parts, strict=True):
        block[row] = part
    return block, np.flatnonzero(~np.isfinite(block).all(1)).tolist()


_Fitted = SeededMaclaurin | tuple[np.ndarray, ...]
"""Parts of a compression; of a PCA arrays, which the tasks of a node share in the object
store."""


def _compressed(
    job: Job, work: Work, training: list[ObjectRef], tested: list[ObjectRef]
) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """Return the blocks compressed by a map fitted on the training vectors of the set's only
    fold."""
    settings, places = work.fold_set.compress, work.places
    needed = training if settings.kind == "pca" else training[:1]
    memory = memory_options(fit_bytes(places.num_training, places.dim, settings))
    fitted = _fit.options(**memory).remote(job.store, work.fold_set, job.config.run.seed, *needed)
    refs = [_transform.remote(fitted, block) for block in (*training, *tested)]
    return refs[: len(training)], refs[len(training) :]


@ray.remote(max_retries=3)
def _fit(store: Store, fold_set: FoldSet, seed: int, *blocks: np.ndarray) -> _Fitted:
    compression = fit_compression(list(map(tensor_of, blocks)), fold_set.compress, seed)
    (fold,) = fold_set.folds
    if fold_set.keeps:
        store.publish(fold_set.compression_file(fold), compression.to_bytes())
    fitted = compression.map
    if isinstance(fitted, SeededMaclaurin):
        return fitted
    return tuple(tensor.numpy() for tensor in (fitted.mean, fitted.components, fitted.scale))


@ray.remote(max_retries=3)
def _transform(fitted: _Fitted, block: np.ndarray) -> np.ndarray:
    map_ = fitted if isinstance(fitted, SeededMaclaurin) else Pca(*map(tensor_of, fitted))
    return Compression(map_).transform(tensor_of(block)).float().numpy()


def listed(returned: ObjectRef | list[ObjectRef]) -> list[ObjectRef]:
    """Return a list of references; Ray returns a bare reference in place of a list of one."""
    return returned if isinstance(returned, list) else [returned]


def tensor_of(array: np.ndarray) -> Tensor:
    """Return a tensor on a read-only array of the object store; nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(array)
