"""The arithmetic of `--plan`: counts and measured rates in, hours, bytes, requests and prices out.

Pure functions. Time comes in two kinds: core seconds, work that one core of this machine does (a GPU's
seconds where it has one, because the trials ran on it), and wall time on a cluster, which is

    start-up + work that is spread over actors + work that is not.

Rates are measured (pipelines.plan.probe), start-up times are constants of `Overheads`, and what is
assumed is a constant here with its reason. Docstrings say how large the error is where it is known.
"""

import math
from dataclasses import dataclass, field

from encoders.backbones.flow_input import COLOURS
from encoders.codebooks.kmeans import MAX_POINTS_PER_CENTROID
from encoders.settings import FvVaeSettings, GmmFvSettings, VladSettings
from encoders.stream_specs import VIEWS, FlowWindow
from pipelines.classify.fold_sets import INNER_FOLDS
from pipelines.classify.step import choose_form
from pipelines.cluster.pools import Pools
from pipelines.cluster.teams import teams_at_once
from pipelines.describe.stage import CPU_FRAMES, MAPS_BYTES, MOST_FRAMES
from pipelines.evaluate.results import wanted
from pipelines.plan.prices import Range, Shape
from pipelines.plan.probe import Counts, Measured
from pipelines.plan.trials import FitTrial
from pipelines.run.combination import Combination, chooses, combinations, sums_kernels
from pipelines.settings.config import Config
from pipelines.storage.tables import ROWS_PER_FILE
from pipelines.video.decode import COPY_BYTES


@dataclass(frozen=True)
class Overheads:
    """Seconds that do not grow with the work. How they were measured: docs/plan.md."""

    job_s: float = 13.0  # imports, start of the embedded cluster, its end
    pool_s: float = 3.0  # a step's data pipeline, with actors that load no torch
    torch_pool_s: float = 8.0  # with actors that load torch, and a network or codebooks
    train_s: float = 15.0  # Ray Train: workers, process group, end
    task_s: float = 0.05  # a core's time of a task in `classify`: argument, result, Ray's own work
    report_s: float = 2.0  # pictures, neighbours, page


NONE = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step: what it does, on how many cores and GPUs for how long, and what it leaves.

    Attributes:
        units, unit: what the step counts when it runs.
        core_s: work of CPU cores. gpu_s: of the planned GPUs.
        flops: operations of what runs on GPUs where the cluster has some.
        wall_s: on the planned cluster.
        tables: {table: bytes written}.
        reads, writes: requests to the object store, if videos and output are on one.
        peak_bytes: of the largest process.
    """

    name: str
    units: int
    unit: str
    core_s: float
    wall_s: Range
    gpu_s: Range = NONE
    flops: float = 0.0
    tables: dict[str, float] = field(default_factory=dict)
    reads: int = 0
    writes: int = 0
    peak_bytes: float = 0.0


UNSURE = 0.2
"""Share by which a wall time may be wrong beside what the sample of videos and the GPU's share add."""

SAMPLING_ERRORS = 2.0
"""Standard errors of the sample that a range holds to each side."""

HEADER_READS = 3
VECTOR_READS = 4
"""Requests for a header, and for a row group of a table whose file is opened for it."""

HELD_MAPS_BYTES = 12 * MAPS_BYTES
"""Of maps and what becomes of them on the way. Measured: 0.9 GiB of six nodes, the first layers of VGG-16 among them."""

PROCESS_BYTES = 900 * 2**20
"""A worker that has loaded torch and the project. Measured: 705 MiB for torch, 900 with torchvision and Ray."""

SOLVER_PRODUCTS, SVM_PASSES = 200, 60
"""Products of the Gram matrix with all columns, or passes over all vectors, that a solution is taken to need."""

TASKS_OF_BATCH = 6
"""Ray tasks of an encoder and stream in `classify`, beside one for each fold."""

STORE_BYTES = 20 * 2**30
"""Object store of a node, by which `classify` chooses its form: a third of 64 GiB."""

FILE_BYTES = 4000
ROW_BYTES = {"VIDEOS": 100, "SEGMENTS": 30, "SCORES": 10, "METRICS": 150}
"""Bytes of a file without its rows, and of a row, on runs of 60 videos: text and numbers that compress well."""


def plan(
    counts: Counts,
    measured: Measured,
    config: Config,
    pools: Pools,
    shape: Shape,
    fixed: Overheads,
) -> list[StepPlan]:
    """All steps, in their order."""
    calculator = _Calculator(counts, measured, config, pools, shape, fixed)
    steps = [calculator.index(), calculator.describe(), calculator.fit(), calculator.encode()]
    if counts.num_folds:
        steps += [calculator.classify(), calculator.evaluate()]
    return steps


@dataclass(frozen=True)
class _Calculator:
    """The parts of a plan, and what several steps need of them."""

    counts: Counts
    measured: Measured
    config: Config
    pools: Pools
    shape: Shape
    fixed: Overheads

    # --- what there is to do ------------------------------------------------------------------

    @property
    def readable(self) -> float:
        """Videos whose header can be read."""
        headers = self.measured.headers
        return self.counts.videos * (1 - (headers.missing + headers.failed) / headers.looked)

    @property
    def segments(self) -> float:
        return self.readable * self.measured.headers.mean_segments

    @property
    def described(self) -> float:
        segments = self.measured.segments
        return self.segments * (1 - segments.failed / segments.tried)

    @property
    def frames(self) -> float:
        return self.described * self.measured.segments.frames

    @property
    def described_videos(self) -> float:
        return self.described / self.measured.headers.mean_segments

    @property
    def sampled_frames(self) -> float:
        share = self.counts.training / self.counts.videos if self.counts.num_folds else 1.0
        return min(self.frames * share, self.config.fit.num_frames)

    # --- time ---------------------------------------------------------------------------------

    def _on_gpus(self, core_s: float) -> dict[str, float | Range]:
        """core_s, flops and gpu_s of work that GPUs do where the cluster has some, else cores."""
        flops = core_s * self.measured.core_flops
        if not self.shape.gpus:
            return {"core_s": core_s, "flops": flops}
        gpu_s = self.shape.gpu.seconds(flops) if self.shape.gpu else Range.exactly(core_s)
        return {"core_s": 0.0, "flops": flops, "gpu_s": gpu_s}

    def _spread(self, work: dict[str, float | Range], actors: float) -> Range:
        """Wall time of such work on so many actors, or cores."""
        return (work.get("gpu_s") or Range.exactly(work["core_s"])) * (1 / actors)

    def _wall(self, fixed_s: float, spread: Range) -> Range:
        """Start-up and spread work; its range is of the sample, of the GPU, and what models leave out."""
        error = UNSURE + SAMPLING_ERRORS * self.measured.headers.relative_error
        low = fixed_s * (1 - UNSURE) + spread.low * max(0.0, 1 - error)
        high = fixed_s * (1 + UNSURE) + spread.high * (1 + error)
        return Range(fixed_s + spread.value, low, high)

    def _files(self, rows: float, table: str, actors: int) -> int:
        """Files of so many rows; an actor's last one may be smaller."""
        return math.ceil(rows / ROWS_PER_FILE[table]) + (actors if rows > 1 else 0)

    # --- steps --------------------------------------------------------------------------------

    def index(self) -> StepPlan:
        core_s = self.readable * self.measured.headers.header_s
        spread_s = core_s / min(self.pools.decode.size, self.shape.cpus)
        return StepPlan(
            name="index",
            units=self.counts.videos,
            unit="videos",
            core_s=core_s,
            wall_s=self._wall(self.fixed.pool_s, Range.exactly(spread_s)),
            tables={
                "VIDEOS": FILE_BYTES + ROW_BYTES["VIDEOS"] * self.counts.videos,
                "SEGMENTS": FILE_BYTES + ROW_BYTES["SEGMENTS"] * self.segments,
            },
            reads=HEADER_READS * self.counts.videos,
            writes=2 * self._files(self.counts.videos, "videos", 0) + 1,
            peak_bytes=self.measured.segments.decoder_bytes,
        )

    def describe(self) -> StepPlan:
        found, pools = self.measured.segments, self.pools
        decode_s = self.segments * found.decode_s
        images = self.described * found.images
        network_s = images * found.describe_core_s
        network = self._on_gpus(network_s)
        core_s = decode_s + network.pop("core_s")
        # Decoders and describers work at the same time: the slower ones count, and that cores are shared.
        alone_s = 0.0 if pools.together else decode_s / pools.decode.size
        slowest = max(alone_s, core_s / self.shape.cpus)
        if self.shape.gpus:
            on_gpu = network["gpu_s"] * (1 / min(self.shape.gpus, pools.describe.size))
        else:
            threads = pools.describe.num_threads / self.measured.num_threads
            # Describers that decode for themselves do one after the other.
            own_s = images * found.describe_s / threads + (decode_s if pools.together else 0.0)
            on_gpu = Range.exactly(own_s / pools.describe.size)
        spread = Range(*(max(slowest, s) for s in (on_gpu.value, on_gpu.low, on_gpu.high)))
        describe = self.config.describe
        batch = describe.batch_frames or (MOST_FRAMES if self.shape.gpus else CPU_FRAMES)
        peak = PROCESS_BYTES + found.activation_bytes * batch * 1.5
        channels = max(
            w.num_channels if isinstance(w, FlowWindow) else COLOURS for w in describe.windows
        )
        decoded_bytes = channels * self.config.picture.decoded_px**2
        peak += describe.batch_segments * found.images * decoded_bytes
        together = describe.batch_segments if self.shape.gpus else 1
        peak += min(HELD_MAPS_BYTES, together * found.images * found.map_bytes)
        peak += 2 * describe.batch_segments * found.frames * found.frame_bytes
        copies = self.segments * max(1, math.ceil(self.measured.headers.mean_bytes / COPY_BYTES))
        return StepPlan(
            name="describe",
            units=round(self.segments + self.counts.videos - self.readable),
            unit="segments",
            core_s=core_s,
            **network,
            wall_s=self._wall(self.fixed.torch_pool_s, spread),
            tables={"DESCRIPTORS": self.frames * found.frame_bytes},
            reads=round(copies) + 10,
            writes=self._files(self.segments, "descriptors", pools.describe.size) + 4,
            peak_bytes=max(peak, found.decoder_bytes),
        )

    def fit(self) -> StepPlan:
        """The cost of codebooks grows with the sample, or with training steps."""
        sampled_from = {trial.stream for trial in self.measured.fits if trial.learns}
        streams = [trial for trial in self.measured.encodes if trial.stream in sampled_from]
        sample_s = sum(t.sample_frame_s * self.frames for t in streams)
        actors = self.pools.encode.size
        book_s = sum(map(self._fit_seconds, self.measured.fits))
        workers = self._fit_workers()
        books = self._on_gpus(book_s)
        fixed_s = self.fixed.pool_s + self.fixed.train_s if streams else 0.0
        spread = self._spread(books, workers) + Range.exactly(sample_s / actors)
        sample_bytes = sum(t.sample_frame_bytes for t in streams) * self.sampled_frames
        book_bytes = sum(t.num_bytes * self._folds_of(t) for t in self.measured.fits)
        return StepPlan(
            name="fit",
            units=self._books(),
            unit="codebooks",
            core_s=sample_s + books.pop("core_s"),
            **books,
            wall_s=self._wall(fixed_s, spread),
            tables={"SAMPLES": sample_bytes, "codebooks": book_bytes},
            reads=bool(streams) * VECTOR_READS * self._files(self.segments, "descriptors", 1)
            + len(streams) * VECTOR_READS * self._files(self.sampled_frames, "samples", 1),
            writes=len(streams) * (self._files(self.sampled_frames, "samples", actors) + 1)
            + 3 * self._books(),
            # The sample is a mapped file; what EM and training touch at a time is small beside it.
            peak_bytes=PROCESS_BYTES
            + 2
            * max(
                (self.sampled_frames * t.sample_frame_bytes for t in streams),
                default=0,
            ),
        )

    def _fit_workers(self) -> float:
        """How many are at work on codebooks, on average: the longest one keeps its team busy while others have nothing
        to do any more."""
        fit, places = self.config.fit, self.shape.gpus or self.shape.cpus
        bytes_of = {
            t.stream: self.sampled_frames * t.sample_frame_bytes for t in self.measured.encodes
        }
        seconds, sizes = [], []
        for trial in (t for t in self.measured.fits if t.learns):
            folds = self._folds_of(trial)
            seconds += [self._fit_seconds(trial) / folds] * folds
            sizes += [bytes_of[trial.stream]] * folds
        if not seconds:
            return 1
        busy = min(teams_at_once(fit, sizes, places), sum(seconds) / max(seconds))
        return busy * min(fit.num_workers, places)

    def _fit_seconds(self, trial: FitTrial) -> float:
        """A core's seconds for all codebooks of an encoder and stream."""
        settings = self.config.variant(trial.name).settings
        # A view of a frame counts as a frame.
        fitted = self.sampled_frames * VIEWS[self.config.picture.views]
        grows = grows_once = fitted / trial.frames
        if isinstance(settings, VladSettings):
            most = MAX_POINTS_PER_CENTROID * settings.num_centroids / trial.cells
            grows_once = min(fitted, most) / min(trial.frames, most)
        # A training step has a batch of its own size; an iteration of EM reads the whole sample.
        steps = 0.0
        if isinstance(settings, GmmFvSettings):
            steps = settings.max_iterations * grows
        if isinstance(settings, FvVaeSettings):
            steps = settings.steps_for(int(fitted))
        return (trial.once_s * grows_once + steps * trial.step_s) * self._folds_of(trial)

    def _folds_of(self, trial: FitTrial) -> int:
        """Codebooks of an encoder and stream: one, or one for each fold where they use labels."""
        uses_labels = self.config.variant(trial.name).uses_labels
        return self.counts.num_folds if uses_labels and self.counts.num_folds > 1 else 1

    def _books(self) -> int:
        return sum(map(self._folds_of, self.measured.fits))

    def encode(self) -> StepPlan:
        actors, videos = self.pools.encode.size, self.described_videos
        fold_share = self._books() / max(1, len(self.measured.fits))
        encode_s = fold_share * self.described * sum(t.segment_s for t in self.measured.encodes)
        publish_s = fold_share * videos * sum(t.video_s for t in self.measured.encodes)
        work = self._on_gpus(encode_s)
        spread, core_s = self._spread(work, actors), work.pop("core_s") + publish_s
        if self.shape.gpus:
            # CPUs write the tables meanwhile.
            slowest = publish_s / self.shape.cpus
            spread = Range(*(max(slowest, s) for s in (spread.value, spread.low, spread.high)))
        else:
            spread = Range.exactly(core_s / actors)
        vectors = fold_share * videos * sum(t.video_bytes for t in self.measured.encodes)
        attention = (
            fold_share * self.described * sum(t.attention_bytes for t in self.measured.encodes)
        )
        groups = self._files(self.segments, "descriptors", actors)
        return StepPlan(
            name="encode",
            units=round(self.counts.videos * self._books()),
            unit="encodings",
            core_s=core_s,
            wall_s=self._wall(self.fixed.torch_pool_s, spread),
            **work,
            tables={"ENCODINGS": vectors, "ATTENTION": attention},
            reads=VECTOR_READS * groups,
            writes=2 * self._books() * self._files(videos, "encodings", actors),
            peak_bytes=PROCESS_BYTES
            + self.config.encode.batch_videos * 4 * vectors / max(1.0, videos),
        )

    def classify(self) -> StepPlan:
        """Operations over the measured speed of products: inner products of vectors, rounds of the solver, weights.

        Right within a factor of two or so where there are many vectors (docs/plan.md); start-up of tasks else.
        """
        measured, folds = self.measured, self.counts.num_folds
        dims, fused = list(measured.dims.values()), self._combinations()
        # The matrices of single results serve combinations too.
        sums = [self._dim(one) for one in fused if sums_kernels(one.stream)]
        # So do the scores of inner folds of late rules, which are made once for each part.
        late = {
            p for f in fused if chooses(f.stream) and not sums_kernels(f.stream) for p in f.parts
        }
        inner = len(late) + sum(
            len(f.parts) for f in fused if chooses(f.stream) and sums_kernels(f.stream)
        )
        results = len(dims) + len(fused)
        columns = self.counts.classes * folds
        training, form = self._training(), self._form()
        if form == "gram":
            gram = sum(training**2 * dim for dim in dims)
            double = sum(
                columns * training * (SOLVER_PRODUCTS * 2 * training + 4 * dim)
                for dim in [*dims, *sums]
            )
            double += inner * INNER_FOLDS * columns * SOLVER_PRODUCTS * 2 * training**2
        else:
            gram, double = (
                sum(SVM_PASSES * 4.0 * columns * training * d for d in [*dims, *sums]),
                0.0,
            )
        seconds = gram / measured.product_flops + double / measured.double_flops
        tasks = results * (TASKS_OF_BATCH + folds) + inner * folds
        work_s = seconds * (1 if measured.on_gpu else measured.num_threads)
        work = self._on_gpus(work_s)
        overhead_s = tasks * self.fixed.task_s
        # Tasks run side by side, but the first of each core load torch, and Ray Train has its own start.
        start_s = max(overhead_s / self.shape.cpus, self.fixed.torch_pool_s)
        start_s += 0.0 if form == "gram" else self.fixed.train_s
        spread = self._spread(work, self.shape.gpus or self.shape.cpus)
        scores = self.counts.tested * self.counts.classes * results
        weights = 4.0 * sum([*dims, *sums]) * columns
        return StepPlan(
            name="classify",
            units=self.counts.tested * results,
            unit="scored videos",
            core_s=overhead_s + work.pop("core_s"),
            **work,
            wall_s=self._wall(start_s, spread),
            tables={
                "SCORES": FILE_BYTES * results * folds + ROW_BYTES["SCORES"] * scores,
                "classifiers": weights,
            },
            reads=len(dims) * VECTOR_READS * self._files(self.described_videos, "encodings", 1),
            writes=(3 * results + len(fused)) * folds,
            peak_bytes=PROCESS_BYTES
            + (8.0 * training**2 if form == "gram" else 40.0 * self.counts.classes * max(dims)),
        )

    def _pairs(self) -> list[tuple[str, str]]:
        return [(name.partition(" ")[0], name.partition(" ")[2]) for name in self.measured.dims]

    def _combinations(self) -> tuple[Combination, ...]:
        return combinations(self._pairs(), self.config.classify, on_gram=self._form() == "gram")

    def _form(self) -> str:
        return choose_form(self.config.classify, round(self._training()), STORE_BYTES)[0]

    def _training(self) -> float:
        return self.counts.training * self.described_videos / self.counts.videos

    def _dim(self, combination: Combination) -> int:
        return sum(self.measured.dims[" ".join(part)] for part in combination.parts)

    def evaluate(self) -> StepPlan:
        share = self.described_videos / self.counts.videos
        grows = self.counts.tested * share / max(1, self.measured.evaluate_videos)
        core_s = self.measured.evaluate_s * grows
        results = len(wanted(self._pairs(), self.config.evaluate, self._combinations()))
        # A task for each result: the last round of them is waited for whole.
        rounds = math.ceil(results / self.shape.cpus)
        return StepPlan(
            name="evaluate",
            units=results,
            unit="results",
            core_s=core_s,
            wall_s=self._wall(self.fixed.report_s, Range.exactly(rounds * core_s / results)),
            tables={"METRICS": FILE_BYTES + ROW_BYTES["METRICS"] * results * self.counts.classes},
            reads=VECTOR_READS * results * self.counts.num_folds + 200,
            writes=4,
            peak_bytes=PROCESS_BYTES + 32.0 * self.counts.tested * self.counts.classes,
        )


def total(steps: list[StepPlan], fixed: Overheads) -> Range:
    """Wall time of the job: of the steps and of what is around them."""
    start = Range(fixed.job_s, fixed.job_s * (1 - UNSURE), fixed.job_s * (1 + UNSURE))
    return sum((step.wall_s for step in steps), start)
