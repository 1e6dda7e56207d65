"""Schemas of files against the declared tables."""

import itertools
from collections.abc import Iterator

import pyarrow as pa

from pipelines.storage.columns import Table


def misfit(table: Table, schema: pa.Schema) -> str:
    """Return how a file's schema differs from the declared one; "" where it does not."""
    declared = list(table.schema())
    for expected, column in itertools.zip_longest(declared, list(schema)[: len(declared)]):
        if column is None and _may_lack(table, expected):
            continue
        if column is None or not expected.equals(column):
            return f"expected column {_text(expected)}, got {_text(column) if column else 'none'}"
    vectors = schema.names[len(declared) :]
    names = [vector.name for vector in table.vectors]
    if names != ["<stream>"] and vectors != names:
        return f"expected vector columns {names}, got {vectors}"
    is_list = any(vector.is_list for vector in table.vectors)
    for name in vectors:
        kind = schema.field(name).type
        inner = kind.value_type if is_list and pa.types.is_list(kind) else kind
        if pa.types.is_list(kind) != is_list or not pa.types.is_fixed_size_list(inner):
            return f"{name}: expected a column of vectors, got {kind}"
    return ""


def completed(table: Table, rows: pa.Table) -> pa.Table:
    """Return the rows with null in columns that files of before lack."""
    for column in table.schema():
        if column.name not in rows.column_names and _may_lack(table, column):
            rows = rows.append_column(column, pa.nulls(rows.num_rows, column.type))
    return rows


def _may_lack(table: Table, column: pa.Field) -> bool:
    """Return whether the column may have come later: at the end, where no vectors follow."""
    return column.nullable and not table.vectors


def _text(column: pa.Field) -> str:
    return f"{column.name}: {column.type}{'' if column.nullable else ' not null'}"


def vector_columns(table: Table, schema: pa.Schema) -> Iterator[tuple[str, int, str]]:
    """Yield name, width and type of values of each vector column of a file that is no misfit."""
    for column in list(schema)[len(table.columns) :]:
        kind = column.type if pa.types.is_fixed_size_list(column.type) else column.type.value_type
        yield column.name, kind.list_size, str(kind.value_type)
