"""A Lance data set: `lance.dataset(FOLDER)`. Its schema names the classes of the scores."""

from __future__ import annotations

import json
from pathlib import Path

import lance
import pyarrow as pa

from pipelines.export.videos import Videos


def write(videos: Videos, folder: Path) -> None:
    """Write the data set."""
    facts = {"vectors": videos.name, "classes": json.dumps(videos.classes)}
    schema = videos.rows.schema.with_metadata(facts)
    rows = pa.RecordBatchReader.from_batches(schema, videos.rows)
    lance.write_dataset(rows, str(folder), mode="overwrite")
