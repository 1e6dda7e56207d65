"""A data set as Hugging Face `load_dataset(FOLDER)` reads it: Parquet files and a card."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.export.videos import Videos

ROWS_PER_FILE = 4096

_CARD = """\
---
configs:
- config_name: default
  data_files: data/*.parquet
---
# Videos of a run of video-fisher

One row a video: `video_id`, `uri`, `labels`, the `fold` that tested it, `vector` of {name}{scores}.
"""


def write(videos: Videos, folder: Path) -> None:
    """Write the files and the card, the card last."""
    data = folder / "data"
    data.mkdir()
    number, num_rows, file = 0, 0, None
    for batch in videos.rows:
        if file is None:
            file = pq.ParquetWriter(data / f"train-{number:05d}.parquet", batch.schema)
            number, num_rows = number + 1, 0
        file.write_batch(batch)
        num_rows += batch.num_rows
        if num_rows >= ROWS_PER_FILE:
            file.close()
            file = None
    if file:
        file.close()
    scores = f", `scores` of the classes {json.dumps(videos.classes)}" if videos.classes else ""
    (folder / "README.md").write_text(
        _CARD.format(name=videos.name, scores=scores), encoding="utf-8"
    )
