"""Runs of frames of a real video through the stages that train and score, without a cluster."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from encoders.networks.end_point import from_levels
from encoders.networks.flow.actionflownet import ActionFlowNet
from pipelines.errors import RunError
from pipelines.networks.activation import occlusion_map
from pipelines.networks.clips import KeepClips, decoder, decoding, windows
from pipelines.networks.flows import flow_rows
from pipelines.networks.score import ScoreVideos, clip_rows, flow_table, map_rows
from pipelines.networks.streamed import Streamed
from pipelines.networks.train import Task, read_share
from pipelines.run.job import Job
from pipelines.storage.tables import CLIPS, FLOWS
from pipelines.video.flow import flow_of_pictures, to_levels
from tests.pipelines.run.examples import example
from tests.pipelines.video.segments import segments

SIDE, CROP, RUNS, RUN = 40, 32, 2, 5
SETTINGS = (
    "network.networks=actionflownet",
    f"network.side_px={SIDE}",
    f"network.crop_px={CROP}",
    f"network.frames={RUNS}",
    "network.test_clips=3",
    "network.test_views=centre",
    "actionflownet.frames=4",
    "actionflownet.width=2",
)


def planned(data: Path) -> pa.Table:
    """The video as v0, to be decoded."""
    video = segments(data / "clips" / "bikes.mp4")
    video = video.set_column(1, "video_id", pa.array(["v0"]))
    return video.set_column(video.schema.get_field_index("source"), "source", pa.array(["v0"]))


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, list[dict]]:
    """A job whose CLIPS has one video, as a run makes it; and its row."""
    job = example(str(tmp_path_factory.mktemp("flows")), *SETTINGS, videos=4)
    job.__dict__["weights"] = SimpleNamespace(file="w", identity="w", description="w")
    stage = decoder(job.config)
    stage.compares = False
    keep = KeepClips(SIDE, windows(job.config))
    with closing(stage.decoder):
        rows = pa.concat_tables([keep(frames) for frames in stage(planned(data))])
    job.store.publish_table(f"{job.clips}/a.parquet", rows, {})
    return job, rows.to_pylist()


def test_clips_are_runs_of_consecutive_frames_with_their_flow(made) -> None:
    _, (row,) = made
    assert (row["status"], row["num_flows"]) == ("ok", RUNS)
    indices = np.array(row["frame_indices"]).reshape(RUNS, RUN)
    assert (np.diff(indices, axis=1) == 1).all()
    pictures = np.frombuffer(row["pictures"], np.uint8).reshape(RUNS, RUN, SIDE, SIDE, 3)
    levels = np.frombuffer(row["flow"], np.uint8).reshape(RUNS, SIDE, SIDE, RUN - 1, 2)
    for run in range(RUNS):
        for place in range(RUN - 1):
            before, after = pictures[run, place : place + 2]
            expected = to_levels(flow_of_pictures(before, after, "dis"), 20.0)
            assert np.array_equal(levels[run, :, :, place], expected)


def test_a_video_shorter_than_a_run_fails_and_says_so() -> None:
    job = example("x", *SETTINGS)
    keep = KeepClips(SIDE, windows(job.config))
    row = dict.fromkeys(("segment_id", "video_id", "source", "error", "error_type"), "a")
    row |= {
        "attempts": 1,
        "timestamps_s": [0.0],
        "status": "ok",
        "frame_indices": [0],
        "images": bytes(SIDE**2 * 3),
        "flows": [b""],
    }
    found = keep._row(row | {"image_indices": [0], "places": [[0], [], []]})
    assert (found["status"], found["frame_indices"]) == ("failed", [])
    assert found["error"] == "fewer than the 5 frames of a run"
    assert CLIPS.build([found]).num_rows == 1


def test_a_worker_has_the_frames_and_the_flow_of_its_videos(made) -> None:
    job, (row,) = made
    training = SimpleNamespace(
        store=job.store, config=job.config, sources=job.sources, maps=None, plan=None
    )
    task = Task(job.networks[0], job.clips, {"v0": ["a"]}, {})
    share = read_share(training, task, SimpleNamespace(rank=0, size=1))
    assert (share.videos, share.counts) == (["v0"], [RUNS * RUN])
    assert share.frames.tobytes() == row["pictures"]
    assert share.flows is not None
    assert share.flows.tobytes() == row["flow"]


def test_a_streamed_video_is_learned_from_and_scored_as_a_stored_one(made, data: Path) -> None:
    job, (row,) = made
    config = job.config.with_settings(["network.stream=true"])
    kind, arguments = decoding(config)
    stage, video = kind(*arguments), planned(data)
    stage.first.compares = False
    with closing(stage.first.decoder):
        (decoded,) = [table.to_pylist()[0] for table in stage(video)]
    streamed = Streamed(config, video, [RUNS * RUN], "rgb", learns_flow=True, num_workers=1)
    frames, flows = streamed._video(decoded, 0)
    assert flows is not None
    assert frames.numpy().tobytes() == row["pictures"]
    assert flows.numpy().tobytes() == row["flow"]
    with pytest.raises(RunError, match="expected the 10 frames of v0, got 5 of v0"):
        streamed._video(decoded | {"frame_indices": row["frame_indices"][:5]}, 0)

    fitted = job.networks[0]
    network = ActionFlowNet(3, fitted.settings, 2, seed=4).eval()
    for name, content in network.files().items():
        job.store.publish(f"{fitted.folder}/{name}", content)
    place = {"video_id": "v0", "fold": 0, "file": f"{job.clips}/a.parquet", "row": 0}
    found = []
    for own in (job.config, config):
        scorer = ScoreVideos(job.store, own, {0: fitted}, ("n", lambda: b""), ["a", "b"])
        if scorer.decoder:
            scorer.decoder.first.compares = False
        found.append(scorer(pa.Table.from_pylist([video.to_pylist()[0] | place])))
    assert found[0].equals(found[1])


def test_scores_flows_and_hidden_squares_of_a_video(made) -> None:
    job, (row,) = made
    fitted = job.networks[0]
    network = ActionFlowNet(3, fitted.settings, 2, seed=4).eval()
    for name, data in network.files().items():
        job.store.publish(f"{fitted.folder}/{name}", data)
    stage = ScoreVideos(job.store, job.config, {0: fitted}, ("n", lambda: b""), ["a", "b"])
    place = {"video_id": "v0", "fold": 0, "file": f"{job.clips}/a.parquet", "row": 0}
    found = stage(pa.Table.from_pylist([place | {"is_shown": True}]))

    clips = clip_rows(found).to_pylist()
    assert len(clips) == 3
    pictures = np.frombuffer(row["pictures"], np.uint8).reshape(RUNS * RUN, SIDE, SIDE, 3)
    pictures = torch.from_numpy(pictures[:, 4:36, 4:36].copy())
    for clip in clips:
        assert (np.diff(clip["frame_indices"]) == 1).all()
        start = row["frame_indices"].index(clip["frame_indices"][0])
        expected = network.outputs(pictures[None, start : start + 4])["clip"][0]
        np.testing.assert_allclose(clip["scores"], expected.detach(), atol=1e-5)

    flows = flow_table(found).to_pylist()
    start = row["frame_indices"].index(clips[0]["frame_indices"][0])
    assert [one["frame_index"] for one in flows] == clips[0]["frame_indices"]
    assert [one["is_extrapolated"] for one in flows] == [False, False, False, True]
    estimated = network.flows(pictures[None, start : start + 4])[0].numpy()
    levels = np.frombuffer(row["flow"], np.uint8).reshape(RUNS, SIDE, SIDE, RUN - 1, 2)
    run, first = divmod(start, RUN)
    for place, one in enumerate(flows):
        own = torch.from_numpy(levels[run, 4:36, 4:36, first + place].copy())
        truth = from_levels(own, 20.0).numpy().reshape(8, 4, 8, 4, 2).mean((1, 3))
        error = np.linalg.norm(estimated[place] - truth, axis=2).mean()
        assert one["error_px"] == pytest.approx(error, rel=1e-4)
        assert one["length_px"] == pytest.approx(np.linalg.norm(truth, axis=2).mean(), rel=1e-4)
        assert (one["flow"][:4], one["picture"][:2]) == (b"\x89PNG", b"\xff\xd8")

    (hidden,) = map_rows(found, {"v0": ["a"]}).to_pylist()
    assert (hidden["subnetwork"], len(hidden["values"])) == ("occlusion", 13**2)
    label = ["a", "b"].index(hidden["label"])
    values = occlusion_map(network, pictures[start : start + 4], label)
    np.testing.assert_allclose(hidden["values"], values.flatten(), atol=1e-5)


def test_a_hidden_square_is_compared_with_the_whole_clip() -> None:
    """Of a network that scores the mean of one corner."""

    def outputs(clips: torch.Tensor) -> dict[str, torch.Tensor]:
        corner = clips[:, :, :4, :4].float().mean((1, 2, 3, 4)) / 255
        return {"clip": torch.stack([corner, -corner], 1)}

    network = SimpleNamespace(outputs=outputs, scores=lambda outputs: outputs["clip"])
    clip = torch.full((2, 16, 16, 3), 255, dtype=torch.uint8)
    found = occlusion_map(network, clip, 0)
    assert found.shape == (13, 13)
    seen, half = (torch.tensor([s, -s]).softmax(0)[0].item() for s in (1.0, 0.0))
    assert found[0, 0] == pytest.approx((seen - half) / seen, abs=1e-6)
    assert (found[4:, 4:] == 0).all()
    assert (found[0] >= found[0, 4]).all()


def test_only_the_last_eight_flows_are_shown_and_a_pair_extrapolates_none() -> None:
    def network(times: int):
        flow = torch.zeros(1, times, 4, 4, 2)
        return SimpleNamespace(flows=lambda _: flow, parameters=lambda: iter([flow]))

    levels = torch.full((16, 16, 16, 2), 128, dtype=torch.uint8)
    clip = torch.zeros(16, 16, 16, 3, dtype=torch.uint8)
    rows = flow_rows(network(16), clip, levels, 20.0, list(range(16)), is_shown=True)
    assert [row["place"] for row in rows if row["flow"]] == list(range(8, 16))
    (row,) = flow_rows(network(1), clip[:2], levels[:1], 20.0, [7, 8], is_shown=False)
    assert (row["is_extrapolated"], row["flow"], row["frame_index"]) == (False, None, 7)
    assert set(row) | {"video_id", "encoder", "stream", "fold"} == set(FLOWS.schema().names)
