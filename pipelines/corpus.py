"""The whole data flow, top to bottom: eight steps, each one call of its room.

Each reads what the steps before it published, publishes its own, and does nothing where its output
for the same inputs and settings is complete. `pipelines/run/steps.py` declares their tables, marks
and needs.
"""

import logging
from collections.abc import Callable

import ray

from pipelines.classify import step as classify_step
from pipelines.cluster import connect
from pipelines.cluster.broadcast import MemoryWatch
from pipelines.describe import step as describe_step
from pipelines.encode import step as encode_step
from pipelines.evaluate import step as evaluate_step
from pipelines.fit import step as fit_step
from pipelines.index import step as index_step
from pipelines.index.current_rows import outcome
from pipelines.ledger.accounts import Account, Outcome, Spent
from pipelines.models import step as models_step
from pipelines.networks import step as networks_step
from pipelines.reading import kept, views
from pipelines.report import collect
from pipelines.run import record
from pipelines.run.job import Job
from pipelines.run.record import StepTime
from pipelines.run.steps import STEPS
from pipelines.terminal import duration
from pipelines.track.tracker import track

log = logging.getLogger(__name__)

Work = tuple[Account, Spent]
"""The account of a step, and where its time went."""


def index(job: Job) -> Work:
    """Read headers and plan segments: videos, labels -> VIDEOS, SEGMENTS."""
    return index_step.index(job)


def describe(job: Job) -> Work:
    """Decode frames and describe them: SEGMENTS -> DESCRIPTORS, FAILURES."""
    return describe_step.describe(job)


def fit(job: Job) -> Work:
    """Train codebooks on a sample of training frames: DESCRIPTORS -> SAMPLES, codebooks."""
    return fit_step.fit(job)


def encode(job: Job) -> Work:
    """Encode each video as one vector: DESCRIPTORS, codebooks -> ENCODINGS, ATTENTION."""
    return encode_step.encode(job)


def train(job: Job) -> Work:
    """Train the networks of network.networks, if any: VIDEOS -> CLIPS, networks."""
    return networks_step.train(job)


def classify(job: Job) -> Work:
    """Score test videos, by classifiers and by networks: ENCODINGS, CLIPS, VIDEOS -> SCORES."""
    return classify_step.classify(job)


def evaluate(job: Job) -> Work:
    """Measure scores and render the page: SCORES, VIDEOS -> METRICS, report."""
    return collect.publish(job, evaluate_step.evaluate(job))


def final(job: Job) -> Work:
    """Train on all labelled videos, for new ones: ENCODINGS, SCORES, METRICS -> MODELS."""
    return models_step.train(job)


def run(
    job: Job,
    steps: tuple[str, ...],
    address: str | None,
    check: Callable[[], None] = lambda: None,
    *,
    restore: bool = False,
) -> Outcome:
    """Run the named steps; start or join a cluster only if there is work.

    Args:
        steps: names in `STEPS`, in their order.
        check: called before each step; raises where the run must not go on.
        restore: make run.json and the report this job's again where another configuration was run
            last.
    """
    did_work = False
    for name in steps:
        if not STEPS[name].wanted(job.config):
            continue
        # Asked just before the step: `describe` may change the inputs of later steps.
        if not is_due(job, name, restore=restore):
            log.info("%s: complete, nothing to do", name)
            continue
        if not did_work:
            kept.keep_previous(job.store)
            connect.connect(address, job.config.cluster)
            did_work = True
        check()
        job.repair(name)
        with MemoryWatch(name), StepTime(job.store, name, job.digest(name)) as timed:
            account, spent = STEPS[name].function()(job)
            job.finish(name)
        waited = spent.sentence(timed.own_s)
        said = f"{account}; {waited}" if waited else str(account)
        log.info("%s: done in %s, %s", name, duration(timed.own_s), said)
        log.debug("%s: %s", name, spent.words(timed.own_s))
        seconds = timed.earlier_s + timed.own_s
        record.write(job, name, account, spent, seconds, {**ray.cluster_resources()})
        timed.forget()
        track(job, name)
    is_restored = restore and not record.is_described(job)
    if is_restored:
        check()
        record.describe_again(job)
    if did_work or is_restored:
        views.publish(job.store, job.tables())
        kept.keep(job)
    return outcome(job, did_work)


def is_due(job: Job, step: str, *, restore: bool) -> bool:
    """Return whether a step is to run.

    It is not complete, files of it are gone or damaged, or, with `restore`, it is the last one and
    the report is another configuration's.
    """
    is_stale = restore and step == "evaluate" and not record.is_reported(job)
    return is_stale or not job.is_sound(step)


def closing_lines(job: Job, result: Outcome, steps: tuple[str, ...]) -> list[str]:
    """Return what the user sees last: the ledger, the results and where they are."""
    lines = []
    if not result.did_work:
        lines.append("nothing to do: every step is complete for these inputs and settings")
    lines.append(
        f"segments: {result.planned} planned = {result.ok} ok + {result.partial} partial + "
        f"{result.failed} failed"
    )
    if "evaluate" in steps:
        lines += evaluate_step.closing_table(job)
        lines.append(f"report: {job.store.uri(job.report)}")
    if "final" in steps and job.config.classify.final != "none":
        command = f"video-fisher predict --out {job.store.root} --videos FOLDER --to FILE"
        lines.append(f"for new videos: {command}")
    return [*lines, f"output: {job.store.root}"]
