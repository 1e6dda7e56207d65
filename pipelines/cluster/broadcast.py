"""Exchange between the driver and the tasks of a step: shared files, errors, and lack of memory."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, Self, cast

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from pipelines.cluster.progress import counter
from pipelines.errors import ConfigError, RunError, user_error
from pipelines.storage.store import Store

log = logging.getLogger(__name__)

MOST_KILLS = 8
"""Workers that may be killed for want of memory while no row is done, before the step is ended."""

_LOOK_S, _PATIENCE_S = 5.0, 2.0

_LOWER = {
    "index": "cluster.num_decoders",
    "describe": "cluster.num_decoders, cluster.num_describers or describe.batch_segments",
    "fit": "fit.num_workers or fit.num_frames",
    "encode": "cluster.num_encoders or encode.batch_videos",
}
"""{step: what to lower where memory is short}."""


@dataclass(frozen=True)
class SharedFile:
    """A file that all workers of a step need, such as the weights of the network; called on any of
    them it gives the bytes.

    It is read from storage once for the whole cluster, and a node that has workers gets it once, in
    its object store. So no copy lies on a node's disk, to be locked, checked and cleared away: it
    goes when the driver lets it go.
    """

    content: ObjectRef

    @classmethod
    def of(cls, store: Store, name: str) -> Self:
        return cls(_read.remote(store, name))

    def __call__(self) -> bytes:
        return ray.get(self.content)


# It needs no CPU, because actors that hold all of them wait for it, after the loss of a node as
# well. So it runs where the driver is, which is the node that is lost last and that autoscaling
# does not take away.
@ray.remote(num_cpus=0, max_retries=3)
def _read(store: Store, name: str) -> bytes:
    return store.read(name)


@contextmanager
def task_errors(step: str) -> Iterator[None]:
    """Raise a task's error that is meant for the user without Ray's traceback.

    Raises:
        RunError: a task says that the run cannot go on, or by a ValueError that its inputs are
            wrong.
        ConfigError: a task says that what the user gave is wrong.
    """
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, RunError | ConfigError):
            raise error.cause from error
        if isinstance(error.cause, ValueError):
            raise RunError(f"{step}: {error.cause}") from error
        raise


class MemoryWatch(threading.Thread):
    """A context manager around a step that warns of workers that Ray's memory monitor has killed,
    and ends the step where it only kills: Ray would start them again without end, without a word.

    Raises:
        RunError: on exit, where the step was ended, or did end, for want of memory.
    """

    def __init__(self, step: str) -> None:
        super().__init__(name="memory", daemon=True)
        self.step, self.stopped, self.handler = step, threading.Event(), None
        self.killed, self.is_ended = 0, False

    def __enter__(self) -> Self:
        self.before = _num_killed()
        if threading.current_thread() is threading.main_thread():
            self.handler = signal.signal(signal.SIGUSR1, _interrupt)
        self.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, *_: object) -> None:
        self.stopped.set()
        self.join()
        if self.handler is not None:
            signal.signal(signal.SIGUSR1, self.handler)
        if not isinstance(error, Exception) and not self.is_ended:
            return
        is_said = isinstance(error, Exception) and user_error(error) is not None
        if not is_said and (self.is_ended or _num_killed() > self.before):
            raise RunError(self._message(_num_killed() - self.before)) from error

    def run(self) -> None:
        at_progress = num_done = 0
        while not self.stopped.wait(_LOOK_S):
            killed = _num_killed() - self.before
            if killed > self.killed:
                self.killed = killed
                log.warning("%s", self._message(killed))
            if killed <= at_progress:
                continue
            try:
                now_done = cast(int, ray.get(counter().num_done.remote(), timeout=_PATIENCE_S))
            except (GetTimeoutError, RayError):
                # It may be among the killed.
                now_done = num_done
            if now_done > num_done:
                num_done, at_progress = now_done, killed
            elif killed - at_progress >= MOST_KILLS and self.handler is not None:
                self.is_ended = True
                # Again at the next look: a signal just before a call begins to wait ends no wait.
                signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGUSR1)

    def _message(self, killed: int) -> str:
        return (
            f"{self.step}: Ray's memory monitor has killed {killed} workers, because the memory of "
            f"their node was full; lower {_LOWER.get(self.step, 'cluster.num_encoders')}, or take "
            "machines with more memory; what is finished is kept, and the same command goes on "
            "from there"
        )


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _num_killed() -> int:
    """Return the number of workers of this driver that Ray's memory monitor has killed.

    Ray's public way to its table of workers needs a dashboard, which a run's own cluster has not.
    """
    if not ray.is_initialized():
        # Whatever asks Ray now would start or look for a cluster.
        return 0
    from ray._private.state import state
    from ray.core.generated import common_pb2, gcs_pb2

    read: Any = gcs_pb2.WorkerTableData.FromString  # pyright: ignore[reportAttributeAccessIssue]
    killed = common_pb2.NODE_OUT_OF_MEMORY  # pyright: ignore[reportAttributeAccessIssue]
    job, table = ray.get_runtime_context().get_job_id(), state._connect_and_get_accessor()
    workers = map(read, table.get_worker_table())
    return sum(w.exit_type == killed and w.job_id.hex() == job for w in workers if not w.is_alive)
