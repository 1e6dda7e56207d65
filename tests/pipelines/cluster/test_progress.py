"""The counter of a step: what workers tell it, what it says, and what Prometheus reads."""

import itertools
import time
import urllib.request

import pytest
import ray
from ray.util import metrics

from pipelines.cluster.meter import SILENT, Meter, StepCounter, Sums
from pipelines.cluster.progress import Counter, ProgressLine


@ray.remote
def work(line_meter, stage: str, seconds: float) -> None:
    with line_meter(stage):
        time.sleep(seconds)


def test_without_a_counter_a_meter_does_nothing() -> None:
    with SILENT("decode"):
        pass
    SILENT.done({"ok": 1})


def test_gauges_are_set_as_long_as_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray drops one that was set once: a step that takes longer would have no `planned` any
    more."""
    seen = []

    class Metric:
        def __init__(self, name: str, *_: object, **__: object) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            seen.append((self.name, value, *tags.values()))

        def inc(self, *_: object) -> None:
            pass

    monkeypatch.setattr(metrics, "Gauge", Metric)
    monkeypatch.setattr(metrics, "Counter", Metric)
    counter = Counter.__ray_metadata__.modified_class()
    step = ("describe", 5, time.time())
    for worker in ("a", "b"):
        counter.tell(step, "worked", "decode", worker, 0.0, 1.0)
    for _ in range(2):
        seen.clear()
        counter.tell(step, "get")
        assert seen == [
            ("video_fisher_planned", 5, "describe"),
            ("video_fisher_workers", 2, "describe", "decode"),
        ]


@pytest.mark.ray
def test_workers_seconds_are_counted_and_exported(local_ray: None) -> None:
    name = f"trial-{time.monotonic_ns()}"
    with ProgressLine(name, 5) as line:
        ray.get([work.remote(line.meter, "decode", 0.3) for _ in range(4)])
        ray.get(work.remote(line.meter, "write", 0.1))
        ray.get(line.counter.tell("add", {"ok": 4, "failed": 1}))
    decode, write = sorted(line.spent.stages, key=lambda stage: stage.name)
    assert (decode.name, write.name) == ("decode", "write")
    assert 1.2 <= decode.busy_s < 3.0
    assert 0.1 <= write.busy_s < 1.0
    assert decode.workers >= 1
    assert write.workers == 1
    assert write.start_s > decode.start_s >= line.spent.start_s >= 0
    wanted = {
        f'ray_video_fisher_planned{{step="{name}"': 5.0,
        f'ray_video_fisher_rows_total{{step="{name}",status="ok"': 4.0,
        f'ray_video_fisher_rows_total{{step="{name}",status="failed"': 1.0,
        f'ray_video_fisher_busy_seconds_total{{step="{name}",stage="decode"': decode.busy_s,
        f'ray_video_fisher_workers{{step="{name}",stage="write"': 1.0,
    }
    found = exported(name, set(wanted))
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-3)


@ray.remote
def finish(line_meter: Meter, status: str) -> None:
    sums = Sums(line_meter)
    sums.add("decode", time.time(), 0.5)
    sums.tell()
    line_meter.done({status: 1})


@pytest.mark.ray
def test_all_that_tasks_have_told_is_there_when_they_are_done(local_ray: None) -> None:
    with ProgressLine("trial", 80) as line:
        ray.get([finish.remote(line.meter, "ok" if n % 4 else "failed") for n in range(80)])
        counts, _, spent = ray.get(line.counter.tell("get"))
    assert counts == {"ok": 60, "failed": 20}
    (decode,) = spent.stages
    assert decode.busy_s == 40.0


def test_steps_are_counted_apart_and_planned_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Prometheus reads adds up over runs of one driver: rows that are done, and so those that
    are planned."""
    planned = []

    class Metric:
        def __init__(self, name: str, *_: object, **__: object) -> None:
            self.is_planned = name.endswith("_planned")

        def set(self, value: float, tags: dict[str, str]) -> None:
            if self.is_planned:
                planned.append((tags["step"], value))

        def inc(self, *_: object) -> None:
            pass

    monkeypatch.setattr(metrics, "Gauge", Metric)
    monkeypatch.setattr(metrics, "Counter", Metric)
    counter = Counter.__ray_metadata__.modified_class()
    first, second, other = ("encode", 8, 1.0), ("encode", 5, 2.0), ("classify", 3, 2.0)
    counter.tell(first, "add", {"ok": 8})
    counter.tell(second, "add", {"ok": 2})
    counter.tell(other, "fail", "it cannot be")
    # A straggler of the first one.
    counter.tell(first, "say", "late")
    assert planned == [("encode", 8), ("encode", 13), ("classify", 3)]
    assert [counter.tell(step, "get")[0] for step in (first, second)] == [{"ok": 8}, {"ok": 2}]
    assert [counter.tell(step, "failure") for step in (second, other)] == ["", "it cannot be"]


@ray.remote(num_cpus=0)
class Slow:
    def tell(self, *_: object) -> None:
        time.sleep(0.5)


@ray.remote
def finish_slowly(counter: StepCounter) -> tuple[float, float]:
    began = time.time()
    Meter(counter).done({"ok": 1})
    return began, time.time()


@pytest.mark.ray
def test_a_task_keeps_its_cpu_while_it_waits_for_the_counter(local_ray: None) -> None:
    """Else Ray starts a process for the next one, and in the end there are several for each CPU."""
    task = finish_slowly.options(num_cpus=ray.cluster_resources()["CPU"])
    counters = [StepCounter(Slow.remote(), ("trial", 1, 0.0)) for _ in range(3)]
    times = sorted(ray.get([task.remote(counter) for counter in counters]))
    for (_, ended), (began, _) in itertools.pairwise(times):
        assert began >= ended


def exported(step: str, wanted: set[str]) -> dict[str, float]:
    """{name{tags: value} of a step, from the node's Prometheus endpoint, when all that is wanted is
    there."""
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    end = time.monotonic() + 30
    found: dict[str, float] = {}
    while time.monotonic() < end and not wanted <= set(found):
        time.sleep(0.5)
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        for line in text.splitlines():
            if f'"{step}"' in line and not line.startswith("#"):
                found[_key(line)] = float(line.rpartition(" ")[2])
    return found


def _key(line: str) -> str:
    """The name, and the tags that are ours; Ray's own WorkerId, by which the dashboard tells runs
    apart, is there too."""
    name, _, rest = line.partition("{")
    tags = dict(part.split("=", 1) for part in rest.rpartition("}")[0].split(","))
    assert tags["WorkerId"]
    kept = ",".join(f"{tag}={tags[tag]}" for tag in ("step", "status", "stage") if tag in tags)
    return f"{name}{{{kept}"
