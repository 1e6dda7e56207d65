"""A worker's watch: which stage of a step it was busy with, and how long. Needs no Ray."""

import functools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepCounter:
    """A step at the run's counter.

    Args:
        actor: the handle of a `pipelines.cluster.progress.Counter`. step: name, planned rows, and when it began.
    """

    actor: Any
    step: tuple[str, int, float]

    def tell(self, what: str, *details: object) -> Any:
        """A reference to what that method of the step's `pipelines.cluster.progress.Tally` returns."""
        return self.actor.tell.remote(self.step, what, *details)


@dataclass(frozen=True)
class Meter:
    """`with meter("decode"):` tells the step's counter how long that took; without a counter, nothing."""

    counter: StepCounter | None = None

    def joined(self, stage: str) -> None:
        """An actor of the stage is there, whether it has work or not."""
        if self.counter is not None:
            self.counter.tell("joined", stage, socket.gethostname(), os.getpid())

    def done(self, counts: dict[str, int]) -> None:
        """Rows by status are finished. Returns when the counter has that, and what this worker told it before.

        Not by ray.get: Ray lends the CPU of a task that waits there, and starts a process for the next one.
        """
        if self.counter is not None:
            self.counter.tell("add", counts).future().result()

    def fail(self, error: str) -> None:
        """The step cannot go on, for a reason that the user should read."""
        if self.counter is not None:
            self.counter.tell("fail", error)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        sums = Sums(self)
        try:
            with sums(stage):
                yield
        finally:
            sums.tell()


SILENT = Meter()
"""For work outside a step."""


class Sums:
    """As a meter, but tells once, by `tell`, what many short pieces of work took: each telling costs a message."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.began = meter, 0.0
        self.busy_s: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began, start = time.time(), time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, began, time.perf_counter() - start)

    def add(self, stage: str, began: float, seconds: float) -> None:
        """Work that began at a time.time()."""
        self.began = self.began or began
        self.busy_s[stage] = self.busy_s.get(stage, 0.0) + seconds

    def tell(self) -> None:
        """Tells the counter, and begins anew."""
        if self.meter.counter is not None:
            for stage, busy_s in self.busy_s.items():
                self.meter.counter.tell("worked", stage, _worker(), self.began, busy_s)
        self.began, self.busy_s = 0.0, {}


@functools.cache
def _worker() -> str:
    return f"{socket.gethostname()} {os.getpid()}"
