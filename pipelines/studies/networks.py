"""Subnetworks of a network beside each other, alone and fused with Fisher vectors (VU 5.3.2)."""

from dataclasses import dataclass, replace

import numpy as np

from encoders.scores.fusion import fuse
from encoders.scores.intervals import gains, intervals
from pipelines.errors import ConfigError
from pipelines.evaluate.results import ScoreMatrix
from pipelines.evaluate.step import read_scores
from pipelines.run.saved import SavedRun

DRAWS = 1000


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a result with its 95 % interval, in words."""

    name: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def accuracies(run: SavedRun, network: str, stream: str, other: tuple[str, str]) -> list[Accuracy]:
    """Return the accuracy of each subnetwork, of all together, of another result, and of all fused.

    Fused is the mean of the scores, each video's divided by the sum of their absolute values.

    Args:
        other: encoder and stream of the other result in SCORES.

    Raises:
        ConfigError: the run has no such results.
    """
    both, own = _scores(run, network, stream), _scores(run, *other)
    parts = _subnetworks(run, both)
    fused = replace(both, scores=fuse([both.scores, own.scores], l1_normalise=True))
    named = {**parts, "both": both, "fisher vectors": own, "both and fisher vectors": fused}
    return [_accuracy(name, matrix) for name, matrix in named.items()]


def gain(run: SavedRun, network: str, stream: str) -> dict[str, tuple[float, float, float]]:
    """Return {subnetwork: gain in accuracy of all together over it, with its 95 % interval}."""
    both = _scores(run, network, stream)
    found = {}
    for name, part in _subnetworks(run, both).items():
        over = gains(both.scores, part.scores, both.targets, num_draws=DRAWS, seed=0)["accuracy"]
        found[name] = (over.value, over.low, over.high)
    return found


def _scores(run: SavedRun, encoder: str, stream: str) -> ScoreMatrix:
    folder = run.tables.get(f"scores/{encoder}-{stream}")
    if folder is None:
        known = sorted(name for name in run.tables if name.startswith("scores/"))
        raise ConfigError(
            f"{run.store.root}: expected scores of {encoder} on {stream}, got {', '.join(known)}"
        )
    return read_scores(run.store, encoder, stream, folder, run.tables["failures"])


def _subnetworks(run: SavedRun, like: ScoreMatrix) -> dict[str, ScoreMatrix]:
    """Return {subnetwork: mean scores over clips}, from CLIP_SCORES."""
    folder = run.tables[f"clip_scores/{like.encoder}-{like.stream}"]
    place = {video: number for number, video in enumerate(like.video_ids)}
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for row in run.store.read_table(folder).to_pylist():
        name, video = row["subnetwork"], place[row["video_id"]]
        order = [row["labels"].index(label) for label in like.classes]
        total = sums.setdefault(name, np.zeros(like.scores.shape))
        total[video] += np.array(row["scores"])[order]
        counts.setdefault(name, np.zeros(len(place)))[video] += 1
    return {n: replace(like, scores=sums[n] / counts[n][:, None]) for n in sums}


def _accuracy(name: str, matrix: ScoreMatrix) -> Accuracy:
    numbers = intervals(matrix.scores, matrix.targets, top_k=(), num_draws=DRAWS, seed=0)
    hit = (matrix.scores.argmax(1) == matrix.targets.argmax(1)).mean()
    return Accuracy(name, float(hit), *numbers["accuracy"].tolist())
