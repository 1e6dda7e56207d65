"""What a report shows of videos: neighbours by plain loops, frames of real files, and files that
are gone."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.evaluate.best import precision_recall
from pipelines.evaluate.results import ScoreMatrix
from pipelines.ledger.accounts import Account
from pipelines.report import videos as report_videos
from pipelines.report.collect import step_fact
from pipelines.report.papers.tables import DQ_TABLE_4, DQ_TABLE_5, TABLES_OF_RECIPES, VU_TABLE_5_3
from pipelines.report.videos import ONE_FRAME, FrameRequest, decode, nearest
from pipelines.settings.config import Config
from pipelines.settings.recipes import RECIPES
from pipelines.settings.sections import Cluster
from pipelines.storage.columns import encoding_type
from pipelines.storage.store import Store

VECTORS = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float16)
VECTORS[3] = 0
VECTORS[9] = VECTORS[8]
NAMES = [f"v{place:02d}" for place in range(20)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Twenty vectors in four files, one of them of a file that has changed since."""
    store = Store(str(tmp_path))
    kind = encoding_type(6, "float16")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.reshape(-1)), type=kind)
    sources = ["old" if place == 5 else "now" for place in range(20)]
    table = pa.table({"video_id": NAMES, "source": sources, "vector": vectors})
    for start in range(0, 20, 5):
        store.publish_table(f"e/{start}.parquet", table.slice(start, 5), {})
    return store


KNOWN = pa.table({"video_id": NAMES[:18], "source": ["now"] * 18})
"""The last two videos are not of this run."""


def by_loop(query: int, num: int) -> list[str]:
    x = VECTORS.astype(np.float64)
    found = []
    for place in range(18):
        length = np.linalg.norm(x[place]) * np.linalg.norm(x[query])
        if place not in (query, 5) and length > 0:
            found.append((-round(float(x[place] @ x[query] / length), 6), NAMES[place]))
    return [name for _, name in sorted(found)[:num]]


def test_neighbours_are_those_of_plain_loops(store: Store) -> None:
    found, count = nearest(store, "e", KNOWN, ["v00", "v08", "v17"], num=4)
    assert count == 17, "not the changed one, nor those of another run"
    for query, rows in zip((0, 8, 17), found, strict=True):
        assert [name for name, _ in rows] == by_loop(query, 4)
        assert [c for _, c in rows] == sorted((c for _, c in rows), reverse=True)
    assert found[1][0] == ("v09", pytest.approx(1, abs=1e-3))


def test_a_zero_vector_has_no_neighbours_and_is_none(store: Store) -> None:
    found, _ = nearest(store, "e", KNOWN, ["v03", "v05", "v01"], num=20)
    assert found[:2] == [[], []], "and neither has a video without a vector of today's file"
    assert len(found[2]) == 15
    assert "v03" not in [name for name, _ in found[2]]


def test_of_many_vectors_a_part_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    size = store.size_bytes("e/0.parquet")
    monkeypatch.setattr(report_videos, "SEARCH_BYTES", 2 * size + 1)
    _, count = nearest(store, "e", KNOWN, ["v17"])
    assert count == 8, (
        "of the files 0, 10, 15, 5 the first and the third, with 5 and 3 of today's videos"
    )


def test_frames_of_a_video_and_why_there_are_none(data: Path, tmp_path: Path) -> None:
    videos = sorted((data / "labelled" / "weizmann").glob("*/*.avi"))[:1]
    (tmp_path / "empty.mp4").write_bytes(b"")
    config = Config().with_settings(["picture.resize_px=48", "picture.crop_px=32"])
    requests = [
        FrameRequest(
            str(videos[0]), 1, config.with_settings(["sampling.policy=uniform"]).sampling, 3
        ),
        FrameRequest(str(tmp_path / "gone.mp4"), 1, ONE_FRAME, 1),
        FrameRequest(str(tmp_path / "empty.mp4"), 1, ONE_FRAME, 1),
        FrameRequest(str(videos[0]), 1, ONE_FRAME, 1),
    ]
    three, gone, empty, one = decode(requests, config)
    assert three.images.shape == (3, 32, 32, 3)
    assert list(three.indices) == sorted(set(three.indices))
    assert one.images.shape == (1, 32, 32, 3)
    assert gone.images is None
    assert "cannot be read any more" in gone.missing
    assert "cannot be read any more" in empty.missing


def test_pictures_take_limited_time(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_videos, "DECODE_S", -1.0)
    (found,) = decode([FrameRequest("any", 1, ONE_FRAME, 1)], Config())
    assert found.images is None
    assert "not read within" in found.missing


def test_curves_are_of_the_mean_and_of_classes_from_best_to_worst() -> None:
    rng = np.random.default_rng(1)
    targets = np.eye(7)[np.arange(70) % 7]
    targets[:, 6] = 0
    strength = np.array([8, 0, 4, 2, 1, 0.5, 1])
    matrix = ScoreMatrix(
        encoder="e",
        stream="s",
        video_ids=[str(i) for i in range(70)],
        folds=np.zeros(70, int),
        classes=list("abcdefg"),
        scores=strength * targets + rng.normal(size=targets.shape),
        targets=targets,
    )
    mean, *classes = precision_recall(matrix)
    assert mean.name.startswith("mean of 6 classes, mAP ")
    assert classes[0].name == "a, AP 1.000"
    assert len(classes) == 5
    values = [float(curve.name.rpartition(" ")[2]) for curve in classes]
    assert values == sorted(values, reverse=True)
    for curve in (mean, *classes):
        assert curve.x[0] == 0
        assert curve.x[-1] == 1
        assert list(curve.y) == sorted(curve.y, reverse=True), "interpolated precision never rises"
    # At recall 1 every positive is found: the precision is its share of the videos taken.
    order = np.argsort(-matrix.scores[:, 1])
    last = np.flatnonzero(targets[order, 1])[-1] + 1
    worst = next(curve for curve in classes if curve.name.startswith("b"))
    assert worst.y[-1] == pytest.approx(10 / last)
    single = ScoreMatrix(**{**vars(matrix), "targets": targets * (np.arange(7) == 0)})
    assert len(precision_recall(single)) == 2
    assert precision_recall(ScoreMatrix(**{**vars(matrix), "targets": 0 * targets})) == ()


def test_costs_by_hand() -> None:
    step = {
        "seconds": 1800.0,
        "unit": "x",
        "planned": 5,
        "done": 4,
        "failed": 1,
        "cpus": 16.0,
        "gpus": 2.0,
    }
    prices = Cluster(price_per_cpu_hour=0.05, price_per_gpu_hour=2.5)
    fact = step_fact("describe", step, prices)
    assert fact.account == Account("x", 5, 4, 1)
    assert (fact.core_s, fact.gpu_s) == (28800.0, 3600.0)
    assert fact.cost == pytest.approx(8 * 0.05 + 1 * 2.5)
    assert step_fact("describe", step, Cluster()).cost is None
    old = step_fact("fit", {"seconds": 3.0, "rows": 1}, prices)
    assert (old.seconds, old.core_s, old.cost) == (3.0, None, None)


def test_the_papers_tables_agree_with_what_their_text_says() -> None:
    assert set(TABLES_OF_RECIPES) <= set(RECIPES)
    for tables in TABLES_OF_RECIPES.values():
        for table in tables:
            assert all(len(values) == len(table.metrics) for _, values in table.rows)
            assert all(0 < value < 1 for _, values in table.rows for value in values)
    # DQ 5.3: 6.3, 5.7 and 1.3 % better than two-stream networks; on ActivityNet FV-VAE improves on
    # GA by 10.0 and 9.8 % of mAP, in relative terms.
    four = {name: values[0] for name, values in DQ_TABLE_4.rows}
    ours = four["FV-VAE-(pool5 + pool5 optical flow)"]
    for name, better in (
        ("Two-stream ConvNet", 0.063),
        ("Two-stream + LSTM", 0.057),
        ("Two-stream fusion", 0.013),
    ):
        assert ours / four[name] - 1 == pytest.approx(better, abs=1e-3)
    five = {name: values[2] for name, values in DQ_TABLE_5.rows}
    assert five["FV-VAE-pool5"] / five["VGG_19-GA"] == pytest.approx(1.100, abs=1e-3)
    assert five["FV-VAE-res5c"] / five["ResNet_152-GA"] == pytest.approx(1.098, abs=1e-3)
    # VU 5.4.3.3: TSN is 5.8 % better than rDNN, TDN 1.9 % better than TSN.
    fcvid = {name.partition(" (")[0]: values[0] for name, values in VU_TABLE_5_3.rows}
    assert fcvid["ResNet-50 TSN"] - fcvid["rDNN"] == pytest.approx(0.058)
    assert fcvid["ResNet-50 TDN"] - fcvid["ResNet-50 TSN"] == pytest.approx(0.019)
