"""Parquet files: their encodings and footers."""

import io
import os
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

_TAIL_BYTES = 8192
"""Bytes of the end of a file that are read first: footers of 40 columns and some row groups are
shorter. Arrow itself reads 64 KB, of which a run that goes on with 62,500 files has 4 GB.
"""


def metadata_of(file: BinaryIO) -> pq.FileMetaData:
    """Return the metadata of an open file.

    Raises:
        pyarrow.ArrowInvalid: it is no Parquet file.
    """
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _TAIL_BYTES)
    file.seek(start)
    tail = file.read(size - start)
    # The footer, its length in four bytes, and the magic bytes.
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < length <= size:
        file.seek(size - length)
        tail = file.read(length)
    return pq.read_metadata(pa.BufferReader(tail[-length:]))


def footer_of(file: pq.ParquetFile) -> dict[str, str]:
    """Return the footer of an open file, as `Store.footer` does."""
    metadata = file.metadata.metadata or {}
    return {k.decode(): v.decode() for k, v in metadata.items() if k != b"ARROW:schema"}


def write_parquet(
    table: pa.Table,
    sink: io.BytesIO,
    footer: dict[str, str],
    rows_per_group: int | None = None,
) -> None:
    """Write zstd, byte-stream split for float32 vectors, row groups of about 16 MiB or of so many
    rows.

    Row groups are small because a reader fetches single videos. float16 stays plain: DuckDB cannot
    read it byte-stream split.
    """
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **footer})
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    split = {
        f"{field.name}.list.element": "BYTE_STREAM_SPLIT"
        for field in table.schema
        if pa.types.is_fixed_size_list(field.type) and field.type.value_type == pa.float32()
    }
    # The stub of pyarrow knows bool alone; names of columns are taken, too.
    dictionary = [f.name for f in table.schema if pa.types.is_string(f.type)]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        write_page_checksum=True,
        use_dictionary=dictionary,  # pyright: ignore[reportArgumentType]
        column_encoding=split or None,
        row_group_size=rows_per_group or max(1, (16 * 2**20) // row_bytes),
    )
