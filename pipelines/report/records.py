"""The content of a report as plain values.

Numbers that do not exist are None and shown as a dash.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from encoders.stream_specs import is_difference
from pipelines.evaluate.best import Confusion, Curve
from pipelines.evaluate.names import result_words
from pipelines.evaluate.results import Estimate, headline_metric
from pipelines.ledger.accounts import Account
from pipelines.report.papers.tables import BesidePaper, Comparison


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the results: an encoder on a stream, or a late fusion of several.

    Metrics are over all tested videos together; `fold_mean` and `fold_sd` are of the report's
    headline metric over the folds. `output_dim` is D, None for a fusion; `fusion` how scores were
    fused and with which weights, empty where they were not; `gain` by how much the fusion's
    headline metric is above that of the best of its parts.
    """

    encoder: str
    stream: str
    accuracy: Estimate
    top_k: Estimate
    map: Estimate
    num_videos: int
    output_dim: int | None = None
    fold_mean: float | None = None
    fold_sd: float | None = None
    fusion: str = ""
    gain: Estimate = field(default_factory=Estimate)

    @property
    def words(self) -> str:
        """Return its name for people."""
        return result_words(self.encoder, self.stream, self.fusion.partition(" ")[0])

    def headline(self, multi_label: bool) -> Estimate:
        """Return the metric that results are compared by, for videos with several labels or one."""
        return self.map if multi_label else self.accuracy


@dataclass(frozen=True)
class StepFact:
    """One step of the data flow and its cost; None where the cost is unknown, or no price is set.

    Attributes:
        core_s, gpu_s: seconds times the CPUs, and the GPUs, that the cluster had when the step
            ended.
        spent: the resource that bounds the step, and how busy each stage was, in words.
        predicted_s: seconds that `--plan` predicted.
    """

    name: str
    seconds: float | None
    account: Account | None
    core_s: float | None = None
    gpu_s: float | None = None
    cost: float | None = None
    spent: str = ""
    predicted_s: float | None = None

    @property
    def ratio(self) -> float | None:
        """Measured time over predicted time."""
        if self.seconds is None or not self.predicted_s:
            return None
        return self.seconds / self.predicted_s


@dataclass(frozen=True, kw_only=True)
class Solved:
    """The SVMs of an encoder on a stream, over all folds and classes, from SOLUTIONS.

    `num_trivial`: those whose training videos all have the class, or all lack it, so that nothing
    is solved. `values_of_c` ascending; `largest_gap` and `rounds` are the largest of any SVM, None
    where all are trivial.
    """

    encoder: str
    stream: str
    form: str
    values_of_c: tuple[float, ...]
    num_svms: int
    num_trivial: int
    num_unsolved: int
    largest_gap: float | None
    rounds: int | None


@dataclass(frozen=True)
class ClassRow:
    """The AP of a class; without a value where the class has no positive video."""

    label: str
    ap: Estimate
    num_positive: int


@dataclass(frozen=True)
class Failure:
    """A segment that is not ok; `status` is partial or failed."""

    video_id: str
    stage: str
    status: str
    error_type: str
    error: str


NUM_FAILURES_LISTED = 200


@dataclass(frozen=True)
class Failures:
    """The segments that are not ok: the first of them, and the number for each (stage, status,
    error_type)."""

    first: tuple[Failure, ...] = ()
    counts: Mapping[tuple[str, str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, failures: Iterable[Failure]) -> Self:
        """Count all failures and keep the first few."""
        first, counts = [], Counter()
        for failure in failures:
            counts[failure.stage, failure.status, failure.error_type] += 1
            if len(first) < NUM_FAILURES_LISTED:
                first.append(failure)
        return cls(tuple(first), counts)

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True)
class Ledger:
    """Segments by status.

    Raises:
        ValueError: planned is not ok + partial + failed.
    """

    planned: int
    ok: int
    partial: int
    failed: int

    def __post_init__(self) -> None:
        if self.planned != self.ok + self.partial + self.failed:
            raise ValueError(f"Ledger: expected planned = ok + partial + failed, got {self}")


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionStrip:
    """Attention of an encoder in a video (DQ appendix B).

    Letters: F frames, T cells of the pyramid.

    Args:
        times_s: [F], when each frame is shown.
        values: [F], temporal attention: the sum of the frame's cells.
        frames: the frames that are shown, RGB uint8 [height, width, 3], cropped as the network saw
            them.
        shown: the place of each of `frames` among the F, ascending.
        cells: [F, T], spatial attention, level after level, row by row.
        levels: sides of the pyramid; T is the sum of their squares.

    Raises:
        ValueError: the shapes do not fit together.
    """

    video_id: str
    encoder: str
    stream: str
    times_s: tuple[float, ...]
    values: np.ndarray
    frames: tuple[np.ndarray, ...]
    shown: tuple[int, ...]
    cells: np.ndarray
    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        frames, cells = len(self.times_s), sum(side * side for side in self.levels)
        if self.values.shape != (frames,) or self.cells.shape != (frames, cells):
            raise ValueError(
                f"AttentionStrip {self.video_id!r}: expected values [{frames}] and cells "
                f"[{frames}, {cells}] for {frames} times and levels {self.levels}, got "
                f"{self.values.shape} and {self.cells.shape}"
            )
        frame_indices = list(self.shown)
        if (
            len(self.frames) != len(frame_indices)
            or not frame_indices
            or frame_indices != sorted(set(frame_indices))
        ):
            raise ValueError(
                f"AttentionStrip {self.video_id!r}: expected one ascending place for each of "
                f"{len(self.frames)} frames, and one frame at least, got {frame_indices}"
            )
        if frame_indices[0] < 0 or frame_indices[-1] >= frames:
            raise ValueError(
                f"AttentionStrip {self.video_id!r}: expected places from 0 to {frames - 1}, got "
                f"{frame_indices}"
            )

    @property
    def is_difference(self) -> bool:
        """True if a frame's values are of the frame and the sampled frame before it."""
        return is_difference(self.stream)


@dataclass(frozen=True, eq=False)
class Sample:
    """A tested video: its labels, the guess with its score, and some sampled frames (JPEG files).

    `missing` says why there are no frames; `attention` where an encoder looked, if one says so.
    """

    video_id: str
    labels: tuple[str, ...]
    predicted: str
    score: float
    jpegs: tuple[bytes, ...] = ()
    missing: str = ""
    attention: AttentionStrip | None = None
    uri: str = ""

    @property
    def is_right(self) -> bool:
        return self.predicted in self.labels


@dataclass(frozen=True, eq=False)
class FlowFigure:
    """Optical flow that a network estimates of a clip, beside that of the pictures (VU Figure 4.5).

    Args:
        error_px, length_px: mean end-point error, and error of no flow.
        columns: frame of the video; whether the flow is extrapolated; the picture (JPEG), the
            estimated flow and that of the pictures (PNG).
    """

    video_id: str
    network: str
    error_px: float
    length_px: float
    columns: tuple[tuple[int, bool, bytes, bytes, bytes], ...]


@dataclass(frozen=True, eq=False)
class ActivationFigure:
    """Class activation maps of a network in a clip (VU Figure 5.3).

    Args:
        columns: what a map is of; the picture, and the map painted on it, as JPEG files.
    """

    video_id: str
    network: str
    labels: tuple[str, ...]
    predicted: str
    columns: tuple[tuple[str, bytes, bytes], ...]

    @property
    def is_right(self) -> bool:
        return self.predicted in self.labels


@dataclass(frozen=True)
class Span:
    """A time in which a class comes first."""

    label: str
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class MindChange:
    """A span, and the frame that it begins with, as a JPEG file; None: it could not be read."""

    span: Span
    jpeg: bytes | None


@dataclass(frozen=True)
class TimeFigure:
    """What a network says of a video over its time."""

    video_id: str
    network: str
    labels: tuple[str, ...]
    uri: str
    spans: tuple[Span, ...]
    changes: tuple[MindChange, ...]

    @property
    def predicted(self) -> str:
        """The class that comes first for the longest time."""
        seconds: dict[str, float] = {}
        for span in self.spans:
            seconds[span.label] = seconds.get(span.label, 0.0) + span.end_s - span.begin_s
        return max(seconds, key=lambda label: seconds[label])

    @property
    def is_right(self) -> bool:
        return self.predicted in self.labels


@dataclass(frozen=True)
class ClassGains:
    """The classes whose average precision a result improves most over another: (class, gain)."""

    name: str
    over: str
    rows: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class AccuracyGains:
    """Accuracy of a result less that of another, by class (VU Figure 4.6): (class, difference)."""

    name: str
    over: str
    rows: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Near:
    """A neighbour of a video.

    `similarity` is the cosine of their vectors; `jpeg` is None where the video cannot be read.
    """

    video_id: str
    labels: tuple[str, ...]
    similarity: float
    jpeg: bytes | None
    uri: str = ""


@dataclass(frozen=True)
class Neighbours:
    """A tested video (similarity 1) and its nearest videos, nearest first."""

    query: Near
    nearest: tuple[Near, ...]


@dataclass(frozen=True)
class NeighbourSearch:
    """Nearest neighbours of some videos, by the vectors of one result.

    `num_searched` of `num_videos` were compared.
    """

    encoder: str
    stream: str
    num_searched: int
    num_videos: int
    found: tuple[Neighbours, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of the report's page.

    Args:
        weights: what the backbone's filters are, in words.
        warnings: what a reader must know before believing the numbers.
        notes: how to read them.
        facts: what was run: (name, value).
        multi_label: the headline metric is then mAP, else accuracy.
        chance: the headline metric of a classifier that has learnt nothing.
        top_k: K of `Result.top_k`.
        per_class: of the best result.
        precision_recall: curves of the best result: of some classes, and the mean of all.
        confusion: of the best result; None where videos have several labels.
        solved: how the SVMs behind the results were solved.
        samples: the most confident wrong and right videos of the best result.
        paper: the results beside DQ Table 2; None where they were not compared.
        paper_tables: other tables of the paper that the recipe follows.
        activations: class activation maps of the best network. flows: those it estimates.
        class_gains: by networks. accuracy_gains: of the best network over the best result of
            vectors.
        currency: of `StepFact.cost`.
        planned_for: the cluster that `StepFact.predicted_s` is for.
    """

    title: str
    recipe: str
    weights: str
    num_videos: int
    num_classes: int
    ledger: Ledger
    multi_label: bool = False
    chance: float | None = None
    top_k: int = 5
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    steps: tuple[StepFact, ...] = ()
    results: tuple[Result, ...] = ()
    per_class: tuple[ClassRow, ...] = ()
    confusion: Confusion | None = None
    precision_recall: tuple[Curve, ...] = ()
    curves: tuple[Curve, ...] = ()
    solved: tuple[Solved, ...] = ()
    failures: Failures = field(default_factory=Failures)
    samples: tuple[Sample, ...] = ()
    neighbours: NeighbourSearch | None = None
    paper: Comparison | None = None
    paper_tables: tuple[BesidePaper, ...] = ()
    activations: tuple[ActivationFigure, ...] = ()
    over_time: tuple[TimeFigure, ...] = ()
    flows: tuple[FlowFigure, ...] = ()
    class_gains: tuple[ClassGains, ...] = ()
    accuracy_gains: AccuracyGains | None = None
    currency: str = ""
    planned_for: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The name of the metric by which results are compared."""
        return headline_metric(self.multi_label)

    def value(self, result: Result) -> float | None:
        """Return the headline metric of a result."""
        return self.estimate(result).value

    def estimate(self, result: Result) -> Estimate:
        """Return the headline metric of a result, with its interval."""
        return result.headline(self.multi_label)

    @property
    def best_single(self) -> Result | None:
        """The best result that is no fusion."""
        single = [r for r in self.ranked() if not r.fusion and self.value(r) is not None]
        return single[0] if single else None

    def ranked(self) -> list[Result]:
        """The results, best first.

        Equal ones stay in their order, those without a value are last.
        """

        def value(result: Result) -> float:
            known = self.value(result)
            return -1.0 if known is None else known

        return sorted(self.results, key=value, reverse=True)
