"""New videos by a finished run: the same numbers as its own tests, and a row for each failure."""

import json
import math
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import video_fisher as vf
from encoders.scores.calibration import Sigmoid
from jobs import predict
from jobs.fcvid_encode import main as run_job
from pipelines.classify.examples import read_vectors
from pipelines.classify.fold_sets import FINAL
from pipelines.doctor import examine
from pipelines.predict.model import Scorer, choose
from pipelines.run.saved import SavedRun
from pipelines.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

PCA = "ave@compress.kind=pca:compress.num_features=4"
SETTINGS = (
    "sampling.num_frames=3",
    "split.kind=given",
    "fit.num_frames=40",
    "vlad.num_centroids=3",
    f"encode.encoders=ave,vlad,{PCA}",
    "classify.fusions=kernel_sum,late_weighted",
    "classify.fusion_groups=encoders,all,two=ave-*appearance+vlad-*difference",
    "classify.final=all",
    "classify.keep_folds=true",
    "evaluate.bootstrap=10",
)
CLASSES = ("bend", "walk", "wave2")
TRAIN, TEST = ("daria", "denis", "eli"), ("ido", "ira")


def labelled(folder: Path, corpus: Path) -> list[str]:
    """Copy videos of a given split, write its labels, and return the paths of its test videos."""
    lines, tested = ["path,label,split"], []
    for name in CLASSES:
        for person in (*TRAIN, *TEST):
            path = f"{name}/{person}_{name}.avi"
            (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(corpus / path, folder / path)
            lines.append(f"{path},{name},{'train' if person in TRAIN else 'test'}")
            tested += [path] if person in TEST else []
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return tested


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    labelled(folder, data / "labelled" / "weizmann")
    return folder


@pytest.fixture(scope="module")
def out(
    local_ray: None, corpus: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("run")
    weights = f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}"
    flags = ["--videos", str(corpus), "--labels", str(corpus / "labels.csv"), "--out", str(folder)]
    flags += ["--recipe", "demo"]
    for setting in (weights, *SETTINGS):
        flags += ["--set", setting]
    assert run_job(flags) == 0
    return folder


def scores_of(run: SavedRun, encoder: str, stream: str) -> dict[tuple[str, str], float]:
    table = run.store.read_table(run.tables[f"scores/{encoder}-{stream}"]).to_pylist()
    return {(row["video_id"], row["label"]): row["score"] for row in table}


def kept(run: SavedRun, fold: int) -> list[dict]:
    rows = run.store.read_table(run.tables["models"]).to_pylist()
    return [row for row in rows if row["fold"] == fold]


def test_every_result_of_the_metrics_is_kept_best_first(out: Path) -> None:
    run = SavedRun.open(str(out))
    metrics = run.store.read_table(run.tables["metrics"]).to_pylist()
    values = {
        (row["encoder"], row["stream"], row["fusion"]): row["value"]
        for row in metrics
        if (row["split"], row["metric"]) == ("all", "accuracy")
    }
    for fold in (FINAL, 0):
        keys = [(row["encoder"], row["stream"], row["fusion"]) for row in kept(run, fold)]
        assert sorted(keys) == sorted(values)
        assert [values[key] for key in keys] == sorted(values.values(), reverse=True)
    assert all(math.isclose(sum(row["weights"]), 1) for row in kept(run, FINAL))


def test_fold_classifiers_give_the_scores_of_their_fold(out: Path) -> None:
    """Every result with SCORES of its own: single, compressed, sums of kernels, weighted scores."""
    run = SavedRun.open(str(out))
    seen = set()
    for row in kept(run, 0):
        if row["fusion"] in ("given", "two_stream"):
            continue
        asked = {name: row[name] for name in ("encoder", "stream", "fusion")}
        scorer = Scorer(run.store, choose(run, asked, 0))
        vectors, ids = [], None
        for pair in zip(row["part_encoders"], row["part_streams"], strict=True):
            (name,) = run.store.files(run.encodings[pair].folder)
            table = run.store.read_table(run.encodings[pair].folder, ["video_id"])
            order = np.argsort(np.array(table["video_id"].to_pylist()))
            ids = [table["video_id"][int(place)].as_py() for place in order]
            vectors.append(read_vectors(run.store, name, order))
        expected = scores_of(run, row["encoder"], row["stream"])
        found = scorer.scores(vectors)
        for place, video in enumerate(ids):
            for column, label in enumerate(scorer.classes):
                if (video, label) in expected:
                    assert found[place, column] == pytest.approx(
                        expected[video, label], rel=1e-5, abs=1e-6
                    ), asked
        seen.add(row["fusion"])
    assert seen == {"none", "kernel_sum", "late_weighted"}


@pytest.fixture(scope="module")
def predicted(out: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of the test videos, of one that is no video and one that is cut."""
    folder = tmp_path_factory.mktemp("predicted")
    tested = [f"{name}/{person}_{name}.avi" for name in CLASSES for person in TEST]
    new = folder / "new"
    for path in tested:
        (new / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(corpus / path, new / path)
    (new / "empty.avi").write_bytes(b"")
    flags = ["--out", str(out), "--videos", str(new), "--to", str(folder / "new.parquet")]
    assert (
        predict.main([*flags, "--fold", "0", "--encoder", "ave", "--stream", "late_weighted"]) == 0
    )
    return folder


def test_test_videos_of_a_given_split_get_their_scores(out: Path, predicted: Path) -> None:
    run = SavedRun.open(str(out))
    expected = scores_of(run, "ave", "late_weighted")
    table = pq.read_table(predicted / "new.parquet")
    assert table.column_names == ["video_id", "class", "score", "probability", "rank"]
    found = {(row["video_id"], row["class"]): row for row in table.to_pylist()}
    assert found.keys() == expected.keys()
    row = next(each for each in kept(run, 0) if each["stream"] == "late_weighted")
    chosen = next(
        r for r in kept(run, 0) if (r["encoder"], r["stream"]) == ("ave", "late_weighted")
    )
    assert row["num_calibration"] == 6
    sigmoid = Sigmoid(chosen["slope"], chosen["intercept"])
    for key, score in expected.items():
        assert found[key]["score"] == pytest.approx(score, rel=1e-6, abs=1e-9)
        assert found[key]["probability"] == pytest.approx(sigmoid.probabilities(np.array(score)))
    for video in {video for video, _ in expected}:
        ranked = sorted(CLASSES, key=lambda name: -expected[video, name])
        assert [found[video, name]["rank"] for name in ranked] == [1, 2, 3]


def test_python_gives_what_the_command_wrote(out: Path, predicted: Path) -> None:
    file = predicted / "new.parquet"
    asked = {"fold": 0, "encoder": "ave", "stream": "late_weighted"}
    table = vf.open(out).predict(predicted / "new", to=file, **asked)
    assert table.num_rows == 18
    assert table.to_pylist() == pq.read_table(file).to_pylist()
    with pytest.raises(vf.ConfigError):
        vf.open(out).predict(predicted / "new", to=file, encoder="av")


def test_a_video_that_failed_has_its_row_and_is_said(
    out: Path, predicted: Path, capsys: pytest.CaptureFixture
) -> None:
    failures = pq.read_table(predicted / "new.failures.parquet").to_pylist()
    assert [(row["video_id"], row["stage"], row["error_type"]) for row in failures] == [
        ("empty.avi", "index", "empty_file")
    ]
    flags = ["--out", str(out), "--videos", str(predicted / "new"), "--fold", "0"]
    flags += ["--encoder", "ave", "--stream", "late_weighted"]
    before = (predicted / "new.parquet").read_bytes()
    files = sorted((predicted / "new.work").rglob("*.parquet"))
    times = [file.stat().st_mtime_ns for file in files]
    assert predict.main([*flags, "--to", str(predicted / "new.parquet")]) == 0
    assert [file.stat().st_mtime_ns for file in files] == times
    assert (predicted / "new.parquet").read_bytes() == before
    text = capsys.readouterr().out
    assert "6 of 7 videos by ave on late_weighted, without fold 0" in text
    assert "failed: 1 videos" in text
    assert "bend/ido_bend.avi" in text


def test_final_classifiers_know_all_labelled_videos(
    out: Path, predicted: Path, tmp_path: Path
) -> None:
    """The best result by default, into a folder; final classifiers were trained on these videos."""
    flags = ["--out", str(out), "--videos", str(predicted / "new" / "bend"), "--to", str(tmp_path)]
    assert predict.main([*flags, "--set", "cluster.num_decoders=1"]) == 0
    table = pq.read_table(tmp_path / "predictions.parquet")
    first = table.filter(pc.equal(table["rank"], 1)).to_pylist()
    assert [row["class"] for row in first] == ["bend", "bend"]
    assert not (tmp_path / "failures.parquet").exists()
    solutions = duckdb.sql(
        f"SELECT DISTINCT num_positive, num_negative FROM '{out}/models/*/solutions/*.parquet'"
    ).fetchall()
    assert solutions == [(5, 10)]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--fold", "3"], "--fold 3: classifiers of this fold, found none"),
        (["--encoder", "none"], "expected a result that is kept, which are --encoder "),
        (["--set", "sampling.num_frames=9"], "expected a setting that changes no number"),
    ],
)
def test_what_cannot_be_asked_for_is_said(
    out: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: list, text: str
) -> None:
    where = ["--out", str(out), "--videos", str(corpus / "bend"), "--to", str(tmp_path / "x")]
    assert predict.main([*where, *flags]) == 2
    assert text in capsys.readouterr().err


def test_the_doctor_finds_nothing(out: Path) -> None:
    assert examine.examine(Store(str(out))).findings == ()


def test_a_run_of_before_says_what_to_do(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    record = json.loads((out / "run.json").read_text())
    record["tables"].pop("models")
    (tmp_path / "run.json").write_text(json.dumps(record))
    flags = ["--out", str(tmp_path), "--videos", str(tmp_path), "--to", str(tmp_path / "x")]
    assert predict.main(flags) == 2
    assert "run the job again, which adds what is missing" in capsys.readouterr().err
