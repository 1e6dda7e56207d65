"""Several given splits in one output: what they share is made once, and their mean is a row like
any other."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import average_splits, fcvid_encode
from pipelines.doctor import examine
from pipelines.storage.store import Store

NAMES = ("split1", "split2")
SMALL = (
    "sampling.policy=uniform",
    "sampling.num_frames=2",
    "describe.backbone=squeezenet1_0",
    "describe.nodes=features.12",
    "describe.streams=appearance",
    "encode.encoders=ave",
    "evaluate.bootstrap=20",
)


def labels_file(data: Path, folder: Path) -> Path:
    """Eight videos of two classes: four train and four test, the other way round in the second
    split."""
    with (data / "labelled" / "weizmann" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    chosen = [
        row for label in ("bend", "jack") for row in [r for r in rows if r["label"] == label][:4]
    ]
    out = folder / "labels.csv"
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", *NAMES])
        for place, row in enumerate(chosen):
            sides = ["train", "test"]
            first = "unused" if place == 0 else sides[place % 2]
            writer.writerow([row["path"], row["label"], first, sides[1 - place % 2]])
    return out


def flags(data: Path, labels: Path, out: Path) -> list[str]:
    weights = f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}"
    found = ["--videos", str(data / "labelled" / "weizmann"), "--labels", str(labels)]
    found += ["--out", str(out), "--set", "manifest.unlabelled=skip"]
    for setting in (weights, *SMALL):
        found += ["--set", setting]
    return found


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_the_mean_of_two_splits(
    local_ray: None,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, out = labels_file(data, tmp_path), tmp_path / "out"
    given = flags(data, labels, out)
    assert average_splits.main(["--splits", ",".join(NAMES), *given]) == 0
    rows = pq.read_table(out / "split_metrics" / "split1+split2.parquet").to_pylist()
    by_split = {row["split"]: row for row in rows if row["metric"] == "accuracy"}
    assert set(by_split) == {*NAMES, "mean"}
    accuracies = [by_split[name]["value"] for name in NAMES]
    assert by_split["mean"]["value"] == pytest.approx(np.mean(accuracies))
    assert by_split["mean"]["sd"] == pytest.approx(np.std(accuracies, ddof=1))
    assert [by_split[name]["num_videos"] for name in NAMES] == [4, 4]
    assert by_split["split2"]["protocol"] == "given by split2, 1 fold"
    assert by_split["mean"]["protocol"] == "mean of split1, split2"
    assert f"accuracy {np.mean(accuracies):.3f}" in capsys.readouterr().out
    # Means learn nothing, from neither split.
    assert len(list(out.glob("codebooks/ave-*/*"))) == 1
    assert not (out / "samples").exists()
    # Decoded once; each split keeps its own scores, of its own test videos.
    (described,) = (out / "descriptors").iterdir()
    assert sum(pq.read_metadata(f).num_rows for f in described.glob("*.parquet")) == 8
    tested = [
        set(pq.read_table(f)["video_id"].to_pylist())
        for f in out.glob("scores/*/*/fold-00000.parquet")
    ]
    assert len(tested) == 2
    assert not tested[0] & tested[1]
    findings = examine.examine(Store(str(out))).findings
    assert [f.check for f in findings if f.severity == "error"] == []

    def refuse(*_: object) -> None:
        pytest.fail("a cluster was asked for")

    monkeypatch.setattr("pipelines.cluster.connect.connect", refuse)
    before = (out / "split_metrics" / "split1+split2.parquet").read_bytes()
    assert average_splits.main(["--splits", ",".join(NAMES), *given]) == 0
    assert (out / "split_metrics" / "split1+split2.parquet").read_bytes() == before
    # A split that is run by itself is the same run; the report and run.json become its own.
    monkeypatch.undo()
    one = ["--recipe", "ucf101", *given, "--set", "split.name=split1"]
    written = {f: f.stat().st_mtime_ns for f in out.glob("scores/*/*/*")}
    assert fcvid_encode.main(one) == 0
    assert {f: f.stat().st_mtime_ns for f in out.glob("scores/*/*/*")} == written
    assert Store(str(out)).read_json("run.json")["config"]["split"]["name"] == "split1"
    assert "given by split1, 1 fold" in (out / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--splits", "split1"], "expected two columns of the labels or more"),
        (["--splits", "split1,split1"], "each once"),
        (["--splits", "split1,split3"], "expected a column 'split3'"),
        (["--splits", "split1,split2", "--steps", "index"], "leave them out"),
    ],
)
def test_wrong_splits_show_before_anything_is_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, changes: list[str], message: str
) -> None:
    given = flags(data, labels_file(data, tmp_path), tmp_path / "out")
    assert average_splits.main([*given, *changes, "--videos", str(tmp_path / "none")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
