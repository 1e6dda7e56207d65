"""plan.json: what `--plan` leaves in a run's folder, for the report of the run."""

import dataclasses

from pipelines.config import Config, digest
from pipelines.layout import Job
from pipelines.run_settings import Cluster, Plan

PLAN = "plan.json"


def configuration(config: Config) -> str:
    """A digest of what decides how much work a run is: not of the cluster it is done on."""
    return digest(dataclasses.replace(config, cluster=Cluster(), plan=Plan()))


def predicted(job: Job) -> dict:
    """What PLAN holds; empty where there is none of this configuration and number of videos."""
    try:
        record = job.store.read_json(PLAN)
    except ValueError:
        # Somebody edited it; that must not cost the report.
        record = None
    if not isinstance(record, dict):
        return {}
    wanted = (configuration(job.config), job.manifest.num_rows)
    found = (record.get("configuration"), record.get("counts", {}).get("videos"))
    return record if found == wanted else {}
