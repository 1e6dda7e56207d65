"""What the two forms of solving SVMs share: what is to be solved, and how it is published."""

import dataclasses
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray import ObjectRef
from torch import Tensor

from encoders.calibration import Sigmoid
from encoders.settings import CompressSettings
from encoders.svm import LinearClassifier
from encoders.svm_columns import balanced
from pipelines.errors import RunError
from pipelines.folds import group_folds
from pipelines.layout import Job
from pipelines.run_settings import Classify
from pipelines.storage import Store
from pipelines.tables import FUSIONS, SCORES, SOLUTIONS, vectors_from_arrow

log = logging.getLogger(__name__)

INNER_FOLDS = 3
"""Parts of the training groups, of which each is held out once where C is chosen."""


CHOICE_TOLERANCE = 1e-3
"""Relative gap at which classes are solved where C is chosen: only the order of scores counts."""


@dataclass(frozen=True)
class FoldSet:
    """Folds of an encoder and stream whose classifiers have the same vectors, and where results go.

    `todo` are those without SCORES. Finished folds stay among `folds`: a run that goes on solves the same ones together
    as one that was not killed, and so gets the same bits.

    A combination's has `parts` instead of `encodings`: the fold sets of the same folds that are fused.
    """

    encoder: str
    stream: str
    folds: tuple[int, ...]
    todo: tuple[int, ...]
    encodings: str
    scores: str
    classifiers: str
    compress: CompressSettings
    footer: dict[str, str]
    fusions: str = ""
    parts: tuple["FoldSet", ...] = ()

    @property
    def name(self) -> str:
        return f"{self.encoder}-{self.stream}"

    def solutions_file(self, fold: int) -> str:
        return f"{self.classifiers}/solutions-{fold:05d}.parquet"

    def scores_file(self, fold: int) -> str:
        """Published last of a fold's files: a fold that has it is finished."""
        return f"{self.scores}/fold-{fold:05d}.parquet"

    @property
    def vectors(self) -> tuple[str, tuple[int, ...], CompressSettings]:
        """What names its vectors and their order: fold sets that agree in it have one Gram matrix."""
        return self.encodings, self.folds, self.compress


def fold_sets(job: Job) -> list[FoldSet]:
    """What is not finished of single results."""
    return _unfinished(
        job, [fold_set for pair in job.pairs() for fold_set in _fold_sets_of(job, *pair)]
    )


def _fold_sets_of(job: Job, encoder: str, stream: str) -> list[FoldSet]:
    """All folds of a result. They share vectors where neither codebook nor compression is a fold's own."""
    shared: dict[tuple, list[int]] = {}
    compress = job.variants[encoder].compress
    for fold in job.folds:
        folder = job.encodings(job.codebook(encoder, stream, fold))
        own = fold if compress.kind != "none" else None
        shared.setdefault((folder, own), []).append(fold)
    return [
        FoldSet(
            encoder=encoder,
            stream=stream,
            folds=tuple(folds),
            todo=(),
            encodings=folder,
            scores=job.scores(encoder, stream),
            classifiers=job.classifiers(encoder, stream),
            compress=compress,
            footer=job.footer("classify"),
        )
        for (folder, _), folds in shared.items()
    ]


def fused_fold_sets(job: Job) -> list[FoldSet]:
    """What is not finished of combinations. Folds are together where they are in all parts."""
    found, known = [], {pair: _fold_sets_of(job, *pair) for pair in job.pairs()}
    for combination in job.combinations:
        together: dict[tuple[int, ...], list[int]] = {}
        for fold in job.folds:
            places = (
                next(place for place, fold_set in enumerate(known[part]) if fold in fold_set.folds)
                for part in combination.parts
            )
            together.setdefault(tuple(places), []).append(fold)
        for places, folds in together.items():
            parts = tuple(
                dataclasses.replace(known[part][place], folds=tuple(folds))
                for part, place in zip(combination.parts, places, strict=True)
            )
            found.append(
                FoldSet(
                    encoder=combination.encoder,
                    stream=combination.stream,
                    folds=tuple(folds),
                    todo=(),
                    encodings="",
                    scores=job.scores(*combination.pair),
                    classifiers=job.classifiers(*combination.pair),
                    compress=CompressSettings(),
                    footer=job.footer("classify"),
                    fusions=job.fusions(*combination.pair),
                    parts=parts,
                )
            )
    return _unfinished(job, found)


def _unfinished(job: Job, every: list[FoldSet]) -> list[FoldSet]:
    found = []
    for fold_set in every:
        todo = tuple(f for f in fold_set.folds if not job.store.exists(fold_set.scores_file(f)))
        if todo:
            found.append(dataclasses.replace(fold_set, todo=todo))
    return found


@dataclass(frozen=True, eq=False)
class Places:
    """Where the vectors of a fold set are: as much of `Examples` as the driver holds.

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
    """A fold set, its Examples in the object store, and its places; a combination has those of its first part."""

    fold_set: FoldSet
    examples: ObjectRef
    places: Places
    parts: tuple["Work", ...] = ()


@dataclass(frozen=True, eq=False)
class Examples:
    """The labelled videos that have a vector: those that train in any fold of the set first, each part by video_id.

    Attributes:
        video_ids: [N]. targets: [N, K] uint8. folds: [N], the fold that tests each. groups: [N].
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
        """[num_training, K]: of those that train in any fold."""
        return self.targets[: self.num_training]

    def training(self, folds: tuple[int, ...]) -> np.ndarray:
        """[num_training, F]: who trains in each of some folds."""
        return self.folds[: self.num_training, None] != np.array(folds)

    def tested(self, fold: int) -> np.ndarray:
        """[N]: who is tested in a fold."""
        return self.folds == fold

    def inner_folds(self, fold: int) -> np.ndarray:
        """[num_training]: the part of the training groups of a fold that a video is in, -1 if it is in none.

        Raises:
            RunError: fewer than two groups.
        """
        training = self.training((fold,))[:, 0]
        groups = np.array(self.groups[: self.num_training])[training]
        num_groups = len(set(groups.tolist()))
        if num_groups < 2:
            raise RunError(
                f"classify.c: expected at least two groups of training videos in fold {fold} to choose C with, "
                f"got {num_groups}; set one value"
            )
        inner = np.full(self.num_training, -1)
        inner[training] = group_folds(groups, min(INNER_FOLDS, num_groups), self.seed)
        return inner


def locate(store: Store, fold_set: FoldSet, manifest: pa.Table, seed: int) -> Examples:
    """Reads ids, not vectors. A vector of a file that has changed since, by its `source`, is passed over.

    Args:
        manifest: video_id, source, labels, group and fold of the run's videos.
        seed: of the inner folds.
    """
    classes = sorted({name for names in manifest["labels"].to_pylist() for name in names})
    known = manifest.filter(pc.greater(pc.list_value_length(manifest["labels"]), 0))
    files, found, dim = store.files(fold_set.encodings), [], 0
    for number, name in enumerate(files):
        with store.open_parquet(name) as file:
            table = file.read(columns=["video_id", "source"]).replace_schema_metadata(None)
            dim = file.schema_arrow.field("vector").type.list_size
        place = {"file": np.full(len(table), number), "row": np.arange(len(table))}
        found.append(pa.table({name: table[name] for name in table.column_names} | place))
    vectors = pa.concat_tables(found)
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
        targets=target_matrix(videos["labels"].to_pylist(), classes),
        folds=videos["fold"].to_numpy(),
        groups=_groups(videos),
        classes=classes,
        places=places,
        seed=seed,
    )


def _groups(videos: pa.Table) -> list[str]:
    """A video without a group is one of its own."""
    pairs = zip(videos["group"].to_pylist(), videos["video_id"].to_pylist(), strict=True)
    return [f"video {video}" if group is None else f"group {group}" for group, video in pairs]


def target_matrix(labels: list[list[str]], classes: list[str]) -> np.ndarray:
    """[N, K] of 0 and 1."""
    place = {name: k for k, name in enumerate(classes)}
    targets = np.zeros((len(labels), len(classes)), np.uint8)
    for row, names in enumerate(labels):
        targets[row, [place[name] for name in names]] = 1
    return targets


def read_vectors(store: Store, name: str, rows: np.ndarray) -> np.ndarray:
    """Some rows [n, D] of a file of ENCODINGS, as they are stored."""
    with store.open_parquet(name) as file:
        column = file.read(columns=["vector"])["vector"]
    return vectors_from_arrow(column.take(pa.array(rows)))


# --- how it is solved --------------------------------------------------------------------------


def class_weights(targets: Tensor, training: Tensor, settings: Classify) -> Tensor | None:
    """What each class counts, as `balanced` has it, where classify.class_weight says so; None: all the same."""
    return balanced(targets, training) if settings.class_weight == "balanced" else None


def best_c(values: tuple[float, ...], precision: np.ndarray) -> tuple[float, str]:
    """The c with the largest mean of the classes' AP [C, K], the smallest of equals; and all means in words."""
    known = ~np.isnan(precision).any(0)
    means = precision[:, known].mean(1) if known.any() else np.zeros(len(values))
    best = values[int(means.argmax())]
    table = ", ".join(f"{c:g}: {mean:.4f}" for c, mean in zip(values, means, strict=True))
    return best, f"held-out mAP by C: {table}; C = {best:g}"


# --- what is published -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Part:
    """Some classes of a fold, solved: weights [k, D], bias [k], scores [tested, k]; primal, dual and rounds [k]."""

    weights: np.ndarray
    bias: np.ndarray
    scores: np.ndarray
    primal: np.ndarray
    dual: np.ndarray
    rounds: np.ndarray
    seconds: float


@dataclass(frozen=True, eq=False)
class Trained:
    """A fold: the C and the form it is solved with.

    Attributes:
        weights: of the kernels of a combination's parts.
        parts: of its classes, in order; none before they are solved.
    """

    fold: int
    c: float
    form: str
    weights: tuple[float, ...] = ()
    parts: tuple[Part, ...] = ()


def publish(
    store: Store, fold_set: FoldSet, examples: Examples, settings: Classify, trained: Trained
) -> None:
    """Classifier, SOLUTIONS, FUSIONS of a combination, and SCORES of a fold, in this order."""
    fold, parts = trained.fold, trained.parts
    classifier = LinearClassifier(
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.bias for part in parts]),
        tuple(examples.classes),
    )
    header = {"c": trained.c, "loss": settings.loss, "class_weight": settings.class_weight}
    if trained.weights:
        # The vectors it is for: those of these parts, each divided by its length, one after the other.
        used = zip(fold_set.parts, trained.weights, strict=True)
        header["parts"] = [[part.encoder, part.stream] for part, weight in used if weight > 0]
    data = classifier.to_bytes(**header)
    store.publish(f"{fold_set.classifiers}/fold-{fold:05d}.safetensors", data)
    rows = list(_solution_rows(fold_set, examples, settings, trained))
    store.publish_table(fold_set.solutions_file(fold), SOLUTIONS.build(rows), fold_set.footer)
    if trained.weights:
        publish_weights(store, fold_set, fold, trained.weights)
    publish_scores(
        store, fold_set, examples, fold, np.concatenate([part.scores for part in parts], 1)
    )


def publish_weights(
    store: Store,
    fold_set: FoldSet,
    fold: int,
    weights: tuple[float, ...],
    sigmoids: tuple[Sigmoid, ...] = (),
) -> None:
    """FUSIONS of a combination's fold: what each part counts, and the sigmoids where there are some."""
    rows = [
        {
            "encoder": fold_set.encoder,
            "stream": fold_set.stream,
            "fold": fold,
            "part_encoder": part.encoder,
            "part_stream": part.stream,
            "weight": weight,
            "slope": sigmoids[place].slope if sigmoids else None,
            "intercept": sigmoids[place].intercept if sigmoids else None,
        }
        for place, (part, weight) in enumerate(zip(fold_set.parts, weights, strict=True))
    ]
    name = f"{fold_set.fusions}/fold-{fold:05d}.parquet"
    store.publish_table(name, FUSIONS.build(rows), fold_set.footer)


def publish_scores(
    store: Store, fold_set: FoldSet, examples: Examples, fold: int, scores: np.ndarray
) -> None:
    """SCORES of a fold, from an array [tested, K]."""
    table = _score_rows(fold_set, examples, fold, scores)
    store.publish_table(fold_set.scores_file(fold), table, fold_set.footer)


def warn_unsolved(store: Store, fold_set: FoldSet, tolerance: float) -> None:
    """Logs the classes of each fold that SOLUTIONS says are not solved; nothing if there are none."""
    for fold in fold_set.todo:
        with store.open_parquet(fold_set.solutions_file(fold)) as file:
            table = file.read(columns=["label", "gap", "is_solved"])
        bad = table.filter(pc.invert(table["is_solved"])).to_pylist()
        if bad:
            log.warning(
                "classify %s fold %d: %d classes are not solved to a relative gap of %g: %s; lower "
                "classify.c or raise classify.tolerance",
                fold_set.name,
                fold,
                len(bad),
                tolerance,
                ", ".join(f"{row['label']} ({row['gap']:.1e})" for row in bad),
            )


def _solution_rows(
    fold_set: FoldSet, examples: Examples, settings: Classify, trained: Trained
) -> Iterator[dict]:
    training = examples.training((trained.fold,))[:, 0]
    positives = examples.training_targets[training].sum(0, dtype=np.int64)
    solved = ((part, place) for part in trained.parts for place in range(len(part.bias)))
    for label, positive, (part, place) in zip(examples.classes, positives, solved, strict=True):
        primal, dual = float(part.primal[place]), float(part.dual[place])
        one_sided = math.isnan(primal)
        gap = None if one_sided else (primal - dual) / primal
        yield {
            "encoder": fold_set.encoder,
            "stream": fold_set.stream,
            "fold": trained.fold,
            "label": label,
            "form": trained.form,
            "loss": settings.loss,
            "c": trained.c,
            "num_positive": int(positive),
            "num_negative": int(training.sum() - positive),
            "primal": None if one_sided else primal,
            "dual": None if one_sided else dual,
            "gap": gap,
            "rounds": int(part.rounds[place]),
            "is_solved": bool(one_sided or gap <= settings.tolerance),
            "seconds": part.seconds,
        }


def _score_rows(fold_set: FoldSet, examples: Examples, fold: int, scores: np.ndarray) -> pa.Table:
    tested, classes = np.flatnonzero(examples.tested(fold)), examples.classes
    count = len(tested) * len(classes)
    columns = {
        "video_id": pa.array([examples.video_ids[i] for i in tested for _ in classes], pa.string()),
        "encoder": pa.repeat(fold_set.encoder, count),
        "stream": pa.repeat(fold_set.stream, count),
        "fold": pa.repeat(pa.scalar(fold, pa.int32()), count),
        "label": pa.array(np.tile(np.array(classes, object), len(tested)), pa.string()),
        "is_true": pa.array(examples.targets[tested].reshape(-1).astype(bool)),
        "score": pa.array(scores.reshape(-1).astype(np.float64)),
    }
    schema = SCORES.schema()
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
