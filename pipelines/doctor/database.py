"""A run's tables in a DuckDB that spills to a temporary folder, without the vectors.

Files are read by the project's store, so DuckDB needs none of its extensions, which it would have
to download.

Each table of KEPT has, beside its columns of _COLUMNS: folder (its name in run.json), file, row (in
the file; of ATTENTION that of the first frame), key (as text, with what tells versions apart) and
example (the text that names the row for people). `vectors` has their vectors' facts, and `row_keys`
a row for each of theirs but those of SCORES. `tables.sql` has the other tables.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa

from pipelines.doctor.check import sql_text
from pipelines.doctor.vectors import with_facts
from pipelines.errors import ConfigError
from pipelines.storage.columns import Table
from pipelines.storage.tables import ATTENTION, SCORES, TABLES

MEMORY_LIMIT = "1GB"
"""Most memory of DuckDB; the rest is in a temporary folder, some 150 bytes a row."""

_ENCODED = "video_id, source, encoder, stream, fold"

_COLUMNS = {
    "videos": "video_id, source, labels, fold, num_segments",
    "segments": "segment_id, video_id, source, segment, num_segments",
    "descriptors": "segment_id, video_id, source, status, attempts, num_frames, num_missing, "
    "error_type, len(frame_indices) AS num_indices, len(timestamps_s) AS num_times, vectors",
    "failures": "segment_id, video_id, source, status, attempts, num_missing",
    "samples": "video_id, frame, vectors",
    "encodings": f"{_ENCODED}, num_descriptors, vectors",
    # One row for each video of a file in place of its frames. A value is the sum of its cells in
    # double precision, rounded once to float32, which is 6e-8 of it.
    "attention": f"{_ENCODED}, count(*) AS num_rows, count(DISTINCT frame_index) AS num_frames, "
    "bool_and(isfinite(value) AND isfinite(timestamp_s)) AS is_finite, "
    "bool_or(isfinite(value) AND abs(value - vectors[1].total) "
    "> 1e-6 * sqrt(vectors[1].length) * vectors[1].norm) AS is_no_sum, "
    "[arg_min(vectors[1], vectors[1].is_finite)] AS vectors",
    "scores": "video_id, encoder, stream, fold, label, is_true, score",
    "metrics": 'encoder, stream, fusion, split, metric, "class", value',
}
"""{table: its columns in the database, as SQL over its rows}; of other tables the keys."""

_LARGE = (
    *("search", "retrieval", "confidence", "frames", "clips", "cams", "flows"),
    *("scores_over_time", "network_scores"),
)

KEPT = [table for table in TABLES if table.name not in _LARGE]
"""The tables in the database; SCORES of one result at a time."""

_FILES_TOGETHER, _ROWS_TOGETHER = 64, 10_000
"""Files of tables and other rows inserted together: it takes milliseconds, however few they are."""


class Database:
    """The tables of a run, in memory or in a temporary folder."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="doctor-")
        self.db = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": self._folder.name,
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )
        # A misspelt table is an error, and not a variable of Python.
        self.db.execute("SET python_enable_replacements = false")
        self._waiting: list[pa.Table] = []
        self._rows: dict[str, list[tuple]] = defaultdict(list)
        for table in KEPT:
            self._create(table)
        self._union("row_keys", "key", [table.name for table in KEPT if table is not SCORES])
        self._union(
            "vectors",
            "unnest(vectors, recursive := true)",
            [table.name for table in KEPT if table.vectors],
        )
        self.db.execute(sql_text("tables.sql"))

    def _create(self, table: Table) -> None:
        empty = with_facts(table.schema().empty_table(), len(table.columns))
        self.db.register("arrived", located(empty, "", "", 0))
        self.db.execute(f"CREATE TABLE all_{table.name} AS {_selection(table)}")
        self.db.unregister("arrived")
        columns = self.db.execute(f"DESCRIBE all_{table.name}").fetchall()
        # Of a file that has changed, or a segment that was tried again, a key has several rows.
        versions = ("source", "attempts") if table.name != "videos" else ()
        names = dict.fromkeys([*table.key, *versions])
        known = [f'"{name}"' for name in names if name in {column for column, *_ in columns}]
        self.db.execute(
            f"CREATE VIEW {table.name} AS SELECT *, concat_ws(', ', {', '.join(known)}) AS key, "
            f"key || ' in ' || file AS example FROM all_{table.name}"
        )

    def _union(self, name: str, columns: str, tables: list[str]) -> None:
        parts = [f"SELECT folder, file, row, example, {columns} FROM {table}" for table in tables]
        self.db.execute(f"CREATE VIEW {name} AS {' UNION ALL '.join(parts)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.db.close()
        self._folder.cleanup()
        if isinstance(error, (duckdb.IOException, duckdb.OutOfMemoryException)):
            raise ConfigError(
                f"{self._folder.name}: expected room for what is kept of a run's rows, got "
                f"{str(error).splitlines()[0]}; set TMPDIR to a folder with more room"
            ) from error

    def insert(self, table: str, rows: Iterable[tuple]) -> None:
        """Add rows to one of the tables of the SQL files."""
        self._rows[table].extend(rows)
        if len(self._rows[table]) >= _ROWS_TOGETHER:
            self._insert(table)

    def execute(self, query: str, parameters: dict | None = None) -> duckdb.DuckDBPyConnection:
        """Run SQL, which sees all rows of `insert`."""
        for table in self._rows:
            self._insert(table)
        return self.db.execute(query, parameters)

    def _insert(self, table: str) -> None:
        if rows := self._rows[table]:
            columns = [pa.array(values) for values in zip(*rows, strict=True)]
            names = [str(place) for place in range(len(columns))]
            self.db.register("arrived", pa.table(columns, names))
            self.db.execute(f"INSERT INTO {table} FROM arrived")
            self.db.unregister("arrived")
            rows.clear()

    def add(self, table: Table, rows: pa.Table) -> None:
        """Add rows of a file that are `located`; they are in the table after the next `flush`."""
        self._waiting.append(rows)
        if len(self._waiting) == _FILES_TOGETHER:
            self.flush(table)

    def flush(self, table: Table) -> None:
        """Insert the rows that were added since the last time, all of this table."""
        if self._waiting:
            self.db.register("arrived", pa.concat_tables(self._waiting))
            self.db.execute(f"INSERT INTO all_{table.name} {_selection(table)}")
            self.db.unregister("arrived")
            self._waiting.clear()

    def stream(self, query: str) -> pa.RecordBatchReader:
        """Return the rows of a query, some at a time."""
        return self.db.sql(query).to_arrow_reader()

    def column(self, query: str) -> list[Any]:
        """Return the values of a query's first column."""
        return [row[0] for row in self.execute(query).fetchall()]


def located(rows: pa.Table, folder: str, file: str, start: int) -> pa.Table:
    """Return rows with where they are: the folder, the file, and the row in it, from `start` on."""
    count = rows.num_rows
    rows = rows.append_column("row", pa.array(range(start, start + count), pa.int64()))
    for name, value in (("folder", folder), ("file", file)):
        rows = rows.append_column(name, pa.repeat(pa.scalar(value, pa.string()), count))
    return rows


def _selection(table: Table) -> str:
    columns = _COLUMNS.get(table.name, ", ".join(table.key))
    if table is ATTENTION:
        grouped = f"GROUP BY folder, file, {_ENCODED}"
        return f"SELECT folder, file, min(row) AS row, {columns} FROM arrived {grouped}"
    return f"SELECT folder, file, row, {columns} FROM arrived"
