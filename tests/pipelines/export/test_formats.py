"""Runs in the formats of other tools, each read back by its own library."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import video_fisher as vf
from jobs import export as job
from pipelines.errors import ConfigError
from pipelines.export import registry
from tests.pipelines.doctor import run as made

STREAM = made.STREAMS[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "run"
    made.make(root)
    return root


@pytest.fixture(scope="module")
def expected(root: Path) -> dict[str, dict]:
    """{video_id: labels, vector, scores} by another way: the tables as Python reads them."""
    run = vf.open(root)
    ids, vectors = run.vectors("ave", STREAM)
    labels = {row["video_id"]: row["labels"] for row in run.table("videos").to_pylist()}
    scores: dict[str, dict[str, float]] = {}
    for row in run.table(f"scores/ave-{STREAM}").to_pylist():
        scores.setdefault(row["video_id"], {})[row["label"]] = row["score"]
    assert len(ids) > 3
    assert any(name in scores for name in ids)
    return {
        name: {
            "labels": labels[name],
            "vector": vector,
            "scores": [score for _, score in sorted(scores[name].items())]
            if name in scores
            else None,
        }
        for name, vector in zip(ids, vectors, strict=True)
    }


def write(root: Path, to: str, folder: Path) -> None:
    flags = ["--out", str(root), "--to", to, "--folder", str(folder)]
    assert job.main([*flags, "--encoder", "ave", "--stream", STREAM]) == 0


def assert_alike(rows: list[dict], expected: dict[str, dict]) -> None:
    assert [row["video_id"] for row in rows] == sorted(expected)
    for row in rows:
        video = expected[row["video_id"]]
        assert row["labels"] == video["labels"]
        assert np.asarray(row["vector"], np.float32).tolist() == video["vector"].tolist()
        if video["scores"] is None:
            assert row["scores"] is None
        else:
            assert row["scores"] == pytest.approx(video["scores"], rel=1e-6)


def test_hugging_face(root: Path, expected: dict, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write(root, "huggingface", tmp_path / "set")
    found = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    assert_alike(found["train"].to_list(), expected)
    assert found["train"].features["vector"].length == made.dim("ave", STREAM)


def test_the_files_of_hugging_face_need_no_library_of_its_own(
    root: Path, expected: dict, tmp_path: Path
) -> None:
    write(root, "huggingface", tmp_path)
    assert_alike(pq.read_table(tmp_path / "data").to_pylist(), expected)
    assert f"`vector` of ave-{STREAM}, `scores` of the classes" in (
        tmp_path / "README.md"
    ).read_text(encoding="utf-8")


def test_lance(root: Path, expected: dict, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    write(root, "lance", tmp_path)
    found = lance.dataset(str(tmp_path))
    assert_alike(found.to_table().to_pylist(), expected)
    classes = json.loads(found.schema.metadata[b"classes"])
    assert classes == sorted(set(vf.open(root).table("scores")["label"].to_pylist()))
    width = made.dim("ave", STREAM)
    assert found.schema.field("vector").type == pa.list_(pa.float32(), width)


def test_webdataset(root: Path, expected: dict, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write(root, "webdataset", tmp_path)
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    rows = [
        sample["json"] | {"vector": sample["vector.npy"], "scores": sample.get("scores.npy")}
        for sample in samples
    ]
    assert_alike(
        [row | {"scores": None if row["scores"] is None else list(row["scores"])} for row in rows],
        expected,
    )
    with_scores = next(row for row in rows if row["scores"] is not None)
    assert len(with_scores["classes"]) == len(with_scores["scores"])
    write(root, "webdataset", tmp_path / "again")
    again = next((tmp_path / "again").glob("*.tar"))
    assert again.read_bytes() == Path(shards[0]).read_bytes()


def test_the_best_result_is_written_where_none_is_named(root: Path, tmp_path: Path) -> None:
    registry.export(str(root), "huggingface", str(tmp_path))
    best = next(iter(vf.open(root)._saved.best_first()))
    width = len(pq.read_table(tmp_path / "data")["vector"][0])
    assert width == made.dim(*best)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoder", "avee"], "no vectors of avee-*"),
        (["--folder", "s3://bucket/x"], "expected a folder of this machine, got a URI"),
        (["--folder", "{taken}"], "expected no folder or an empty one"),
        (["--to", "csv"], "--to: 'csv' is not one of"),
        (["--out", "{taken}"], "expected a run with its run.json, found none"),
    ],
)
def test_what_cannot_be_written_is_said(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    given = ["--out", str(root), "--to", "huggingface", "--folder", str(tmp_path / "new")]
    assert job.main([*given, *(flag.format(taken=taken) for flag in flags)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_missing_package_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "webdataset.writer", None)
    monkeypatch.delitem(sys.modules, "pipelines.export.webdataset", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'video-fisher\[webdataset\]'"):
        registry.export("nowhere", "webdataset", str(tmp_path / "x"))


def test_the_command_knows_every_format() -> None:
    assert set(job.FORMATS) == set(registry.FORMATS)


def test_neither_ray_nor_torch_is_loaded(root: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from jobs import export; "
        f"code = export.main(['--out', {str(root)!r}, '--to', 'huggingface', '--folder', "
        f"{str(tmp_path / 'x')!r}]); "
        "print(code, {'ray', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["0 set()"], done.stderr
