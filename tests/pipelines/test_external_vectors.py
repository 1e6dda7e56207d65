"""A run with vectors of one's own: they are classified, fused, searched, and made again where their
file changes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.doctor import main as doctor
from jobs.predict import main as predict
from pipelines.search.nearest import search
from tests.pipelines.networks.runs import demo_run, rows

pytestmark = [pytest.mark.ray, pytest.mark.nightly, pytest.mark.timeout(300)]

SETTINGS = (
    *("encode.encoders=ave", "split.kind=random", "sampling.num_frames=3"),
    *("classify.fusion_groups=both=ave-*+idt-*", "classify.fusions=late_weighted"),
    *("classify.final=all", "evaluate.bootstrap=0"),
)


def write(file: Path, data: Path, seed: int) -> None:
    """A vector for each video of Weizmann that tells its class, and others beside them."""
    folder = data / "labelled" / "weizmann"
    paths = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.avi"))
    classes = sorted({path.partition("/")[0] for path in paths})
    draw = np.random.default_rng(seed)
    vectors = [np.eye(len(classes))[classes.index(path.partition("/")[0])] for path in paths]
    noisy = [(vector + 0.05 * draw.normal(size=len(classes))).tolist() for vector in vectors]
    table = pa.table({"path": [*paths, "other.avi"], "vector": [*noisy, noisy[0]]})
    pq.write_table(table, file)


def test_given_vectors_are_a_result_as_others_are(
    local_ray: None,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    vectors, out = tmp_path / "vectors.parquet", tmp_path / "out"
    write(vectors, data, seed=0)
    settings = (*SETTINGS, f"encode.external=idt:{vectors}")
    assert demo_run(data, out, 24, settings) == 0

    given = {row["path"]: row["vector"] for row in pq.read_table(vectors).to_pylist()}
    encodings = rows(out, "encodings/external-external_global/*/*.parquet")
    assert len(encodings) == 24
    for row in encodings:
        assert row["vector"] == pytest.approx(given[row["video_id"]])
        assert (row["encoder"], row["stream"], row["fold"]) == ("idt", "external_global", -1)
    accuracy = {
        (row["encoder"], row["stream"]): row["value"]
        for row in rows(out, "metrics/*/*.parquet")
        if (row["split"], row["metric"], row["fusion"]) == ("all", "accuracy", "none")
        or (row["split"], row["metric"], row["stream"]) == ("all", "accuracy", "late_weighted")
    }
    assert accuracy["idt", "external_global"] == 1
    assert ("both", "late_weighted") in accuracy
    assert doctor(["--out", str(out)]) == 0, capsys.readouterr().out

    answer = search(str(out), encodings[0]["video_id"], encoder="idt", num=3)
    assert answer.stream == "external_global"

    caplog.clear()
    assert demo_run(data, out, 24, settings) == 0
    assert "nothing to do: every step is complete" in caplog.text

    flags = ["--out", str(out), "--videos", str(data / "clips" / "bikes.mp4")]
    flags += ["--to", str(tmp_path / "predicted"), "--encoder", "idt", "--fusion", "none"]
    assert predict(flags) == 2
    assert "the vectors of idt were given for the videos of the run" in capsys.readouterr().err

    write(vectors, data, seed=1)
    assert demo_run(data, out, 24, settings) == 0
    assert len(rows(out, "encodings/ave-*_appearance/*/*.parquet")) == 24
    assert len(rows(out, "encodings/external-external_global/*/*.parquet")) == 48
