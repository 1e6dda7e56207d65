"""One URI in, files out: a local folder, s3://, gs:// or whatever else fsspec opens.

A visible file is a finished file: `publish` writes under a hidden name and renames (local), or
completes one upload (object storage). Nothing is appended to, and nothing is ever unpickled.

Object storage fails now and then. The client repeats requests that got no answer, 429 or 5xx, and
reads that were cut short; `Store` repeats what the client gave up on. Both wait longer each time,
with jitter. Credentials and endpoint come from where the client looks (AWS_ENDPOINT_URL,
AWS_PROFILE, ...), never from a URI.
"""

import contextlib
import errno
import functools
import io
import json
import logging
import os
import platform
import random
import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, TypeVar, cast

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import ConfigError
from pipelines.storage.filesystems import REQUESTS, filesystem
from pipelines.storage.parquet import CheckedFile, footer_of, write_parquet
from pipelines.storage.retries import StorageError, code, is_damage, may_pass, to_do

log = logging.getLogger(__name__)

T = TypeVar("T")

DONE = "_done.json"
"""Name of the mark of a finished folder, written last; see `pipelines.ledger.marks`."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of `os.link` on a filesystem without hard links, such as mounted object storage."""

_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")
"""Names of the hidden files of `publish`."""

_FILES_AT_ONCE = 32
"""Files of object storage that are read at a time: a request takes tens of milliseconds, most of it
waiting.
"""

_FILES_TOGETHER = 128
"""Files whose tables are concatenated before more are read."""

_TRIES = 4
"""Times that `Store` makes a call, each of which the client gives up on."""

_PATIENCE_S = 120.0
"""Seconds after which `Store` does not try again."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 20.0


@dataclass(frozen=True)
class Store:
    """A folder at `root`.

    Names are relative to it, with forward slashes. Cheap to send to workers.
    """

    root: str

    @functools.cached_property
    def _where(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, path = filesystem(self.root)
        return fs, path.rstrip("/")

    def __getstate__(self) -> dict:
        return {"root": self.root}

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The filesystem behind the root."""
        return self._where[0]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Return `name` as the filesystem calls it."""
        return f"{self._where[1]}/{name}" if name else self._where[1]

    def uri(self, name: str) -> str:
        """Return `name` as a user would give it to DuckDB or pandas."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return self._tried("look for", name, lambda: self.fs.exists(self.path(name)))

    def read(self, name: str) -> bytes:
        return cast(bytes, self._tried("read", name, lambda: self.fs.cat_file(self.path(name))))

    def publish(self, name: str, data: bytes) -> None:
        """Make `name` hold `data`: readers see the old file or the whole new one."""
        self._tried("write", name, lambda: self._publish(self.path(name), data))

    def _publish(self, final: str, data: bytes) -> None:
        if not self.is_local:
            self.fs.pipe_file(final, data)
            return
        with _hidden(final, data) as hidden:
            os.replace(hidden, final)

    def create(self, name: str, data: bytes) -> None:
        """Publish `name` only where there is no such file: of all processes that try at once, one
        succeeds.

        Object storage needs conditional writes (If-None-Match) for that.

        Raises:
            FileExistsError: there is one.
        """
        try:
            self._tried("create", name, lambda: self._create(self.path(name), data))
        except FileExistsError:
            # An earlier try may have made the file, and its answer was lost.
            with contextlib.suppress(FileNotFoundError):
                if self.read(name) == data:
                    return
            raise

    def _create(self, final: str, data: bytes) -> None:
        if self.is_local:
            with _hidden(final, data) as hidden:
                try:
                    os.link(hidden, final)
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    with open(final, "xb") as file:
                        file.write(data)
            return
        try:
            self.fs.pipe_file(final, data, mode="create")
        except OSError as error:
            # Not every object storage says which condition failed, as s3fs expects of it.
            if code(error) == "PreconditionFailed":
                raise FileExistsError(final) from error
            raise

    def delete(self, name: str) -> None:
        """Remove a file; it is no error if it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            self._tried("remove", name, lambda: self.fs.rm_file(self.path(name)))

    def publish_json(self, name: str, value: object) -> None:
        self.publish(name, json.dumps(value, indent=1, sort_keys=True).encode())

    def read_json(self, name: str) -> dict | None:
        """Return the content of the JSON file, or None where there is no file.

        Raises:
            ConfigError: it is no JSON object.
        """
        try:
            value = json.loads(self.read(name))
        except FileNotFoundError:
            return None
        except ValueError as error:
            value = error
        if not isinstance(value, dict):
            raise ConfigError(
                f"{self.uri(name)}: expected a JSON object, got {str(value)[:200]}; move the file "
                "away, and the job writes it again"
            )
        return value

    def publish_table(
        self,
        name: str,
        table: pa.Table,
        footer: dict[str, str],
        rows_per_group: int | None = None,
    ) -> None:
        """Publish a Parquet file; `footer` goes into its key-value metadata, beside the schema."""
        self.publish(name, write_parquet(table, footer, rows_per_group))

    def files(self, folder: str, suffix: str = ".parquet") -> list[str]:
        """Return the names of the finished files in `folder`, sorted; none without the folder."""
        names = [entry["name"].rsplit("/", 1)[-1] for entry in self._list(folder)]
        return sorted(f"{folder}/{name}" for name in names if is_visible(name, suffix))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return {name: bytes} of the files in `folder`, marks too, but not of hidden ones."""
        files = [entry for entry in self._list(folder) if entry["type"] == "file"]
        sizes = {entry["name"].rsplit("/", 1)[-1]: int(entry["size"]) for entry in files}
        return {f"{folder}/{name}": n for name, n in sizes.items() if name[:1] not in ("", ".")}

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in `folder`, sorted; none where it does not exist."""
        entries = [e["name"].rstrip("/") for e in self._list(folder) if e["type"] == "directory"]
        return sorted(f"{folder}/{entry.rsplit('/', 1)[-1]}" for entry in entries)

    def _list(self, folder: str) -> list[dict]:
        self.fs.invalidate_cache(self.path(folder))
        try:
            return self._tried("list", folder, lambda: self.fs.ls(self.path(folder), detail=True))
        except FileNotFoundError:
            return []

    def delete_folder(self, name: str) -> None:
        """Remove a folder with all in it; it is no error if it is gone already.

        Raises:
            StorageError: something in it is still there.
        """
        with contextlib.suppress(FileNotFoundError):
            self._tried("remove", name, lambda: self._delete_folder(self.path(name)))

    def _delete_folder(self, path: str) -> None:
        self.fs.rm(path, recursive=True)
        if self.is_local:
            return
        # s3fs passes over what the storage refuses of a deletion of many; of a single one it says
        # why.
        for left in self.fs.find(path):
            try:
                self.fs.rm_file(left)
            except PermissionError as error:
                raise PermissionError(
                    f"{left}: {error}; expected the right to delete it (s3:DeleteObject or "
                    "storage.objects.delete), and no lock or hold on it"
                ) from error

    def sweep(self, before: float) -> int:
        """Remove hidden files of killed writers, last changed before that time.

        Return their number.

        For a run that holds the lock, because only then nobody else is writing. Unfinished uploads
        to object storage are invisible; a lifecycle rule of the bucket ends them.

        Args:
            before: seconds since 1970.
        """
        if not self.is_local:
            return 0
        removed = 0
        for folder, _, names in os.walk(self.path("")):
            for name in filter(_PART.fullmatch, names):
                with contextlib.suppress(FileNotFoundError):
                    file = os.path.join(folder, name)
                    if os.lstat(file).st_mtime < before:
                        os.unlink(file)
                        removed += 1
        return removed

    def open(self, name: str) -> BinaryIO:
        """Open the file for reading.

        Of object storage only the ranges that are read are fetched.
        """
        if not self.is_local:
            return cast(BinaryIO, _Ranges(self, name))
        # Not fsspec's file, which takes a quarter longer where files are small and many.
        return self._tried("read", name, lambda: open(self.path(name), "rb"))

    def open_parquet(self, name: str) -> CheckedFile:
        """Open the file for reading columns and row groups in ranges.

        Raises:
            DamagedFileError: it is damaged, or a part of it that is read later.
        """
        return CheckedFile(self.open(name), self.uri(name))

    def footer(self, name: str) -> dict[str, str]:
        """Return the footer that `publish_table` wrote into a Parquet file."""
        with self.open_parquet(name) as file:
            return footer_of(file)

    def size_bytes(self, name: str) -> int:
        return cast(int, self._tried("look for", name, lambda: self.fs.size(self.path(name))))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return bytes [start, end) of the file."""
        read = functools.partial(self.fs.cat_file, self.path(name), start=start, end=end)
        return cast(bytes, self._tried("read", name, read))

    def _tried(self, action: str, name: str, call: Callable[[], T]) -> T:
        """Return call(); on object storage it is repeated while its error may pass.

        Raises:
            StorageError: it failed too often, or in a way that does not pass.
        """
        started, tries = time.monotonic(), 0
        while True:
            tries += 1
            try:
                return call()
            except Exception as error:
                passes = not self.is_local and may_pass(error)
                if isinstance(error, (FileNotFoundError, FileExistsError)) and not passes:
                    raise
                if self.is_local and not isinstance(error, OSError):
                    raise
                seconds = time.monotonic() - started
                if not passes or tries == _TRIES or seconds > _PATIENCE_S:
                    again = (
                        f"; tried {tries} times in {seconds:.0f} s, with up to {REQUESTS} requests "
                        "each; run the same command again when the storage answers"
                    )
                    advice = ""
                    if not passes or is_damage(error):
                        advice = f"; {to_do(error, on_disk=self.is_local)}"
                    where = f" (on {platform.node()})" if self.is_local else ""
                    raise StorageError(
                        f"{self.uri(name)}{where}: cannot {action} it: {type(error).__name__}: "
                        f"{error}{advice}{again if passes else ''}"
                    ) from error
                log.debug("%s: %s failed: %s", self.uri(name), action, error)
                longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**tries)
                # Jitter, so that a thousand workers do not come back at once.
                time.sleep(random.uniform(0, longest))

    def read_table(self, folder: str, columns: list[str] | None = None) -> pa.Table:
        """Return the named columns of all finished files of `folder`, in order of file name.

        Raises:
            FileNotFoundError: the folder has no finished file.
        """

        def read(name: str) -> pa.Table:
            with self.open_parquet(name) as file:
                return file.read(columns=columns).replace_schema_metadata(None)

        return self.gather(read, self._files_of(folder))

    def gather(self, read: Callable[[str], pa.Table], names: list[str]) -> pa.Table:
        """Read a table of each file, and return them one below the other. A column that files of
        before lack is null there.

        Some at a time are concatenated: a table takes kilobytes, however few rows it has.
        """
        parts = [
            pa.concat_tables(
                self.each(read, names[start : start + _FILES_TOGETHER]), promote_options="default"
            ).combine_chunks()
            for start in range(0, len(names), _FILES_TOGETHER)
        ]
        return pa.concat_tables(parts, promote_options="default")

    def distinct(self, folder: str, column: str) -> frozenset[str]:
        """Return the distinct values of a column over all finished files of `folder`."""

        def read(name: str) -> set[str]:
            batches = self.batches(name, [column])
            return {value for batch in batches for value in batch[column].unique().to_pylist()}

        return frozenset().union(*self.each(read, self.files(folder)))

    def each(self, read: Callable[[str], T], names: list[str]) -> list[T]:
        """Return read(name) of each file, in order; of object storage many files are read at a
        time.
        """
        if self.is_local or len(names) < 2:
            return [read(name) for name in names]
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            return list(pool.map(read, names))

    def batches(self, name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a file, in batches."""
        with self.open_parquet(name) as file:
            yield from file.iter_batches(columns=columns)

    def read_rows(
        self, folder: str, columns: list[str] | None, key: str, values: list[str]
    ) -> pa.Table:
        """Return the rows of all finished files of `folder` whose `key` is one of `values`.

        Of each file the column `key` is read first, then the row groups that hold such a row.
        Statistics would rule out nearly none: files hold videos in the order of hashes.

        Raises:
            FileNotFoundError: the folder has no finished file.
        """

        def read(name: str) -> pa.Table:
            with self.open_parquet(name) as file:
                schema = file.schema_arrow
                selected = pa.array(values, schema.field(key).type)
                is_selected = pc.is_in(file.read([key])[key], selected)
                parts, start = [schema.empty_table().select(columns or schema.names)], 0
                for group in range(file.num_row_groups):
                    mask = is_selected.slice(start, file.metadata.row_group(group).num_rows)
                    start += len(mask)
                    if pc.any(mask).as_py():
                        rows = file.read_row_group(group, columns).filter(mask)
                        parts.append(rows.select(parts[0].column_names))
            return pa.concat_tables(parts).replace_schema_metadata(None)

        return self.gather(read, self._files_of(folder))

    def _files_of(self, folder: str) -> list[str]:
        """Return the finished files of `folder`.

        Raises:
            FileNotFoundError: there is none.
        """
        names = self.files(folder)
        if not names:
            raise FileNotFoundError(
                f"no Parquet files in {self.uri(folder)}: run the earlier steps"
            )
        return names


class _Ranges(io.RawIOBase):
    """A file of object storage; each read is one ranged request (s3fs's own reads 50 MB ahead)."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._size, self._position = store.size_bytes(name), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        data = self._store.read_range(self._name, self._position, end)
        self._position = end
        return data


def is_visible(name: str, suffix: str = ".parquet") -> bool:
    """Return whether a file is a finished one: the names of others begin with . or _"""
    return name.endswith(suffix) and name.rpartition("/")[2][0] not in "._"


@contextlib.contextmanager
def _hidden(final: str, data: bytes) -> Iterator[str]:
    """Yield a hidden file beside `final` that holds `data`, gone afterwards."""
    folder, base = os.path.split(final)
    os.makedirs(folder, exist_ok=True)
    hidden = os.path.join(folder, f".{base}.{secrets.token_hex(4)}.part")
    try:
        with open(hidden, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield hidden
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden)
