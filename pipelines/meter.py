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
class Meter:
    """`with meter("decode"):` tells the step's counter how long that took; without a counter, nothing.

    Args:
        counter: the handle of a `pipelines.progress.Counter`.
    """

    counter: Any = None

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began, start = time.time(), time.perf_counter()
        try:
            yield
        finally:
            self.worked(stage, began, time.perf_counter() - start)

    def worked(self, stage: str, began: float, seconds: float) -> None:
        """Tells of work that began at a time.time()."""
        if self.counter is not None:
            self.counter.worked.remote(stage, _worker(), began, seconds)


SILENT = Meter()
"""For work outside a step."""


@functools.cache
def _worker() -> str:
    return f"{socket.gethostname()} {os.getpid()}"
