"""Pools of actors: sizes, resources of each actor, and warnings of pools that do not grow
(docs/autoscaling.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.settings.sections import Cluster


def here() -> NodeAffinitySchedulingStrategy:
    """Return an option that places an actor on the driver's node: an actor keeps its node from
    being idle, even one without CPUs.
    """
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def capacity(settings: Cluster) -> dict[str, float]:
    """Return the CPUs and GPUs that a step may count on: the limit of a growing cluster, else those
    of now.
    """
    if settings.grows:
        limits: dict[str, float] = {"CPU": settings.max_cpus, "GPU": settings.max_gpus}
        return limits
    # Ray declares whole numbers; shares of a CPU are none.
    return cast(dict[str, float], ray.cluster_resources())


def memory_options(num_bytes: float) -> dict[str, int]:
    """Return the memory to reserve for a task, so that Ray places no more of them on a node than
    fit.

    Capped at the memory of the largest node, because Ray waits forever for a node that has more;
    none where no node is known yet.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Resources"].get("CPU")]
    largest = max((resources.get("memory", 0) for resources in nodes), default=0)
    reserved = int(min(largest, num_bytes))
    return {"memory": reserved} if reserved else {}


def cpus_of_a_worker(workers: int, use_gpu: bool) -> int:
    """Return the most CPUs that each of so many workers can have on today's nodes, with one CPU
    left over: a worker does not span nodes. At least 1, whether there is room or not.

    Args:
        use_gpu: each worker holds a GPU as well.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = sorted((int(of.get("CPU", 0)), int(of.get("GPU", 0))) for of in alive)
    if not nodes:
        return 1
    most, gpus = nodes.pop()
    nodes.append((most - 1, gpus))

    def num_workers(share: int) -> int:
        return sum(min(cpus // share, gpus if use_gpu else cpus) for cpus, gpus in nodes)

    shares = range(max(cpus for cpus, _ in nodes), 0, -1)
    return next((share for share in shares if num_workers(share) >= workers), 1)


MANY_CPUS = 16
"""CPUs from which on describers have four threads, and decoders have cores of their own."""


DESCRIBER_SEGMENTS = 16
"""Segments whose description takes about as long as the start of a describer."""


CPU_ROWS, GPU_ROWS = 64, 1024
"""Videos or segments that keep an actor with a CPU or a GPU busy about as long as its node takes to
start.
"""


@dataclass(frozen=True)
class Pool:
    """A pool of actors: their number, and the resources of each.

    `num_threads` is for torch on the CPU.

    Attributes:
        rows: how many are worth one more actor; 0: the size stays as it is, however little work
            there is.
    """

    size: int
    num_cpus: float
    num_gpus: float = 0
    num_threads: int = 1
    rows: int = 0

    def fitting(self, rows: int) -> Self:
        """Return the pool with no more actors than so many videos or segments are worth."""
        return replace(self, size=max(1, min(self.size, rows // self.rows))) if self.rows else self

    def options(self, batch_size: int | None) -> dict:
        """Return keyword arguments for `Dataset.map_batches`; without a batch size a batch is a
        block.

        The size is fixed: all actors are asked for at once, work begins with the first, and they
        end when no input is left. With a lower and an upper bound Ray Data would add actors one by
        one, and end some while work only begins.
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
        """Return the pool of stages that only read tables: they hold no GPU."""
        return self.decode if self.encode.num_gpus else self.encode

    def fitting(self, segments: int) -> Self:
        """Return the pools with no more actors than so many segments are worth."""
        return replace(
            self, decode=self.decode.fitting(segments), describe=self.describe.fitting(segments)
        )


def pools(settings: Cluster, resources: dict[str, float] | None = None) -> Pools:
    """Return the pools, sized by the configuration or the cluster: decoders take the CPUs that the
    network leaves.

    On GPUs each describer has one, and every other CPU decodes. Without GPUs the forward pass is
    the cost: there are describers for all cores, and a quarter as many decoders, which the
    describers' queue holds back (docs/performance.md has what else was tried). A describer has one
    thread, because threads of torch wait for each other by spinning: where another process has a
    core for a moment, two of them took ten times as long as one. On large machines it has four, to
    save memory, and the decoders have cores of their own.

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
    """Return the pools of a cluster whose nodes come and go.

    Each actor reserves all that it uses: the autoscaler counts only that.

    The cluster may never become as large as the settings allow, so no stage may wait for what
    another one holds: a stage that works beside the decoders holds a GPU and no CPU, or decodes for
    itself, and writing holds nothing.
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


BUSY = 0.5
"""Part of their time that a pool's actors are at work, from which on work waits for more of
them.
"""


@dataclass
class _Short:
    """A pool that is too small: since when, the work of its actors by then, and the time of the
    next warning.
    """

    since_s: float
    busy_s: float
    next_s: float


class Growth:
    """A watch over the pools of a step: it warns after `warning_s`, then after twice as long, and
    so on.

    Args:
        pools: {stages that an actor of the pool does: the pool}; the last stage names it.
    """

    def __init__(self, pools: Mapping[tuple[str, ...], Pool], warning_s: float) -> None:
        self.pools, self.warning_s = pools, warning_s
        self.short: dict[str, _Short] = {}

    def warnings(
        self, now_s: float, left: int, have: Mapping[str, int], busy_s: Mapping[str, float]
    ) -> list[str]:
        """Return the warnings that are due now.

        Args:
            now_s: of a clock that never goes back.
            left: rows that the step has still to do.
            have: {last stage of a pool: its actors}.
            busy_s: {stage: seconds that all workers together have been busy with it}.
        """
        texts = []
        for stages, pool in self.pools.items():
            name, busy = stages[-1], sum(busy_s.get(stage, 0.0) for stage in stages)
            number = have.get(name, 0)
            if not left or number >= pool.size:
                self.short.pop(name, None)
                continue
            short = self.short.setdefault(name, _Short(now_s, busy, self.warning_s))
            waited_s = now_s - short.since_s
            if waited_s < short.next_s:
                continue
            if number and busy - short.busy_s < BUSY * number * waited_s:
                # Those that are there suffice so far. From now on, not from the next call: work is
                # told of in lumps.
                self.short[name] = _Short(now_s, busy, self.warning_s)
                continue
            short.next_s *= 2
            texts.append(_text(name, pool, number, waited_s, left))
        return texts


def _text(name: str, pool: Pool, number: int, waited_s: float, left: int) -> str:
    amounts = {"CPU": pool.num_cpus, "GPU": pool.num_gpus}
    needs = " and ".join(f"{amount:g} {kind}" for kind, amount in amounts.items() if amount)
    goes_on = "work goes on with these" if number else "nothing is done until there is one"
    return (
        f"the pool of {name} has had {number} of {pool.size} actors for {waited_s:.0f} s, {left} "
        f"rows are left; each actor needs {needs}. Expected nodes to come: see `ray status`, "
        "max_workers of the autoscaler, the quota and the spot capacity of the cloud, and whether "
        f"a node of the cluster has that much; {goes_on}"
    )
