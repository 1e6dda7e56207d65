"""Views of DuckDB over the tables of a run: one for each folder that run.json names, under its name
there, and one for each table.

They give the rows that count today: those of files that have changed since, and of earlier
attempts, are left out. Vectors are fixed-size lists, which the functions `array_*` take; in the
view of a whole table, whose vectors differ in length, they are plain lists. Needs neither Ray nor
torch.
"""

import os
from collections.abc import Iterator, Mapping

import duckdb
import pyarrow as pa

from pipelines.errors import ConfigError
from pipelines.run.schema import read_record
from pipelines.storage.store import Store
from pipelines.storage.tables import TABLES
from pipelines.storage.uris import absolute_uri

FILE = "views.sql"
"""Name of the statements in the folder of a run."""

_BY_NAME = {table.name: table for table in TABLES}

_OF_FILE = ("encodings", "attention")
"""Tables that keep rows of files which have changed."""


def connect(out: str | os.PathLike[str]) -> duckdb.DuckDBPyConnection:
    """Return a connection with the views of the run at the URI `out`, as its folders are now.

    On object storage DuckDB reads by the client of the run, with its credentials.

    Raises:
        ConfigError: there is no run.
    """
    store = Store(absolute_uri(os.fspath(out)))
    try:
        record = read_record(store)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"--out {out}: {error}") from error
    if record is None:
        raise ConfigError(
            f"--out {out}: expected a run with its run.json, found none; give the folder that was "
            "the job's --out"
        )
    connection = duckdb.connect()
    if not store.is_local:
        connection.register_filesystem(store.fs)
    connection.execute("".join(statements(store, record["tables"])))
    return connection


def publish(store: Store, tables: Mapping[str, str]) -> None:
    """Write the views of a run into its folder."""
    store.publish(FILE, "".join([_HEAD, *statements(store, tables)]).encode())


_HEAD = """\
-- The tables of this run as views: duckdb -init views.sql
-- Of a run that has been moved: set the variable to where it is now.
-- On S3, before: INSTALL httpfs; LOAD httpfs;
"""


def statements(store: Store, tables: Mapping[str, str]) -> Iterator[str]:
    """Yield the statements that make the views.

    Args:
        tables: {table, or table/encoder-stream: its folder}, as in run.json. Folders without files
            have no view.
    """
    root = store.root.replace("'", "''")
    yield f"SET VARIABLE run = '{root}';\n"
    found: dict[str, list[tuple[str, pa.Schema]]] = {}
    # Those that others are joined with come first.
    order = {name: place for place, name in enumerate(_BY_NAME)}
    known = {key: folder for key, folder in tables.items() if key.partition("/")[0] in order}
    for key in sorted(known, key=lambda key: (order[key.partition("/")[0]], key)):
        if files := store.files(known[key]):
            with store.open_parquet(files[0]) as file:
                schema = file.schema_arrow
            table = key.partition("/")[0]
            yield f'CREATE OR REPLACE VIEW "{key}" AS\n{_view(table, known[key], schema)};\n'
            if key != table:
                found.setdefault(table, []).append((key, schema))
    for table, parts in found.items():
        each = [f'SELECT {_plain(schema)} FROM "{key}"' for key, schema in parts]
        union = "\n    UNION ALL BY NAME ".join(each)
        yield f'CREATE OR REPLACE VIEW "{table}" AS\n    {union};\n'


def _view(table: str, folder: str, schema: pa.Schema) -> str:
    # Files of before a column lack it; wide tables are not looked into file by file.
    by_name = "" if _BY_NAME[table].vectors else ", union_by_name = true"
    rows = f"read_parquet(getvariable('run') || '/{folder}/*.parquet'{by_name})"
    casts = {f.name: _fixed(f.type) for f in schema}
    replaced = ", ".join(f'"{name}"::{kind} AS "{name}"' for name, kind in casts.items() if kind)
    text = f"    SELECT *{f' REPLACE ({replaced})' if replaced else ''} FROM {rows}"
    if table in _OF_FILE:
        text += "\n    SEMI JOIN videos USING (video_id, source)"
    if table == "descriptors":
        last = f"SELECT segment_id, source, max(attempts) AS attempts FROM {rows} GROUP BY ALL"
        text += f"\n    SEMI JOIN ({last}) USING (segment_id, source, attempts)"
        text += "\n    SEMI JOIN segments USING (segment_id, source)"
    return text


def _fixed(kind: pa.DataType) -> str:
    """Return DuckDB's type of a column of vectors; "" of other columns."""
    if pa.types.is_fixed_size_list(kind):
        return f"FLOAT[{kind.list_size}]"
    if pa.types.is_list(kind) and (inner := _fixed(kind.value_type)):
        return f"{inner}[]"
    return ""


def _plain(schema: pa.Schema) -> str:
    vectors = [f.name for f in schema if pa.types.is_fixed_size_list(f.type)]
    replaced = ", ".join(f'"{name}"::FLOAT[] AS "{name}"' for name in vectors)
    return f"* REPLACE ({replaced})" if replaced else "*"
