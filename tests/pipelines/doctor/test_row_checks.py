"""Rows that are wrong, missing or foreign are found by their own check, and by no other."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.doctor import examine
from pipelines.doctor.scan import has_unit_length
from pipelines.settings.config import Config, digest
from pipelines.storage.store import Store
from tests.pipelines.doctor import run as doctor_run
from tests.pipelines.doctor.edits import (
    AVE,
    AVE_SCORES,
    ROW_EDITS,
    VAE,
    copy_file,
    drop,
    edit,
    file_of,
    first,
    found,
    put,
    write_json,
)
from tests.pipelines.doctor.run import STREAMS, TABLES


@pytest.fixture
def run(sound_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_run, tmp_path / "run"))


@pytest.mark.parametrize(
    ("check", "key", "change"),
    [
        pytest.param(check, *case, marks=[pytest.mark.nightly] if number else [])
        for check, cases in ROW_EDITS.items()
        for number, case in enumerate(cases)
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_row_is_found(run: Path, check: str, key: str, change: Callable) -> None:
    edit(run, key, change)
    assert found(run) == {check}


def test_a_dropped_video_or_segment_names_the_tables_that_disagree(run: Path) -> None:
    edit(run, "segments", drop(3))
    assert found(run) == {"counts.segments", "orphans.old_source"}


def test_a_video_with_another_number_of_segments(run: Path) -> None:
    edit(run, "videos", put("num_segments", first(2)))
    assert found(run) == {"counts.segments"}


def test_a_video_that_is_gone_leaves_orphans(run: Path) -> None:
    edit(run, "videos", drop(4))
    assert found(run) == {"orphans.rows", "orphans.old_source"}


def test_other_scores_give_other_metrics_also_of_the_fusions(run: Path) -> None:
    edit(
        run, AVE_SCORES, put("score", lambda values: values.__setitem__(slice(0, 2), values[1::-1]))
    )
    findings = examine.examine(Store(str(run))).findings
    assert [finding.check for finding in findings] == ["metrics.values"]
    edit(
        run, "metrics", lambda table: table.filter(pa.compute.match_substring(table["stream"], "+"))
    )
    report = examine.examine(Store(str(run)))
    assert {f.check for f in report.findings} == {"metrics.values", "metrics.missing"}
    examples = next(f for f in report.findings if f.check == "metrics.values").examples
    assert all(f"{STREAMS[0]}+{STREAMS[1]}" in example for example in examples)


def test_a_result_of_another_maker_is_checked_by_its_scores_alone(run: Path) -> None:
    """Of a network that publishes SCORES there is no classifier, and no encoding."""
    folder = "scores/tsn-rgb_network/77ff77ff77ff"

    def add(record: dict) -> None:
        record["tables"]["scores/tsn-rgb_network"] = folder
        marks = doctor_run.marks_of_steps()["classify"]
        marks.insert(len(doctor_run.PAIRS), f"{folder}/_done.json")
        record["steps"]["classify"]["digest"] = digest("classify", marks)

    write_json(run, "run.json", add)
    shutil.copytree(run / TABLES[AVE_SCORES], run / folder)
    shutil.copytree(run / "marks" / TABLES[AVE_SCORES], run / "marks" / folder)
    for place in (0, 1):
        edit(run, folder, put("encoder", every("tsn")), place)
        edit(run, folder, put("stream", every("rgb_network")), place)
    findings = examine.examine(Store(str(run))).findings
    assert [finding.check for finding in findings] == ["metrics.missing"]
    assert all("tsn, rgb_network" in example for example in findings[0].examples)
    edit(run, folder, put("is_true", first(False)))
    assert found(run) == {"scores.truth", "metrics.missing"}
    edit(run, folder, drop(0))
    assert found(run) == {"counts.scores"}


def every(value: object) -> Callable[[list], None]:
    return lambda values: values.__setitem__(slice(None), [value] * len(values))


def test_a_segment_that_was_tried_again_counts_by_its_last_attempt(run: Path) -> None:
    whole = {"attempts": 2, "status": "ok", "num_missing": 0, "stage": None}
    whole |= {"error_type": None, "error": None}
    place = 1 if "v3" in str(pq.read_table(file_of(run, "descriptors", 1))["video_id"]) else 0

    def again(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        bad = next(row for row in rows if row["status"] == "partial")
        return pa.Table.from_pylist([*rows, bad | whole], table.schema)

    edit(run, "descriptors", again, place)
    report = examine.examine(Store(str(run)))
    assert {finding.check for finding in report.findings} == {"counts.failures"}
    assert report.segments == {"planned": 7, "ok": 6, "partial": 0, "failed": 1}
    edit(run, "failures", lambda t: t.filter(pa.compute.equal(t["status"], "failed")))
    assert found(run) == set()


@pytest.mark.parametrize("key", ["videos", "segments", "descriptors", AVE, f"attention/{VAE}"])
def test_a_copied_file(run: Path, key: str) -> None:
    copy_file(run, key)
    assert found(run) == {"keys.duplicate", "file.name"}


def test_a_copied_file_of_scores(run: Path) -> None:
    copy_file(run, AVE_SCORES)
    assert "keys.duplicate" in found(run)
    assert found(run) <= {"keys.duplicate", "codebook.missing"}


def test_a_run_under_way_may_lack_rows(run: Path) -> None:
    def forget(record: dict) -> None:
        for step in ("encode", "classify", "evaluate"):
            del record["steps"][step]

    write_json(run, "run.json", forget)
    for name in doctor_run.marks_of_steps()["encode"]:
        (run / "marks" / name).unlink()
    for folder in ("marks/scores", "marks/metrics", "scores", "classifiers", "metrics", "report"):
        shutil.rmtree(run / folder)
    file_of(run, AVE).unlink()
    assert found(run) == {"run.unfinished"}


def test_files_of_one_folder_have_vectors_of_one_width(run: Path) -> None:
    def wider(table: pa.Table) -> pa.Table:
        kind = doctor_run.encoding_type(4, "float32")
        vectors = pa.array([[1.0, 0, 0, 0]] * table.num_rows, kind)
        place = table.column_names.index("vector")
        return table.set_column(place, pa.field("vector", kind), vectors)

    edit(run, AVE, wider)
    assert found(run) == {"vectors.width"}


def test_a_stream_of_gaps_has_all_frames_or_none(run: Path) -> None:
    """The first row lacks the difference of its first frame, which only one of sampled frames
    does."""
    assert found(run) == set()
    gap = {"num_frames": 2, "gap": 3, "gap_s": 0.0}
    write_json(run, "run.json", lambda r: r["streams"][1].update(window=gap))
    assert "counts.frames" in found(run)


def test_a_stream_is_as_wide_as_the_run_says(run: Path) -> None:
    write_json(run, "run.json", lambda r: r["streams"][1].update(width=7))
    (finding,) = examine.examine(Store(str(run))).findings
    assert f"{STREAMS[1]} is 6 wide, expected 7" in finding.found


@pytest.mark.parametrize(
    ("encoder", "run_wide", "expected"),
    [
        ("ave", "signed_sqrt_l2", True),
        ("ave", "signed_sqrt", False),
        ("ave", "none", False),
        ("ave@normalisation=signed_sqrt", "signed_sqrt_l2", False),
        ("ave@temporal_pyramid=1/2:normalisation=none", "l2", False),
        ("fv_vae@lambda3=0:normalisation=l2", "none", True),
        ("network", "l2", False),
    ],
)
def test_lengths_are_checked_where_vectors_are_normalised_to_1(
    encoder: str, run_wide: str, expected: bool
) -> None:
    config = Config().with_settings([f"encode.normalisation={run_wide}"])
    assert has_unit_length(config, encoder) == expected
