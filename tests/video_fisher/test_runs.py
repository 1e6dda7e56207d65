"""A run opened from Python: its tables, vectors and settings, without Ray and torch, and errors as
exceptions."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import video_fisher as vf
from tests.pipelines.doctor import run as made

ROOT = Path(__file__).parents[2]
STREAM = made.STREAMS[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "run"
    made.make(root)
    return root


def rows_of(root: Path, table: str) -> list[dict]:
    """What lies in the folder that run.json names."""
    return pq.read_table(root / made.TABLES[table]).to_pylist()


def test_tables_are_those_that_run_json_names(root: Path) -> None:
    run = vf.open(root)
    assert (run.uri, run.recipe) == (str(root), "fcvid")
    assert run.metrics.to_pylist() == rows_of(root, "metrics")
    assert run.table("videos", ["video_id"]).column_names == ["video_id"]
    assert run.table(f"scores/ave-{STREAM}").to_pylist() == rows_of(root, f"scores/ave-{STREAM}")
    assert set(run.tables) == set(made.TABLES)
    every = run.table("scores")
    pairs = set(zip(every["encoder"].to_pylist(), every["stream"].to_pylist(), strict=True))
    assert pairs == set(made.SCORED)
    assert Path(run.report).read_text() == "<html></html>"


def test_duckdb_has_a_view_of_each_table(root: Path) -> None:
    with vf.connect(root) as db:
        found = db.sql("SELECT encoder, stream, value FROM metrics").fetchall()
    expected = [(row["encoder"], row["stream"], row["value"]) for row in rows_of(root, "metrics")]
    assert sorted(map(repr, found)) == sorted(map(repr, expected))


def test_other_libraries_take_a_table_as_it_is(root: Path) -> None:
    metrics = vf.open(root).metrics
    assert len(metrics.to_pandas()) == metrics.num_rows
    assert polars.from_arrow(metrics).height == metrics.num_rows
    assert duckdb.sql("SELECT count(*) FROM metrics").fetchall() == [(metrics.num_rows,)]


def test_settings_can_be_given_again(root: Path) -> None:
    run = vf.open(root)
    assert run.settings["describe"]["nodes"] == ("pool5",)
    assert "recipe" not in run.settings
    again = made.CONFIG.with_values(run.settings)
    assert again == made.CONFIG


def test_vectors_are_of_todays_videos(root: Path) -> None:
    run = vf.open(root)
    assert run.encodings == [(e, s) for e in ("ave", "fv_vae") for s in made.STREAMS]
    ids, vectors = run.vectors("ave", STREAM)
    rows = {r["video_id"]: r["vector"] for r in rows_of(root, f"encodings/ave-{STREAM}")}
    assert ids == sorted(rows)
    assert (vectors.dtype, vectors.shape) == (np.float32, (5, made.dim("ave", STREAM)))
    assert (vectors == np.array([rows[name] for name in ids], np.float32)).all()


def test_vectors_of_a_fold_and_of_the_best_stream(root: Path) -> None:
    run = vf.open(root)
    of_fold = [run.vectors("fv_vae", STREAM, fold=fold)[1] for fold in (0, 1)]
    assert (of_fold[0] != of_fold[1]).any()
    assert (run.vectors("fv_vae", STREAM)[1] == of_fold[0]).all()
    value = {
        row["stream"]: row["value"]
        for row in run.metrics.to_pylist()
        if (row["encoder"], row["metric"], row["split"]) == ("ave", "mAP", "all")
        and row["stream"] in made.STREAMS
    }
    best = max(value, key=lambda stream: value[stream])
    assert (run.vectors("ave")[1] == run.vectors("ave", best)[1]).all()


def test_changed_videos_are_left_out(tmp_path: Path) -> None:
    made.make(tmp_path)
    file = next((tmp_path / made.TABLES["videos"]).glob("*.parquet"))
    videos = pq.read_table(file)
    sources = ["another" if s == "source1" else s for s in videos["source"].to_pylist()]
    place = videos.column_names.index("source")
    pq.write_table(videos.set_column(place, "source", pa.array(sources)), file)
    assert vf.open(tmp_path).vectors("ave", STREAM)[0] == ["v0", "v2", "v3", "v4"]


def test_a_search_gives_rows(root: Path) -> None:
    found = vf.open(root).search("v0", encoder="ave", stream=STREAM, num=2)
    assert found.column_names == ["rank", "video_id", "similarity", "labels"]
    assert found["rank"].to_pylist() == [1, 2]
    assert "v0" not in found["video_id"].to_pylist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.table("metric"), "'metric': no such table; did you mean metrics?"),
        (lambda run: run.table("encodings"), "vectors of one length, got several; take one of"),
        (lambda run: run.table("metrics", ["vale"]), "'vale': not in metrics; did you mean value"),
        (lambda run: run.vectors("vlad"), "encoder 'vlad': no vectors of it; there are ave, fv_"),
        (lambda run: run.vectors("ave", "pool5_diff"), "did you mean pool5_difference?"),
        (lambda run: run.vectors("fv_vae", fold=7), "fold 7: expected a fold of the run"),
        (lambda run: run.search("v9"), "--query v9: expected a video_id of the run"),
        (lambda run: vf.open("/nowhere"), "/nowhere: expected a run with its run.json"),
        (lambda run: vf.run("x", out="y", describe={"nods": 2}), "did you mean nodes?"),
        (lambda run: vf.run("x", out="y", settings={"fit.num_frames": -1}), "at least 0, got -1"),
        (lambda run: vf.run("x", out="y", settings={"nodes": 2}), "expected 'section.field'"),
        (
            lambda run: vf.run("x", out="y", fit={"seed": 1}, settings={"fit.seed": 1}),
            "expected fit.seed once",
        ),
        (lambda run: vf.run("x", out="y", recipe="dem"), "'dem'; did you mean demo?"),
        (lambda run: vf.run("x", out="y", steps=["indx"]), "did you mean index?"),
        (lambda run: vf.run("x", out="y", limit=0), "--limit: expected at least 1, got 0"),
        (lambda run: vf.run("s3://AKIA:x@b/v", out="y"), "--videos"),
    ],
)
def test_errors_are_exceptions_of_one_kind(
    root: Path, call: Callable[[vf.Run], object], message: str
) -> None:
    with pytest.raises(vf.ConfigError) as error:
        call(vf.open(root))
    assert message in str(error.value)


def python(script: str, *words: str, **more: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


def test_reading_loads_neither_ray_nor_torch(root: Path) -> None:
    script = """
import sys, video_fisher as vf
run = vf.open(sys.argv[1])
ids, vectors = run.vectors("ave")
print(len(ids), run.table("scores").num_rows > 0, run.metrics.num_rows > 0, run.report != "")
print([name for name in ("ray", "torch", "torchvision", "sklearn", "av") if name in sys.modules])
"""
    done = python(script, str(root), cwd=ROOT)
    assert done.stdout == "5 True True True\n[]\n", done.stderr


def test_a_wrong_environment_is_refused_on_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEO_FISHER_MATMUL", "mkl")
    (tmp_path / "a.mp4").touch()
    with pytest.raises(vf.ConfigError, match="VIDEO_FISHER_MATMUL: expected auto or one of"):
        vf.run(tmp_path, out=tmp_path / "out", settings={"describe.weights": "random:0"})


def test_a_wrong_setting_is_refused_before_torch_and_ray_are_loaded() -> None:
    script = """
import sys, video_fisher as vf
try:
    vf.run("videos", out="out", fit={"num_frames": -1})
except vf.ConfigError as error:
    print(error)
print([name for name in ("ray", "torch") if name in sys.modules])
"""
    done = python(script, cwd=ROOT)
    assert done.stdout == ("settings: fit.num_frames: expected at least 0, got -1\n[]\n"), (
        done.stderr
    )


def test_a_cluster_of_ones_own_comes_before_ray_is_imported(tmp_path: Path) -> None:
    """Ray reads on import who may reach the cluster."""
    script = """
import sys, types
sys.modules["ray"] = types.SimpleNamespace(is_initialized=lambda: False)
import video_fisher as vf
try:
    vf.run("videos", out=sys.argv[1])
except vf.ConfigError as error:
    print(error)
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = python(script, str(tmp_path), env=environment)
    assert done.stdout.startswith("import ray: expected that a run which starts"), done.stderr


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_run_from_python_is_that_of_the_command(
    local_ray: None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.fcvid_encode import main

    folder = data / "labelled" / "weizmann"
    weights = str(data / "weights" / "squeezenet1_0.safetensors")
    run = vf.run(
        folder,
        labels=folder / "labels.csv",
        out=tmp_path / "run",
        recipe="demo",
        limit=12,
        settings={"describe.weights": weights, "describe.streams": ["appearance"]},
        sampling={"num_frames": 2},
        encode={"encoders": ["ave"]},
        evaluate={"bootstrap": 20},
    )
    assert run.metrics.num_rows > 0
    ids, vectors = run.vectors("ave")
    assert (len(ids), vectors.shape) == (12, (12, 512))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-3)
    flags = ["--videos", str(folder), "--labels", str(folder / "labels.csv"), "--limit", "12"]
    flags += ["--out", str(tmp_path / "run"), "--recipe", "demo"]
    for setting in (
        f"describe.weights={weights}",
        *("describe.streams=appearance", "sampling.num_frames=2", "encode.encoders=ave"),
        "evaluate.bootstrap=20",
    ):
        flags += ["--set", setting]
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.parquet")}
    assert main(flags) == 0
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.parquet")}
    assert after == before
    with pytest.raises(vf.ConfigError, match="step index is not complete"):
        vf.run(
            folder,
            labels=folder / "labels.csv",
            out=tmp_path / "other",
            steps="encode",
            recipe="demo",
            limit=12,
            describe={"weights": weights},
        )
