"""Curves and numbers in TensorBoard and MLflow, read back by their own readers."""

import logging
import sys
from pathlib import Path

import pytest

from pipelines.errors import ConfigError
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.storage.tables import CURVES, METRICS
from pipelines.track import tracker
from tests.pipelines.run.examples import example

LOSSES = [(1, 3.5), (2, 2.25), (10, 1.0)]


def made(root: Path, to: str) -> Job:
    """Make a job with the curves of one codebook of a fold, and METRICS of two results."""
    job = example(str(root), f"track.to={to}", "encode.encoders=fv_vae,ave")
    book = next(book for book in job.codebooks if book.base == "fv_vae")
    curve = {"codebook": "fv_vae", "stream": book.stream, "fold": 0, "quantity": "total"}
    rows = [curve | {"step": step, "value": value} for step, value in reversed(LOSSES)]
    job.store.publish_table(f"{book.folder}/curves.parquet", CURVES.build(rows), {})
    of_all = dict.fromkeys(METRICS.schema().names) | {
        "protocol": "given",
        "split": "all",
        "metric": "accuracy",
        "fusion": "none",
        "stream": "n_appearance",
        "num_videos": 6,
    }
    numbers = [
        of_all | {"encoder": "ave", "value": 0.5},
        of_all | {"encoder": "fv_vae", "value": 0.75, "fusion": "given"},
        of_all | {"encoder": "ave", "value": 0.1, "split": "fold:0"},
        of_all | {"encoder": "ave", "value": 0.2, "metric": "AP", "class": "a"},
        of_all | {"encoder": "ave", "value": None, "metric": "mAP"},
    ]
    job.store.publish_table(f"{job.metrics}/metrics.parquet", METRICS.build(numbers), {})
    return job


CURVE = "total/fv_vae-n_appearance-fold-0"
NUMBERS = {"accuracy/ave-n_appearance": 0.5, "accuracy/fv_vae-n_appearance-given": 0.75}


def test_tensorboard(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    job = made(tmp_path / "run", f"tensorboard:{tmp_path / 'board'}")
    for step in ("index", "fit", "evaluate", "evaluate"):
        tracker.track(job, step)
    folders = {folder.name.partition("-")[0]: folder for folder in (tmp_path / "board").iterdir()}
    assert set(folders) == {"fit", "evaluate"}
    fit, evaluate = (
        reader.EventAccumulator(str(folders[step])).Reload() for step in ("fit", "evaluate")
    )
    assert [(event.step, event.value) for event in fit.Scalars(CURVE)] == LOSSES
    assert fit.Tags()["scalars"] == [CURVE]
    found = {tag: [e.value for e in evaluate.Scalars(tag)] for tag in evaluate.Tags()["scalars"]}
    assert found == {name: [value] for name, value in NUMBERS.items()}


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    job = made(tmp_path / "run", f"mlflow:{uri}")
    for step in ("index", "fit", "evaluate"):
        tracker.track(job, step)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("video-fisher").experiment_id
    runs = {run.info.run_name.partition("-")[0]: run for run in client.search_runs([experiment])}
    assert set(runs) == {"fit", "evaluate"}
    assert runs["evaluate"].data.metrics == NUMBERS
    history = client.get_metric_history(runs["fit"].info.run_id, CURVE)
    assert sorted((one.step, one.value) for one in history) == LOSSES
    assert runs["fit"].data.params["encode.encoders"] == "('fv_vae', 'ave')"
    assert runs["fit"].data.tags["video_fisher.run"] == str(tmp_path / "run")
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_no_folder_of_a_run_depends_on_it(tmp_path: Path) -> None:
    plain, tracked = example(str(tmp_path)), example(str(tmp_path), "track.to=tensorboard:/x")
    assert tracked.tables() == plain.tables()
    assert [book.folder for book in tracked.codebooks] == [book.folder for book in plain.codebooks]


def test_a_tool_that_fails_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no answer")

    job = made(tmp_path, "mlflow:http://nowhere")
    monkeypatch.setattr(tracker, "_write_of", lambda _: refuse)
    with caplog.at_level(logging.WARNING):
        tracker.track(job, "fit")
    assert "track.to=mlflow:http://nowhere: fit is not written (no answer)" in caplog.text


@pytest.mark.parametrize("name", tracker.TRACKERS)
def test_a_missing_package_is_one_message_before_the_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow"}
    monkeypatch.setitem(sys.modules, packages[name], None)
    monkeypatch.delitem(sys.modules, tracker.TRACKERS[name], raising=False)
    config = Config().with_settings([f"track.to={name}:/x"])
    with pytest.raises(ConfigError, match=rf"pip install 'video-fisher\[{name}\]'"):
        tracker.check(config)
    tracker.check(Config())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wandb:x", "track.to: expected empty, tensorboard:FOLDER or mlflow:URI, got 'wandb:x'"),
        ("mlflow:", "expected empty, tensorboard:FOLDER or mlflow:URI"),
    ],
)
def test_other_values_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config().with_settings([f"track.to={text}"])


def test_credentials_are_refused() -> None:
    config = Config().with_settings(["track.to=mlflow:https://me:secret@host"])
    with pytest.raises(ConfigError, match="expected a URI without credentials") as caught:
        tracker.check(config)
    assert "secret" not in str(caught.value)
