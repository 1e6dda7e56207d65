"""The plan of a run (`--plan`): its time and cost, before anything is started.

Only plan.json is written.

No lock is taken, and no cluster: a run that is under way in the same folder is not disturbed.
"""

import dataclasses
import datetime
import logging
import os

import pyarrow.compute as pc
import torch

from pipelines.cluster import pools as cluster_pools
from pipelines.errors import ConfigError
from pipelines.plan import trials as plan_trials
from pipelines.plan.estimate import Counts, Overheads, StepPlan, plan, total
from pipelines.plan.prices import Prices, Shape, gpu_hours, offers, read_prices
from pipelines.plan.text import text
from pipelines.plan.trials import Trials
from pipelines.run.job import Job
from pipelines.run.record import PLAN, configuration
from pipelines.run.versions import code_revision
from pipelines.settings.sections import Plan
from pipelines.storage.retries import StorageError

log = logging.getLogger(__name__)


def run(job: Job, steps: tuple[str, ...]) -> str:
    """Return the plan of these steps as text.

    PLAN in the job's folder has it too, for the report of the run.

    Raises:
        ConfigError: a price table or a kind of GPU that is not right, or no video that can be read.
    """
    prices = read_prices(job.config.plan.prices)
    shape = shape_of(job.config.plan, prices)
    counts = counts_of(job)
    resources = {"CPU": float(shape.cpus), "GPU": float(shape.gpus)}
    pools = cluster_pools.pools(job.config.cluster, resources).fitting(counts.videos)
    log.info("plan: %d videos; trials take about %g s", counts.videos, job.config.plan.probe_s)
    threads = min(os.cpu_count() or 1, pools.describe.num_threads)
    trials = plan_trials.run(job, threads, counts.tested, counts.classes)
    planned = plan(counts, trials, job.config, pools, shape, Overheads())
    chosen = [step for step in planned if step.name in steps]
    wall = total(chosen, Overheads())
    # Also where the planned cluster has no GPU.
    hours = gpu_hours(sum(step.flops for step in chosen), prices)
    costs = (hours, offers(shape, wall, prices), prices.currency)
    try:
        record = _record(job, counts, trials, chosen, shape)
        job.store.publish_json(PLAN, record | {"wall_s": dataclasses.asdict(wall)})
    except StorageError as error:
        log.warning("plan: %s cannot be kept for the report: %s", PLAN, error)
    return text(counts, trials, chosen, shape, wall, costs)


def shape_of(settings: Plan, prices: Prices) -> Shape:
    """Return the cluster that is planned for.

    Raises:
        ConfigError: an unknown kind of GPU, or CPUs alone where trials can only run on a GPU.
    """
    own_gpus = torch.cuda.device_count()
    if not settings.num_cpus:
        return Shape(os.cpu_count() or 1, own_gpus)
    if own_gpus and not settings.num_gpus:
        raise ConfigError(
            "plan.num_gpus: expected GPUs, because trials run on this machine's and say nothing "
            "about CPUs, got "
            "0; set CUDA_VISIBLE_DEVICES= to try on CPUs"
        )
    return Shape(
        settings.num_cpus,
        settings.num_gpus,
        prices.gpu(settings.gpu) if settings.num_gpus else None,
    )


def counts_of(job: Job) -> Counts:
    """Return counts of the manifest, whole columns at a time, because there may be millions of
    videos."""
    labelled = pc.greater(pc.list_value_length(job.manifest["labels"]), 0)
    tested = pc.and_(labelled, pc.greater_equal(job.manifest["fold"], 0))
    num_labelled, num_tested = (pc.sum(mask).as_py() or 0 for mask in (labelled, tested))
    trains_alone = num_labelled - num_tested
    return Counts(
        videos=job.manifest.num_rows,
        labelled=num_labelled,
        training=trains_alone if job.num_folds == 1 else num_labelled,
        tested=num_tested,
        classes=len(pc.unique(pc.list_flatten(job.manifest["labels"]))),
        num_folds=job.num_folds,
    )


def _record(job: Job, counts: Counts, trials: Trials, steps: list[StepPlan], shape: Shape) -> dict:
    return {
        "configuration": configuration(job.config),
        "code": code_revision(),
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "counts": dataclasses.asdict(counts),
        "cluster": shape.text,
        "measured": dataclasses.asdict(trials),
        "steps": {step.name: dataclasses.asdict(step) for step in steps},
    }
