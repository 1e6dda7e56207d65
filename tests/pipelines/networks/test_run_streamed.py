"""Networks whose videos are decoded while they train (network.stream)."""

from pathlib import Path

import pytest

from pipelines.doctor import examine
from pipelines.storage.store import Store
from tests.pipelines.networks.runs import demo_run, rows

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(900)]

SETTINGS = (
    "sampling.num_frames=2",
    "split.num_folds=2",
    "encode.encoders=ave",
    "classify.final=none",
    "network.networks=tsn,actionflownet@learns=scratch",
    "network.side_px=36",
    "network.crop_px=32",
    "network.frames=3",
    "network.test_clips=2",
    "network.test_views=centre",
    "network.width=4",
    "tsn.num_steps=3",
    "tsn.batch_clips=3",
    "tsn.learning_rate=0.001",
    "actionflownet.num_steps=2",
    "actionflownet.batch_clips=3",
    "actionflownet.frames=4",
)


def test_nothing_is_stored_and_scores_are_those_of_stored_pictures(
    local_ray: None, data: Path, tmp_path: Path
) -> None:
    scores = {}
    for name in ("true", "false"):
        out = tmp_path / name
        assert demo_run(data, out, 8, (*SETTINGS, f"network.stream={name}")) == 0
        clips = rows(out, "clips/*/*.parquet")
        assert len(clips) == 8
        assert any(row["pictures"] for row in clips) == (name == "false")
        scores[name] = {
            (row["encoder"], row["video_id"], row["label"]): row["score"]
            for row in rows(out, "scores/*-rgb/*/*.parquet")
        }
        assert examine.examine(Store(str(out))).findings == ()
    assert scores["true"] == scores["false"]
