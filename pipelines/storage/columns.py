"""Columns and their Arrow types: declaration of a table, its rows, and their arrays."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Column:
    """A column; a `nullable` one may be null where its meaning says so."""

    name: str
    type: pa.DataType
    meaning: str
    nullable: bool = False


@dataclass(frozen=True)
class VectorColumn:
    """A column of vectors, after the others; their width is part of the schema of a file.

    The name `<stream>` stands for one column per stream.
    """

    name: str
    type: str
    meaning: str

    @property
    def is_list(self) -> bool:
        """Return whether a row holds any number of vectors, not one."""
        return self.type.startswith("list of ")


@dataclass(frozen=True)
class Table:
    """A table: its columns in order, and the columns whose values name a row.

    Attributes:
        step: one of STEPS, or the job that writes the table before or after them.
        files: glob of its files below the run's folder.
        key: no two rows have the same values in all of these columns.
    """

    name: str
    step: str
    files: str
    meaning: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    vectors: tuple[VectorColumn, ...] = ()

    def schema(self, **vectors: pa.DataType) -> pa.Schema:
        """Return the Arrow schema, with the vector columns of this file appended (name=type)."""
        fields = [pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns]
        fields += [pa.field(name, kind, nullable=True) for name, kind in vectors.items()]
        return pa.schema(fields)

    def build(self, rows: list[dict], **vectors: pa.DataType) -> pa.Table:
        """Return rows, each a dict, as a table of exactly this schema.

        Raises:
            ValueError: a row lacks a column, has one that is not declared, or a null where none may
                be.
        """
        schema = self.schema(**vectors)
        for row in rows[:1]:
            if set(row) != set(schema.names):
                raise ValueError(f"{self.name}: expected columns {schema.names}, got {sorted(row)}")
        columns = []
        for field in schema:
            values = [row[field.name] for row in rows]
            array = pa.array(values, type=field.type)
            if array.null_count and not field.nullable:
                raise ValueError(
                    f"{self.name}.{field.name}: expected no nulls, got {array.null_count}"
                )
            columns.append(array)
        return pa.Table.from_arrays(columns, schema=schema)

    def from_columns(
        self, columns: Mapping[str, pa.Array | pa.ChunkedArray], **vectors: pa.DataType
    ) -> pa.Table:
        """Return a table of exactly this schema.

        `columns` may have any order, and others among them.
        """
        schema = self.schema(**vectors)
        return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def file_name(rows: pa.Table, key: tuple[str, ...]) -> str:
    """Return a file name made from the keys of the rows: the same rows always get the same name."""
    sha = hashlib.sha256()
    for column in key:
        for value in rows[column].to_pylist():
            sha.update(f"{value}\n".encode())
    return f"{sha.hexdigest()[:16]}.parquet"


def places_of(rows: pa.Table, table: pa.Table, key: tuple[str, ...]) -> pa.ChunkedArray:
    """Return for each of `rows` the first row of `table` with its key; null where there is none."""
    return pc.index_in(_joined(rows, key), value_set=_joined(table, key))


def _joined(table: pa.Table, key: tuple[str, ...]) -> pa.ChunkedArray:
    columns = [table[name].cast(pa.string()) for name in key]
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, "\n")


def descriptor_type(width: int) -> pa.DataType:
    """Return the type of a stream's column: a segment's descriptors, frame by frame, each
    [width] float16.
    """
    return pa.list_(pa.field("element", _fixed(pa.float16(), width)))


def encoding_type(dim: int, dtype: str) -> pa.DataType:
    """Return the type of the vector column of ENCODINGS."""
    return _fixed(pa.float16() if dtype == "float16" else pa.float32(), dim)


def attention_type(num_cells: int) -> pa.DataType:
    """Return the type of column `cells` of ATTENTION: spatial attention, in the order of the
    pyramid.
    """
    return _fixed(pa.float32(), num_cells)


def _fixed(kind: pa.DataType, size: int) -> pa.DataType:
    # Parquet calls the items "element"; the same name in memory makes a read table equal the
    # written.
    return pa.list_(pa.field("element", kind), size)


def numbers_to_arrow(values: np.ndarray) -> pa.Array:
    """Return all values of a contiguous array without a copy: pa.array takes float16 one by one."""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, values.size, [None, pa.py_buffer(values)])


def descriptors_to_arrow(per_row: list[np.ndarray | None], width: int) -> pa.Array:
    """Return arrays [n, width] (None: null) as a column of `descriptor_type(width)`.

    Rows are not copied one by one.
    """
    valid = [rows for rows in per_row if rows is not None]
    flat = np.concatenate(valid).astype(np.float16) if valid else np.empty((0, width), np.float16)
    lengths = [0 if rows is None else len(rows) for rows in per_row]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    kind = descriptor_type(width)
    inner = pa.FixedSizeListArray.from_arrays(numbers_to_arrow(flat), type=kind.value_type)
    mask = pa.array([rows is None for rows in per_row])
    return pa.ListArray.from_arrays(offsets, inner, type=kind, mask=mask)


def descriptors_from_arrow(row: pa.ListScalar) -> np.ndarray | None:
    """Return a value of a stream's column as [n, width] float16; None for null."""
    if not row.is_valid:
        return None
    inner = row.values
    width = inner.type.list_size
    # flatten() respects the slice; .values would give the whole column's buffer.
    return inner.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def vectors_from_arrow(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return a fixed-size list column without nulls as [rows, dim]."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [
        c.flatten().to_numpy(zero_copy_only=False).reshape(len(c), -1) for c in chunks if len(c)
    ]
    return np.concatenate(parts) if parts else np.empty((0, column.type.list_size))


def names(rows: pa.Table, column: str = "video_id") -> frozenset[str]:
    return frozenset(rows[column].to_pylist())
