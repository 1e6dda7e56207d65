"""Parquet files: their encodings and footers."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from encoders.seal import BLANK, ENTRY, DamagedError, seal
from pipelines.errors import RunError


class DamagedFileError(RunError, DamagedError):
    """An error of a Parquet file whose bytes are not those that were written."""


class CheckedFile(pq.ParquetFile):
    """A Parquet file whose pages are compared with their checksums when they are read.

    Args:
        where: its address, for people.
    """

    def __init__(self, source: BinaryIO, where: str) -> None:
        self._where = where
        with self._told():
            super().__init__(
                source,
                metadata=metadata_of(source),
                pre_buffer=True,
                page_checksum_verification=True,
            )

    def read(self, *args: Any, **named: Any) -> pa.Table:
        """Read as the class above does."""
        with self._told():
            return super().read(*args, **named)

    def read_row_group(self, *args: Any, **named: Any) -> pa.Table:
        """Read as the class above does."""
        with self._told():
            return super().read_row_group(*args, **named)

    def iter_batches(self, *args: Any, **named: Any) -> Iterator[pa.RecordBatch]:
        """Read as the class above does."""
        with self._told():
            yield from super().iter_batches(*args, **named)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowInvalid) as error:
            if isinstance(error, (RunError, FileNotFoundError)):
                raise
            raise DamagedFileError(
                f"{self._where}: expected the bytes that were written, got others "
                f"({str(error).splitlines()[0][:200]}); `python -m jobs.doctor --out OUT` notes "
                "which files are damaged, and then the same command makes them again"
            ) from error


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
    names = {name.decode(): value.decode() for name, value in metadata.items()}
    return {name: value for name, value in names.items() if name not in ("ARROW:schema", ENTRY)}


def write_parquet(
    table: pa.Table, footer: dict[str, str], rows_per_group: int | None = None
) -> bytes:
    """Return a sealed file: zstd, byte-stream split for float32 vectors, row groups of about
    16 MiB or of so many rows.

    Row groups are small because a reader fetches single videos. float16 stays plain: DuckDB cannot
    read it byte-stream split.
    """
    footer = {name: value for name, value in footer.items() if name != ENTRY}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **footer})
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    split = {
        f"{field.name}.list.element": "BYTE_STREAM_SPLIT"
        for field in table.schema
        if pa.types.is_fixed_size_list(field.type) and field.type.value_type == pa.float32()
    }
    # The stub of pyarrow knows bool alone; names of columns are taken, too.
    dictionary = [f.name for f in table.schema if pa.types.is_string(f.type)]
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        write_page_checksum=True,
        use_dictionary=dictionary,  # pyright: ignore[reportArgumentType]
        column_encoding=split or None,
    ) as writer:
        writer.write_table(table, rows_per_group or max(1, (16 * 2**20) // row_bytes))
        # Not with the schema, which is written a second time in base64.
        writer.add_key_value_metadata({ENTRY: BLANK})
    return seal(sink.getvalue())
