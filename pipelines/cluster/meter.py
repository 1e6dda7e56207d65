"""A worker's watch: the time that it was busy with each stage of a step. Needs no Ray."""

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
        actor: the handle of a `pipelines.cluster.progress.Counter`. step: name, planned rows, and
            when it began.
    """

    actor: Any
    step: tuple[str, int, float]

    def tell(self, method: str, *details: object) -> Any:
        """Call a method of the step's `pipelines.cluster.progress.Tally`; return a reference to its
        result.
        """
        return self.actor.tell.remote(self.step, method, *details)


@dataclass(frozen=True)
class Meter:
    """A stopwatch: `with meter("decode"):` tells the step's counter how long that took, if there is
    one.
    """

    counter: StepCounter | None = None

    def joined(self, stage: str) -> None:
        """Report that an actor of the stage is there, with or without work."""
        if self.counter is not None:
            self.counter.tell("joined", stage, socket.gethostname(), os.getpid())

    def done(self, counts: dict[str, int]) -> None:
        """Report finished rows by status.

        Return when the counter has this and all earlier reports of this worker.

        Not by ray.get: Ray lends the CPU of a task that waits there, and starts a process for the
        next one.
        """
        if self.counter is not None:
            self.counter.tell("add", counts).future().result()

    def fail(self, error: str) -> None:
        """Report that the step cannot go on, with the reason for the user."""
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
    """A meter of many short pieces of work, which `tell` reports together: each report costs a
    message.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter, self.began = meter, 0.0
        self.busy_s: dict[str, float] = {}
        self.requests = self.num_bytes = 0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began, start = time.time(), time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, began, time.perf_counter() - start)

    def add(self, stage: str, began: float, seconds: float) -> None:
        """Add work that began at a time.time()."""
        self.began = self.began or began
        self.busy_s[stage] = self.busy_s.get(stage, 0.0) + seconds

    def moved(self, requests: int, num_bytes: int) -> None:
        """Add requests for videos on object storage, and the bytes that came."""
        self.requests += requests
        self.num_bytes += num_bytes

    def tell(self) -> None:
        """Report the sums to the counter, and begin anew."""
        if self.meter.counter is not None:
            for stage, busy_s in self.busy_s.items():
                self.meter.counter.tell("worked", stage, _worker(), self.began, busy_s)
            if self.requests:
                self.meter.counter.tell("moved", self.requests, self.num_bytes)
        self.began, self.busy_s = 0.0, {}
        self.requests = self.num_bytes = 0


@functools.cache
def _worker() -> str:
    return f"{socket.gethostname()} {os.getpid()}"
