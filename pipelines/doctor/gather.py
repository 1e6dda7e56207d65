"""What the doctor's checks need of all rows, in a DuckDB that spills to a temporary folder.

Files are read by the project's store, so DuckDB needs none of its extensions, which it would have
to download. Numbers stand in for vectors. Letters: n rows, D values of a vector.
"""

import tempfile
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import ConfigError
from pipelines.storage.columns import Table
from pipelines.storage.tables import (
    ATTENTION,
    CURVES,
    DESCRIPTORS,
    ENCODINGS,
    FAILURES,
    FUSIONS,
    METRICS,
    SAMPLES,
    SEGMENTS,
    SOLUTIONS,
    VIDEOS,
)

MEMORY_LIMIT = "1GB"
"""What DuckDB holds in memory; the rest is in a temporary folder, some 150 bytes a row."""

ROWS = {
    VIDEOS: "video_id, source, labels, fold, num_segments",
    SEGMENTS: "segment_id, video_id, source, segment, num_segments",
    DESCRIPTORS: "segment_id, video_id, source, status, attempts, num_frames, num_missing, "
    "error_type IS NOT NULL AS has_reason, len(frame_indices) AS num_indices, "
    "len(timestamps_s) AS num_times, lengths, bad",
    FAILURES: "segment_id, video_id, source, status, attempts, num_missing",
    SAMPLES: "video_id, frame, bad",
    CURVES: ", ".join(CURVES.key),
    ENCODINGS: "video_id, source, encoder, stream, fold, num_descriptors, norm, bad",
    ATTENTION: "video_id, source, encoder, stream, fold, frame_index, num_rows, num_frames, "
    "is_wrong, if(is_bad_value, ['value'], []) || if(is_bad_cells, ['cells'], []) AS bad",
    SOLUTIONS: ", ".join(SOLUTIONS.key),
    FUSIONS: ", ".join(FUSIONS.key),
    METRICS: ", ".join(f'"{name}"' for name in (*METRICS.key, "value")),
}
"""What is kept of the rows of a table, as SQL over `facts`; `doctor_score_checks` reads SCORES."""

_PLACE = "folder, file, row"


class Rows:
    """A database with a view for each table of ROWS.

    Its columns are those of ROWS, `folder` (the key of its folder), `file`, `row` (the place in the
    file) and `example`, the text that names a row for people.
    """

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
        self._schemas: dict[Table, pa.Schema] = {}
        for table, columns in ROWS.items():
            empty = file_facts(table, [facts(table, table.schema().empty_table())], "", "")
            self._schemas[table] = empty.schema
            self.fill(f"all_{table.name}", empty, f"SELECT {_PLACE}, {columns} FROM arrived")
            key = ", ".join(f'"{name}"' for name in table.key)
            self.db.execute(
                f"CREATE VIEW {table.name} AS SELECT *, concat_ws(', ', {key}) || ' in ' || file "
                f"AS example FROM all_{table.name}"
            )

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

    def fill(
        self, name: str, rows: pa.Table | pa.RecordBatchReader, query: str = "FROM arrived"
    ) -> None:
        """Makes the table `name` of a query of `arrived`, which are rows of Arrow."""
        self.db.register("arrived", rows)
        self.db.execute(f"CREATE OR REPLACE TABLE {name} AS {query}")
        self.db.unregister("arrived")

    def add(self, table: Table, files: Iterable[pa.Table]) -> None:
        """Adds the rows of files, as `file_facts` gives them; one file is in memory at a time."""
        batches = (batch for rows in files for batch in rows.to_batches())
        self.db.register(
            "arrived", pa.RecordBatchReader.from_batches(self._schemas[table], batches)
        )
        self.db.execute(f"INSERT INTO all_{table.name} SELECT {_PLACE}, {ROWS[table]} FROM arrived")
        self.db.unregister("arrived")


def file_facts(table: Table, groups: list[pa.Table], folder: str, file: str) -> pa.Table:
    """The rows of a file with their place, made of the `facts` of its row groups."""
    rows = pa.concat_tables(groups)
    rows = rows.append_column("row", pa.array(np.arange(rows.num_rows)))
    if table is ATTENTION:
        rows = _by_video(rows)
    for name, value in (("folder", folder), ("file", file)):
        rows = rows.append_column(name, pa.repeat(pa.scalar(value, pa.string()), rows.num_rows))
    return rows


def facts(table: Table, rows: pa.Table) -> pa.Table:
    """A row group with facts in place of its vectors, as far as these were read.

    lengths: the vectors of each column, null for null. bad: the columns with NaN or infinity. norm.
    Of ATTENTION is_wrong (the sum of the cells is not the value), is_bad_value and is_bad_cells.
    """
    declared = rows.select(table.schema().names).replace_schema_metadata(None)
    vectors = {name: rows[name] for name in rows.column_names[declared.num_columns :]}
    if table in (DESCRIPTORS, SAMPLES):
        lengths = {name: _lengths(column) for name, column in vectors.items()}
        declared = declared.append_column("lengths", _map(lengths, rows.num_rows))
        bad = {name: _bad_lists(column) for name, column in vectors.items()}
        return declared.append_column("bad", _names(bad, rows.num_rows))
    if table is ENCODINGS:
        matrix = _matrix(vectors["vector"]) if vectors else np.zeros((rows.num_rows, 0))
        bad = _names({"vector": _any(is_not_finite(matrix))}, rows.num_rows)
        norm = pa.array(_norms(matrix), mask=np.full(rows.num_rows, not vectors))
        return declared.append_column("norm", norm).append_column("bad", bad)
    if table is ATTENTION:
        for name, flag in _attention(declared, vectors.get("cells")).items():
            declared = declared.append_column(name, pa.array(flag))
    return declared


def is_not_finite(values: np.ndarray) -> np.ndarray:
    """Where NaN or infinite; float16 by its bits, which is much faster than its arithmetic."""
    if values.dtype == np.float16:
        return (values.view(np.uint16) & 0x7C00) == 0x7C00
    return ~np.isfinite(values)


def _any(flags: np.ndarray) -> np.ndarray:
    return np.asarray(flags.any(1))


def _attention(rows: pa.Table, cells: pa.ChunkedArray | None) -> dict[str, np.ndarray]:
    value, time = (rows[name].to_numpy() for name in ("value", "timestamp_s"))
    matrix = np.zeros((len(value), 0), np.float32) if cells is None else _matrix(cells)
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.maximum(np.abs(matrix).sum(1, dtype=np.float64), 1e-30)
        # A float32 that was rounded once: 6e-8 of it.
        is_wrong = np.abs(value - matrix.sum(1, dtype=np.float64)) > 1e-6 * scale
    return {
        "is_wrong": np.asarray(is_wrong & (cells is not None)),
        "is_bad_value": np.asarray(is_not_finite(value) | is_not_finite(time)),
        "is_bad_cells": _any(is_not_finite(matrix)),
    }


def _by_video(rows: pa.Table) -> pa.Table:
    """One row per video of a file in place of one per frame: a video's are written together."""
    flags = ["is_wrong", "is_bad_value", "is_bad_cells"]
    numbers = [("row", "min"), ("frame_index", "min"), ("frame_index", "count")]
    numbers += [("frame_index", "count_distinct"), *((flag, "any") for flag in flags)]
    keys = ["video_id", "source", "encoder", "stream", "fold"]
    grouped = rows.group_by(keys, use_threads=False).aggregate(numbers)
    names = ["row", "frame_index", "num_rows", "num_frames", *flags]
    return grouped.select([*keys, *("_".join(number) for number in numbers)]).rename_columns(
        [*keys, *names]
    )


def _map(lengths: dict[str, np.ndarray], num_rows: int) -> pa.Array:
    """{column: length} of each row; a length of -1 becomes null."""
    offsets = np.arange(num_rows + 1, dtype=np.int32) * len(lengths)
    items = np.array([*lengths.values()], np.int64).reshape(len(lengths), num_rows).T.ravel()
    names = pa.array([*lengths] * num_rows, pa.string())
    return pa.MapArray.from_arrays(pa.array(offsets), names, pa.array(items, mask=items < 0))


def _names(flags: dict[str, np.ndarray], num_rows: int) -> pa.Array:
    """The names of the flags that each row has."""
    mask = np.array([*flags.values()], bool).reshape(len(flags), num_rows).T
    offsets = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
    names = np.array([*flags], object)[np.nonzero(mask)[1]] if flags else []
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(names, pa.string()))


def _norms(matrix: np.ndarray) -> np.ndarray:
    """[n], vector by vector: all in double precision would take many times their memory."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = [np.linalg.norm(vector.astype(np.float64)) for vector in matrix]
    return np.array(norms, np.float64)


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Items of each list; -1 for null."""
    return pc.fill_null(pc.list_value_length(column), -1).to_numpy().astype(np.int64)


def _matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of vectors as [n, D]; a missing vector is all NaN."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    width = array.type.list_size
    if not array.null_count:
        return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    rows = np.full((len(array), width), np.nan)
    rows[array.is_valid().to_numpy(zero_copy_only=False)] = _matrix(array.drop_null())
    return rows


def _bad_lists(column: pa.ChunkedArray) -> np.ndarray:
    """[n]: whether a list of vectors holds a value that is not finite."""
    vectors = pc.list_flatten(column.combine_chunks())
    bad = _any(is_not_finite(_matrix(vectors)))
    row = np.repeat(np.arange(len(column)), np.maximum(_lengths(column), 0))
    return np.bincount(row[bad], minlength=len(column)) > 0
