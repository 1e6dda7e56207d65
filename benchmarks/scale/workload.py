"""A corpus, a cluster and the costs of the parts to the steps of a run, and what the run takes and
costs.

Videos are taken to be exponentially long: that gives the segments a mean, a spread, and closed
forms. A CPU of a machine is taken to be as fast as a core of the one that measured.
"""

import dataclasses
import math
from dataclasses import dataclass, field

from benchmarks.pipeline_decode import GOP_FRAMES
from benchmarks.scale.cluster import Cluster, Kind, Rules
from benchmarks.scale.costs import FRAMES_PER_S, INTERVAL_S, SEGMENTS_PER_TASK, Cost, Costs
from benchmarks.scale.step import Step, StepResult, run
from pipelines.classify import cost as classify_cost
from pipelines.classify.step import choose_form
from pipelines.cluster import pools
from pipelines.cluster.datasets import batches_at_a_time
from pipelines.encode.stage import GPU_READERS
from pipelines.plan import estimate
from pipelines.plan.estimate import Counts, Overheads
from pipelines.plan.prices import Range, Shape, read_prices
from pipelines.plan.trials import Trials
from pipelines.settings.config import Config
from pipelines.settings.recipes import recipe
from pipelines.storage.ranges import MOST_BYTES
from pipelines.storage.read_ahead import TOGETHER
from pipelines.storage.tables import ROWS_PER_FILE
from pipelines.video.sampling import SEGMENT_FRAMES

SEGMENT_S = SEGMENT_FRAMES * INTERVAL_S
KEY_FRAMES_S = GOP_FRAMES / FRAMES_PER_S
FRAME_BYTES = 224 * 224 * 3
HEADER_REQUESTS, FILE_REQUESTS = estimate.HEADER_READS, 3
"""A file's size, its footer, its columns."""

STRIP_ROWS = 1024
CHECKPOINT_S = 30
MOST_TASKS = 10_000
"""Of a step that are simulated one by one."""

PRICES = read_prices("")
GPU = PRICES.gpu("l4")
_MACHINES = {machine.name: machine for machine in PRICES.machines}
GPU_MACHINE, CPU_MACHINE = _MACHINES["g6.4xlarge"], _MACHINES["c7i.4xlarge"]


@dataclass(frozen=True)
class Corpus:
    """Videos of `duration_s` on average, in `classes`; recipe fcvid with `settings`."""

    name: str
    videos: int
    duration_s: float
    classes: int
    training: float
    settings: tuple[str, ...] = ()
    workers: int = 1

    @property
    def config(self) -> Config:
        # The committed costs are of runs with fusions, which the recipe no longer asks for.
        # The default, a frame of each of FCVID's 45,000 training videos, makes a run on 64 nodes
        # 5 % longer than the recorded results.
        fixed = ["classify.fusions=auto", "fit.num_frames=20000"]
        return recipe("fcvid").with_settings([*fixed, *self.settings])

    @property
    def counts(self) -> Counts:
        training = round(self.videos * self.training)
        return Counts(
            videos=self.videos,
            labelled=self.videos,
            training=training,
            tested=self.videos - training,
            classes=self.classes,
            num_folds=1,
        )

    @property
    def _ratio(self) -> float:
        """Share of the videos that are longer than a segment."""
        return math.exp(-SEGMENT_S / self.duration_s)

    @property
    def segments_per_video(self) -> float:
        return 1 / (1 - self._ratio)

    @property
    def copied_s(self) -> float:
        """Seconds of video that are copied for a segment: all of its video."""
        return self.duration_s + SEGMENT_S * self._ratio / (1 - self._ratio)

    @property
    def spread(self) -> float:
        """Standard deviation of a segment's length over its mean."""
        mean_s = self.duration_s * (1 - self._ratio)
        square = (
            2 * self.duration_s * (self.duration_s - (SEGMENT_S + self.duration_s) * self._ratio)
        )
        return math.sqrt(square / mean_s**2 - 1)

    def frames_per_video(self, apart_s: float) -> float:
        return 1 / (1 - math.exp(-apart_s / self.duration_s))


FCVID = Corpus("FCVID", 91_223, 167.0, 239, 0.5)
SPORTS = Corpus(
    "Sports-1M",
    1_100_000,
    336.0,
    487,
    0.7,
    # 4,096 values a vector of appearance (DQ 5.4): those of FCVID's length would cost thousands of
    # hours to train on.
    ("encode.encoders=fv_vae", "fv_vae.num_latents=7", "fit.num_workers=8"),
    workers=8,
)


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Attributes:
        gpu_nodes: with a GPU and 16 CPUs each; cores_per_gpu: CPUs in all, the rest of nodes
        without a GPU.
        share: of the GPU's peak that is reached, of those that the price table assumes.
        driver: its cost, over the measured one. lookups: files of rows that it looks into at a
        time.
    """

    corpus: Corpus
    gpu_nodes: int
    cores_per_gpu: int
    share: str = "middle"
    size: str = "360p"
    sampling: str = "every 3 s"
    rules: Rules = field(default_factory=Rules)
    driver: float = 1.0
    lookups: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Pause:
    """Time in which the head works alone."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a run took. Prices in the currency of the table, the head node's on demand included in
    both."""

    wall_s: float
    describe: StepResult
    seconds: dict[str, float]
    gpu_node_hours: float
    cpu_node_hours: float
    price_on_demand: float
    price_spot: float
    num_lost: int


def simulate(setting: Setting, costs: Costs, trials: Trials) -> Outcome:
    """The run from its start to the end of its last node."""
    gpu, cpu = kinds(costs)
    cpu_nodes = setting.gpu_nodes * (setting.cores_per_gpu - GPU_MACHINE.cpus) // CPU_MACHINE.cpus
    nodes = Cluster({gpu: setting.gpu_nodes, cpu: cpu_nodes}, setting.rules, setting.seed)
    seconds: dict[str, float] = {}
    described = None
    for step in steps(setting, costs, trials):
        began_s = nodes.now_s
        if isinstance(step, Pause):
            nodes.wait(step.seconds)
        else:
            found = run(nodes, _coarser(step))
            described = found if step.name == "describe" else described
        seconds[step.name] = seconds.get(step.name, 0.0) + nodes.now_s - began_s
    wall_s = nodes.now_s
    nodes.finish()
    hours = nodes.node_hours()
    on_demand, spot = (
        wall_s / 3600 * CPU_MACHINE.on_demand
        + hours[gpu] * getattr(GPU_MACHINE, kind)
        + hours[cpu] * getattr(CPU_MACHINE, kind)
        for kind in ("on_demand", "spot")
    )
    return Outcome(
        wall_s, described, seconds, hours[gpu], hours[cpu], on_demand, spot, nodes.num_lost
    )


def gpu_cost() -> Costs:
    """What a GPU is taken to reach."""
    fast, slow = (GPU.float32_tflops * share for share in reversed(GPU.share))
    source = (
        f"assumed: pipelines/plan/prices.toml, {slow:.3g} to {fast:.3g}; no GPU has run this yet"
    )
    return {f"{GPU.name}, TFLOP/s reached": Cost(1e-12 / GPU.seconds(1).value, source)}


def kinds(costs: Costs) -> tuple[Kind, Kind]:
    """Nodes with a GPU, whose describer has a CPU, and without."""
    share = costs["share of the memory for frames on their way"].value
    network = costs["a node's network, bytes_per_s"].value
    return tuple(
        Kind(
            name,
            slots=machine.cpus - machine.gpus,
            devices=machine.gpus,
            store_bytes=share * costs[f"{name}, memory_bytes"].value,
            network_bytes_per_s=network,
            start_s=costs[f"{name}, start_s"].value,
        )
        for name, machine in (("GPU node", GPU_MACHINE), ("CPU node", CPU_MACHINE))
    )


def _coarser(step: Step) -> Step:
    tasks = step.units / step.units_per_task
    return dataclasses.replace(step, coarse=max(1, round(tasks / MOST_TASKS)))


def steps(setting: Setting, costs: Costs, trials: Trials) -> list[Step | Pause]:
    """In their order, as pipelines.corpus has them."""
    return _Steps(setting, costs, trials).all()


class _Steps:
    def __init__(self, setting: Setting, costs: Costs, trials: Trials) -> None:
        self.setting, self.corpus, self.trials = setting, setting.corpus, trials
        self.cost = {name: cost.value for name, cost in costs.items()}
        self.fixed = Overheads()
        config, counts = self.corpus.config, self.corpus.counts
        shape = Shape(64, 4, GPU)
        sizes = pools.pools(config.cluster, {"CPU": shape.cpus, "GPU": shape.gpus})
        self.planned = {
            step.name: step
            for step in estimate.plan(counts, self._of_corpus(), config, sizes, shape, self.fixed)
        }

    def _of_corpus(self) -> Trials:
        """The trials as if they had been made on the corpus."""
        headers = dataclasses.replace(
            self.trials.headers, mean_segments=self.corpus.segments_per_video
        )
        segments = dataclasses.replace(self.trials.segments, frames=self.frames)
        return dataclasses.replace(self.trials, headers=headers, segments=segments)

    @property
    def segments(self) -> int:
        return round(self.corpus.videos * self.corpus.segments_per_video)

    @property
    def frames(self) -> float:
        """Described, of a segment."""
        apart_s = KEY_FRAMES_S if self.setting.sampling == "key frames" else INTERVAL_S
        return self.corpus.frames_per_video(apart_s) / self.corpus.segments_per_video

    def _on_gpu(self, work: Range) -> float:
        """GPU seconds at the share of the setting."""
        return {"middle": work.value, "high": work.low, "low": work.high}[self.setting.share]

    def _moved_s(self, num_bytes: float, requests: float = 1) -> float:
        """Between an actor and the object store."""
        rate = self.cost["object store, bytes_per_s of one connection"]
        rate = min(rate, self.cost["a node's network, bytes_per_s"] / CPU_MACHINE.cpus)
        return num_bytes / rate + requests * self.cost["object store, request_s"]

    def _dealt_s(self, pools: str) -> float:
        return self.cost[f"driver, s of a task with {pools}"] * self.setting.driver

    def all(self) -> list[Step | Pause]:
        sample, books = self.fit()
        return [
            Pause("start", self.fixed.job_s),
            self.index(),
            self.describe(),
            self.look("describe", 1),
            self.look("fit", 1),
            sample,
            *books,
            self.look("encode", 1),
            self.encode(),
            self.look("classify", 1),
            self.classify(),
            Pause("evaluate", self.evaluate_s()),
            self.look("evaluate", 1),
        ]

    def evaluate_s(self) -> float:
        """Metrics of each result by a task, on the CPUs of one GPU node, and the report by the
        driver."""
        evaluate = self.planned["evaluate"]
        rounds = math.ceil(evaluate.units / GPU_MACHINE.cpus)
        return self.fixed.report_s + rounds * evaluate.core_s / evaluate.units

    def look(self, step: str, passes: int) -> Pause:
        """The driver looks into each file of DESCRIPTORS, many at a time
        (pipelines.storage.store)."""
        files = self.segments / SEGMENTS_PER_TASK
        file_s = self.cost["look into a file of rows, s"]
        file_s += FILE_REQUESTS * self.cost["object store, request_s"] / self.setting.lookups
        return Pause(f"{step}: looking", passes * files * file_s)

    def index(self) -> Step:
        header_s = self.trials.headers.header_s + self._moved_s(0, HEADER_REQUESTS)
        return Step(
            name="index",
            units=self.corpus.videos,
            units_per_task=64,
            slot_s=header_s,
            driver_s=self._dealt_s("one pool") / 64,
            slot_start_s=self.fixed.pool_s,
        )

    def describe(self) -> Step:
        corpus, setting = self.corpus, self.setting
        images = self.frames + 1 - 1 / corpus.segments_per_video
        core_s = self.cost[
            f"{setting.size}, {setting.sampling}: decode, core_s of a second of video"
        ]
        copied = self.cost[f"{setting.size}, bytes of a second of video"] * corpus.copied_s
        decode_s = core_s * corpus.duration_s / corpus.segments_per_video
        read_s = self._moved_s(copied, math.ceil(copied / MOST_BYTES))
        write_s = self.frames * self.cost["write, core_s of a frame"]
        write_s += self._moved_s(self.frames * self.trials.rates.frame_bytes, 1 / SEGMENTS_PER_TASK)
        flops = images * self.trials.rates.flops
        return Step(
            name="describe",
            units=self.segments,
            units_per_task=SEGMENTS_PER_TASK,
            # Cores that write do not decode.
            slot_s=decode_s + read_s + write_s,
            device_s=self._on_gpu(GPU.seconds(flops)),
            unit_bytes=round(images * FRAME_BYTES),
            write_s=write_s,
            driver_s=self._dealt_s("two pools") / SEGMENTS_PER_TASK,
            slot_start_s=self.fixed.pool_s,
            device_start_s=self.fixed.torch_pool_s,
            spread=corpus.spread,
        )

    def fit(self) -> tuple[Step, list[Step | Pause]]:
        """A pass over the training videos' rows, for the sample; then codebooks on some GPUs."""
        host_s = self.cost["read, core_s of a frame"] * self.frames
        host_s += self._moved_s(self.frames * self.trials.rates.frame_bytes, 1)
        sample = Step(
            name="fit: sample",
            units=round(self.segments * self.corpus.training),
            units_per_task=64,
            slot_s=host_s,
            driver_s=self._dealt_s("one pool") / 64,
            slot_start_s=self.fixed.pool_s,
            spread=self.corpus.spread,
        )
        workers = min(self.corpus.workers, self.setting.gpu_nodes)
        gpu_s = self._on_gpu(self.planned["fit"].gpu_s)
        # A lost worker goes on from the last checkpoint.
        parts = max(1, math.ceil(gpu_s / workers / CHECKPOINT_S)) * workers
        books = Step(
            name="fit",
            units=parts,
            device_s=gpu_s / parts,
            device_start_s=self.fixed.torch_pool_s,
            most_devices=workers,
        )
        return sample, [Pause("fit", self.fixed.train_s), books]

    def encode(self) -> Step:
        """A GPU encodes while its actor's threads read and other CPUs of its node write the tables:
        the slowest counts."""
        corpus, trials = self.corpus, self.trials
        segments, videos = corpus.segments_per_video, corpus.videos
        frames = self.frames * segments
        # Each thread opens a file for itself.
        requests = segments * (1 + GPU_READERS * FILE_REQUESTS / SEGMENTS_PER_TASK)
        read_s = self.cost["read, core_s of a frame"] * frames
        read_s += self._moved_s(frames * trials.rates.frame_bytes, requests)
        written = sum(self.planned["encode"].tables.values()) / videos
        files = len(trials.dims) / ROWS_PER_FILE["encodings"]
        write_s = trials.rates.publish_s + self._moved_s(written, files)
        gpu_s = self._on_gpu(self.planned["encode"].gpu_s) / videos
        slowest_s = max(gpu_s, read_s / GPU_READERS, (read_s + write_s) / (GPU_MACHINE.cpus - 1))
        batch = corpus.config.encode.batch_videos
        together = batch * batches_at_a_time(videos // batch, self.setting.gpu_nodes)
        # Between two tasks nothing has been read ahead.
        first_s = TOGETHER / segments * read_s / together
        return Step(
            name="encode",
            units=videos,
            units_per_task=together,
            device_s=slowest_s + first_s,
            write_s=write_s,
            driver_s=self._dealt_s("one pool") / together,
            device_start_s=self.fixed.torch_pool_s,
            spread=corpus.spread,
        )

    def classify(self) -> Step:
        corpus, dims = self.corpus, self.trials.dims.values()
        training = corpus.counts.training
        form, _ = choose_form(corpus.config.classify, training, classify_cost.STORE_BYTES)
        gpu_s = self._on_gpu(self.planned["classify"].gpu_s)
        read = 2 * training * sum(dims)
        if form == "gram":
            # Each strip reads the blocks behind it, half of them on average, from other nodes'
            # stores.
            strips = math.ceil(training / STRIP_ROWS)
            elsewhere = 1 - 1 / self.setting.gpu_nodes
            moved_s = strips * read / 2 * elsewhere / self.cost["a node's network, bytes_per_s"]
            units, most = strips * len(dims), self.setting.gpu_nodes
        else:
            moved_s = classify_cost.SVM_PASSES * self._moved_s(read)
            most = min(corpus.workers, self.setting.gpu_nodes)
            units = classify_cost.SVM_PASSES * most
        return Step(
            name="classify",
            units=units,
            device_s=(gpu_s + moved_s) / units,
            device_start_s=self.fixed.torch_pool_s,
            most_devices=most,
        )
