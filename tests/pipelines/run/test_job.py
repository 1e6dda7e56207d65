"""Files of a step against its marks: which are read, what is removed, and what has to be done
again."""

import shutil
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pytest

from pipelines.ledger import marks
from pipelines.run import job as run_job
from pipelines.run.job import Job
from tests.pipelines.damage import DAMAGE
from tests.pipelines.run.examples import example

ROWS = pa.table({"video_id": ["v0", "v1"]})


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job whose step encode is done, with two files of each folder."""
    job = example(str(tmp_path))
    for contents in job.contents("encode").values():
        for folder in contents.folders:
            for name in ("x", "y"):
                job.store.publish_table(
                    f"{folder}/{name}.parquet", ROWS, {"long": "x" * 5000 * (name == "y")}
                )
    job.finish("encode")
    assert job.is_sound("encode")
    return example(str(tmp_path))


def odd(job: Job) -> list[str]:
    return [fault.file for fault in job.faults("encode")]


def a_file(job: Job, name: str) -> Path:
    return Path(job.store.path(f"{job.encodings(job.codebooks[0])}/{name}.parquet"))


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_not_as_the_mark_says_is_removed_and_only_its_step_is_due(
    job: Job, how: str
) -> None:
    file = DAMAGE[how](a_file(job, "x"))
    name = str(file.relative_to(job.store.root))
    assert odd(job) == [name]
    assert job.is_complete("encode")
    assert not job.is_sound("encode")
    before = set(Path(job.store.root).rglob("*"))
    job.repair("encode")
    mark = Path(job.store.path(marks.place(job.encodings_mark(job.codebooks[0]))))
    assert before - set(Path(job.store.root).rglob("*")) <= {file, mark}
    assert not file.exists()
    assert not mark.exists()
    assert not job.is_complete("encode")
    assert odd(job) == []


def test_small_files_are_looked_into_and_large_ones_when_the_doctor_names_them(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = sum(a_file(job, "x").stat().st_size for _ in job.contents("encode"))
    monkeypatch.setattr(run_job, "MOST_BYTES", small + 10)
    for name in ("x", "y"):
        DAMAGE["flipped"](a_file(job, name))
    names = [str(a_file(job, name).relative_to(job.store.root)) for name in ("x", "y")]
    assert odd(job) == names[:1]
    whole = names[1].replace("y.parquet", "gone.parquet")
    marks.note(job.store, [names[1], whole, "elsewhere/x.parquet"])
    assert odd(job) == names
    job.repair("encode")
    assert marks.noted(job.store) == ["elsewhere/x.parquet", whole]


def test_a_file_is_looked_into_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = run_job.damage
    monkeypatch.setattr(
        run_job, "damage", lambda name, data: read.append(name) or whole(name, data)
    )
    assert odd(job) == odd(job) == []
    assert len(read) == len(set(read)) == 2 * len(job.contents("encode"))


def test_every_mark_is_for_the_folders_of_its_result(tmp_path: Path) -> None:
    job = example(str(tmp_path), "encode.encoders=ave,fv_vae", "classify.fusions=kernel_sum")
    found = {
        step: [contents.folders for contents in job.contents(step).values()]
        for step in ("index", "describe", "encode", "classify")
    }
    assert found["index"] == [(job.videos, job.segments)]
    assert found["describe"] == [(job.descriptors, job.failures)]
    assert [contents.files for contents in job.contents("describe").values()] == [
        (job.weights.file,)
    ]
    for book, folders in zip(job.codebooks, found["encode"], strict=True):
        attention = [job.attention(book)] if job.writes_attention(book) else []
        assert folders == (job.encodings(book), *attention)
    for pair, folders in zip(job.scored(), found["classify"], strict=True):
        fusions = [job.fusions(*pair)] if job.results[pair].parts else []
        own = [job.classifiers(*pair)]
        if pair[1] == "rgb":
            own = [job.clip_scores(*pair), job.cams(*pair)]
        assert set(folders) == {job.scores(*pair), *own, *fusions}
    assert [contents.files for contents in job.contents("evaluate").values()] == [(), (job.report,)]


def move_back(job: Job) -> None:
    """Put the marks where runs of before have them."""
    root = Path(job.store.root)
    for mark in (root / marks.FOLDER).rglob("*.json"):
        place = root / mark.relative_to(root / marks.FOLDER)
        place.parent.mkdir(parents=True, exist_ok=True)
        mark.rename(place)


def test_marks_of_before_count_where_they_lie_and_go_with_the_folder(job: Job) -> None:
    move_back(job)
    mark = Path(job.store.path(job.encodings_mark(job.codebooks[0])))
    assert mark.exists()
    assert job.is_sound("encode")
    job.finish("encode")
    assert not (Path(job.store.root) / marks.FOLDER).exists() or not list(
        (Path(job.store.root) / marks.FOLDER).rglob("*.json")
    )
    DAMAGE["flipped"](a_file(job, "x"))
    again = example(job.store.root)
    again.repair("encode")
    assert not mark.exists()
    assert not again.is_complete("encode")
    again.finish("encode")
    assert again.is_sound("encode")
    again.unmark(again.encodings(again.codebooks[0]))
    assert not again.is_complete("encode")


def test_a_folder_that_is_removed_by_hand_is_missed(job: Job) -> None:
    """Its mark stays: it lies elsewhere."""
    shutil.rmtree(job.store.path(job.encodings(job.codebooks[0])))
    again = example(job.store.root)
    assert not again.is_sound("encode")
    assert not marks.holds(again.store, again.encodings_mark(job.codebooks[0]))
    again.repair("encode")
    assert not again.is_complete("encode")


def test_a_folder_of_a_table_is_read_as_it_is(job: Job) -> None:
    folder = job.store.path(job.encodings(job.codebooks[0]))
    assert {file.suffix for file in Path(folder).iterdir()} == {".parquet"}
    assert pl.read_parquet(folder).height == 4
    assert pyarrow.dataset.dataset(folder).count_rows() == 4
    assert duckdb.sql(f"SELECT count(*) FROM '{folder}/*.parquet'").fetchall() == [(4,)]
