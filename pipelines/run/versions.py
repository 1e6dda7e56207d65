"""The code revision that made a file."""

import functools
import subprocess
from pathlib import Path

from pipelines import __version__
from pipelines.ray_job import submission


@functools.cache
def code_revision() -> str:
    """Return the version, and the git revision where this is a checkout.

    What a Ray job uploads is none: there it is what the submitter says (`jobs.submit`).
    """
    if shipped := submission().code:
        return shipped
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} {git.stdout.strip()}"


FORMAT_VERSION = "1"


NUMBERS = 2
"""Version of METRICS: raised when the same scores give other numbers, so that a run computes
them again."""


WEIGHTING = 3
"""Version of `encoders.svm.inner_folds.weights_by_loss`: raised when it changes, so that folds
weighted before and after are not mixed."""
