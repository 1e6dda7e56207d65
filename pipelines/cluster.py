"""Connecting to Ray, and how a step's actor pools share what the cluster has, or may grow to (docs/autoscaling.md)."""

import logging
import os
import signal
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines import doors
from pipelines.errors import ConfigError
from pipelines.run_settings import Cluster

log = logging.getLogger(__name__)


def connect(address: str | None, settings: Cluster) -> None:
    """Joins the cluster at `address` (or RAY_ADDRESS, as in a Ray job), else starts one here.

    Raises:
        ConfigError: the cluster has no CPU, and no setting says that it grows.
    """
    # Here: every worker loads this module, and few want Ray Data, which takes a second of a core.
    from ray.data import DataContext

    address = address or os.environ.get("RAY_ADDRESS")
    # Workers' own output stays in Ray's log files: what users should see goes through the driver.
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if ray.is_initialized():
        pass
    elif address:
        packages = [str(Path(__file__).parents[1] / name) for name in ("encoders", "pipelines")]
        # A Ray job ships its working directory already.
        in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        ray.init(address=address, runtime_env=None if in_job else {"py_modules": packages}, **quiet)
    else:
        if not doors.are_closed():
            raise RuntimeError(
                "cluster.connect: expected pipelines.doors.close() before Ray is imported, because a cluster of this "
                "process's own would listen on all addresses of the machine, got none"
            )
        # It watches for nodes that a cloud takes away: one process more, and this node stays.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # An idle process that has loaded torch can serve the next step, which follows in seconds; Ray's default is 1 s.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "20000")
        ray.init(
            address="local",
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
    if threading.current_thread() is threading.main_thread():
        # Ray's C++ handler prints a stack before it calls ours: set again, ours is called alone.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    # Ray Data warns of progress bars and of CPUs that are busy for a moment; what fails is raised.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = settings.no_progress_timeout_s
    if settings.grows:
        # Nothing can be done while nodes start.
        context.execution_no_progress_timeout_s += settings.node_wait_s
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(settings.node_wait_s))
        return
    found = ray.cluster_resources()
    if not found.get("CPU"):
        raise ConfigError(
            "cluster.max_cpus: expected what the cluster may grow to, because it has no CPU now, got 0; give "
            "cluster.max_gpus as well where it may have GPUs"
        )
    if address:
        # Ray does not say whether an autoscaler is at work.
        log.info(
            "cluster: %g CPUs and %g GPUs, taken for all there will be; where it grows, give cluster.max_cpus and "
            "cluster.max_gpus",
            found["CPU"],
            found.get("GPU", 0),
        )


def here() -> NodeAffinitySchedulingStrategy:
    """The driver's node: an actor keeps its node from being idle, even one without CPUs."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def capacity(settings: Cluster) -> dict[str, float]:
    """CPU and GPU that a step may count on: what a growing cluster may grow to, else what there is now."""
    if settings.grows:
        return {"CPU": settings.max_cpus, "GPU": settings.max_gpus}
    return ray.cluster_resources()


def memory_options(num_bytes: float) -> dict[str, int]:
    """The memory to reserve for a task, so that Ray places no more of them on a node than fit.

    Capped at the memory of the largest node, because Ray waits forever for a node that has more; none where no node is known yet.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Resources"].get("CPU")]
    largest = max((resources.get("memory", 0) for resources in nodes), default=0)
    wanted = int(min(largest, num_bytes))
    return {"memory": wanted} if wanted else {}


def cpus_of_a_worker(workers: int, use_gpu: bool) -> int:
    """The most CPUs that each of so many workers can have on the nodes there are, with one CPU left over: a worker does
    not span nodes. At least 1, whether there is room or not.

    Args:
        use_gpu: each worker holds a GPU as well.
    """
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = sorted((int(of.get("CPU", 0)), int(of.get("GPU", 0))) for of in found)
    if not nodes:
        return 1
    most, gpus = nodes.pop()
    nodes.append((most - 1, gpus))

    def places(share: int) -> int:
        return sum(min(cpus // share, gpus if use_gpu else cpus) for cpus, gpus in nodes)

    shares = range(max(cpus for cpus, _ in nodes), 0, -1)
    return next((share for share in shares if places(share) >= workers), 1)


def stalled(settings: Cluster) -> str:
    """What to say of a step that Ray Data has ended because nothing was done."""
    waited, names = settings.no_progress_timeout_s, "cluster.no_progress_timeout_s"
    if settings.grows:
        waited, names = waited + settings.node_wait_s, f"cluster.node_wait_s + {names}"
    return (
        f"nothing was done for {names} = {waited} s; expected nodes that hold what the actors need, see `ray status`; what "
        "is finished is kept, the same command goes on from there"
    )


MANY_CPUS = 16
"""CPUs from which on describers have four threads, and decoders have cores of their own."""

DESCRIBER_SEGMENTS = 16
"""Segments whose description takes about as long as the start of a describer."""

CPU_ROWS, GPU_ROWS = 64, 1024
"""Videos or segments that keep an actor with a CPU or a GPU busy about as long as its node takes to start."""


@dataclass(frozen=True)
class Pool:
    """A pool of actors: how many, and what each holds. `num_threads` is for torch on the CPU.

    Attributes:
        rows: how many are worth one more actor; 0: the size stays as it is, however little work there is.
    """

    size: int
    num_cpus: float
    num_gpus: float = 0
    num_threads: int = 1
    rows: int = 0

    def fitting(self, rows: int) -> Self:
        """The pool with no more actors than so many videos or segments are worth."""
        return replace(self, size=max(1, min(self.size, rows // self.rows))) if self.rows else self

    def options(self, batch_size: int | None) -> dict:
        """Keyword arguments for `Dataset.map_batches`; without a batch size a batch is a block.

        The size is fixed: all actors are asked for at once, work begins with the first, and they end when no input is
        left. With a lower and an upper bound Ray Data would add actors one by one, and end some while work only begins.
        """
        from ray.data import ActorPoolStrategy

        return {
            "compute": ActorPoolStrategy(size=self.size),
            "batch_size": batch_size,
            "batch_format": "pyarrow",
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus or None,
        }


@dataclass(frozen=True)
class Pools:
    """The pools of the steps. Together with a write task they never hold more CPUs than there are,
    because Ray waits silently for what it can never have."""

    decode: Pool
    describe: Pool
    encode: Pool
    write_cpus: float
    together: bool

    @property
    def read(self) -> Pool:
        """The pool of stages that only read tables: they hold no GPU."""
        return self.decode if self.encode.num_gpus else self.encode

    def fitting(self, segments: int) -> Self:
        """The pools with no more actors than so many segments are worth."""
        return replace(
            self, decode=self.decode.fitting(segments), describe=self.describe.fitting(segments)
        )


def pools(settings: Cluster, resources: dict[str, float] | None = None) -> Pools:
    """Sizes from the configuration, or from the cluster: decoders take the CPUs that the network leaves.

    On GPUs each describer has one, and every other CPU decodes. Without GPUs the forward pass is the cost: there are
    describers for all cores, and a quarter as many decoders, which the describers' queue holds back (docs/performance.md
    has what else was tried). A describer has one thread, because threads of torch wait for each other by spinning:
    where another process has a core for a moment, two of them took ten times as long as one. On large machines it has
    four, to save memory, and the decoders have cores of their own.

    Args:
        resources: CPU and GPU of a cluster that is planned for; None asks the one that is joined.
    """
    resources = capacity(settings) if resources is None else resources
    cpus, gpus = resources.get("CPU", 1.0), int(resources.get("GPU", 0))
    if settings.grows:
        return _growing(settings, int(cpus), gpus)
    cores = int(cpus)
    quarter = settings.num_decoders or max(1, cores // 4)
    threads, left = (1, cores) if cores < MANY_CPUS else (4, cores - quarter)
    describers = settings.num_describers or gpus or max(1, left // threads)
    decoders = settings.num_decoders or (max(1, cores - describers) if gpus else quarter)
    encoders = settings.num_encoders or gpus or max(1, int(cpus) // 2)
    gpu = 1 if gpus else 0
    together = settings.placement == "together"
    share = 0.75 if together else 0.25
    return Pools(
        decode=Pool(decoders, min(1, 0.5 * cpus / decoders)),
        describe=Pool(
            describers,
            min(1, share * cpus / describers),
            gpu,
            num_threads=max(1, min(threads, int(cpus) // describers)),
            rows=0 if settings.num_describers else DESCRIBER_SEGMENTS,
        ),
        encode=Pool(encoders, min(1, 0.75 * cpus / encoders), gpu),
        write_cpus=min(1, 0.125 * cpus),
        together=together,
    )


def _growing(settings: Cluster, cpus: int, gpus: int) -> Pools:
    """The pools of a cluster whose nodes come and go. Each actor holds all that it uses: the autoscaler counts only that.

    The cluster may never become as large as the settings allow, so no stage may wait for what another one holds: a stage
    that works beside the decoders holds a GPU and no CPU, or decodes for itself, and writing holds nothing.
    """
    together = settings.placement == "together" or not gpus
    describers = settings.num_describers or gpus or cpus
    decoders = settings.num_decoders or max(1, cpus - (describers if gpus else 0))
    gpu, rows = (1, GPU_ROWS) if gpus else (0, CPU_ROWS)

    def pool(chosen: int, size: int, num_cpus: int, num_gpus: int, rows: int) -> Pool:
        return Pool(size, num_cpus, num_gpus, rows=0 if chosen else rows)

    return Pools(
        decode=pool(settings.num_decoders, decoders, 1, 0, CPU_ROWS),
        describe=pool(settings.num_describers, describers, 1 if together else 0, gpu, rows),
        encode=pool(settings.num_encoders, settings.num_encoders or gpus or cpus, 1, gpu, rows),
        write_cpus=0,
        together=together,
    )
