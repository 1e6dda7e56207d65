"""Connecting to Ray, and how a step's actor pools share what the cluster has."""

import logging
import os
import signal
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import ray
from ray.data import ActorPoolStrategy, DataContext

from pipelines.config import Cluster


def connect(address: str | None, settings: Cluster) -> None:
    """Joins the cluster at `address` (or RAY_ADDRESS, as in a Ray job), else starts one here."""
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
        ray.init(
            address="local",
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
    if threading.current_thread() is threading.main_thread():
        # Ray's C++ side prints a stack before it calls the handler: the handler alone will do.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    # Its warnings are about progress bars and CPUs that are busy for a moment; what fails is raised.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = settings.no_progress_timeout_s


MANY_CPUS = 16

DESCRIBER_SEGMENTS = 16
"""Segments that take a describer about as long as its start."""


@dataclass(frozen=True)
class Pool:
    """A pool of actors: how many, and what each holds. `num_threads` is for torch on the CPU."""

    size: int
    num_cpus: float
    num_gpus: float = 0
    num_threads: int = 1

    def options(self, batch_size: int | None) -> dict:
        """Keyword arguments for `Dataset.map_batches`; without a batch size a batch is a block."""
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

    def fitting(self, segments: int) -> Self:
        """No more describers than pay for loading torch and a network."""
        size = max(1, min(self.describe.size, segments // DESCRIBER_SEGMENTS))
        return replace(self, describe=replace(self.describe, size=size))


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
    resources = ray.cluster_resources() if resources is None else resources
    cpus, gpus = resources.get("CPU", 1.0), int(resources.get("GPU", 0))
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
        ),
        encode=Pool(encoders, min(1, 0.75 * cpus / encoders), gpu),
        write_cpus=min(1, 0.125 * cpus),
        together=together,
    )
