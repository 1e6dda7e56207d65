"""The time of a step is that of all processes that worked on it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.accuracy_run import seconds_of
from pipelines import corpus
from pipelines.ledger.accounts import Account, Spent
from pipelines.run.record import FILE, StepTime
from pipelines.settings.sections import Track
from pipelines.storage.store import Store

KILLED = """
import os, sys, time
from pipelines.run.record import FILE, StepTime
from pipelines.storage.store import Store
store = Store(sys.argv[1])
with StepTime(store, "describe", "d1", every_s=0.05):
    while (store.read_json(FILE) or {"seconds": 0})["seconds"] < 0.3:
        time.sleep(0.02)
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_spent_counts_for_the_same_work_alone(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    store = Store(str(tmp_path))
    with StepTime(store, "describe", "d1") as timed:
        pass
    assert timed.earlier_s >= 0.3
    for step, digest in (("describe", "d2"), ("encode", "d1")):
        with StepTime(store, step, digest) as timed:
            pass
        assert timed.earlier_s == 0


def test_a_resumed_run_reports_the_time_of_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Recorded(tmp_path)

    def fail(job: object) -> tuple[Account, Spent]:
        time.sleep(0.2)
        raise RuntimeError("the step fails")

    def end(job: object) -> tuple[Account, Spent]:
        return Account("segments", 1, 1, 0), Spent(0.0, ())

    for work in (fail, fail):
        with pytest.raises(RuntimeError, match="the step fails"):
            run(job, monkeypatch, work)
    run(job, monkeypatch, end)
    assert 0.4 <= seconds_of(job) < 30
    assert not job.store.exists(FILE)
    run(job, monkeypatch, end)
    assert seconds_of(job) < 0.4, "of work that was done and is done again, the last time counts"


class Recorded(SimpleNamespace):
    """What `corpus.run` needs of a job with one step, which is never complete."""

    def __init__(self, root: Path) -> None:
        config = SimpleNamespace(cluster=None, track=Track())
        super().__init__(
            store=Store(str(root)), config=config, digest=lambda step: "d1", tables=dict
        )

    def is_sound(self, step: str) -> bool:
        return False

    def repair(self, step: str) -> None:
        """Find nothing to remove."""

    def finish(self, step: str) -> None:
        """Leave no mark."""


def write(
    job: Recorded, step: str, account: Account, spent: Spent, seconds: float, _: dict
) -> None:
    """Stand in for `record.write`."""
    job.store.publish_json("run.json", {"steps": {step: {"seconds": seconds}}})


def run(job: Recorded, monkeypatch: pytest.MonkeyPatch, work: Callable) -> None:
    """The step `describe`, without a cluster."""
    monkeypatch.setattr(corpus, "outcome", lambda job, did_work: None)
    monkeypatch.setattr(corpus.connect, "connect", lambda *_: None)
    monkeypatch.setattr(corpus.ray, "cluster_resources", dict)
    monkeypatch.setattr(corpus.record, "write", write)
    monkeypatch.setattr(corpus.views, "publish", lambda *_: None)
    monkeypatch.setattr(corpus.kept, "keep", lambda _: None)
    monkeypatch.setattr(corpus, "describe", work)
    corpus.run(job, ("describe",), None)
