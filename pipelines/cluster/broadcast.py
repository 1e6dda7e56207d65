"""Exchange between the driver and the tasks of a step: shared files and errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from pipelines.errors import RunError
from pipelines.storage.store import Store


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
    """
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, RunError):
            raise error.cause from error
        if isinstance(error.cause, ValueError):
            raise RunError(f"{step}: {error.cause}") from error
        raise
