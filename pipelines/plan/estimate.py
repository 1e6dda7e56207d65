"""The arithmetic of a plan: counts and measured rates in; hours, bytes, requests and prices out.

Pure functions. Time comes in two kinds: core seconds, work that one core of this machine does (a
GPU's seconds where it has one, because the trials ran on it), and wall time on a cluster, which is

    start-up + work that is spread over actors + work that is not.

Rates are measured (pipelines.plan.trials) and scaled by rows: videos, segments, images, frames,
codebooks. Start-up times are constants of `Overheads`, and what is assumed is a constant here with
its reason.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from encoders.registry import ENCODERS
from encoders.stream_specs import VIEWS
from pipelines.classify import cost as classify_cost
from pipelines.cluster.pools import Pools
from pipelines.cluster.teams import teams_at_once
from pipelines.evaluate.results import wanted
from pipelines.plan.prices import Range, Shape
from pipelines.plan.trials import FitTrial, Trials
from pipelines.settings.config import Config
from pipelines.storage.ranges import MOST_BYTES
from pipelines.storage.tables import ROWS_PER_FILE


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of the manifest: videos, those with labels, and those that train and are tested in a
    fold.

    `num_folds` 0: no labels.
    """

    videos: int
    labelled: int
    training: int
    tested: int
    classes: int
    num_folds: int


@dataclass(frozen=True)
class Overheads:
    """Seconds that do not grow with the work. docs/plan.md says how they were measured."""

    job_s: float = 13.0  # imports, start of the embedded cluster, its end
    pool_s: float = 3.0  # a step's data pipeline, with actors that load no torch
    torch_pool_s: float = 8.0  # with actors that load torch, and a network or codebooks
    train_s: float = 15.0  # Ray Train: workers, process group, end
    task_s: float = 0.05  # a core's time of a task in `classify`: argument, result, Ray's own work
    report_s: float = 2.0  # pictures, neighbours, page


NOTHING = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The plan of one step: its work, the cores and GPUs that do it, the time it takes and the
    tables it writes.

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
    gpu_s: Range = NOTHING
    flops: float = 0.0
    tables: dict[str, float] = field(default_factory=dict)
    reads: int = 0
    writes: int = 0
    peak_bytes: float = 0.0


UNSURE = 0.2
"""Share by which a wall time may be wrong beside what the sample of videos and the GPU's share
add."""

SAMPLING_ERRORS = 2.0
"""Standard errors of the sample that a range holds to each side."""

HEADER_READS = 3
VECTOR_READS = 4
"""Requests for a header, and for a row group of a table whose file is opened for it."""

PROCESS_BYTES = 900 * 2**20
"""A worker that has loaded torch and the project. Measured: 705 MiB for torch, 900 with torchvision
and Ray."""

FILE_BYTES = 4000
ROW_BYTES = {"VIDEOS": 100, "SEGMENTS": 30, "SCORES": 10, "METRICS": 150}
"""Bytes of a file without its rows, and of a row, on runs of 60 videos: text and numbers that
compress well."""


def plan(
    counts: Counts, trials: Trials, config: Config, pools: Pools, shape: Shape, fixed: Overheads
) -> list[StepPlan]:
    """Return the plan of all steps, in their order."""
    calculator = _Calculator(counts, trials, config, pools, shape, fixed)
    steps = [calculator.index(), calculator.describe(), calculator.fit(), calculator.encode()]
    if trials.networks.trials:
        steps.append(calculator.train())
    if counts.num_folds:
        steps += [calculator.classify(), calculator.evaluate()]
        if config.classify.final != "none":
            steps.append(calculator.final())
    return steps


@dataclass(frozen=True)
class _Calculator:
    """The parts of a plan, and the quantities that several steps share."""

    counts: Counts
    trials: Trials
    config: Config
    pools: Pools
    shape: Shape
    fixed: Overheads

    # --- what there is to do ------------------------------------------------------------------

    @property
    def readable(self) -> float:
        """Number of videos with a readable header."""
        headers = self.trials.headers
        return self.counts.videos * (1 - (headers.missing + headers.failed) / headers.looked)

    @property
    def segments(self) -> float:
        return self.readable * self.trials.headers.mean_segments

    @property
    def described(self) -> float:
        """Number of segments with descriptors."""
        segments = self.trials.segments
        return self.segments * (1 - segments.failed / segments.tried)

    @property
    def frames(self) -> float:
        return self.described * self.trials.segments.frames

    @property
    def described_videos(self) -> float:
        return self.described / self.trials.headers.mean_segments

    def sampled_frames(self, cells: int) -> float:
        """Return the frames of SAMPLES of a stream with so many descriptors in a view."""
        videos = self.counts.training if self.counts.num_folds else self.counts.videos
        drawn = self.config.fit.frames_for(videos, cells * VIEWS[self.config.picture.views])
        return min(self.frames * videos / self.counts.videos, drawn)

    @property
    def sample_bytes(self) -> dict[str, float]:
        """Bytes of SAMPLES, {stream: bytes}, for the streams that a codebook learns from."""
        sizes = self.trials.rates.sample_bytes
        return {
            trial.stream: self.sampled_frames(trial.cells) * sizes[trial.stream]
            for trial in self.trials.fits
            if trial.learns
        }

    @property
    def dims(self) -> dict[tuple[str, str], int]:
        """Vector lengths, {(encoder, stream): D}."""
        names = ((name.partition(" "), dim) for name, dim in self.trials.dims.items())
        return {(encoder, stream): dim for (encoder, _, stream), dim in names}

    @property
    def classifiers(self) -> classify_cost.Cost:
        counts = self.counts
        return classify_cost.cost(
            self.dims,
            self.config.classify,
            num_training=counts.training * self.described_videos / counts.videos,
            num_classes=counts.classes,
            num_folds=counts.num_folds,
        )

    # --- time ---------------------------------------------------------------------------------

    def _on_gpus(self, device_s: float) -> tuple[float, Range, float]:
        """Return core_s, gpu_s and flops of work that runs on GPUs where the cluster has some, else
        on cores."""
        flops = device_s * self.trials.rates.flops / self.trials.rates.describe_s
        if not self.shape.gpus:
            return device_s, NOTHING, flops
        gpu = self.shape.gpu
        return 0.0, gpu.seconds(flops) if gpu else Range.exactly(device_s), flops

    def _wall(self, fixed_s: float, spread: Range) -> Range:
        """Return the wall time: start-up and spread work.

        Its range covers the sample, the GPU, and the limits of the model.
        """
        error = UNSURE + SAMPLING_ERRORS * self.trials.headers.relative_error
        low = fixed_s * (1 - UNSURE) + spread.low * max(0.0, 1 - error)
        high = fixed_s * (1 + UNSURE) + spread.high * (1 + error)
        return Range(fixed_s + spread.value, low, high)

    def _held(self, step: str) -> float:
        return PROCESS_BYTES + self.trials.held_bytes.get(step, 0)

    def _files(self, rows: float, table: str, actors: int) -> int:
        """Return the number of files of so many rows; an actor's last one may be smaller."""
        return math.ceil(rows / ROWS_PER_FILE[table]) + (actors if rows > 1 else 0)

    # --- steps --------------------------------------------------------------------------------

    def index(self) -> StepPlan:
        core_s = self.readable * self.trials.headers.header_s
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
            peak_bytes=self.trials.segments.decoder_bytes,
        )

    def describe(self) -> StepPlan:
        segments, rates, pools = self.trials.segments, self.trials.rates, self.pools
        decode_s = self.segments * segments.decode_s
        network_s, gpu_s, flops = self._on_gpus(self.frames * rates.describe_s)
        # Decoders and describers work at the same time on shared cores: the slower ones count.
        slowest = (decode_s + network_s) / self.shape.cpus
        if not pools.together:
            slowest = max(slowest, decode_s / pools.decode.size)
        spread = gpu_s * (1 / max(1, min(self.shape.gpus, pools.describe.size)))
        if not self.shape.gpus:
            # Describers that decode too alternate between both.
            own_s = network_s / pools.describe.num_threads + decode_s * pools.together
            spread = Range.exactly(own_s / pools.describe.size)
        # Of local videos nothing was measured: whole files, if they were on object storage.
        whole = math.ceil(self.trials.headers.mean_bytes / MOST_BYTES)
        requests = self.segments * (segments.requests or max(1, whole))
        return StepPlan(
            name="describe",
            units=round(self.segments + self.counts.videos - self.readable),
            unit="segments",
            core_s=decode_s + network_s,
            gpu_s=gpu_s,
            flops=flops,
            wall_s=self._wall(self.fixed.torch_pool_s, spread.at_least(slowest)),
            tables={"DESCRIPTORS": self.frames * rates.frame_bytes},
            reads=round(requests) + 10,
            writes=self._files(self.segments, "descriptors", pools.describe.size) + 4,
            peak_bytes=max(self._held("describe"), segments.decoder_bytes),
        )

    def fit(self) -> StepPlan:
        """Plan step fit. The cost of codebooks grows with the sample, or with training steps."""
        fits, sizes, actors = self.trials.fits, self.sample_bytes, self.pools.encode.size
        sample_s = self.trials.rates.sample_s * self.frames if sizes else 0.0
        core_s, gpu_s, flops = self._on_gpus(sum(self._fit_s(t) * t.copies for t in fits))
        spread = (gpu_s + Range.exactly(core_s)) * (1 / self._fit_workers())
        books, reads = sum(trial.copies for trial in fits), bool(sizes) * VECTOR_READS
        cells = {trial.stream: trial.cells for trial in fits if trial.learns}
        samples = [self.sampled_frames(number) for number in cells.values()]
        return StepPlan(
            name="fit",
            units=books,
            unit="codebooks",
            core_s=sample_s + core_s,
            gpu_s=gpu_s,
            flops=flops,
            wall_s=self._wall(
                self.fixed.pool_s + self.fixed.train_s if sizes else 0.0,
                spread + Range.exactly(sample_s / actors),
            ),
            tables={
                "SAMPLES": sum(sizes.values()),
                "codebooks": sum(trial.num_bytes * trial.copies for trial in fits),
            },
            reads=reads * self._files(self.segments, "descriptors", 1)
            + VECTOR_READS * sum(self._files(frames, "samples", 1) for frames in samples),
            writes=sum(self._files(frames, "samples", actors) + 1 for frames in samples)
            + 3 * books,
            # The sample is a mapped file; EM and training use a small part of it at a time.
            peak_bytes=PROCESS_BYTES + 2 * max(sizes.values(), default=0),
        )

    def _fit_s(self, trial: FitTrial) -> float:
        """Return the seconds of a core for one codebook."""
        variant = self.config.variant(trial.name)
        # A view of a frame counts as a frame.
        fitted = int(self.sampled_frames(trial.cells) * VIEWS[self.config.picture.views])
        work = ENCODERS[variant.base].fit_work
        whole, tried = (work(variant.settings, n, trial.cells) for n in (fitted, trial.frames))
        once_s = trial.once_s * whole.once / tried.once
        return once_s + whole.steps * trial.step_s * (whole.step / tried.step if tried.step else 0)

    def _fit_workers(self) -> float:
        """Return the mean number of workers at work on codebooks.

        The longest codebook keeps its team busy while the others are done.
        """
        fit, slots = self.config.fit, self.shape.gpus or self.shape.cpus
        learning = [t for trial in self.trials.fits if trial.learns for t in [trial] * trial.copies]
        seconds = [self._fit_s(trial) for trial in learning]
        if not sum(seconds):
            return 1
        sizes = [self.sample_bytes[trial.stream] for trial in learning]
        busy = min(teams_at_once(fit, sizes, slots), sum(seconds) / max(seconds))
        return busy * min(fit.num_workers, slots)

    def encode(self) -> StepPlan:
        actors, videos, rates = self.pools.encode.size, self.described_videos, self.trials.rates
        books = self.trials.codebooks
        core_s, gpu_s, flops = self._on_gpus(self.frames * rates.encode_s)
        publish_s = videos * rates.publish_s
        # While GPUs encode, CPUs write the tables.
        spread = Range.exactly((core_s + publish_s) / actors)
        if self.shape.gpus:
            spread = (gpu_s * (1 / actors)).at_least(publish_s / self.shape.cpus)
        return StepPlan(
            name="encode",
            units=self.counts.videos * books,
            unit="encodings",
            core_s=core_s + publish_s,
            gpu_s=gpu_s,
            flops=flops,
            wall_s=self._wall(self.fixed.torch_pool_s, spread),
            tables={
                "ENCODINGS": videos * rates.vector_bytes,
                "ATTENTION": self.frames * rates.attention_bytes,
            },
            reads=VECTOR_READS * self._files(self.segments, "descriptors", actors),
            writes=2 * books * self._files(videos, "encodings", actors),
            peak_bytes=self._held("encode"),
        )

    def train(self) -> StepPlan:
        """Plan the training of networks, each on a team of workers, and the decoding for CLIPS."""
        networks, settings = self.trials.networks, self.config.network
        decode_s = (self.counts.labelled + networks.again) * networks.decode_s
        copies = sum(trial.copies for trial in networks.trials)
        core_s, gpu_s, flops = self._on_gpus(sum(t.copies * t.train_s for t in networks.trials))
        slots = self.shape.gpus or self.shape.cpus
        at_once = settings.at_once or int(settings.stream)
        teams = min(copies, at_once or max(1, slots // settings.num_workers))
        workers = min(slots, teams * settings.num_workers)
        # The longest training keeps its team busy while the others are done.
        rounds = math.ceil(copies / teams) * teams / copies
        spread = (gpu_s + Range.exactly(core_s)) * (rounds / workers)
        decoding = decode_s / min(self.pools.decode.size, self.shape.cpus)
        return StepPlan(
            name="train",
            units=copies,
            unit="networks",
            core_s=decode_s + core_s,
            gpu_s=gpu_s,
            flops=flops,
            wall_s=self._wall(
                self.fixed.train_s + self.fixed.pool_s, spread + Range.exactly(decoding)
            ),
            tables={
                "CLIPS": self.counts.labelled * networks.clip_bytes,
                "networks": float(sum(t.copies * t.num_bytes for t in networks.trials)),
            },
            reads=HEADER_READS * self.counts.labelled if networks.decode_s else 0,
            writes=self._files(self.counts.labelled, "clips", 0) + 4 * copies,
            # A share of CLIPS is a mapped file.
            peak_bytes=PROCESS_BYTES + 8 * max(t.num_bytes for t in networks.trials),
        )

    def _solved(self, cost: classify_cost.Cost, more_s: float = 0.0) -> dict[str, Any]:
        """Return what solving classifiers takes, as fields of a StepPlan.

        Args:
            more_s: of other work on the same cores or GPUs.
        """
        rates = self.trials.rates
        core_s, gpu_s, flops = self._on_gpus(
            cost.single * rates.product_s + cost.double * rates.double_s + more_s
        )
        tasks_s = cost.tasks * self.fixed.task_s
        # Tasks run side by side, but the first of each core load torch, and Ray Train has its own
        # start.
        start_s = max(tasks_s / self.shape.cpus, self.fixed.torch_pool_s)
        start_s += 0.0 if cost.form == "gram" else self.fixed.train_s
        spread = (gpu_s + Range.exactly(core_s)) * (1 / (self.shape.gpus or self.shape.cpus))
        files = self._files(self.described_videos, "encodings", 1)
        return {
            "core_s": tasks_s + core_s,
            "gpu_s": gpu_s,
            "flops": flops,
            "wall_s": self._wall(start_s, spread),
            "reads": len(self.dims) * VECTOR_READS * files,
            "peak_bytes": PROCESS_BYTES + cost.peak_bytes,
        }

    def classify(self) -> StepPlan:
        counts, cost = self.counts, self.classifiers
        networks = self.trials.networks.trials
        results = len(self.dims) + len(cost.fused) + len(networks)
        clips = counts.tested * self.config.network.test_clips
        rows = counts.tested * counts.classes * results
        return StepPlan(
            name="classify",
            units=counts.tested * results,
            unit="scored videos",
            tables={
                "SCORES": FILE_BYTES * results * counts.num_folds + ROW_BYTES["SCORES"] * rows,
                "classifiers": cost.weight_bytes,
            },
            writes=(3 * results + len(cost.fused)) * counts.num_folds,
            **self._solved(cost, clips * sum(trial.clip_s for trial in networks)),
        )

    def evaluate(self) -> StepPlan:
        counts = self.counts
        share = self.described_videos / counts.videos
        result_s = self.trials.rates.evaluate_s * counts.tested * share
        results = len(wanted(list(self.dims), self.config.evaluate, self.classifiers.fused))
        # One task for each result: the last round counts whole.
        spread_s = math.ceil(results / self.shape.cpus) * result_s
        return StepPlan(
            name="evaluate",
            units=results,
            unit="results",
            core_s=results * result_s,
            wall_s=self._wall(self.fixed.report_s, Range.exactly(spread_s)),
            tables={"METRICS": FILE_BYTES + ROW_BYTES["METRICS"] * results * counts.classes},
            reads=VECTOR_READS * results * counts.num_folds + 200,
            writes=4,
            peak_bytes=PROCESS_BYTES + 32.0 * counts.tested * counts.classes,
        )

    def final(self) -> StepPlan:
        """Plan classifiers of all labelled videos: of every result, or of the best one, which may
        be a fusion of them all."""
        counts = self.counts
        cost = classify_cost.cost(
            self.dims,
            self.config.classify,
            num_training=counts.labelled * self.described_videos / counts.videos,
            num_classes=counts.classes,
            num_folds=1,
        )
        every = self.config.classify.final == "all"
        results = len(self.dims) + len(cost.fused) if every else 1
        solved = self._solved(cost)
        if not every:
            # It may be that of a single stream.
            wall = solved["wall_s"]
            solved["wall_s"] = Range(wall.value, wall.low / max(1, len(self.dims)), wall.high)
        return StepPlan(
            name="final",
            units=results,
            unit="models",
            tables={"MODELS": FILE_BYTES, "final classifiers": cost.weight_bytes},
            writes=3 * results,
            **solved,
        )


def total(steps: list[StepPlan], fixed: Overheads) -> Range:
    """Return the wall time of the job: the steps, start and end."""
    start = Range(fixed.job_s, fixed.job_s * (1 - UNSURE), fixed.job_s * (1 + UNSURE))
    return sum((step.wall_s for step in steps), start)
