"""What holds of every step: a new entry of STEPS has all of it checked."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import flags, prepare
from pipelines.errors import ConfigError
from pipelines.ledger import marks
from pipelines.run.job import Job
from pipelines.run.saved import SavedRun
from pipelines.run.steps import STEPS
from pipelines.settings.config import Config
from pipelines.storage.store import DONE, Store
from tests.pipelines.run.examples import example

pytestmark = pytest.mark.parametrize("name", STEPS)

ROWS = pa.table({"x": [1]})


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return example(str(tmp_path / "run"))


def test_its_function_is_there_and_says_what_it_does(name: str) -> None:
    function = STEPS[name].function()
    assert callable(function)
    assert function.__doc__


def test_its_tables_name_it(name: str) -> None:
    assert STEPS[name].tables
    assert {table.step for table in STEPS[name].tables} == {name}


def test_it_can_be_asked_for_alone_and_comes_in_its_order(name: str) -> None:
    assert flags.parse_steps(name) == (name,)
    names = list(STEPS)
    assert flags.parse_steps("all") == tuple(names)
    assert flags.parse_steps(f"{name},index") == tuple(n for n in names if n in (name, "index"))


def test_its_marks_lie_in_folders_of_today(name: str, job: Job) -> None:
    names = job.marks(name)
    assert names
    assert len(set(names)) == len(names)
    tables = filter(None, (STEPS[name].marked, STEPS[name].also_marked))
    folders = [folder for table in tables for folder in job.current(table)]
    folders.append(STEPS[name].page.rpartition("/")[0] or "-")
    for mark in names:
        folder, _, file = mark.rpartition("/")
        assert folder in folders
        assert file == DONE or file.startswith("_done-")


def test_it_is_complete_when_it_is_finished_and_not_before(name: str, job: Job) -> None:
    assert not job.is_complete(name)
    job.finish(name)
    assert job.is_complete(name)
    marks.remove(job.store, job.marks(name)[-1])
    assert not job.is_complete(name)


def test_other_videos_are_another_piece_of_work(name: str, tmp_path: Path) -> None:
    few, many = (example(str(tmp_path / "run"), videos=number) for number in (6, 8))
    few.finish(name)
    assert few.digest(name) != many.digest(name)
    assert not many.is_complete(name)


def test_finishing_it_removes_only_what_it_replaces(name: str, tmp_path: Path) -> None:
    few, many = (example(str(tmp_path / "run"), videos=number) for number in (6, 8))
    kept = [folder for table in ("descriptors", "encodings") for folder in few.current(table)]
    older = [folder for table in STEPS[name].replaces for folder in few.current(table)]
    for folder in {*older, *kept}:
        few.store.publish_table(f"{folder}/x.parquet", ROWS, few.footer(name))
    for table in STEPS[name].replaces:
        for folder in many.current(table):
            many.store.publish_table(f"{folder}/x.parquet", ROWS, many.footer(name))
    many.finish(name)
    store = Store(str(tmp_path / "run"))
    assert [folder for folder in older if store.files(folder)] == []
    assert all(store.files(folder) for folder in kept)
    for table in STEPS[name].replaces:
        assert all(store.files(folder) for folder in many.current(table))


def test_a_saved_run_names_its_folders(name: str, job: Job) -> None:
    saved = SavedRun(job.store, job.config, job.tables())
    marked = STEPS[name].marked
    # Codebooks are no table.
    assert marked == "codebooks" or {*job.current(marked)} <= {*saved.tables.values()}


def test_without_labels_it_is_refused_where_it_needs_them(name: str) -> None:
    listed = pa.table({"path": ["a.mp4"], "uri": ["a.mp4"], "size_bytes": [1], "modified": ["x"]})
    inputs = prepare.Inputs(videos="v", labels=None, out="o", config=Config(), steps=(name,))
    if STEPS[name].needs_labels:
        with pytest.raises(ConfigError, match=rf"--labels: steps .*\b{name}\b.* need labels"):
            prepare.manifest_of(listed, None, inputs)
    else:
        rows, split, num_folds = prepare.manifest_of(listed, None, inputs)
        assert (rows.num_rows, split, num_folds) == (1, "none", 0)
