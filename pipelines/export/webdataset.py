"""Shards of WebDataset: `shard-{000000..N}.tar`, of a video `json`, `vector.npy`, `scores.npy`.

A member is called by the number of its video: ids have dots and slashes, which the format reads as
ends of names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from webdataset.writer import ShardWriter

from pipelines.export.videos import Videos
from pipelines.storage.columns import vectors_from_arrow

VIDEOS_PER_SHARD, BYTES_PER_SHARD = 10_000, 2**30


def write(videos: Videos, folder: Path) -> None:
    """Write the shards."""
    number = 0
    pattern = str(folder / "shard-%06d.tar")
    limits = {"maxcount": VIDEOS_PER_SHARD, "maxsize": BYTES_PER_SHARD}
    # With the time of day in it the same run would give other bytes.
    with ShardWriter(pattern, verbose=0, mtime=0, **limits) as shards:  # pyright: ignore[reportArgumentType]
        for batch in videos.rows:
            vectors = vectors_from_arrow(batch["vector"])
            facts = batch.drop_columns(["vector"]).to_pylist()
            for fact, vector in zip(facts, vectors, strict=True):
                scores = fact.pop("scores", None)
                sample = {"__key__": f"{number:09d}", "vector.npy": vector}
                if scores is not None:
                    sample["scores.npy"] = np.array(scores, np.float32)
                    fact["classes"] = videos.classes
                shards.write(sample | {"json": fact})
                number += 1
