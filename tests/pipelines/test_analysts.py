"""What analysts read: the page of the tables is today's, and the snippets answer alike."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.demo.queries import QUERIES
from pipelines.storage.tables import TABLES
from pipelines.storage.tables_page import EXAMPLES, EXAMPLES_OF, render
from tests.pipelines import by_hand
from tests.pipelines.analysts import answers, assert_alike, snippets
from tests.pipelines.doctor import run as doctor_run

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_the_tables_is_what_its_command_makes() -> None:
    page = (DOCS / "tables.md").read_text()
    assert page == render() + "\n", "run: python -m pipelines.storage.tables_page > docs/tables.md"
    for table in TABLES:
        section = page.split(f"\n## {table.name}\n")[1].partition("\n## ")[0]
        rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
        columns = [column.name for column in (*table.columns, *table.vectors)]
        assert rows == [f"| `{name}`" for name in columns]


def test_examples_have_the_type_of_their_column() -> None:
    unused = set(EXAMPLES) | set(EXAMPLES_OF)
    for table in TABLES:
        for column in table.columns:
            key = (table.name, column.name)
            unused -= {key, column.name}
            example = EXAMPLES_OF.get(key, EXAMPLES.get(column.name))
            if example is not None:
                assert doctor_run.pa.array([example], column.type).null_count == 0, key
            assert example is not None or key not in EXAMPLES_OF or column.nullable, key
    assert unused == set()


def test_the_readmes_query_and_the_demos_read_todays_metrics_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    doctor_run.make(run)
    readme = (DOCS.parent / "README.md").read_text().partition("    -- DuckDB: ")[2]
    pasted = {
        "README": "-- " + readme.partition("\n\n")[0].replace("OUT/", f"{run}/"),
        "demo": QUERIES.format(out=run, stream="any").partition("paste\n\n")[2].split("\n\n")[0],
    }
    newcomer = (DOCS / "newcomer.md").read_text().partition("duckdb.sql('''\n")[2]
    pasted["newcomer"] = newcomer.partition("''')")[0].replace("weizmann_out/", f"{run}/")
    before = {name: set(duckdb.sql(query).fetchall()) for name, query in pasted.items()}
    # Those of another named split, or of earlier settings.
    file = next((run / doctor_run.TABLES["metrics"]).glob("*.parquet"))
    table = pq.read_table(file)
    place = table.column_names.index("value")
    (run / "metrics" / "other").mkdir()
    other = table.set_column(place, table.schema.field("value"), pa.array([1e3] * len(table)))
    pq.write_table(other, run / "metrics" / "other" / "metrics.parquet")
    for name, query in pasted.items():
        assert before[name]
        assert all(row[3] <= 1 for row in before[name])
        assert set(duckdb.sql(query).fetchall()) == before[name], name


def test_three_tools_answer_each_of_six_questions_alike(tmp_path: Path) -> None:
    assert len(snippets()) == 1 + 6
    doctor_run.make(tmp_path / "run")
    # Here the codebook with attention was fitted per fold.
    by_fold = {"attention/fv_vae-pool5_appearance": "attention/fv_vae-pool5_appearance/fold-0"}
    found = answers(tmp_path / "run", by_fold)
    assert_alike(found)
    columns, rows = found["2. What failed, and why?"]["DuckDB"]
    assert columns == ["status", "stage", "error_type", "segments", "videos"]
    assert rows == [
        ["ok", None, None, 5, 5],
        ["failed", "index", "empty_file", 1, 1],
        ["partial", "decode", "damaged", 1, 1],
    ]
    _, means = found["4. What is the average vector of a class?"]["DuckDB"]
    table = doctor_run.Store(str(tmp_path / "run")).read_table(
        doctor_run.TABLES["encodings/ave-pool5_appearance"]
    )
    vectors = {row["video_id"]: row["vector"] for row in table.to_pylist()}
    expected = {"bend": ("v0", "v2"), "walk": ("v1", "v3")}
    assert [(label, videos) for label, videos, _ in means] == [("bend", 2), ("walk", 2)]
    for label, _, mean in means:
        assert mean == pytest.approx(np.mean([vectors[name] for name in expected[label]], axis=0))


def test_each_answer_is_what_was_worked_out_by_hand(tmp_path: Path) -> None:
    """Of one encoder and stream there are three fusions: each class still comes once."""
    by_hand.make(tmp_path / "run")
    found = answers(tmp_path / "run", {})
    assert_alike(found)
    assert found.keys() == by_hand.ANSWERS.keys()
    for question, expected in by_hand.ANSWERS.items():
        rows = found[question]["DuckDB"][1]
        assert len(rows) == len(expected), question
        for row, values in zip(rows, expected, strict=True):
            for value, known in zip(row, values, strict=True):
                close = isinstance(known, (float, list))
                assert value == (pytest.approx(known) if close else known), question
