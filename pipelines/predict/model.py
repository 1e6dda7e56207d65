"""A row of MODELS and the files that it names: how new videos are scored."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from encoders.encodings.compress import Compression
from encoders.scores.calibration import Sigmoid
from encoders.scores.fusion import fuse
from encoders.stream_specs import NETWORK_STREAMS
from encoders.svm.classifiers import LinearClassifier
from encoders.svm.kernel_sum import unit
from pipelines.classify.fold_sets import FINAL
from pipelines.errors import ConfigError
from pipelines.run.codebook import Codebook, FittedNetwork
from pipelines.run.combination import sums_kernels
from pipelines.run.folders import folder_name
from pipelines.run.saved import SavedRun
from pipelines.settings.config import digest
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
class NetworkPart:
    """The networks of a result, one of each fold whose scores are averaged, and their classes, in
    order.
    """

    networks: tuple[FittedNetwork, ...]
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.networks[0].name

    @property
    def digest(self) -> str:
        """Return twelve hex digits for the networks."""
        return digest([network.folder for network in self.networks], self.classes)


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
    parts: tuple[Part | NetworkPart, ...]
    weights: tuple[float, ...]
    joint: str
    sigmoid: Sigmoid

    @property
    def name(self) -> str:
        """Return the result in words, for a terminal."""
        fusion = "" if self.fusion in ("none", self.stream) else f" by {self.fusion}"
        fold = "" if self.fold == FINAL else f", without fold {self.fold}"
        return f"{self.encoder} on {self.stream}{fusion}{fold}"

    @property
    def encoded(self) -> list[Part]:
        """Return the parts that classify vectors."""
        return [part for part in self.parts if isinstance(part, Part)]

    @property
    def networks(self) -> list[NetworkPart]:
        """Return the parts that are networks."""
        return [part for part in self.parts if isinstance(part, NetworkPart)]


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
        if pair[1] in NETWORK_STREAMS:
            parts.append(_networks(run, pair, fold))
            continue
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


def _networks(run: SavedRun, pair: tuple[str, str], fold: int) -> NetworkPart:
    """Return the networks of a result: of a fold, or of all.

    Raises:
        ConfigError: their weights are not there.
    """
    name, stream = pair
    variant = run.config.network_variant(name)
    reads_maps = variant.settings.reads_maps and run.config.network.input == "maps"
    start, found = f"networks/{name}-{stream}/fold-", []
    for key, folder in sorted(run.tables.items()):
        if not key.startswith(start) or fold not in (FINAL, int(key.removeprefix(start))):
            continue
        own = int(key.removeprefix(start))
        if not run.store.files(folder, ".safetensors"):
            raise ConfigError(
                f"{run.store.uri(folder)}: expected the network {name} of fold {own}, found none; "
                "run the job again, which trains it"
            )
        digest_of = folder.rpartition("/")[2]
        found.append(FittedNetwork.of(variant, stream, own, digest_of, reads_maps=reads_maps))
    if not found:
        raise ConfigError(
            f"--out {run.store.root}: expected the networks of {name} on {stream}, found none; run "
            "the job again, which trains them"
        )
    classes = run.store.distinct(run.tables[f"scores/{name}-{stream}"], "label")
    return NetworkPart(tuple(found), tuple(sorted(classes)))


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


@dataclass(frozen=True)
class _PartScorer:
    classifier: LinearClassifier | None
    compression: Compression | None

    def vectors(self, stored: np.ndarray) -> torch.Tensor:
        rows = torch.from_numpy(stored)
        return self.compression.transform(rows).float() if self.compression else rows.float()

    def scores(self, stored: np.ndarray) -> np.ndarray:
        if self.classifier is None:
            return stored
        return _decision(self.classifier, self.vectors(stored))


def _scorer(store: Store, part: Part | NetworkPart, joint: str) -> _PartScorer:
    if isinstance(part, NetworkPart):
        return _PartScorer(None, None)
    return _PartScorer(
        None if joint else LinearClassifier.from_bytes(store.read(part.classifier)),
        Compression.from_bytes(store.read(part.compression)) if part.compression else None,
    )


class Scorer:
    """The scores of a model, from vectors of its parts, or scores where a part is a network.

    Args:
        store: of the run.
    """

    def __init__(self, store: Store, model: Model) -> None:
        self.model = model
        self.joint = LinearClassifier.from_bytes(store.read(model.joint)) if model.joint else None
        self.parts = [_scorer(store, part, model.joint) for part in model.parts]
        first = self.joint or self.parts[0].classifier
        self.classes = first.classes if first else list(model.networks[0].classes)

    def scores(self, values: list[np.ndarray]) -> np.ndarray:
        """Return scores [n, K].

        Args:
            values: of each part, vectors [n, D] as ENCODINGS have them, or of networks scores
                [n, K].
        """
        if self.joint:
            rows = [unit(part.vectors(x)) for part, x in zip(self.parts, values, strict=True)]
            return _decision(self.joint, torch.cat(rows, 1))
        each = [part.scores(array) for part, array in zip(self.parts, values, strict=True)]
        is_normalised = self.model.fusion == "two_stream"
        if len(each) == 1:
            return each[0]
        return fuse(each, self.model.weights, l1_normalise=is_normalised)


def _decision(classifier: LinearClassifier, vectors: torch.Tensor) -> np.ndarray:
    # In float64, as the scores of tested videos are computed.
    return vectors.double().numpy() @ classifier.weights.astype(float).T + classifier.bias
