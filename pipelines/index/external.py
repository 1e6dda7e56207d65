"""Vectors of one's own beside those of the encoders (encode.external): a Parquet file with a row of
path and vector for each video, such as IDT's (DQ Table 4) or DSFL's (FK Table 3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import ConfigError
from pipelines.index.user_tables import some, texts, user_filesystem, using
from pipelines.ledger.source import source_now
from pipelines.settings.config import Config

COLUMNS = ("path", "vector")

ROWS_AT_A_TIME = 1024


def sources(config: Config, video_ids: Sequence[str]) -> dict[str, str]:
    """Return {name: what tells the file of its vectors as it is now} of encode.external.

    Raises:
        ConfigError: there is no such file, or it has not one vector for each video.
    """
    found = {}
    for name, uri in config.external.items():
        _check(name, uri, video_ids)
        with using(_flag(name), uri):
            found[name] = source_now(uri) or ""
    return found


def _check(name: str, uri: str, video_ids: Sequence[str]) -> None:
    flag = _flag(name)
    with _opened(name, uri) as file:
        names = file.schema_arrow.names
        if missing := [column for column in COLUMNS if column not in names]:
            raise ConfigError(
                f"{flag} {uri}: expected columns {' and '.join(COLUMNS)}, got {','.join(names)}; "
                f"{' and '.join(missing)} missing"
            )
        kind = file.schema_arrow.field("vector").type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        is_list |= pa.types.is_fixed_size_list(kind)
        if not is_list or not pa.types.is_floating(kind.value_type):
            raise ConfigError(
                f"{flag} {uri}: expected lists of floating-point numbers in column vector, got "
                f"{kind}"
            )
        paths = texts(flag, uri, file.read(columns=["path"]), "path").to_pylist()
    counts: dict[str, int] = {}
    for path in paths:
        counts[path] = counts.get(path, 0) + 1
    if lacking := [video for video in video_ids if video not in counts]:
        raise ConfigError(
            f"{flag} {uri}: expected a vector of each of {len(video_ids)} videos, found none of "
            f"{len(lacking)}, such as {some(lacking)}; its paths look like {some(paths)}"
        )
    if twice := [video for video in video_ids if counts[video] > 1]:
        raise ConfigError(
            f"{flag} {uri}: expected one vector of each video, found several of {len(twice)}, such "
            f"as {some(twice)}"
        )


def vectors(
    config: Config, name: str, video_ids: frozenset[str]
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield some of the videos, and their vectors [n, D] in the dtype of ENCODINGS.

    Raises:
        ConfigError: vectors differ in length, or hold NaN or infinity.
    """
    uri, dtype, width = config.external[name], config.encode.dtype, 0
    wanted = pa.array(sorted(video_ids), pa.string())
    with _opened(name, uri) as file:
        for batch in file.iter_batches(ROWS_AT_A_TIME, columns=list(COLUMNS)):
            rows = pa.table({"path": batch["path"].cast(pa.string()), "vector": batch["vector"]})
            rows = rows.filter(pc.is_in(rows["path"], wanted)).combine_chunks()
            if not rows.num_rows:
                continue
            paths = rows["path"].to_pylist()
            lengths = pc.fill_null(pc.list_value_length(rows["vector"]), 0).to_pylist()
            width = width or lengths[0]
            for path, length in zip(paths, lengths, strict=True):
                if length != width or not width:
                    raise ConfigError(
                        f"{_flag(name)} {uri}: expected vectors of one length, got {width} values "
                        f"and {length}, of {path}"
                    )
            flat = pc.list_flatten(rows["vector"]).to_numpy()
            with np.errstate(over="ignore"):
                values = flat.astype(dtype).reshape(-1, width)
            if len(odd := np.flatnonzero(~np.isfinite(values).all(1))):
                raise ConfigError(
                    f"{_flag(name)} {uri}: expected finite numbers in {dtype}, got NaN or infinity "
                    f"in {len(odd)} vectors, such as that of {paths[odd[0]]}"
                )
            yield paths, values


def width(config: Config, name: str) -> int:
    """Return the length of the first vector, for a plan."""
    with _opened(name, config.external[name]) as file:
        first = next(file.iter_batches(1, columns=["vector"]))["vector"]
    return pc.list_value_length(first)[0].as_py() or 1


def _flag(name: str) -> str:
    return f"encode.external={name}:"


@contextmanager
def _opened(name: str, uri: str) -> Iterator[pq.ParquetFile]:
    fs, path = user_filesystem(_flag(name), uri)
    with using(_flag(name), uri):
        try:
            stream = fs.open(path, "rb")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ConfigError(f"{_flag(name)} {uri}: no such file") from error
        with stream, pq.ParquetFile(stream) as file:
            yield file
