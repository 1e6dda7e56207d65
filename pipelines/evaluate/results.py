"""Results and their numbers: score matrices, their late fusions, and the METRICS rows of both.

Needs neither Ray nor torch, so that the doctor computes METRICS again by the same rules. Letters: N
tested videos, K classes, M streams that are fused.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from encoders.scores import metrics
from encoders.scores.fusion import TWO_STREAM, fuse
from encoders.scores.intervals import gains, intervals
from encoders.stream_specs import NETWORK_STREAMS, is_difference, is_local
from pipelines.settings.sections import Evaluate

SINGLE = "none"
"""Name in METRICS for the fusion of a result that is not fused."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, each None where there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoreMatrix:
    """Scores of one result: video_ids [N], folds [N], scores and targets [N, K].

    Attributes:
        fusion: SINGLE, or how the parts were fused, as in METRICS.
        weights: {fold: M weights that sum to 1} of a fusion, in the order of its parts.
        parts: (encoder, stream) of these; none of a result that is not fused.
    """

    encoder: str
    stream: str
    video_ids: list[str]
    folds: np.ndarray
    classes: list[str]
    scores: np.ndarray
    targets: np.ndarray
    fusion: str = SINGLE
    weights: dict[int, tuple[float, ...]] = field(default_factory=dict)
    parts: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """The result's key in METRICS: encoder, stream and fusion."""
        return self.encoder, self.stream, self.fusion

    def of_videos(self, video_ids: Set[str]) -> "ScoreMatrix":
        """Return the scores of these videos alone, in the same order."""
        rows = np.array([video in video_ids for video in self.video_ids])
        return replace(
            self,
            video_ids=[video for video in self.video_ids if video in video_ids],
            folds=self.folds[rows],
            scores=self.scores[rows],
            targets=self.targets[rows],
        )

    @property
    def multi_label(self) -> bool:
        """True if a video has several classes. The headline metric is then mAP, else accuracy."""
        return bool(((self.targets > 0).sum(1) > 1).any())


def headline_metric(multi_label: bool) -> str:
    """Return the metric that results are compared by: VU 5.4 for several labels a video, DQ 5.3 for
    one."""
    return "mAP" if multi_label else "accuracy"


def chance_level(shares: Iterable[float], multi_label: bool) -> float:
    """Return the headline number of a classifier that has learnt nothing: accuracy of always naming
    the most frequent class; with several labels a video, mAP of a random order.

    Args:
        shares: of the tested videos that have each class.
    """
    known = list(shares)
    return sum(known) / len(known) if multi_label else max(known)


class Fused(Protocol):
    """A result that is fused of others, either of a run (`pipelines.run.makers.Result`) or of a
    run.json."""

    @property
    def stream(self) -> str: ...
    @property
    def parts(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def pair(self) -> tuple[str, str]: ...


@dataclass(frozen=True)
class Wanted:
    """A result to be made, by its parts and its rule of fusion.

    Attributes:
        parts: (encoder, stream) of the scores that it is made of.
        fusion: as in METRICS; SINGLE where the scores of the one part are the result.
        weights: of the parts, for the fusion "given".
        is_total: made of the sum over its parts, of several encoders.
        pair: (encoder, stream) of its own SCORES, where it is a combination.
    """

    parts: tuple[tuple[str, str], ...]
    fusion: str = SINGLE
    weights: tuple[float, ...] = ()
    is_total: bool = False
    pair: tuple[str, str] | None = None

    @property
    def sources(self) -> tuple[tuple[str, str], ...]:
        """The (encoder, stream) of each SCORES that the result is made from."""
        return (self.pair,) if self.pair else self.parts

    @property
    def key(self) -> tuple[str, str, str]:
        """The result's key in METRICS: encoder, stream and fusion."""
        if self.pair:
            return *self.pair, self.fusion
        encoders, streams = zip(*self.parts, strict=True)
        return "+".join(dict.fromkeys(encoders)), "+".join(dict.fromkeys(streams)), self.fusion

    def make(self, matrices: Iterable[ScoreMatrix]) -> ScoreMatrix | None:
        """Return the result; None where its parts cannot be fused this way.

        Args:
            matrices: those of the sources, in their order; of a total their `added` sum alone.

        Raises:
            ValueError: parts have no video in common.
        """
        matrices = list(matrices)
        if self.is_total:
            made = self._mean(*matrices)
        elif self.pair or self.fusion == SINGLE:
            made = matrices[0]
        else:
            made = next(fusions(matrices, (self.fusion,), list(self.weights)), None)
        if made is None or self.fusion == SINGLE:
            return made
        return replace(made, parts=self.parts)

    def _mean(self, total: ScoreMatrix) -> ScoreMatrix:
        encoders, streams = zip(*self.parts, strict=True)
        return replace(
            total,
            encoder="+".join(dict.fromkeys(encoders)),
            stream="+".join(dict.fromkeys(streams)),
            fusion=self.fusion,
            weights=_constant(total, [1.0] * len(self.parts)),
            scores=total.scores / len(self.parts),
        )


def wanted(
    pairs: list[tuple[str, str]], settings: Evaluate, fused: Sequence[Fused] = ()
) -> list[Wanted]:
    """Return every result in the order of METRICS: encoder by encoder its streams and their
    fusions; then all encoders and streams together, and the combinations.

    Args:
        pairs: (encoder, stream) of the single results.
    """
    streams = [stream for stream in dict.fromkeys(s for _, s in pairs) if is_local(stream)]
    described = [stream for stream in streams if stream not in NETWORK_STREAMS]
    weights = dict.fromkeys(streams, 1.0) | dict(
        zip(described, settings.stream_weights or [1.0] * len(described), strict=True)
    )
    results_to_make, local = [], []
    for encoder in dict.fromkeys(encoder for encoder, _ in pairs):
        encoder_pairs = [pair for pair in pairs if pair[0] == encoder]
        results_to_make += [Wanted((pair,)) for pair in encoder_pairs]
        parts = tuple(pair for pair in encoder_pairs if is_local(pair[1]))
        local += parts
        if len(parts) > 1:
            given = tuple(weights[stream] for _, stream in parts)
            results_to_make += [Wanted(parts, kind, given) for kind in settings.fusions]
    if len({encoder for encoder, _ in local}) > 1:
        results_to_make.append(Wanted(tuple(local), "given", is_total=True))
    return results_to_make + [
        Wanted(combination.parts, combination.stream, pair=combination.pair)
        for combination in fused
    ]


def results(
    pairs: list[tuple[str, str]],
    settings: Evaluate,
    read: Callable[[str, str], ScoreMatrix | None],
    fused: Sequence[Fused] = (),
) -> Iterator[tuple[ScoreMatrix, ScoreMatrix | None]]:
    """Yield the results that are `wanted`, one after the other; a fused one comes with the best of
    its parts.

    The scores of one encoder, the sum over encoders, and the best parts are in memory, never the
    scores of all.

    Args:
        pairs: (encoder, stream) of the single results.
        read: the scores of a pair; None where they are lost, and with them what is made of them.

    Raises:
        ValueError: parts of a fusion are of different videos.
    """
    matrices: dict[tuple[str, str], ScoreMatrix | None] = {}
    total, is_lost = None, False
    all_results = wanted(pairs, settings, fused)
    fusions_to_make = [result for result in all_results if result.fusion != SINGLE]
    best: dict[Wanted, ScoreMatrix | None] = {}
    for result in all_results:
        if result.fusion == SINGLE:
            (pair,) = result.parts
            matrices = {other: matrix for other, matrix in matrices.items() if other[0] == pair[0]}
            matrix = matrices[pair] = read(*pair)
            if is_local(pair[1]):
                is_lost = is_lost or matrix is None
                total = None if is_lost or matrix is None else added(total, matrix)
            for fusion in fusions_to_make:
                if pair in fusion.parts:
                    lost = fusion in best and best[fusion] is None
                    best[fusion] = (
                        None if lost or matrix is None else better(best.get(fusion), matrix)
                    )
        if result.pair:
            parts = [read(*result.pair)]
        else:
            parts = [total] if result.is_total else [matrices[pair] for pair in result.parts]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts) and (matrix := result.make(known)):
            yield matrix, best.get(result)


def better(best: ScoreMatrix | None, other: ScoreMatrix) -> ScoreMatrix:
    """Return the result with the higher headline metric, `best` of equals."""
    return other if best is None or _quality(other) > _quality(best) else best


def _quality(matrix: ScoreMatrix) -> float:
    if not matrix.multi_label:
        return metrics.accuracy(matrix.scores, matrix.targets)
    precision = metrics.average_precision(matrix.scores, matrix.targets)
    return float(np.nan_to_num(metrics.mean_over_classes(precision)))


def added(total: ScoreMatrix | None, part: ScoreMatrix) -> ScoreMatrix:
    """Return the sum so far, if there is one, plus the scores of `part`, of their common videos.

    Raises:
        ValueError: there are none.
    """
    if total is None:
        return part
    total, part = common([total, part])
    return replace(total, scores=total.scores + part.scores)


def fusions(
    parts: list[ScoreMatrix], kinds: tuple[str, ...], given: list[float]
) -> Iterator[ScoreMatrix]:
    """Return the late fusions that an encoder's streams allow, of the parts' common videos; see
    `run_settings.Evaluate`.
    """
    parts = common(parts)
    first, scores = parts[0], [part.scores for part in parts]
    has_both_kinds = len({is_difference(part.stream) for part in parts}) == 2
    for kind in kinds:
        if kind == "given":
            weights, is_normalised = _constant(first, given), False
        elif kind == "two_stream" and has_both_kinds:
            moves = [is_difference(part.stream) for part in parts]
            # The ratio holds between the two modalities, whatever their numbers of streams.
            two = [TWO_STREAM[is_motion] / moves.count(is_motion) for is_motion in moves]
            weights, is_normalised = _constant(first, two), True
        else:
            continue
        fused = np.empty_like(first.scores)
        for fold in weights:
            rows = first.folds == fold
            fold_scores = [part[rows] for part in scores]
            fused[rows] = fuse(fold_scores, weights[fold], l1_normalise=is_normalised)
        stream = "+".join(part.stream for part in parts)
        yield replace(first, stream=stream, fusion=kind, weights=weights, scores=fused)


def _constant(matrix: ScoreMatrix, weights: list[float]) -> dict[int, tuple[float, ...]]:
    shares = tuple(weight / sum(weights) for weight in weights)
    return dict.fromkeys(np.unique(matrix.folds).tolist(), shares)


def common(parts: list[ScoreMatrix]) -> list[ScoreMatrix]:
    """Return the parts with the videos that all of them have scores of, in their order.

    A video may have descriptors but no pictures for a network, or the other way around.

    Raises:
        ValueError: there is no such video.
    """
    if all(part.video_ids == parts[0].video_ids for part in parts):
        return parts
    shared = set.intersection(*(set(part.video_ids) for part in parts))
    if not shared:
        raise ValueError("fusion: expected parts with scores of the same videos, got none")
    return [part.of_videos(shared) for part in parts]


def metric_rows(
    matrix: ScoreMatrix, settings: Evaluate, protocol: str, seed: int = 0
) -> list[dict]:
    """Return METRICS rows of a result: over all tested videos together and, if there are several
    folds, of each fold and their mean.

    Intervals are of all tested videos together, and there are none where `settings.bootstrap` is 0.
    """
    folds = np.unique(matrix.folds).tolist()
    splits = {"all": np.ones(len(matrix.folds), bool)}
    if len(folds) > 1:
        splits |= {f"fold:{fold}": matrix.folds == fold for fold in folds}
    top_k = tuple(dict.fromkeys(min(k, len(matrix.classes)) for k in settings.top_k))
    numbers = _numbers(matrix, np.stack(list(splits.values()), 1), top_k)
    ends = _intervals(matrix, top_k, settings.bootstrap, seed)
    result = dict(zip(("encoder", "stream", "fusion"), matrix.key, strict=True))
    parts = ["-".join(part) for part in matrix.parts] or None
    rows = []
    for index, (split, split_rows) in enumerate(splits.items()):
        weights = _stated_weights(matrix, split_rows)
        positives = dict(
            zip(matrix.classes, (matrix.targets[split_rows] > 0).sum(0).tolist(), strict=True)
        )
        for (metric, label), values in numbers.items():
            low, high = ends.get((metric, label), (None, None)) if split == "all" else (None, None)
            rows.append(
                result
                | {
                    "weights": weights,
                    "protocol": protocol,
                    "split": split,
                    "metric": metric,
                    "class": label,
                    "value": _known(values[index]),
                    "ci_low": low,
                    "ci_high": high,
                    "sd": None,
                    "num_videos": int(split_rows.sum()),
                    "num_positives": None if label is None else positives[label],
                    "parts": parts,
                }
            )
    return rows + (mean_rows(rows) if len(folds) > 1 else [])


def gain_rows(
    matrix: ScoreMatrix,
    rows: list[dict],
    best_part: ScoreMatrix | None,
    settings: Evaluate,
    seed: int = 0,
) -> list[dict]:
    """Return METRICS rows of a fused result's gain over the best of its parts; none where the best
    part is unknown.

    Args:
        rows: those of the result.
    """
    if best_part is None:
        return []
    matrix, best_part = common([matrix, best_part])
    first = next(row for row in rows if (row["split"], row["class"]) == ("all", None))
    estimates = gains(
        matrix.scores, best_part.scores, matrix.targets, num_draws=settings.bootstrap, seed=seed
    )
    return [
        first
        | {
            "metric": f"{name}_gain",
            "value": _known(gain.value),
            "ci_low": _known(gain.low),
            "ci_high": _known(gain.high),
        }
        for name, gain in estimates.items()
    ]


def mean_rows(rows: list[dict]) -> list[dict]:
    """Return rows of split `mean`: the mean over folds, or over splits, of each number that is not
    of a single class."""
    values: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["split"] != "all" and row["class"] is None:
            key = tuple(row[name] for name in ("encoder", "stream", "fusion", "metric"))
            values.setdefault(key, []).append(row)
    means = []
    for group in values.values():
        known = [row["value"] for row in group if row["value"] is not None]
        means.append(
            group[0]
            | {
                "split": "mean",
                "weights": np.mean([row["weights"] for row in group], 0).tolist()
                if group[0]["weights"]
                else None,
                "value": float(np.mean(known)) if known else None,
                "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
                "num_videos": sum(row["num_videos"] for row in group),
            }
        )
    return means


def _numbers(
    matrix: ScoreMatrix, splits: np.ndarray, top_k: tuple[int, ...]
) -> dict[tuple[str, str | None], list[float]]:
    """Return {(metric, class): its value in each split}; splits are [N, S]."""
    scores, targets = matrix.scores, matrix.targets
    ranking = metrics.Ranking(scores, targets)
    precision = {
        "AP": ranking.average_precision(splits),
        "AP_11": ranking.voc_average_precision(splits),
    }
    parts = [(scores[rows], targets[rows]) for rows in splits.T]
    numbers: dict[tuple[str, str | None], list[float]] = {
        ("accuracy", None): [metrics.accuracy(*part) for part in parts]
    }
    for k in top_k:
        numbers[f"top_{k}", None] = [metrics.top_k_accuracy(*part, k) for part in parts]
    if ((targets > 0).sum(1) == 1).all():
        numbers["balanced_accuracy", None] = [metrics.balanced_accuracy(*part) for part in parts]
    for name, values in precision.items():
        numbers[f"m{name}", None] = metrics.mean_over_classes(values).tolist()
        for label, row in zip(matrix.classes, values.tolist(), strict=True):
            numbers[name, label] = row
    return numbers


def _intervals(
    matrix: ScoreMatrix, top_k: tuple[int, ...], num_draws: int, seed: int
) -> dict[tuple[str, str | None], tuple[float | None, float | None]]:
    """Return {(metric, class): both ends of its interval}; empty without draws."""
    if not num_draws:
        return {}
    interval_ends = intervals(
        matrix.scores, matrix.targets, top_k=top_k, num_draws=num_draws, seed=seed
    )
    ends: dict[tuple[str, str | None], tuple[float | None, float | None]] = {}
    for name, values in interval_ends.items():
        labels = matrix.classes if values.ndim == 2 else [None]
        for label, (low, high) in zip(labels, values.reshape(-1, 2).tolist(), strict=True):
            ends[name, label] = _known(low), _known(high)
    return ends


def _stated_weights(matrix: ScoreMatrix, rows: np.ndarray) -> list[float] | None:
    """Return the weights of the videos of a split; where folds have different ones, their mean over
    videos."""
    if not matrix.weights:
        return None
    folds, counts = np.unique(matrix.folds[rows], return_counts=True)
    return np.average([matrix.weights[f] for f in folds.tolist()], 0, counts).tolist()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
