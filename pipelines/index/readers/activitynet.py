"""ActivityNet's JSON: {"database": {ID: {"subset": ..., "annotations": [{"label", "segment"}]}}}.

A video `v_ID.mp4` or `ID.mp4` has all labels of its annotations, as untrimmed classification wants
it (DQ 5.2); `manifest.stretches=use` makes a row of each annotated segment instead.
"""

import json

import pyarrow as pa

from pipelines.errors import ConfigError
from pipelines.index.readers.names import Names
from pipelines.index.readers.source import Source

_SPLITS = {"training": "train", "validation": "test"}


def recognises(source: Source) -> bool:
    """Return whether it is one JSON file."""
    return not source.is_folder and bool(source.named(".json"))


def read(source: Source, videos: Names) -> pa.Table:
    """Return path, label, start_s, end_s and split; the test set, without labels, is left out.

    Raises:
        ConfigError: it is another JSON.
    """
    rows = []
    try:
        database = json.loads(source.text(source.names[0]))["database"]
        for name, video in database.items():
            for note in video["annotations"]:
                start_s, end_s = map(float, note["segment"])
                rows.append(
                    {
                        "path": videos.path(f"v_{name}", name),
                        "label": str(note["label"]),
                        "start_s": start_s,
                        "end_s": end_s,
                        "split": _SPLITS.get(video["subset"], "unused"),
                    }
                )
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"--labels {source.uri}: expected ActivityNet's JSON, {{'database': {{ID: {{'subset', "
            f"'annotations': [{{'label', 'segment'}}]}}}}}}, got another one "
            f"({type(error).__name__}: {error})"
        ) from error
    if not rows:
        raise ConfigError(f"--labels {source.uri}: expected annotations, got none")
    table = pa.Table.from_pylist(rows)
    if {"train", "test"} - set(table["split"].to_pylist()):
        table = table.drop_columns(["split"])
    return table
