"""Connection to a Ray cluster, or the start of one here (docs/autoscaling.md)."""

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ray

from pipelines.cluster import doors
from pipelines.errors import ConfigError, RunError
from pipelines.settings.sections import Cluster

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
"""The folder of our packages."""

ANSWER_S = 10.0
"""Longest time that a head may be silent."""

_AGAIN_S = 1.0


def connect(address: str | None, settings: Cluster) -> None:
    """Join the cluster at `address` (or RAY_ADDRESS, as in a Ray job), else starts one here.

    Workers look for modules in the folder in which the driver connects, before all others: that is
    the one of our packages, because the user's may hold a `pipelines` of its own.

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
        require_answer(address)
        packages = [str(_ROOT / name) for name in ("encoders", "pipelines")]
        # A Ray job ships its working directory already.
        in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        with contextlib.chdir(_ROOT), _without_notice():
            modules = None if in_job else {"py_modules": packages}
            ray.init(address=address, runtime_env=modules, **quiet)
    else:
        if not doors.are_closed():
            raise RuntimeError(
                "cluster.connect: expected pipelines.cluster.doors.close() before Ray is imported, "
                "because a cluster of this process's own would listen on all addresses of the "
                "machine, got none"
            )
        # It watches for nodes that a cloud takes away: one process more, and this node stays.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # An idle process that has loaded torch can serve the next step, which follows in seconds;
        # Ray's default is 1 s.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "20000")
        with contextlib.chdir(_ROOT), _without_notice():
            ray.init(
                address="local",
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    if threading.current_thread() is threading.main_thread():
        # Ray's C++ handler prints a stack before it calls ours: set again, ours is called alone.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    # Ray Data warns of progress bars and of CPUs that are busy for a moment; what fails is raised,
    # and need not be told with its traceback as well.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = settings.no_progress_timeout_s
    if settings.grows:
        # Nothing can be done while nodes start.
        context.execution_no_progress_timeout_s += settings.node_wait_s
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(settings.node_wait_s))
        return
    resources = ray.cluster_resources()
    if not resources.get("CPU"):
        raise ConfigError(
            "cluster.max_cpus: expected what the cluster may grow to, because it has no CPU now, "
            "got 0; give cluster.max_gpus as well where it may have GPUs"
        )
    if address:
        # Ray does not say whether an autoscaler is at work.
        log.info(
            "cluster: %g CPUs and %g GPUs, taken for all there will be; where it grows, give "
            "cluster.max_cpus and cluster.max_gpus",
            resources["CPU"],
            resources.get("GPU", 0),
        )


@contextlib.contextmanager
def _without_notice() -> Iterator[None]:
    """Keep Ray's C++ side from telling the user which level of its log we have set.

    It writes past Python, so what comes on stderr meanwhile is held back and given at the end.
    """
    notice = b"Set ray log level from environment variable"
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if notice not in line:
                    os.write(2, line)


def require_answer(address: str, patience_s: float = ANSWER_S) -> None:
    """Check that something listens where a head should be; Ray itself waits for minutes.

    Raises:
        RunError: nothing does, for as long as patience_s.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        # `auto` and `local` are names that Ray knows.
        return
    end = time.monotonic() + patience_s
    while True:
        left_s = end - time.monotonic()
        try:
            socket.create_connection((host.strip("[]"), int(port)), max(left_s, 0.1)).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() + _AGAIN_S > end or isinstance(error, OverflowError):
                raise RunError(
                    f"--address {address}: expected the head of a Ray cluster, got no answer in "
                    f"{patience_s:.0f} s ({error}); `ray status --address {address}` on the head "
                    "says whether it is up, and without --address a cluster is started here"
                ) from error
            time.sleep(_AGAIN_S)


def stalled(settings: Cluster) -> str:
    """Return a message about a step that Ray Data has ended because nothing was done."""
    waited, names = settings.no_progress_timeout_s, "cluster.no_progress_timeout_s"
    if settings.grows:
        waited, names = waited + settings.node_wait_s, f"cluster.node_wait_s + {names}"
    return (
        f"nothing was done for {names} = {waited} s; expected nodes that hold what the actors "
        "need, see `ray status`; what is finished is kept, the same command goes on from there"
    )
