"""ENCODINGS as a search reads them: the rows of today's videos, and their vectors in pieces.

Letters: N videos, D length of an encoding.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RunError
from pipelines.storage.columns import places_of, vectors_from_arrow
from pipelines.storage.read_ahead import in_order
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store

log = logging.getLogger(__name__)

_AHEAD = 4
"""Row groups of ENCODINGS, of about 16 MiB each, that are fetched at a time."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_KEEPS = (
    "a search keeps its index there, and its page if --page names no other place: give it the "
    "right to write"
)


@contextmanager
def told(store: Store) -> Iterator[None]:
    """Turn errors of a run's files, while it is searched, into one message.

    Raises:
        RunError: a file is gone, or nothing can be written.
    """
    try:
        yield
    except StorageError as error:
        if not store.is_local:
            raise
        raise RunError(f"{error}; {_KEEPS}") from error
    except RunError:
        raise
    except FileNotFoundError as error:
        raise RunError(
            f"{store.root}: a file is gone ({error}); another job has replaced it, so search again"
        ) from error
    except OSError as error:
        raise RunError(f"{store.root}: {error}; {_KEEPS}") from error


def current(store: Store, folder: str, videos: pa.Table) -> tuple[pa.Table, int]:
    """Return the rows of ENCODINGS that are searched, and the number of all.

    Rows are ordered by video_id and have video_id, source, file, group and row in the group.

    Left out are those of files that have changed, by their source, and those of no descriptor.
    """

    def read(name: str) -> pa.Table:
        with store.open_parquet(name) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            table = file.read(columns=["video_id", "source", "num_descriptors"])
        group = np.repeat(np.arange(len(sizes)), sizes)
        row = np.concatenate([np.arange(size) for size in sizes])
        table = table.replace_schema_metadata(None)
        table = table.append_column("file", pa.array([name] * len(row), pa.string()))
        return table.append_column("group", pa.array(group)).append_column("row", pa.array(row))

    tables = list(_ahead(read, store.files(folder)))
    if not tables:
        return videos.select(["video_id", "source"]).slice(0, 0), 0
    table = pa.concat_tables(tables)
    is_current = pc.is_valid(places_of(table, videos, ("video_id", "source")))
    kept = pc.and_(is_current, pc.greater(table["num_descriptors"], 0))
    return table.filter(kept).sort_by("video_id"), table.num_rows


def vectors(store: Store, rows: pa.Table, action: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (indices into `rows`, their encodings [n, D] float32), one row group at a time.

    Memory does not grow with N.
    """
    order = pc.sort_indices(rows, [(name, "ascending") for name in ("file", "group", "row")])
    rows, order = rows.take(order), order.to_numpy()
    keys = list(zip(rows["file"].to_pylist(), rows["group"].to_pylist(), strict=True))
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    spans = list(zip(starts, [*starts[1:], len(keys)], strict=True))
    in_group = rows["row"].to_numpy()

    def read(span: tuple[int, int]) -> np.ndarray:
        name, group = keys[span[0]]
        with store.open_parquet(name) as file:
            column = file.read_row_group(group, columns=["vector"])["vector"]
        return vectors_from_arrow(column.take(pa.array(in_group[slice(*span)]))).astype(np.float32)

    logged = started = time.monotonic()
    for span, part in zip(spans, _ahead(read, spans), strict=True):
        yield order[slice(*span)], part
        if time.monotonic() - logged > 5:
            logged = time.monotonic()
            left_s = (logged - started) * (len(keys) / span[1] - 1)
            log.info("search: %s %d/%d, %.0f s left", action, span[1], len(keys), left_s)


def _ahead(call: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield call(item) of each item, in order; a few calls run ahead."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        yield from in_order(pool, call, items, _AHEAD)
