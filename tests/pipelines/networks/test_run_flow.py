"""ActionFlowNet in a run on real video: runs of frames, their flow, Ray Train, SCORES; and beside
it encodings of clips, described by a network over time."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.doctor import examine
from pipelines.storage.store import Store
from pipelines.video.flow import flow_between, to_levels
from tests.pipelines.networks.runs import demo_run, rows

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(900)]

SIDE, RUNS, RUN = 40, 2, 5
VARIANTS = ("actionflownet", "actionflownet@frames=2:learns=stacked:pairs={pairs}", "tsn")
SETTINGS = (
    "sampling.num_frames=2",
    "split.num_folds=2",
    "encode.encoders=ave,vlad@num_centroids=4",
    "describe.streams=appearance,clip@frames=4:step=1:side_px=32",
    "describe.clip_backbone=actionflownet_4",
    "describe.clip_weights=random:0",
    f"network.side_px={SIDE}",
    "network.crop_px=32",
    f"network.frames={RUNS}",
    "network.test_clips=2",
    "network.test_views=mirror",
    "network.pictures=2",
    "actionflownet.frames=4",
    "actionflownet.width=4",
    "actionflownet.pretraining_steps=1",
    "actionflownet.num_steps=2",
    "actionflownet.batch_clips=4",
    "tsn.num_steps=1",
    "tsn.batch_clips=2",
)


@pytest.fixture(scope="module")
def variants(data: Path) -> list[str]:
    # A name in network.networks has no comma, and a path no colon.
    return [name.format(pairs=data / "flow" / "flying_chairs") for name in VARIANTS]


@pytest.fixture(scope="module")
def finished(
    local_ray: None, data: Path, variants: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("flow")
    assert demo_run(data, out, 8, (*SETTINGS, f"network.networks={','.join(variants)}")) == 0
    return out


def test_clips_are_runs_of_consecutive_frames_with_their_flow(finished: Path) -> None:
    clips = rows(finished, "clips/*/*.parquet")
    assert len(clips) == 8
    for row in clips:
        assert row["status"] == "ok"
        indices = np.array(row["frame_indices"]).reshape(RUNS, RUN)
        assert (np.diff(indices, axis=1) == 1).all()
        pictures = np.frombuffer(row["pictures"], np.uint8).reshape(RUNS, RUN, SIDE, SIDE, 3)
        levels = np.frombuffer(row["flow"], np.uint8).reshape(RUNS, SIDE, SIDE, RUN - 1, 2)
        assert row["num_flows"] == RUNS
        # The flow is the decoder's, of the same pictures in grey.
        grey = (pictures.astype(float) @ (0.299, 0.587, 0.114)).round().astype(np.uint8)
        for run in range(RUNS):
            for place in range(RUN - 1):
                flow = flow_between(grey[run, place], grey[run, place + 1], "dis")
                expected = to_levels(flow, 20.0).astype(int)
                assert np.abs(levels[run, :, :, place] - expected).mean() < 1


def test_each_phase_has_its_curves(finished: Path, variants: list[str]) -> None:
    folders = [*finished.glob("networks/actionflownet-rgb/*")]
    assert len(folders) == 4
    for folder in folders:
        files = {file.name for file in folder.iterdir()}
        assert {"encoder.safetensors", "classifiers.safetensors"} <= files
        curve = pq.read_table(folder / "curves.parquet").to_pylist()
        last = {"classes"} if "stacked" in curve[0]["codebook"] else {"flow", "classes"}
        by_step = {s: {r["quantity"] for r in curve if r["step"] == s} for s in (1, 2, 3)}
        assert by_step == {1: {"total", "flow"}, 2: {"total"} | last, 3: {"total"} | last}


def test_every_network_scores_every_video(finished: Path, variants: list[str]) -> None:
    scores = rows(finished, "scores/*rgb/*/*.parquet")
    by_network = {
        name: {r["video_id"] for r in scores if r["encoder"] == name} for name in variants
    }
    assert {name: len(videos) for name, videos in by_network.items()} == dict.fromkeys(variants, 8)
    clips = rows(finished, "clip_scores/actionflownet-rgb/*/*.parquet")
    for row in clips:
        assert len(row["frame_indices"]) == 4
        assert (np.diff(row["frame_indices"]) == 1).all()
    assert examine.examine(Store(str(finished))).findings == ()


def test_clips_are_encoded_beside_pictures(finished: Path) -> None:
    descriptors = rows(finished, "descriptors/*/*.parquet")
    name = "layer4_clip_gap1x4_side32"
    assert all(np.asarray(row[name]).size == 2 * 50 * 32 for row in descriptors)
    scores = rows(finished, f"scores/*{name}/*/*.parquet")
    assert {row["encoder"] for row in scores} == {"ave", "vlad@num_centroids=4"}
    assert len({row["video_id"] for row in scores}) == 8


def test_what_a_black_square_hides_is_shown(finished: Path) -> None:
    maps = rows(finished, "cams/actionflownet*rgb/*/*.parquet")
    assert len(maps) == 2 * 2
    for row in maps:
        assert (row["subnetwork"], row["place"]) == ("occlusion", 0)
        assert len(row["values"]) == 13**2
        assert row["picture"][:2] == b"\xff\xd8"
    assert "black square hides" in (finished / "report" / "index.html").read_text()


def test_flow_of_every_tested_video_is_measured_and_some_shown(finished: Path) -> None:
    flows = rows(finished, "flows/actionflownet*rgb/*/*.parquet")
    of_clips = [row for row in flows if row["encoder"] == "actionflownet"]
    assert len({row["video_id"] for row in of_clips}) == 8
    assert len(of_clips) == 8 * 4
    assert len(flows) == 8 * 4 + 8
    # The flow from the last frame leads to one that the network was not given.
    assert all(row["is_extrapolated"] == (row["place"] == 3) for row in of_clips)
    assert not any(row["is_extrapolated"] for row in flows if row not in of_clips)
    assert all(np.isfinite(row["error_px"]) and row["length_px"] >= 0 for row in flows)
    shown = [row for row in of_clips if row["flow"]]
    assert len(shown) == 2 * 4
    for row in shown:
        assert row["flow"][:4] == row["truth"][:4] == b"\x89PNG"
        assert row["picture"][:2] == b"\xff\xd8"
    page = (finished / "report" / "index.html").read_text()
    assert page.count('alt="estimated flow') == 8
    assert page.count('class="extrapolated"') == 2
