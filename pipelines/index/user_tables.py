"""Files that a user names by a flag, and their tables in CSV or Parquet: the manifest of videos,
and the labels.
"""

import codecs
import collections
import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.errors import ConfigError, RunError
from pipelines.storage.filesystems import filesystem
from pipelines.storage.retries import StorageError, may_pass
from pipelines.storage.uris import refuse_credentials, refuse_empty, refuse_memory

_ERRORS = (OSError, ValueError, ImportError, pa.ArrowException, csv.Error)
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_HEAD_BYTES = 2**16
_CLIENTS = ("botocore", "aiohttp", "gcsfs", "google", "azure")
"""Packages whose errors for wrong names, rights or credentials are of classes of their own."""


@contextmanager
def using(flag: str, name: str, action: str = "read it") -> Iterator[None]:
    """Turn errors of the file, folder or URI that a user gave to a flag into one message.

    Raises:
        ConfigError: it cannot be right.
        RunError: object storage did not answer, and may do so at another time.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        package = type(cause).__module__.partition(".")[0]
        if not isinstance(cause, _ERRORS) and package not in _CLIENTS:
            raise
        passes = isinstance(cause, Exception) and may_pass(cause)
        advice = (
            "check the endpoint, or run the same command again when the storage answers"
            if passes
            else "check the name, the rights and the credentials"
        )
        said = f" ({type(cause).__name__}: {cause}); {advice}"
        if isinstance(error, StorageError):
            said = f": {error}"
        kind = RunError if passes else ConfigError
        raise kind(f"{flag} {name}: cannot {action}{said}") from error


def user_filesystem(flag: str, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return `pipelines.storage.filesystems.filesystem` of a URI that a user gave to a flag.

    Raises:
        ConfigError: it is empty, the URI holds credentials, or nothing here reads its protocol.
    """
    refuse_empty(flag, uri)
    refuse_memory(flag, uri)
    refuse_credentials(flag, uri)
    try:
        return filesystem(uri)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{flag} {uri}: {error}") from error


def read_user_table(flag: str, name: str) -> pa.Table:
    """Read the table in the file `name` (a path or URI), Parquet by its suffix, else CSV with all
    cells as text.

    Raises:
        ConfigError: no such file, it cannot be read, it is no table, or two of its columns have one
            name.
    """
    fs, path = user_filesystem(flag, name)
    with using(flag, name):
        try:
            data = cast(bytes, fs.cat_file(path))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ConfigError(f"{flag} {name}: no such file") from error
    try:
        table = pq.read_table(io.BytesIO(data)) if _is_parquet(name) else _read_csv(data)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{flag} {name}: expected text in UTF-8, got another encoding: {error}; save it as "
            "UTF-8"
        ) from error
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise ConfigError(f"{flag} {name}: not a readable table: {error}") from error
    twice = [name for name, count in collections.Counter(table.column_names).items() if count > 1]
    if twice:
        raise ConfigError(f"{flag} {name}: expected each column once, got {twice} several times")
    return table


def column_names(flag: str, name: str) -> list[str]:
    """Return the columns of the table in the file `name`, of which only the head is read.

    Raises:
        ConfigError: no such file, or it cannot be read.
    """
    fs, path = user_filesystem(flag, name)
    with using(flag, name):
        try:
            if _is_parquet(name):
                with fs.open(path, "rb") as file:
                    return pq.read_schema(file).names
            return _header(cast(bytes, fs.cat_file(path, start=0, end=_HEAD_BYTES)))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ConfigError(f"{flag} {name}: no such file") from error


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _read_csv(data: bytes) -> pa.Table:
    """Read all cells as text, unchanged; an empty one is null.

    UTF-8, or UTF-16 where the file begins with its mark.
    """
    if data.startswith(_UTF_16):
        data = data.decode("utf-16").encode()
    header = _header(data)
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()),
        strings_can_be_null=True,
        # Not "NA" or "null": they may be labels.
        null_values=[""],
    )
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(io.BytesIO(data), parse_options=parsing, convert_options=options)


def _header(data: bytes) -> list[str]:
    """Return the names in the first line of a CSV file, of which this may be the head alone."""
    encoding = "utf-16" if data.startswith(_UTF_16) else "utf-8-sig"
    text = codecs.getincrementaldecoder(encoding)().decode(data)
    first_line = text.lstrip("\r\n").partition("\n")[0].partition("\r")[0]
    return next(csv.reader([first_line.strip()]), [])


def texts(flag: str, name: str, table: pa.Table, column: str) -> pa.ChunkedArray:
    """Return a column of the table in the file `name` as text; Parquet may hold numbers, categories
    or bytes.

    Raises:
        ConfigError: its cells are no text.
    """
    try:
        return table[column].cast(pa.string())
    except pa.ArrowException as error:
        raise ConfigError(
            f"{flag} {name}: expected text in column {column!r}, got {table[column].type}: {error}"
        ) from error


def some(names: list[str]) -> list[str]:
    """Return the first names, as an error message shows them."""
    return [name[:200] for name in names[:3]]
