"""Networks in a run on real video: CLIPS, Ray Train, SCORES, and all that reads them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import predict
from pipelines.doctor import examine
from pipelines.storage.store import Store
from tests.pipelines.networks.runs import demo_run, rows

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

VARIANT = "tdn@layers=input"
SETTINGS = (
    "sampling.num_frames=2",
    "split.num_folds=2",
    "encode.encoders=ave",
    "classify.final=all",
    "classify.keep_folds=true",
    f"network.networks={VARIANT}",
    "network.streams=rgb,flow",
    "network.flow_stack=2",
    "network.side_px=36",
    "network.crop_px=32",
    "network.frames=6",
    "network.test_clips=2",
    "network.test_views=mirror",
    "tdn.num_steps=2,1",
    "tdn.batch_clips=4",
    "tdn.learning_rate=0.001",
)


def run(data: Path, out: Path, *settings: str) -> int:
    return demo_run(data, out, 12, (*SETTINGS, *settings))


@pytest.fixture(scope="module")
def finished(local_ray: None, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("networks")
    assert run(data, out) == 0
    return out


def test_clips_hold_pictures_of_each_video(finished: Path) -> None:
    clips = rows(finished, "clips/*/*.parquet")
    assert len({row["video_id"] for row in clips}) == len(clips) == 12
    for row in clips:
        assert row["status"] == "ok"
        assert row["num_flows"] == 6
        assert len(row["flow"]) == 6 * 36 * 36 * 4
        assert row["frame_indices"] == sorted(row["frame_indices"])
        assert len(row["pictures"]) == len(row["frame_indices"]) * 36 * 36 * 3 == 6 * 36 * 36 * 3


def test_each_fold_has_a_network_and_its_curves(finished: Path) -> None:
    folders = [*finished.glob("networks/tdn-rgb/*"), *finished.glob("networks/tdn-flow/*")]
    assert len(folders) == 4
    names = {"image.safetensors", "difference.safetensors", "classifiers.safetensors"}
    for folder in folders:
        assert names <= {file.name for file in folder.iterdir()}
        curve = pq.read_table(folder / "curves.parquet").to_pylist()
        assert {row["quantity"] for row in curve} == {"total", "image", "difference"}
        assert {row["step"] for row in curve} == {1, 2, 3}
        stream = folder.parent.name.rpartition("-")[2]
        assert {(row["codebook"], row["stream"]) for row in curve} == {(VARIANT, stream)}


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_scores_are_the_mean_of_clips_and_subnetworks(finished: Path, stream: str) -> None:
    scores = rows(finished, f"scores/tdn*-{stream}/*/*.parquet")
    clips = rows(finished, f"clip_scores/tdn*-{stream}/*/*.parquet")
    assert {(row["encoder"], row["stream"]) for row in [*scores, *clips]} == {(VARIANT, stream)}
    videos = {row["video_id"] for row in scores}
    assert len(videos) == 12
    assert len(clips) == 12 * 2 * 2
    for video in videos:
        own = [row for row in clips if row["video_id"] == video]
        expected = np.mean([row["scores"] for row in own], 0)
        found = {row["label"]: row["score"] for row in scores if row["video_id"] == video}
        assert {row["fold"] for row in own} == {
            row["fold"] for row in scores if row["video_id"] == video
        }
        for label, value in zip(own[0]["labels"], expected, strict=True):
            assert found[label] == pytest.approx(value, abs=1e-5)


def test_activation_maps_are_kept_and_shown(finished: Path) -> None:
    maps = rows(finished, "cams/tdn*/*/*.parquet")
    assert len({row["video_id"] for row in maps}) == 8
    scores = rows(finished, "clip_scores/tdn*-rgb/*/*.parquet")
    for row in maps:
        assert row["picture"][:2] == b"\xff\xd8"
        # A frame of the first clip, or two that follow each other in it.
        (clip,) = {
            tuple(other["frame_indices"])
            for other in scores
            if (other["video_id"], other["clip"]) == (row["video_id"], 0)
        }
        size = 1 if row["subnetwork"] == "image" else 2
        assert tuple(row["frame_indices"]) == clip[row["place"] : row["place"] + size]
        assert len(row["values"]) ** 0.5 % 1 == 0
    assert (finished / "report" / "index.html").read_text().count('alt="activation map of') == 24


def test_all_that_reads_scores_knows_the_network(finished: Path) -> None:
    metrics = rows(finished, "metrics/*/*.parquet")
    found = {(row["encoder"], row["stream"], row["fusion"]) for row in metrics}
    assert {(VARIANT, stream, "none") for stream in ("rgb", "flow")} <= found
    # VU 5.3.3: 1 : 1.5 after L1 normalisation.
    (weights,) = {
        tuple(row["weights"])
        for row in metrics
        if (row["encoder"], row["fusion"]) == (VARIANT, "two_stream")
    }
    by_stream = dict(zip(("flow", "rgb"), weights, strict=True))
    assert by_stream == {"flow": pytest.approx(0.6), "rgb": pytest.approx(0.4)}
    assert VARIANT in (finished / "report" / "index.html").read_text()
    assert examine.examine(Store(str(finished))).findings == ()
    record = json.loads((finished / "run.json").read_text())
    assert record["steps"]["train"]["done"] == 4
    assert record["config"]["tdn"]["num_steps"] == [2, 1]


@pytest.fixture(scope="module")
def new_videos(finished: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos that fold 0 tests, and one that is none."""
    folder = tmp_path_factory.mktemp("new")
    for row in rows(finished, "videos/*/*.parquet"):
        if row["fold"] == 0:
            (folder / row["video_id"]).parent.mkdir(exist_ok=True)
            shutil.copy(data / "labelled" / "weizmann" / row["video_id"], folder / row["video_id"])
    (folder / "empty.avi").write_bytes(b"")
    return folder


def predicted(out: Path, videos: Path, to: Path, *flags: str) -> dict[tuple[str, str], float]:
    given = ["--out", str(out), "--videos", str(videos), "--to", str(to)]
    assert predict.main([*given, *flags, "--set", "run.max_failed_fraction=0.5"]) == 0
    found = pq.read_table(to).to_pylist()
    return {(row["video_id"], row["class"]): row["score"] for row in found}


@pytest.mark.nightly
def test_new_videos_get_the_scores_of_the_tests(
    finished: Path, new_videos: Path, tmp_path: Path
) -> None:
    """By the networks of fold 0, whose test videos they are; then by the mean over both folds."""
    expected = {
        (row["video_id"], row["label"]): row["score"]
        for row in rows(finished, "scores/tdn*-rgb/*/*.parquet")
        if row["fold"] == 0
    }
    asked = ("--encoder", VARIANT, "--stream", "rgb")
    own = predicted(finished, new_videos, tmp_path / "own.parquet", *asked, "--fold", "0")
    assert own == pytest.approx(expected, rel=1e-5, abs=1e-6)
    failed = pq.read_table(tmp_path / "own.failures.parquet").to_pylist()
    assert [(r["video_id"], r["error_type"]) for r in failed] == [("empty.avi", "empty_file")]
    other = predicted(finished, new_videos, tmp_path / "other.parquet", *asked, "--fold", "1")
    mean = {key: (own[key] + other[key]) / 2 for key in own}
    final = predicted(finished, new_videos, tmp_path / "final.parquet", *asked)
    assert final == pytest.approx(mean, rel=1e-5, abs=1e-6)


@pytest.mark.nightly
def test_networks_are_fused_with_fisher_vectors_for_new_videos_too(
    finished: Path, new_videos: Path, tmp_path: Path
) -> None:
    """Every result of METRICS can be asked for; a second call decodes nothing."""
    models = [row for row in rows(finished, "models/*/*.parquet") if row["fold"] == 0]
    mixed = [row for row in models if {"rgb", "flow"} <= set(row["part_streams"])]
    assert mixed
    row = mixed[0]
    asked = [f"--{name}={row[name]}" for name in ("encoder", "stream", "fusion")]
    to = tmp_path / "mixed.parquet"
    first = predicted(finished, new_videos, to, *asked, "--fold", "0")
    clips = {file: file.stat().st_mtime_ns for file in tmp_path.glob("mixed.work/clips/*/*")}
    assert len(clips) > 0
    assert predicted(finished, new_videos, to, *asked, "--fold", "0") == first
    assert {file: file.stat().st_mtime_ns for file in clips} == clips


@pytest.mark.parametrize("table", ["scores", "clip_scores"])
def test_a_finished_run_has_nothing_to_do_and_a_lost_file_comes_back(
    finished: Path, data: Path, table: str
) -> None:
    def content() -> list[dict]:
        found = rows(finished, f"{table}/tdn*-rgb/*/*.parquet")
        return sorted(found, key=lambda row: [str(value) for value in row.values()])

    before, marks = content(), [f.stat().st_mtime_ns for f in finished.glob("scores/tdn*/*/_done*")]
    assert run(data, finished) == 0
    assert [f.stat().st_mtime_ns for f in finished.glob("scores/tdn*/*/_done*")] == marks
    next(iter(finished.glob(f"{table}/tdn*-rgb/*/*.parquet"))).unlink()
    assert run(data, finished) == 0
    after = content()
    assert len(after) == len(before)
    for row, other in zip(after, before, strict=True):
        assert {k: v for k, v in row.items() if k not in ("score", "scores")} == {
            k: v for k, v in other.items() if k not in ("score", "scores")
        }
        name = "score" if table == "scores" else "scores"
        assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5)
