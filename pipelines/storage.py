"""One URI in, files out: a local folder, s3://, gs:// or whatever else fsspec opens.

A visible file is a finished file: `publish` writes under a hidden name and renames (local), or completes
one upload (object storage). Nothing is appended to, and nothing is ever unpickled.
"""

import contextlib
import io
import json
import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

DONE = "_done.json"
"""Written last into a finished folder; DuckDB's and Spark's globs pass over it."""


def absolute_uri(uri: str) -> str:
    """Local paths made absolute, because workers run in other folders; other URIs as they are."""
    if "://" not in uri:
        return str(Path(uri).expanduser().absolute())
    return uri.rstrip("/")


@dataclass(frozen=True)
class Store:
    """A folder at `root`. Names are relative to it, with forward slashes. Cheap to send to workers."""

    root: str

    @cached_property
    def _where(self) -> tuple[fsspec.AbstractFileSystem, str]:
        filesystem, path = fsspec.core.url_to_fs(self.root)
        return filesystem, path.rstrip("/")

    def __getstate__(self) -> dict:
        return {"root": self.root}

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The filesystem behind the root."""
        return self._where[0]

    def path(self, name: str) -> str:
        """`name` as the filesystem calls it."""
        return f"{self._where[1]}/{name}" if name else self._where[1]

    def uri(self, name: str) -> str:
        """`name` as a user would give it to DuckDB or pandas."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def read(self, name: str) -> bytes:
        return self.fs.cat_file(self.path(name))

    def publish(self, name: str, data: bytes) -> None:
        """Makes `name` hold `data`: readers see the old file or the whole new one."""
        final = self.path(name)
        if not isinstance(self.fs, LocalFileSystem):
            self.fs.pipe_file(final, data)
            return
        folder, base = os.path.split(final)
        os.makedirs(folder, exist_ok=True)
        hidden = os.path.join(folder, f".{base}.{secrets.token_hex(4)}")
        try:
            with open(hidden, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(hidden, final)
        except BaseException:
            if os.path.exists(hidden):
                os.unlink(hidden)
            raise

    def publish_json(self, name: str, value: object) -> None:
        self.publish(name, json.dumps(value, indent=1, sort_keys=True).encode())

    def read_json(self, name: str) -> dict | None:
        """The JSON file, or None where there is none."""
        try:
            return json.loads(self.read(name))
        except FileNotFoundError:
            return None

    def publish_table(self, name: str, table: pa.Table, footer: dict[str, str]) -> None:
        """One Parquet file; `footer` goes into its key-value metadata, beside the schema."""
        buffer = io.BytesIO()
        write_parquet(table, buffer, footer)
        self.publish(name, buffer.getvalue())

    def files(self, folder: str, suffix: str = ".parquet") -> list[str]:
        """Names of the finished files in `folder`, sorted; none where it does not exist."""
        self.fs.invalidate_cache(self.path(folder))
        try:
            paths = self.fs.ls(self.path(folder), detail=False)
        except FileNotFoundError:
            return []
        names = [path.rsplit("/", 1)[-1] for path in paths]
        return sorted(f"{folder}/{n}" for n in names if n.endswith(suffix) and n[0] not in "._")

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in `folder`, sorted; none where it does not exist."""
        self.fs.invalidate_cache(self.path(folder))
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        names = [
            e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory"
        ]
        return sorted(f"{folder}/{name}" for name in names)

    def delete_folder(self, name: str) -> None:
        """Removes a folder with all in it; it is no error where it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)

    def open_parquet(self, name: str) -> pq.ParquetFile:
        """The file, opened for reading columns and row groups in ranges."""
        return pq.ParquetFile(self.fs.open(self.path(name), "rb"))

    def read_table(self, folder: str, columns: list[str] | None = None) -> pa.Table:
        """The named columns of all finished files of `folder`, in order of file name.

        Raises:
            FileNotFoundError: the folder has no finished file.
        """
        tables = []
        for name in self.files(folder):
            with self.open_parquet(name) as file:
                tables.append(file.read(columns=columns).replace_schema_metadata(None))
        if not tables:
            raise FileNotFoundError(
                f"no Parquet files in {self.uri(folder)}: run the earlier steps"
            )
        return pa.concat_tables(tables)


def write_parquet(table: pa.Table, sink: io.BytesIO, footer: dict[str, str]) -> None:
    """zstd; byte-stream split for float32 vectors; row groups of about 16 MiB.

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
    dictionary = [f.name for f in table.schema if pa.types.is_string(f.type)]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=dictionary,
        column_encoding=split or None,
        row_group_size=max(1, (16 * 2**20) // row_bytes),
    )
