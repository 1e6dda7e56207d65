"""What the driver of a Ray job knows of its submission. Ray Jobs put it into the environment."""

import json
import os
from dataclasses import dataclass

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"

REPLACES = "replaces"
"""The entry of a job's metadata in which `pipelines.submission` names lost submissions of the same run."""


@dataclass(frozen=True)
class Submission:
    """Of this process, or of the holder of a lock.

    Attributes:
        id: as `ray job list` has it; empty outside of a Ray job.
        replaces: ids of earlier submissions of the same run, whose drivers have ended.
    """

    id: str = ""
    replaces: frozenset[str] = frozenset()


NO_SUBMISSION = Submission()


def submission() -> Submission:
    """That of this process."""
    metadata = json.loads(os.environ.get(_CONFIG, "{}")).get("metadata", {})
    replaces = frozenset(metadata.get(REPLACES, "").split())
    return Submission(metadata.get("job_submission_id", ""), replaces)
