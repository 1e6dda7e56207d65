"""Configurations of a run: records, what goes with one that is cleaned, and comparisons."""

import dataclasses
import json
from pathlib import Path

import pytest

from encoders.scores.intervals import gains
from jobs import clean, compare
from pipelines.doctor import examine
from pipelines.evaluate.step import read_scores
from pipelines.reading import kept
from pipelines.storage.columns import Table
from pipelines.storage.store import Store
from pipelines.storage.tables import METRICS, SCORES
from tests.pipelines.doctor import run as doctor_run
from tests.pipelines.report.page import assert_stands_alone

STREAM = "pool5_appearance"
BEST = f"scores/fv_vae-{STREAM}"


def changed(store: Store, key: str, file: str, table: Table, **values: list) -> None:
    """Write a table again, with other values in some columns."""
    rows = store.read_table(doctor_run.TABLES[key]).to_pylist()
    for name, column in values.items():
        rows = [row | {name: value} for row, value in zip(rows, column, strict=True)]
    store.publish_table(file, table.build(rows), {})


def with_best(store: Store, file: str, pair: tuple[str, str]) -> None:
    """Write METRICS in which this result has 0.9, and all others 0.2."""
    metrics = store.read_table(doctor_run.TABLES["metrics"]).to_pylist()
    values = [0.9 if (row["encoder"], row["stream"]) == pair else 0.2 for row in metrics]
    changed(store, "metrics", file, METRICS, value=values)


def made(root: Path) -> tuple[Store, list[str]]:
    """Make a run of two configurations; the best result of the second one is never wrong."""
    doctor_run.make(root)
    store, metrics = Store(str(root)), doctor_run.TABLES["metrics"]
    with_best(store, f"{metrics}/metrics.parquet", ("ave", STREAM))
    kept.keep_previous(store)
    scores = store.read_table(doctor_run.TABLES[BEST]).to_pylist()
    right = [1.0 if row["is_true"] else -1.0 for row in scores]
    changed(store, BEST, "scores/new/1/x.parquet", SCORES, score=right)
    with_best(store, "metrics/new/x.parquet", ("fv_vae", STREAM))
    record = json.loads((root / "run.json").read_text())
    record["tables"] |= {"metrics": "metrics/new", BEST: "scores/new/1"}
    record["config"]["classify"]["c"] = [7.0]
    record["steps"]["classify"]["seconds"] = 90.0
    store.publish_json("run.json", record)
    kept.keep_previous(store)
    return store, [metrics, doctor_run.TABLES[BEST]]


def test_each_configuration_has_a_record_and_a_page(tmp_path: Path) -> None:
    store, _ = made(tmp_path)
    kept.keep_previous(store)
    records = kept.records(store)
    assert len(records) == 2
    for record in records:
        assert (tmp_path / kept.page_of(record["name"])).exists()
        assert {row["metric"] for row in record["metrics"]} >= {"accuracy", "mAP"}
        assert set(record["tables"].values()) <= set(record["folders"])
    assert {tuple(record["config"]["classify"]["c"]) for record in records} == {(100.0,), (7.0,)}


def test_the_doctor_knows_kept_folders(tmp_path: Path) -> None:
    store, _ = made(tmp_path)
    older = [f for f in examine.examine(store).findings if f.check == "folder.older"]
    assert older == []
    store.delete_folder(kept.FOLDER)
    older = [f for f in examine.examine(store).findings if f.check == "folder.older"]
    assert older[0].found.startswith("2 folders")


def test_clean_says_first_and_deletes_only_what_no_other_has(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    store, old = made(tmp_path)
    num_bytes = sum(sum(store.sizes(folder).values()) for folder in old)
    assert clean.main(["--out", str(tmp_path), "--keep", "1"]) == 0
    said = capsys.readouterr().out
    assert f"{num_bytes:,} bytes in 2 folders" in said
    assert "give --yes to delete" in said
    assert all(store.files(folder) for folder in old)
    everything = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert clean.main(["--out", str(tmp_path), "--keep", "1", "--yes"]) == 0
    assert f"deleted: 1 configurations, {num_bytes:,} bytes" in capsys.readouterr().out
    left = {file for file in tmp_path.rglob("*") if file.is_file()}
    gone = {str(file.relative_to(tmp_path)).split("/")[0] for file in everything - left}
    assert gone == {"marks", "metrics", "scores", "runs", "report"}
    assert [record["config"]["classify"]["c"] for record in kept.records(store)] == [[7.0]]
    assert all(store.files(folder) for folder in kept.records(store)[0]["tables"].values())
    assert clean.main(["--out", str(tmp_path), "--keep", "1", "--yes"]) == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_the_newest_stays_even_where_its_record_is_older(tmp_path: Path) -> None:
    store, old = made(tmp_path)
    record = next(r for r in kept.records(store) if r["tables"]["metrics"] == old[0])
    (tmp_path / "run.json").write_text(json.dumps(record))
    (gone,) = kept.leaving(store, 1)
    assert set(gone.folders) == {"metrics/new", "scores/new/1"}


def test_compare_shows_what_differs_and_paired_gains(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    made(tmp_path)
    assert compare.main(["--out", str(tmp_path)]) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["classify.c"].split() == ["classify.c", "100.0", "7.0"]
    assert "evaluate.bootstrap" not in lines
    assert lines["time of all steps"].split()[-4:] == ["0", "s", "90", "s"]
    assert lines["best result"].endswith(f"ave {STREAM}  fv_vae {STREAM}")
    assert lines["on videos of both"].split()[-2:] == ["4", "4"]
    page = (tmp_path / "compare.html").read_text()
    assert_stands_alone(page)
    assert "classify.c" in page


def test_gains_are_those_of_the_scores(tmp_path: Path) -> None:
    from pipelines.studies.compare import compare as compared

    store, _ = made(tmp_path)
    found = compared([str(tmp_path)])
    first, second = found.entries
    assert (found.metric, first.value.value, second.value.value) == ("accuracy", 0.9, 0.9)
    assert (first.result, second.result) == (f"ave {STREAM}", f"fv_vae {STREAM}")
    assert first.gain.value is None
    new = read_scores(store, "fv_vae", STREAM, "scores/new/1", "")
    before = read_scores(store, "ave", STREAM, doctor_run.TABLES[f"scores/ave-{STREAM}"], "")
    expected = gains(new.scores, before.scores, new.targets, num_draws=1000, seed=0)["accuracy"]
    assert dataclasses.astuple(second.gain) == pytest.approx(dataclasses.astuple(expected))


@pytest.mark.parametrize(("flags", "text"), [(["--keep", "0"], "--keep: expected at least 1")])
def test_wrong_flags_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str], text: str
) -> None:
    assert clean.main(["--out", str(tmp_path), *flags]) == 2
    assert text in capsys.readouterr().err
    assert compare.main(["--out", str(tmp_path)]) == 2
    assert "expected a run with its run.json" in capsys.readouterr().err
