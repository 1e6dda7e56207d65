"""Progress of a step: its line while it works, and its account of time at the end.

Workers tell the run's one Counter which rows they finished, and how long they were busy with which
stage. From this come the progress line, the metrics that Ray exports for Prometheus, and what the
step was bound by.
"""

import functools
import logging
import threading
import time
from typing import Any, Self, cast

import ray
from ray.actor import ActorHandle
from ray.util import metrics

from pipelines import terminal
from pipelines.cluster.meter import Meter, StepCounter
from pipelines.cluster.pools import Growth, here
from pipelines.ledger.accounts import Spent, Stage

log = logging.getLogger(__name__)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Counter:
    """A tally for each step of a run, all exported by one process: one for each step would be one
    more to start.

    Where its process is lost it starts again from 0: only the progress line is wrong then, no task
    fails.
    """

    def __init__(self) -> None:
        self.tallies: dict[tuple, Tally] = {}
        name = "video_fisher"
        self.planned = metrics.Gauge(
            f"{name}_planned", "rows that a step has to do", tag_keys=("step",)
        )
        self.rows = metrics.Counter(
            f"{name}_rows", "rows that a step has done", tag_keys=("step", "status")
        )
        self.seconds = metrics.Counter(
            f"{name}_busy_seconds", "time of a step's workers by stage", tag_keys=("step", "stage")
        )
        self.workers = metrics.Gauge(
            f"{name}_workers", "workers of a stage", tag_keys=("step", "stage")
        )

    def tell(self, step: tuple[str, int, float], method: str, *details: object) -> object:
        """Call a method of the tally of a step.

        Args:
            step: its name, its planned rows, and when it began.
        """
        if step not in self.tallies:
            self.tallies[step] = Tally(self, *step)
            self._show_planned(step[0])
        return getattr(self.tallies[step], method)(*details)

    def num_done(self) -> int:
        """Return the rows that all steps together have done."""
        return sum(sum(tally.counts.values()) for tally in self.tallies.values())

    def show_again(self, tally: "Tally") -> None:
        """Set the gauges again: Ray drops one that was not set for 20 s; the progress line calls
        this more often.
        """
        self._show_planned(tally.name)
        for stage, workers in tally.first.items():
            self.workers.set(len(workers), tally.tags | {"stage": stage})

    def _show_planned(self, name: str) -> None:
        # As the rows that are done, which a second run of the same driver adds to.
        planned = sum(tally.planned for tally in self.tallies.values() if tally.name == name)
        self.planned.set(planned, {"step": name})


class Tally:
    """Counts of a step's rows by status and the workers' seconds by stage, and their messages.

    Args:
        shown: exports what is counted.
        began: time.time() of the step, which is at work before its tally is.
    """

    def __init__(self, shown: Any, name: str, planned: int, began: float) -> None:
        self.shown, self.name, self.planned, self.began = shown, name, planned, began
        self.tags = {"step": name}
        self.counts: dict[str, int] = {}
        self.latest = ""
        self.error = ""
        self.first: dict[str, dict[str, float]] = {}
        self.busy_s: dict[str, float] = {}
        self.actors: dict[str, set[tuple[str, int]]] = {}
        self.requests = self.num_bytes = 0

    def moved(self, requests: int, num_bytes: int) -> None:
        """Count requests for videos on object storage, and the bytes that came."""
        self.requests += requests
        self.num_bytes += num_bytes

    def add(self, counts: dict[str, int]) -> None:
        for status, number in counts.items():
            self.counts[status] = self.counts.get(status, 0) + number
            self.shown.rows.inc(number, self.tags | {"status": status})

    def joined(self, stage: str, host: str, pid: int) -> None:
        self.actors.setdefault(stage, set()).add((host, pid))

    def present(self) -> dict[str, set[tuple[str, int]]]:
        """Return {stage: host and process of each actor that has started}."""
        return self.actors

    def worked(self, stage: str, worker: str, began: float, busy_s: float) -> None:
        """Count a piece of work of a worker, which began at a time.time()."""
        workers = self.first.setdefault(stage, {})
        if worker not in workers:
            workers[worker] = began
            self.shown.workers.set(len(workers), self.tags | {"stage": stage})
        self.busy_s[stage] = self.busy_s.get(stage, 0.0) + busy_s
        if busy_s > 0:
            self.shown.seconds.inc(busy_s, self.tags | {"stage": stage})

    def say(self, text: str) -> None:
        self.latest = text

    def fail(self, error: str) -> None:
        self.error = error

    def failure(self) -> str:
        return self.error

    def get(self) -> tuple[dict[str, int], str, Spent]:
        self.shown.show_again(self)
        return self.counts, self.latest, self.spent()

    def spent(self) -> Spent:
        firsts = [first for workers in self.first.values() for first in workers.values()]
        now = time.time()
        start = min(firsts, default=now)
        working_s = max(0.0, now - start)
        stages = []
        for name, workers in self.first.items():
            starts = [max(0.0, first - self.began) for first in workers.values()]
            busy_s = self.busy_s[name]
            waited_s = max(0.0, len(workers) * working_s - busy_s)
            stages.append(Stage(name, len(workers), busy_s, sum(starts) / len(starts), waited_s))
        return Spent(
            start_s=max(0.0, start - self.began),
            stages=tuple(stages),
            working_s=working_s,
            video_requests=self.requests,
            video_bytes=self.num_bytes,
        )


def counter() -> ActorHandle:
    """Return the counter of this driver, on its node."""
    driver = ray.get_runtime_context()
    return _counter(driver.get_node_id(), driver.get_job_id())


@functools.cache
def _counter(node_id: str, job_id: str) -> ActorHandle:
    return cast(ActorHandle, Counter.options(scheduling_strategy=here()).remote())


class ProgressLine(threading.Thread):
    """A context manager that shows done / total, rate and time left of a step; with `-v` also its
    busy stages.

    Args:
        growth: the pools to warn of while they are too small.

    Attributes:
        counter: this step at the run's counter. meter: what its workers measure their time with.
        spent: where the time went, when the context has ended.
    """

    def __init__(self, step: str, total: int, growth: Growth | None = None) -> None:
        super().__init__(daemon=True)
        self.step, self.total, self.growth = step, total, growth
        self.counter = StepCounter(counter(), (step, total, time.time()))
        self.meter = Meter(self.counter)
        self.started = time.monotonic()
        self.stopped = threading.Event()
        self.spent = Spent(0.0, ())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stopped.set()
        self.join()
        if kind is None:
            *_counts, self.spent = ray.get(self.counter.tell("get"))

    def failure(self) -> str:
        """Return why the step cannot go on, as a worker reported; "" where none did."""
        return ray.get(self.counter.tell("failure"))

    def run(self) -> None:
        wait_s = terminal.LOOK_S if terminal.is_terminal() else terminal.FIRST_S
        details = log.isEnabledFor(logging.DEBUG)
        with terminal.StepLine(self.step, self.total, details=details) as line:
            while not self.stopped.wait(wait_s):
                counts, latest, spent = ray.get(self.counter.tell("get"))
                busy = ", ".join(map(str, spent.stages))
                line.show(counts, time.monotonic() - self.started, busy, latest)
                if self.growth:
                    self._warn(self.growth, self.total - sum(counts.values()), spent)

    def _warn(self, growth: Growth, left: int, spent: Spent) -> None:
        busy_s = {stage.name: stage.busy_s for stage in spent.stages}
        have = _alive(ray.get(self.counter.tell("present")))
        for warning in growth.warnings(time.monotonic(), left, have, busy_s):
            log.warning("%s: %s", self.step, warning)


def _alive(actors: dict[str, set[tuple[str, int]]]) -> dict[str, int]:
    """Return the number of actors by stage, less those of nodes that are gone."""
    up, down = (
        {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"] == alive}
        for alive in (True, False)
    )
    return {stage: sum(host not in down - up for host, _ in of) for stage, of in actors.items()}
