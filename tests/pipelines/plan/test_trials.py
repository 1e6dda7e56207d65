"""The sample job of a plan: which frames it describes, with which filters, and what becomes of
them."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.describe.stage import CPU_FRAMES, DescribeFrames
from pipelines.errors import ConfigError
from pipelines.plan import sample
from pipelines.plan import trials as plan_trials
from pipelines.plan.probe import look_at_videos
from pipelines.prepare import Inputs, prepare
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.storage.store import Store

SETTINGS = (
    *(
        "describe.backbone=squeezenet1_0",
        "describe.nodes=features.0",
        "describe.streams=appearance",
    ),
    *("describe.weights=random:0", "sampling.policy=uniform", "sampling.num_frames=6"),
)
LABELS = "path,label,split\na.mp4,x,train\nb.mp4,y,train\nc.mp4,x,test\n"


def job_of(folder: Path, *settings: str) -> Job:
    config = Config().with_settings([*SETTINGS, *settings])
    steps = ("index", "describe", "fit", "encode", "classify", "evaluate")
    inputs = Inputs(
        videos=str(folder),
        labels=str(folder / "labels.csv"),
        out=str(folder / "out"),
        config=config,
        steps=steps,
    )
    return prepare(inputs, plan=True)


@pytest.fixture
def videos(data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a", "b", "c"):
        shutil.copy(data / "clips" / "abseiling_k400.mp4", folder / f"{name}.mp4")
    (folder / "labels.csv").write_text(LABELS)
    return folder


def sample_of(job: Job, folder: Path, seconds: float, frames: float = 6) -> tuple[Job, float]:
    _, rows = look_at_videos(job, 5)
    network = DescribeFrames(None, job.config, job.described, 1)
    return sample.sample_job(job, Store(str(folder)), rows, network, frames, seconds)


def test_as_many_frames_as_there_is_time_for(videos: Path, tmp_path: Path) -> None:
    job = job_of(videos)
    fast, _ = sample_of(job, tmp_path / "fast", 1000)
    slow, _ = sample_of(job, tmp_path / "slow", 1e-6)
    assert fast.config.sampling.num_frames == 6
    assert slow.config.sampling.num_frames == CPU_FRAMES
    assert fast.manifest["video_id"].to_pylist() == slow.manifest["video_id"].to_pylist()


def test_operations_are_those_of_all_views_and_of_optical_flow(
    videos: Path, tmp_path: Path
) -> None:
    # One convolution of 96 filters of 7 x 7 at 109 x 109 places; a multiplication and an addition
    # are two.
    places = 2 * 96 * 109**2 * 7 * 7
    _, plain = sample_of(job_of(videos), tmp_path / "plain", 1000)
    assert plain == places * 3
    _, ten = sample_of(job_of(videos, "picture.views=ten"), tmp_path / "ten", 1000)
    assert ten == 10 * places * 3
    both = job_of(videos, "describe.streams=appearance,flow@gap_s=0.08")
    _, with_flow = sample_of(both, tmp_path / "flow", 1000)
    assert with_flow == 2 * places * 3


def test_all_steps_are_tried_on_labelled_codebooks_and_shared_ones(
    videos: Path, tmp_path: Path
) -> None:
    """A codebook with labels is there for each fold, and one that variants share is fitted once."""
    shutil.copy(videos / "a.mp4", videos / "d.mp4")
    variants = "ave,vlad,vlad@temporal_pyramid=1/2,fv_vae@lambda3=1"
    (videos / "labels.csv").write_text(
        "path,label,group\na.mp4,x,1\nb.mp4,y,1\nc.mp4,x,2\nd.mp4,y,2\n"
    )
    settings = (
        "split.kind=group_kfold",
        "split.num_folds=2",
        "vlad.num_centroids=8",
        "fv_vae.num_latents=4",
    )
    job = job_of(videos, f"encode.encoders={variants}", "plan.probe_s=2", *settings)
    trials = plan_trials.run(job, 1, 2, 2)
    (stream,) = job.described
    assert [(trial.name, trial.copies) for trial in trials.fits] == [
        ("ave", 1),
        ("vlad", 1),
        ("fv_vae@lambda3=1", 2),
    ]
    assert trials.codebooks == 1 + 2 + 2
    width = job.described[stream].width
    assert trials.dims == {
        f"ave {stream}": width,
        f"vlad {stream}": 8 * width,
        f"vlad@temporal_pyramid=1/2 {stream}": 3 * 8 * width,
        f"fv_vae@lambda3=1 {stream}": width * 5,
    }
    assert trials.fits[2].step_s > 0
    assert all(value > 0 for value in (trials.rates.describe_s, trials.rates.encode_s))
    assert not (videos / "out").exists() or not list((videos / "out").iterdir())


def test_videos_that_cannot_be_decoded_are_one_message(videos: Path, tmp_path: Path) -> None:
    job = job_of(videos)
    _, rows = look_at_videos(job, 5)
    uri = rows.schema.get_field_index("uri")
    rows = rows.set_column(uri, "uri", pa.array(["/gone.mp4"] * rows.num_rows))
    network = DescribeFrames(None, job.config, job.described, 1)
    with pytest.raises(ConfigError, match="--plan: expected a video of which 4 frames"):
        sample.sample_job(job, Store(str(tmp_path / "s")), rows, network, 6, 1)
