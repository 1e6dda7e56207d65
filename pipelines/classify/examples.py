"""Training and test examples of a fold: vectors, and the classes that they are in."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray import ObjectRef

from pipelines.classify.fold_sets import INNER_FOLDS, FoldSet
from pipelines.errors import RunError
from pipelines.index.folds import group_folds
from pipelines.index.labels import target_matrix
from pipelines.storage.columns import vectors_from_arrow
from pipelines.storage.store import Store


@dataclass(frozen=True, eq=False)
class Places:
    """The position of each vector of a fold set in its files: the part of `Examples` that the
    driver keeps.

    Attributes:
        num_training: how many of the videos train.
        files: of ENCODINGS. file: [N], and row: [N], where each vector is. dim: D.
    """

    num_training: int
    num_classes: int
    files: list[str]
    file: np.ndarray
    row: np.ndarray
    dim: int


@dataclass(frozen=True, eq=False)
class Work:
    """A fold set with its Examples in the object store and its places.

    A combination has those of its first part.
    """

    fold_set: FoldSet
    examples: ObjectRef
    places: Places
    parts: tuple["Work", ...] = ()


@dataclass(frozen=True, eq=False)
class Examples:
    """The labelled videos that have a vector.

    Videos that train in any fold of the set come first; each part is sorted by video_id.

    Attributes:
        video_ids: [N]. folds: [N], the fold that tests each. groups: [N].
        targets: [N, K] int8, 1 or 0, -1 where a video does not count for a class.
        seed: of the inner folds.
    """

    video_ids: list[str]
    targets: np.ndarray
    folds: np.ndarray
    groups: list[str]
    classes: list[str]
    places: Places
    seed: int

    @property
    def num_training(self) -> int:
        return self.places.num_training

    @property
    def training_targets(self) -> np.ndarray:
        """Targets [num_training, K] of the videos that train in any fold."""
        return self.targets[: self.num_training]

    def training(self, folds: tuple[int, ...]) -> np.ndarray:
        """Return a mask [num_training, F]: true where a video trains in a fold."""
        return self.folds[: self.num_training, None] != np.array(folds)

    def tested(self, fold: int) -> np.ndarray:
        """Return a mask [N]: true where a video is tested in the fold."""
        return self.folds == fold

    def inner_folds(self, fold: int) -> np.ndarray:
        """Return each training video's inner fold [num_training], -1 for a video outside the fold's
        training set.

        Raises:
            RunError: fewer than two groups.
        """
        training = self.training((fold,))[:, 0]
        groups = np.array(self.groups[: self.num_training])[training]
        num_groups = len(set(groups.tolist()))
        if num_groups < 2:
            raise RunError(
                f"classify.c: expected at least two groups of training videos in fold {fold} to "
                f"choose C with, got {num_groups}; set one value"
            )
        inner = np.full(self.num_training, -1)
        inner[training] = group_folds(groups, min(INNER_FOLDS, num_groups), self.seed)
        return inner


def locate(store: Store, fold_set: FoldSet, manifest: pa.Table, seed: int) -> Examples:
    """Return the examples of a fold set.

    Only ids are read, no vectors; a vector whose file has changed since, by its `source`, is passed
    over.

    Args:
        manifest: video_id, source, labels, group and fold of the run's videos, and ignored where
            there are classes that they do not count for.
        seed: of the inner folds.
    """
    classes = sorted({name for names in manifest["labels"].to_pylist() for name in names})
    known = manifest.filter(pc.greater(pc.list_value_length(manifest["labels"]), 0))
    files, tables, dim = store.files(fold_set.encodings), [], 0
    for number, name in enumerate(files):
        with store.open_parquet(name) as file:
            table = file.read(columns=["video_id", "source"]).replace_schema_metadata(None)
            dim = file.schema_arrow.field("vector").type.list_size
        position = {"file": np.full(len(table), number), "row": np.arange(len(table))}
        tables.append(pa.table({name: table[name] for name in table.column_names} | position))
    vectors = pa.concat_tables(tables)
    row = pc.index_in(vectors["video_id"], known["video_id"])
    vectors, known = vectors.filter(pc.is_valid(row)), known.take(row.drop_null())
    known = known.append_column("file", vectors["file"]).append_column("row", vectors["row"])
    videos = known.filter(pc.equal(vectors["source"], known["source"]))
    folds = videos["fold"].to_numpy()
    training = (folds[:, None] != np.array(fold_set.folds)).any(1)
    order = pa.table({"tests": (~training).astype(np.int8), "video_id": videos["video_id"]})
    order = pc.sort_indices(order, [("tests", "ascending"), ("video_id", "ascending")])
    videos = videos.take(order)
    places = Places(
        num_training=int(training.sum()),
        num_classes=len(classes),
        files=files,
        file=videos["file"].to_numpy().astype(np.int32),
        row=videos["row"].to_numpy().astype(np.int32),
        dim=dim,
    )
    return Examples(
        video_ids=videos["video_id"].to_pylist(),
        targets=target_matrix(
            videos["labels"].to_pylist(),
            classes,
            videos["ignored"].to_pylist() if "ignored" in videos.column_names else (),
        ),
        folds=videos["fold"].to_numpy(),
        groups=_groups(videos),
        classes=classes,
        places=places,
        seed=seed,
    )


def _groups(videos: pa.Table) -> list[str]:
    """Return the group of each video; a video without a group is a group of its own."""
    pairs = zip(videos["group"].to_pylist(), videos["video_id"].to_pylist(), strict=True)
    return [f"video {video}" if group is None else f"group {group}" for group, video in pairs]


def read_vectors(store: Store, name: str, rows: np.ndarray) -> np.ndarray:
    """Return some rows [n, D] of a file of ENCODINGS, as they are stored."""
    with store.open_parquet(name) as file:
        column = file.read(columns=["vector"])["vector"]
    return vectors_from_arrow(column.take(pa.array(rows)))
