"""Facts that stand in for vectors, which would not fit into memory, by NumPy.

Letters: n rows, m vectors, D values of a vector.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FACTS = pa.struct(
    {
        "name": pa.string(),
        "length": pa.int64(),
        "is_finite": pa.bool_(),
        "norm": pa.float64(),
        "total": pa.float64(),
    }
)
"""Facts of a vector column in a row.

length: vectors of a list, null where there is no list; of a single vector its values.
is_finite: it holds no NaN and no infinity. norm, total (the sum of values): of a single vector.
"""


def with_facts(rows: pa.Table, num_columns: int) -> pa.Table:
    """Return a row group with a column `vectors`, a list of FACTS, in place of the vector columns.

    Args:
        num_columns: before the vector columns.
    """
    names = rows.column_names[num_columns:]
    facts = [_facts(name, rows[name].combine_chunks()) for name in names]
    # From column by column to row by row.
    order = np.arange(len(names) * rows.num_rows).reshape(len(names), rows.num_rows).T.ravel()
    items = pa.concat_arrays(facts).take(pa.array(order)) if facts else pa.array([], FACTS)
    starts = pa.array(np.arange(rows.num_rows + 1, dtype=np.int32) * len(names))
    declared = rows.select(range(num_columns)).replace_schema_metadata(None)
    return declared.append_column("vectors", pa.ListArray.from_arrays(starts, items))


def is_not_finite(values: np.ndarray) -> np.ndarray:
    """Return where NaN or infinity is; of float16 by its bits, which is much faster."""
    if values.dtype == np.float16:
        return (values.view(np.uint16) & 0x7C00) == 0x7C00
    return ~np.isfinite(values)


def _facts(name: str, column: pa.Array) -> pa.StructArray:
    num_rows = len(column)
    norms, totals = np.full(num_rows, np.nan), np.full(num_rows, np.nan)
    if pa.types.is_fixed_size_list(column.type):
        lengths = pa.array(np.full(num_rows, column.type.list_size))
        for row, vector in enumerate(_matrix(column)):
            # One by one: all in double precision would take many times their memory.
            values = vector.astype(np.float64)
            norms[row], totals[row] = np.linalg.norm(values), values.sum()
        is_finite = np.isfinite(norms)
    else:
        lengths = pc.list_value_length(column).cast(pa.int64())
        row_of_vector = np.repeat(np.arange(num_rows), pc.fill_null(lengths, 0).to_numpy())
        is_bad = is_not_finite(_matrix(pc.list_flatten(column))).any(1)
        is_finite = np.bincount(row_of_vector[is_bad], minlength=num_rows) == 0
    columns = [pa.repeat(name, num_rows), lengths, *map(pa.array, (is_finite, norms, totals))]
    return pa.StructArray.from_arrays(columns, fields=list(FACTS))


def _matrix(vectors: pa.FixedSizeListArray) -> np.ndarray:
    """Return vectors as [m, D]; a missing one is all NaN."""
    width = vectors.type.list_size
    if not vectors.null_count:
        return vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    matrix = np.full((len(vectors), width), np.nan)
    is_there = vectors.is_valid().to_numpy(zero_copy_only=False)
    matrix[is_there] = _matrix(vectors.drop_null())
    return matrix
