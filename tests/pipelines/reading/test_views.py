"""Views of DuckDB over a run: the rows that count today, vectors of a fixed size."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipelines.errors import ConfigError
from pipelines.reading import views
from pipelines.storage.store import Store
from tests.pipelines.doctor import run as doctor_run

AVE = "encodings/ave-pool5_appearance"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("it's a run") / "run"
    doctor_run.make(folder)
    views.publish(Store(str(folder)), doctor_run.TABLES)
    return folder


def count(connection: duckdb.DuckDBPyConnection, view: str) -> int:
    return connection.sql(f'SELECT count(*) FROM "{view}"').fetchall()[0][0]


def test_every_folder_of_run_json_and_every_table_has_a_view(run: Path) -> None:
    connection = views.connect(str(run))
    names = {
        row[0]
        for row in connection.sql(
            "SELECT view_name FROM duckdb_views() WHERE NOT internal"
        ).fetchall()
    }
    tables = {key.partition("/")[0] for key in doctor_run.TABLES}
    assert names == {*doctor_run.TABLES, *tables}
    for table in ("scores", "encodings", "attention"):
        parts = [key for key in doctor_run.TABLES if key.startswith(f"{table}/")]
        assert count(connection, table) == sum(count(connection, key) for key in parts) > 0


def test_the_file_makes_the_same_views_where_the_run_was_moved_to(
    run: Path, tmp_path: Path
) -> None:
    text = (run / views.FILE).read_text()
    connection = duckdb.connect()
    connection.execute(text)
    rows = connection.sql("FROM metrics").fetchall()
    assert rows == views.connect(str(run)).sql("FROM metrics").fetchall()
    moved = run.rename(tmp_path / "moved")
    connection.execute(f"SET VARIABLE run = '{moved}'")
    assert connection.sql("FROM metrics").fetchall() == rows
    moved.rename(run)


def test_vectors_are_arrays_and_tables_of_several_widths_have_lists(run: Path) -> None:
    connection = views.connect(str(run))
    pairs = f"""SELECT array_cosine_similarity(a.vector, b.vector) FROM "{AVE}" a, "{AVE}" b
        WHERE a.video_id = b.video_id"""
    assert [row[0] for row in connection.sql(pairs).fetchall()] == pytest.approx([1] * 5, abs=1e-6)
    kinds = {
        view: str(connection.sql(f'SELECT vector FROM "{view}"').types[0])
        for view in (AVE, "encodings")
    }
    assert kinds == {AVE: "FLOAT[3]", "encodings": "FLOAT[]"}
    stream = connection.sql("SELECT pool5_appearance FROM descriptors").types[0]
    assert str(stream) == "FLOAT[3][]"


def test_rows_of_changed_files_and_of_earlier_attempts_are_left_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    doctor_run.make(run)
    store = Store(str(run))
    before = count(views.connect(str(run)), AVE), count(views.connect(str(run)), "descriptors")
    for key, column, value in ((AVE, "source", "old"), ("descriptors", "attempts", 0)):
        folder = doctor_run.TABLES[key]
        with store.open_parquet(store.files(folder)[0]) as file:
            table = file.read()
        place = table.column_names.index(column)
        kind = table.schema.field(place)
        other = pa.array([value] * len(table), kind.type)
        store.publish_table(f"{folder}/x.parquet", table.set_column(place, kind, other), {})
    connection = views.connect(str(run))
    assert (count(connection, AVE), count(connection, "descriptors")) == before
    videos = connection.sql("SELECT video_id, count(*) FROM descriptors GROUP BY ALL").arrow()
    assert pc.max(pa.table(videos)["count_star()"]).as_py() == 2  # the two segments of v3


def test_object_storage_is_read_by_the_runs_own_client(s3_bucket: str) -> None:
    root = f"{s3_bucket}/views"
    store = Store(root)
    for name in ("metrics", "videos"):
        row = pa.table({"video_id": ["a"], "value": [0.5]})
        store.publish_table(f"{name}/1/x.parquet", row, {})
    record = {"steps": {}, "config": {}, "tables": {"metrics": "metrics/1", "videos": "videos/1"}}
    store.publish_json("run.json", record)
    connection = views.connect(root)
    assert connection.sql(
        "SELECT metrics.value FROM metrics JOIN videos USING (video_id)"
    ).fetchall() == [(0.5,)]


def test_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a run with its run\.json, found none"):
        views.connect(str(tmp_path))


def test_reading_needs_neither_ray_nor_torch(run: Path) -> None:
    code = (
        "import sys; from pipelines.reading import views; "
        f"views.connect({str(run)!r}).sql('FROM metrics').fetchall(); "
        "print({'ray', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
