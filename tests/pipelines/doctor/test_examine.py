"""The doctor as a whole: a sound run has no finding, and a large one fits into memory."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.doctor import database, examine
from pipelines.doctor.check import CHECKS
from pipelines.doctor.database import Database, located
from pipelines.doctor.vectors import with_facts
from pipelines.errors import ConfigError
from pipelines.storage.store import Store
from pipelines.storage.tables import SEGMENTS
from tests.pipelines.doctor.edits import (
    AVE,
    CODEBOOK,
    CODEBOOK_DAMAGE,
    ROW_EDITS,
    add_row,
    edit,
    file_of,
    found,
    nan_in,
    publish_tensors,
    put,
    truncate,
)
from tests.pipelines.doctor.run import TABLES

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(sound_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound_run, tmp_path / "run"))


def test_a_sound_run_has_no_findings(sound_run: Path) -> None:
    report = examine.examine(Store(str(sound_run)))
    assert report.findings == ()
    assert report.segments == {"planned": 7, "ok": 5, "partial": 1, "failed": 1}
    files = [file for file in sound_run.rglob("*") if file.suffix in (".parquet", ".safetensors")]
    assert report.num_files == len(files)
    expected = sum(pq.read_metadata(f).num_rows for f in files if f.suffix == ".parquet")
    assert report.num_rows == expected
    assert report.lines()[-1].startswith(f"no problem found: {len(files)} files, {expected} rows")
    assert found(sound_run, quick=True) == set()


def test_a_quick_look_sees_keys_but_no_vectors(run: Path) -> None:
    edit(run, AVE, put("vector", nan_in))
    publish_tensors(run, f"{CODEBOOK}/codebook.safetensors", x=np.array([np.nan]))
    assert found(run, quick=True) == set()
    assert found(run) == {"vectors.not_finite", "tensors.not_finite"}
    edit(run, "descriptors", add_row())
    truncate(file_of(run, "segments"))
    assert found(run, quick=True) == {"keys.duplicate", "file.damaged"}


@pytest.mark.parametrize("name", ["nowhere", "empty", "file", "other"])
def test_where_no_run_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"expected a run with its run.json, found none"):
        examine.examine(Store(str(tmp_path / name)))


def test_ids_and_severities_are_known() -> None:
    ids = [check.id for check in CHECKS]
    assert len(ids) == len(set(ids))
    assert {check.severity for check in CHECKS} == set(examine.SEVERITIES)
    tested = {*ROW_EDITS, *CODEBOOK_DAMAGE, "counts.segments", "file.damaged", "file.name"}
    tested |= {"run.folder", "run.mark", "run.unfinished", "run.record", "run.version"}
    tested |= {
        "file.footer",
        "file.revisions",
        "file.leftover",
        "folder.older",
        "run.lock",
        "storage.answer",
    }
    assert set(ids) == tested


def test_object_storage(sound_run: Path, s3_bucket: str) -> None:
    store = Store(f"{s3_bucket}/doctor")
    store.fs.put(str(sound_run), store.path(""), recursive=True)
    assert examine.examine(store).findings == ()
    name = store.files(TABLES["videos"])[0]
    store.publish(name, store.read(name)[:-50])
    (finding,) = examine.examine(store).findings
    assert finding.check == "file.damaged"
    assert finding.advice.startswith("run the job's command again")
    assert store.read_json("damaged.json") == {"files": [name]}
    store.delete(name)
    findings = examine.examine(store).findings
    assert [finding.check for finding in findings] == ["run.folder"]
    with pytest.raises(ConfigError, match="found none"):
        examine.examine(Store(f"{s3_bucket}/nowhere"))


def test_duckdb_downloads_nothing() -> None:
    """Its own reader of object storage is an extension that it would fetch."""
    with Database() as rows:
        names = ("autoinstall_known_extensions", "autoload_known_extensions")
        values = [f"current_setting('{name}')" for name in names]
        assert rows.db.execute(f"SELECT {', '.join(values)}").fetchall() == [(False, False)]
        with pytest.raises(Exception, match="httpfs"):
            rows.db.execute("FROM read_parquet('s3://bucket/x.parquet')")


def test_neither_torch_nor_ray_is_loaded(sound_run: Path) -> None:
    script = (
        "import sys\nfrom jobs import doctor\n"
        f"code = doctor.main(['--out', {str(sound_run)!r}])\n"
        "print(code, [m for m in ('torch', 'ray', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("0 []\n"), done.stdout + done.stderr


def test_row_groups_are_read_one_at_a_time(
    sound_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole files are read for examples only, and then their keys alone."""
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("a whole file"))
    assert found(sound_run) == set()


def test_rows_that_do_not_fit_into_memory_are_kept_on_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "MEMORY_LIMIT", "40MB")
    num_files, num_rows = 60, 5000

    def files() -> Iterator[pa.Table]:
        for file in range(num_files):
            ids = [f"a rather long name of a class/{file} {row}.mp4" for row in range(num_rows)]
            columns = {"segment_id": ids, "video_id": ids, "source": ids}
            columns |= {name: np.zeros(num_rows, np.int32) for name in ("segment", "num_segments")}
            rows = pa.table(columns, schema=SEGMENTS.schema())
            facts = with_facts(rows, len(SEGMENTS.columns))
            yield located(facts, "segments", f"{file}.parquet", 0)

    with Database() as rows:
        for file in files():
            rows.add(SEGMENTS, file)
        rows.flush(SEGMENTS)
        query = "SELECT count(DISTINCT segment_id), count(DISTINCT example) FROM segments"
        assert rows.db.execute(query).fetchall() == [(num_files * num_rows,) * 2]
        used = "SELECT sum(memory_usage_bytes), sum(temporary_storage_bytes) FROM duckdb_memory()"
        ((memory, disk),) = rows.db.execute(used).fetchall()
        assert memory <= 40e6
        assert disk > 10e6


def test_without_room_for_rows_the_error_says_what_to_do() -> None:
    little = "SET memory_limit = '20MB'; SET max_temp_directory_size = '0B';"
    with pytest.raises(ConfigError, match=r"expected room for .* set TMPDIR"), Database() as rows:
        rows.db.execute(f"{little} SELECT list(range) FROM range(10_000_000)")
