"""Networks on full-length video in a run: maps out of DESCRIPTORS, Ray Train, SCORES."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from encoders.networks.over_time.lstm import READINGS
from pipelines.doctor import examine
from pipelines.storage.store import Store
from tests.pipelines.networks.runs import demo_run, rows

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(900)]

NAMES = ("conv_pooling@clip_frames=1/3:num_steps=2/2:units=8", "lstm@clip_frames=3:num_steps=2")
SETTINGS = (
    "sampling.num_frames=4",
    "split.num_folds=2",
    "picture.resize_px=64",
    "picture.crop_px=64",
    "describe.streams=appearance,positions@scaling=whole_map",
    "encode.encoders=ave",
    f"network.networks={','.join(NAMES)}",
    "network.test_clips=3",
    "conv_pooling.batch_clips=4",
    "network.over_time=all",
    "lstm.batch_clips=4",
    "lstm.cells=6",
    "lstm.layers=2",
)


def run(data: Path, out: Path, *settings: str) -> int:
    return demo_run(data, out, 8, (*SETTINGS, *settings))


@pytest.fixture(scope="module")
def finished(local_ray: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("maps")
    assert run(data, out) == 0
    return out


def test_maps_train_networks_without_pictures_or_backbones(finished: Path) -> None:
    assert not (finished / "clips").exists()
    for name, steps in (("conv_pooling", {1, 2, 3, 4}), ("lstm", {1, 2})):
        folders = [*finished.glob(f"networks/{name}-rgb/*")]
        assert len(folders) == 2
        for folder in folders:
            assert [f.name for f in folder.glob("*.safetensors")] == ["classifiers.safetensors"]
            assert {
                row["step"] for row in pq.read_table(folder / "curves.parquet").to_pylist()
            } == steps


@pytest.mark.parametrize(("name", "outputs"), [("conv_pooling", ("image",)), ("lstm", READINGS)])
def test_scores_are_the_means_of_clips(finished: Path, name: str, outputs: tuple[str, ...]) -> None:
    scores = rows(finished, f"scores/{name}*-rgb/*/*.parquet")
    clips = rows(finished, f"clip_scores/{name}*-rgb/*/*.parquet")
    assert len(clips) == 8 * 3 * len(outputs)
    assert {row["subnetwork"] for row in clips} == {*outputs}
    stored = rows(finished, "descriptors/*/*.parquet")
    places = {row["video_id"]: row["frame_indices"] for row in stored}
    for row in clips:
        own = places[row["video_id"]]
        start = own.index(row["frame_indices"][0])
        assert row["frame_indices"] == own[start : start + 3]
    for video in places:
        read = [r for r in clips if (r["video_id"], r["subnetwork"]) == (video, outputs[-1])]
        expected = np.mean([row["scores"] for row in read], 0)
        found = {row["label"]: row["score"] for row in scores if row["video_id"] == video}
        assert [found[label] for label in read[0]["labels"]] == pytest.approx(expected, abs=1e-5)


def test_hits_of_all_readings_are_in_metrics(finished: Path) -> None:
    found = {
        row["metric"]: row["value"]
        for row in rows(finished, "metrics/*/*.parquet")
        if (row["encoder"], row["stream"], row["split"], row["fusion"])
        == (NAMES[1], "rgb", "all", "none")
    }
    assert found["accuracy_weighted"] == found["accuracy"]
    assert found["clip_accuracy_weighted"] == found["clip_accuracy"]
    for name in READINGS:
        assert 0 <= found[f"accuracy_{name}"] <= found[f"top_3_{name}"] <= 1


def test_scores_over_time_are_of_each_frame_and_on_the_page(finished: Path) -> None:
    stored = rows(finished, "descriptors/*/*.parquet")
    places = {row["video_id"]: row for row in stored}
    for name in ("conv_pooling", "lstm"):
        found = rows(finished, f"scores_over_time/{name}*-rgb/*/*.parquet")
        own = {video: [r for r in found if r["video_id"] == video] for video in places}
        for video, row in places.items():
            assert [r["frame_index"] for r in own[video]] == row["frame_indices"]
            assert [r["timestamp_s"] for r in own[video]] == row["timestamps_s"]
            for r in own[video]:
                assert r["label"] == r["labels"][int(np.argmax(r["scores"]))]
    page = (finished / "report" / "index.html").read_text()
    assert "<h3>Over time</h3>" in page
    assert page.count('class="spans"') == 8


def test_the_report_and_the_doctor_know_them(finished: Path) -> None:
    page = (finished / "report" / "index.html").read_text()
    assert all(name in page for name in NAMES)
    assert examine.examine(Store(str(finished))).findings == ()


def test_a_finished_run_has_nothing_to_do_and_lost_scores_come_back(
    finished: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(data, finished) == 0
    assert "nothing to do" in caplog.text
    for table in ("scores", "clip_scores"):
        before = rows(finished, f"{table}/lstm*-rgb/*/*.parquet")
        next(iter(finished.glob(f"{table}/lstm*-rgb/*/*.parquet"))).unlink()
        assert run(data, finished) == 0
        after = rows(finished, f"{table}/lstm*-rgb/*/*.parquet")
        assert sorted(after, key=str) == sorted(before, key=str)


def test_a_run_that_stores_no_maps_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(data, tmp_path, "describe.streams=appearance") == 2
    assert "add --set describe.streams=appearance,positions" in capsys.readouterr().err
