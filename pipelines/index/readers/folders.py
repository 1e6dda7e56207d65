"""A folder for each class: `--labels folders`."""

from collections.abc import Sequence

import pyarrow as pa

from pipelines.errors import ConfigError

WORD = "folders"
"""What stands after --labels."""


def read(paths: Sequence[str]) -> pa.Table:
    """Return path and label: the name of the folder that a video lies in.

    Raises:
        ConfigError: a video lies in no folder below --videos.
    """
    outside = [path for path in paths if "/" not in path]
    if outside:
        raise ConfigError(
            f"--labels {WORD}: expected each video in the folder of its class, got "
            f"{len(outside)} directly in --videos, such as {outside[0]!r}"
        )
    return pa.table({"path": paths, "label": [path.split("/")[-2] for path in paths]})
