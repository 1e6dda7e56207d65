"""Subnetworks beside each other and Fisher vectors, from the tables of a run."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.errors import ConfigError
from pipelines.storage.store import Store
from pipelines.storage.tables import CLIP_SCORES, SCORES
from pipelines.studies import networks

VIDEOS = [f"v{n}" for n in range(8)]
TRUE = np.eye(2)[[0, 1] * 4]
IMAGE = np.where(np.arange(8)[:, None] < 4, TRUE, 1 - TRUE)  # right in the first half
DIFFERENCE = np.where(np.arange(8)[:, None] < 6, 4 * TRUE, 0.2 * (1 - TRUE))
VECTORS = np.where(np.arange(8)[:, None] < 7, 0.8 * TRUE + 0.2 * (1 - TRUE), 1 - TRUE)


def scores(encoder: str, stream: str, values: np.ndarray) -> list[dict]:
    return [
        {
            "video_id": video,
            "encoder": encoder,
            "stream": stream,
            "fold": 0,
            "label": "ab"[k],
            "is_true": bool(TRUE[n, k]),
            "score": float(values[n, k]),
        }
        for n, video in enumerate(VIDEOS)
        for k in range(2)
    ]


@pytest.fixture
def run(tmp_path: Path) -> SimpleNamespace:
    store = Store(str(tmp_path))
    both = (IMAGE + DIFFERENCE) / 2
    store.publish_table("scores/tdn/a.parquet", SCORES.build(scores("tdn", "rgb", both)), {})
    rows = scores("fv_vae", "late_weighted", VECTORS)
    store.publish_table("scores/fv/a.parquet", SCORES.build(rows), {})
    clips = [
        {
            "video_id": video,
            "encoder": "tdn",
            "stream": "rgb",
            "fold": 0,
            "clip": clip,
            "subnetwork": name,
            "frame_indices": [0, 1],
            # Another order of the classes, and clips about their mean.
            "labels": ["b", "a"],
            "scores": (values[n, ::-1] + (0.5 - clip)).tolist(),
        }
        for n, video in enumerate(VIDEOS)
        for name, values in (("image", IMAGE), ("difference", DIFFERENCE))
        for clip in range(2)
    ]
    store.publish_table("clip_scores/tdn/a.parquet", CLIP_SCORES.build(clips), {})
    tables = {
        "scores/tdn-rgb": "scores/tdn",
        "scores/fv_vae-late_weighted": "scores/fv",
        "clip_scores/tdn-rgb": "clip_scores/tdn",
        "failures": "failures",
    }
    return SimpleNamespace(store=store, tables=tables)


def test_subnetworks_are_the_mean_of_their_clips(run: SimpleNamespace) -> None:
    found = {
        row.name: row.value
        for row in networks.accuracies(run, "tdn", "rgb", ("fv_vae", "late_weighted"))
    }
    assert found == {
        "image": 0.5,
        "difference": 0.75,
        "both": 0.75,
        "fisher vectors": 0.875,
        # In v6 the network is surer of the wrong class than the vectors of the right one.
        "both and fisher vectors": 0.75,
    }
    gain = networks.gain(run, "tdn", "rgb")
    assert gain["image"][0] == 0.25
    assert gain["image"][1] <= 0.25 <= gain["image"][2]
    assert gain["difference"] == (0, 0, 0)


def test_a_result_that_is_not_there_is_named(run: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="expected scores of vlad on rgb, got scores/fv_vae"):
        networks.accuracies(run, "tdn", "rgb", ("vlad", "rgb"))
