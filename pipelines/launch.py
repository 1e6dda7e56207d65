"""One run from checked inputs to its outcome, under the lock of its folder, as the jobs and the
Python API start it.

torch and Ray are loaded by the functions: wrong settings are reported before.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines import ray_job
from pipelines.cluster import doors
from pipelines.errors import ConfigError
from pipelines.storage.uris import refuse_credentials

if TYPE_CHECKING:
    from pipelines.ledger.accounts import Outcome
    from pipelines.prepare import Inputs
    from pipelines.run.job import Job


@dataclass(frozen=True, kw_only=True)
class Start:
    """The way a run is started.

    Attributes:
        command: what the user typed, for the message to others who want the folder.
        address: of the cluster; None: one is started on this machine.
        submission: the Ray job that this process is.
        take_over: take the lock from another run.
        retry_failed: try failed segments again, with this decoder ("": the usual one); None: do
            not.
        restore: see `corpus.run`.
    """

    command: str
    address: str | None
    submission: ray_job.Submission
    take_over: bool = False
    retry_failed: str | None = None
    restore: bool = True


def before_ray(
    address: str | None, paths: dict[str, str | None]
) -> tuple[str | None, ray_job.Submission]:
    """Return the cluster to join (None: start one on this machine), and this process's Ray job.

    To be called before Ray is imported, which reads the environment that is set here.

    Args:
        paths: {flag: path or URI} of the run's files.

    Raises:
        ConfigError: paths of a Ray job that are relative, or Ray was imported too early.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    refuse_credentials("--address", address or "")
    ray = sys.modules.get("ray")
    is_late = ray is not None and not doors.are_closed()
    if not address and not is_late:
        doors.close()
    elif not address and ray and not ray.is_initialized():
        raise ConfigError(
            "import ray: expected that a run which starts a cluster of its own comes first, "
            "because Ray reads when it is imported who may reach the cluster; import it later, "
            "call ray.init yourself, or give the address of a cluster"
        )
    # Ray's C++ side prints a harmless error for every actor pool.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    submission = ray_job.submission()
    if submission.id:
        ray_job.refuse_relative(paths)
    return address, submission


def launch(inputs: Inputs, start: Start) -> tuple[Job, Outcome]:
    """Run the steps of `inputs` that are not complete; return the job and what became of it.

    Raises:
        ConfigError, RunError: see `prepare.prepare`, `RunLock` and `corpus.run`.
    """
    from pipelines import corpus, prepare
    from pipelines.run import record
    from pipelines.run.lock import RunLock

    job, steps, restore = prepare.prepare(inputs), inputs.steps, start.restore
    described = record.is_described(job) or not restore
    is_done = described and not any(corpus.is_due(job, step, restore=restore) for step in steps)
    if is_done and start.retry_failed is None:
        return job, corpus.run(job, steps, start.address)
    with RunLock(
        job.store, start.command, take_over=start.take_over, submission=start.submission
    ) as lock:
        if start.retry_failed is not None:
            job = prepare.retry_failed(job, steps, start.retry_failed)
        return job, corpus.run(job, steps, start.address, lock.check, restore=restore)


def too_many_failed(job: Job, outcome: Outcome) -> str:
    """Return the message of a run of which more failed than its settings allow; "" for others."""
    limit = job.config.run.max_failed_fraction
    if outcome.failed_fraction <= limit:
        return ""
    return (
        f"{100 * outcome.failed_fraction:.1f} % of the segments failed, more than "
        f"run.max_failed_fraction = {100 * limit:.1f} %; all that could be done was written, see "
        f"{job.store.uri(job.failures)}"
    )
