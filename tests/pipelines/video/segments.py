"""Rows of SEGMENTS, and what the decoding stage makes of them, for tests of the stages without a
cluster."""

from contextlib import closing
from pathlib import Path

import pyarrow as pa

from pipelines.settings.config import Config
from pipelines.video.stages import DecodeSegments


def segments(*paths: Path) -> pa.Table:
    """Each video as one segment, as step describe reads it."""
    rows = [
        {
            "segment_id": f"{path.name}#00000",
            "video_id": path.name,
            "segment": 0,
            "num_segments": 1,
            "source": "0",
            "uri": str(path),
            "status": "ok",
        }
        for path in paths
    ]
    return pa.Table.from_pylist(rows)


def decoded(config: Config, *paths: Path) -> list[pa.Table]:
    """The frames of the videos, for all windows of the configuration."""
    windows = config.describe.windows
    stage = DecodeSegments(config.sampling, config.picture, config.decode, windows=windows)
    with closing(stage.decoder):
        return list(stage(segments(*paths)))
