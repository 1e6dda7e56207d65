"""CSV and Parquet files that a user writes: the manifest of videos, and the labels."""

import collections
import csv
import io

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.errors import ConfigError
from pipelines.filesystems import filesystem
from pipelines.storage import refuse_credentials


def user_filesystem(flag: str, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """`pipelines.filesystems.filesystem` of what a user gave to a flag.

    Raises:
        ConfigError: the URI holds credentials, or nothing here reads its protocol.
    """
    refuse_credentials(flag, uri)
    try:
        return filesystem(uri)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{flag} {uri}: {error}") from error


def read_user_table(flag: str, name: str) -> pa.Table:
    """The table in the file `name` (a path or URI), Parquet by its suffix, else CSV with all cells as text.

    Raises:
        ConfigError: no such file, it is no table, or two of its columns have one name.
    """
    fs, path = user_filesystem(flag, name)
    try:
        data = fs.cat_file(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"{flag} {name}: no such file") from error
    try:
        table = pq.read_table(io.BytesIO(data)) if _is_parquet(name) else _read_csv(data)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{flag} {name}: expected text in UTF-8, got another encoding: {error}; save it as UTF-8"
        ) from error
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{flag} {name}: not a readable table: {error}") from error
    twice = [name for name, count in collections.Counter(table.column_names).items() if count > 1]
    if twice:
        raise ConfigError(f"{flag} {name}: expected each column once, got {twice} several times")
    return table


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _read_csv(data: bytes) -> pa.Table:
    """All cells as text, unchanged; an empty one is null. UTF-8, or UTF-16 where the file begins with its mark."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16").encode()
    data.decode()
    header = next(csv.reader([data.partition(b"\n")[0].decode("utf-8-sig").strip()]), [])
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()),
        strings_can_be_null=True,
        # Not "NA" or "null": they may be labels.
        null_values=[""],
    )
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(io.BytesIO(data), parse_options=parsing, convert_options=options)


def some(names: list[str]) -> list[str]:
    """The first names, as an error message shows them."""
    return [name[:200] for name in names[:3]]
