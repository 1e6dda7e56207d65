"""The submission of a Ray job, as its driver reads it from the environment that Ray Jobs set."""

import json
import os
from dataclasses import dataclass

from pipelines.errors import ConfigError

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"

REPLACES, CODE = "replaces", "code"
"""Entries of a job's metadata that `pipelines.submission` makes."""


@dataclass(frozen=True)
class Submission:
    """The submission of this process, or of the holder of a lock.

    Attributes:
        id: as `ray job list` has it; empty outside of a Ray job.
        replaces: ids of earlier submissions of the same run, whose drivers have ended.
        code: revision of the checkout that was uploaded; empty where nobody says.
    """

    id: str = ""
    replaces: frozenset[str] = frozenset()
    code: str = ""


NO_SUBMISSION = Submission()


def submission() -> Submission:
    """Return the submission of this process."""
    metadata = json.loads(os.environ.get(_CONFIG, "{}")).get("metadata", {})
    replaces = frozenset(metadata.get(REPLACES, "").split())
    return Submission(metadata.get("job_submission_id", ""), replaces, metadata.get(CODE, ""))


def refuse_relative(flags: dict[str, str | None]) -> None:
    """Refuse relative paths, which have another meaning in a job: its working directory is a copy.

    Args:
        flags: {flag: path or URI}.

    Raises:
        ConfigError: a path that is relative.
    """
    for flag, path in flags.items():
        if path and "://" not in path and not os.path.isabs(path):
            raise ConfigError(
                f"{flag} {path}: expected a URI, or the absolute path of a folder that every "
                "node reaches, because a Ray job runs in a copy of the working directory; got a "
                "relative path"
            )
