"""Records of a run beside its tables: run.json, plan.json, and how long an unfinished step has
taken.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import threading
import time
from types import TracebackType
from typing import Self

from pipelines.ledger.accounts import Account, Spent
from pipelines.run.job import Job
from pipelines.run.versions import FORMAT_VERSION, code_revision
from pipelines.settings.config import Config, digest
from pipelines.settings.sections import Cluster, Plan, Track
from pipelines.storage.store import Store

log = logging.getLogger(__name__)

PLAN = "plan.json"
"""Record that `--plan` leaves in a run's folder, for the report of the run."""

FILE = "step_time.json"
"""Only there while a step is unfinished."""

EVERY_S = 20.0
"""Between two notes; at most so much of a killed process is missing."""


def write(
    job: Job,
    step: str,
    account: Account,
    spent: Spent,
    seconds: float,
    resources: dict[str, float],
) -> None:
    """Write the account of a step into run.json, with the whole configuration and today's folders.

    Args:
        spent: where the time of its workers went.
        resources: of the cluster when the step ended, as Ray names them.
    """
    record = _record(job)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record["steps"][step] = {
        "digest": job.digest(step),
        **dataclasses.asdict(account),
        "seconds": round(seconds, 3),
        "cpus": resources.get("CPU", 0.0),
        "gpus": resources.get("GPU", 0.0),
        "finished": now,
        **spent.record(seconds),
    }
    job.store.publish_json("run.json", record | _description(job))


def describe_again(job: Job) -> None:
    """Describe this configuration in run.json again, after another one was run in between."""
    job.store.publish_json("run.json", _record(job) | _description(job))


def is_described(job: Job) -> bool:
    """Return whether run.json has this configuration, and today's folders."""
    record, mine = _record(job), json.loads(json.dumps(_description(job)))
    return all(record.get(name) == mine[name] for name in ("config", "tables"))


def is_reported(job: Job) -> bool:
    """Return whether the report is of this run's METRICS: there is one page, of what was evaluated
    last.
    """
    step = _record(job)["steps"].get("evaluate", {})
    return step.get("digest") == job.digest("evaluate")


def _record(job: Job) -> dict:
    """Return run.json; without steps where there is none, or somebody has damaged it."""
    try:
        record = job.store.read_json("run.json")
    except ValueError as error:
        log.warning(
            "%s: expected JSON, got %s; it is written anew, without the times of earlier steps",
            job.store.uri("run.json"),
            error,
        )
        record = None
    return record if isinstance(record, dict) and "steps" in record else {"steps": {}}


def _description(job: Job) -> dict:
    """Return the content of run.json beside the steps."""
    return {
        "format": FORMAT_VERSION,
        "code": code_revision(),
        "config": job.config.to_json(),
        "split": {"kind": job.split, "num_folds": job.num_folds},
        "weights": job.weights.description,
        "streams": [dataclasses.asdict(stream) for stream in job.described.values()],
        "tables": job.tables(),
        "combinations": [dataclasses.asdict(combination) for combination in job.combinations],
    }


def configuration(config: Config) -> str:
    """Return a digest of the settings that decide the amount of work, without those of the
    cluster.
    """
    return digest(dataclasses.replace(config, cluster=Cluster(), plan=Plan(), track=Track()))


def predicted(job: Job) -> dict:
    """Return the content of PLAN; empty where it has another configuration or number of videos."""
    try:
        record = job.store.read_json(PLAN)
    except ValueError:
        # Somebody edited it; that must not cost the report.
        record = None
    if not isinstance(record, dict):
        return {}
    expected = (configuration(job.config), job.manifest.num_rows)
    actual = (record.get("configuration"), record.get("counts", {}).get("videos"))
    return record if actual == expected else {}


class StepTime:
    """A context manager around a step.

    It notes the time so far in FILE, also where the step ends in an error.

    Args:
        digest: of the step; a note of another one does not count.
        every_s: between two notes.
    """

    def __init__(self, store: Store, step: str, digest: str, every_s: float = EVERY_S) -> None:
        self._store, self._every_s = store, every_s
        self._key = {"step": step, "digest": digest}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._note_often, name=FILE, daemon=True)

    def __enter__(self) -> Self:
        try:
            note = self._store.read_json(FILE) or {}
            same = {name: note.get(name) for name in self._key} == self._key
            self.earlier_s = float(note["seconds"]) if same else 0.0
        except (ValueError, TypeError, KeyError):
            # Somebody edited it; only a time is lost.
            self.earlier_s = 0.0
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.own_s = time.monotonic() - self._started
        self._stop.set()
        self._thread.join()
        if error is not None:
            self._note()

    def forget(self) -> None:
        """Remove the note: the step is finished, and its time is in run.json."""
        self._store.delete(FILE)

    def _note_often(self) -> None:
        while not self._stop.wait(self._every_s):
            self._note()

    def _note(self) -> None:
        seconds = self.earlier_s + time.monotonic() - self._started
        try:
            self._store.publish_json(FILE, self._key | {"seconds": round(seconds, 3)})
        except Exception as error:  # noqa: BLE001 (only a time is lost)
            log.warning("%s: not written: %s", self._store.uri(FILE), error)
