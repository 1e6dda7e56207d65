"""A row of MODELS and the files that it names: how new videos are scored."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from encoders.encodings.compress import Compression
from encoders.scores.calibration import Sigmoid
from encoders.scores.fusion import fuse
from encoders.svm.classifiers import LinearClassifier
from encoders.svm.kernel_sum import unit
from pipelines.classify.fold_sets import FINAL
from pipelines.errors import ConfigError
from pipelines.run.codebook import Codebook
from pipelines.run.combination import sums_kernels
from pipelines.run.folders import folder_name
from pipelines.run.saved import SavedRun
from pipelines.storage.store import Store


@dataclass(frozen=True)
class Part:
    """An encoder on a stream: its codebook, and the files of its classifier and compression ("":
    none).
    """

    codebook: Codebook
    classifier: str
    compression: str


@dataclass(frozen=True)
class Model:
    """A result that scores new videos.

    Attributes:
        fold: FINAL, or that of the classifiers.
        weights: of the parts, in their order.
        joint: the classifier of all parts together, of a sum of kernels; else "".
    """

    encoder: str
    stream: str
    fusion: str
    fold: int
    parts: tuple[Part, ...]
    weights: tuple[float, ...]
    joint: str
    sigmoid: Sigmoid

    @property
    def name(self) -> str:
        """Return the result in words, for a terminal."""
        fusion = "" if self.fusion in ("none", self.stream) else f" by {self.fusion}"
        fold = "" if self.fold == FINAL else f", without fold {self.fold}"
        return f"{self.encoder} on {self.stream}{fusion}{fold}"


def choose(run: SavedRun, asked: Mapping[str, str | None], fold: int | None) -> Model:
    """Return the best result that the flags allow.

    Args:
        asked: encoder, stream and fusion, as in METRICS; None: any.
        fold: whose classifiers; None: the final ones.

    Raises:
        ConfigError: the run has no such classifiers.
    """
    again = "run the job again, which adds what is missing and repeats nothing"
    folder = run.tables.get("models")
    if not folder or not run.store.files(folder):
        raise ConfigError(
            f"--out {run.store.root}: expected a run with final classifiers, found none (step "
            f"final is not done); {again}"
        )
    every = run.store.read_table(folder).to_pylist()
    rows = [row for row in every if row["fold"] == (FINAL if fold is None else fold)]
    if not rows:
        setting = "classify.final=best" if fold is None else "classify.keep_folds=true"
        whose = "final classifiers" if fold is None else f"--fold {fold}: classifiers of this fold"
        raise ConfigError(
            f"--out {run.store.root}: expected {whose}, found none; run the job again with "
            f"--set {setting}"
        )
    flags = {name: value for name, value in asked.items() if value is not None}
    for row in rows:
        if all(row[name] == value for name, value in flags.items()):
            return _model(run, row)
    given = " ".join(f"--{name} {value}" for name, value in flags.items())
    known = "; ".join(
        " ".join(f"--{name} {row[name]}" for name in ("encoder", "stream", "fusion"))
        for row in rows
    )
    raise ConfigError(
        f"{given}: expected a result that is kept, which are {known}; for all of them run the job "
        "again with --set classify.final=all"
    )


def _model(run: SavedRun, row: dict) -> Model:
    own, fold = (row["encoder"], row["stream"]), row["fold"]
    is_joint = sums_kernels(row["fusion"])
    parts = []
    for pair in zip(row["part_encoders"], row["part_streams"], strict=True):
        has_compression = run.config.variant(pair[0]).compress.kind != "none"
        parts.append(
            Part(
                run.codebook(pair, fold),
                "" if is_joint else _file(run, pair, fold),
                _file(run, pair, fold, compression=True) if has_compression else "",
            )
        )
    return Model(
        encoder=row["encoder"],
        stream=row["stream"],
        fusion=row["fusion"],
        fold=fold,
        parts=tuple(parts),
        weights=tuple(row["weights"]),
        joint=_file(run, own, fold) if is_joint else "",
        sigmoid=Sigmoid(row["slope"], row["intercept"]),
    )


def _file(run: SavedRun, pair: tuple[str, str], fold: int, *, compression: bool = False) -> str:
    """Return the file of a classifier, or of the compression of its vectors.

    Raises:
        ConfigError: it is not there.
    """
    if fold == FINAL:
        middle = ".compression" if compression else ""
        name = f"{run.tables['models']}/{folder_name(*pair)}{middle}.safetensors"
    else:
        kind = "compression" if compression else "fold"
        scores = run.tables[f"scores/{'-'.join(pair)}"]
        name = f"{scores.replace('scores/', 'classifiers/', 1)}/{kind}-{fold:05d}.safetensors"
    if not run.store.exists(name):
        raise ConfigError(
            f"{run.store.uri(name)}: expected a classifier of the run, found none; run the job "
            "again, which makes it"
        )
    return name


class Scorer:
    """The scores of a model, from vectors of its parts.

    Args:
        store: of the run.
    """

    def __init__(self, store: Store, model: Model) -> None:
        self.model = model
        files = [model.joint] if model.joint else [part.classifier for part in model.parts]
        self.classifiers = [LinearClassifier.from_bytes(store.read(name)) for name in files]
        self.classes = self.classifiers[0].classes
        self.compressions = [
            Compression.from_bytes(store.read(part.compression)) if part.compression else None
            for part in model.parts
        ]

    def scores(self, vectors: list[np.ndarray]) -> np.ndarray:
        """Return scores [n, K] of vectors [n, D] of each part, as ENCODINGS have them."""
        parts = []
        for compression, array in zip(self.compressions, vectors, strict=True):
            rows = torch.from_numpy(array)
            parts.append(compression.transform(rows).float() if compression else rows.float())
        if self.model.joint:
            return _decision(self.classifiers[0], torch.cat([unit(part) for part in parts], 1))
        each = [_decision(*pair) for pair in zip(self.classifiers, parts, strict=True)]
        is_normalised = self.model.fusion == "two_stream"
        if len(each) == 1:
            return each[0]
        return fuse(each, self.model.weights, l1_normalise=is_normalised)


def _decision(classifier: LinearClassifier, vectors: torch.Tensor) -> np.ndarray:
    # In float64, as the scores of tested videos are computed.
    return vectors.double().numpy() @ classifier.weights.astype(float).T + classifier.bias
