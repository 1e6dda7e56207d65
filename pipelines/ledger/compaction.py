"""Compaction: the many small files of a folder become few large ones, with the same rows.

A plan, beside the marks of the folder, says which row of which file goes where. It is published
first; then come the large files, and once all of them are there the small ones go, and the plan
last. A killed compaction goes on from its plan. Meanwhile rows are there twice, which the steps
read past; the doctor passes over the copies.

The plan follows from the rows alone, not from the files they are in: a run that was interrupted
ends with the files of one that was not.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger import marks
from pipelines.storage.columns import file_name
from pipelines.storage.store import Store

PLAN = "_compaction.parquet"

FILE_BYTES = 128 * 2**20
"""Bytes of a large file before compression; files of less than half of that are small."""


def plan(
    store: Store, folder: str, key: tuple[str, ...], sized_by: tuple[str, float], least: int
) -> pa.Table | None:
    """Return file, row and new file of each row of the small files; None where they are few enough.

    Of rows that are there twice, as a killed run may leave them, the second has no new file.

    Args:
        key: names a row, together with its `source`.
        sized_by: a column of numbers, or "", and the bytes for each unit of it, or for each row.
        least: files that there should be at least, if there are as many small ones.
    """
    unit, unit_bytes = sized_by
    names = store.files(folder)
    columns = [*key, "source", *([unit] if unit else [])]

    def read(name: str) -> pa.Table:
        with store.open_parquet(name) as file:
            rows = file.read(columns=columns).replace_schema_metadata(None)
        rows = rows.append_column("file", pa.array([name] * rows.num_rows, pa.string()))
        return rows.append_column("row", pa.array(np.arange(rows.num_rows)))

    if len(names) < 2:
        return None
    rows = store.gather(read, names)
    units = rows[unit].to_numpy() if unit else np.ones(rows.num_rows)
    rows = rows.append_column("bytes", pa.array(units * unit_bytes))
    sizes = rows.group_by("file").aggregate([("bytes", "sum")])
    small = sizes.filter(pc.less(sizes["bytes_sum"], FILE_BYTES / 2))["file"]
    rows = rows.filter(pc.is_in(rows["file"], small.combine_chunks()))
    rows = rows.sort_by([(name, "ascending") for name in [*key, "source", "file"]])
    is_first = _are_first(rows, [*key, "source"])
    once = rows.filter(pa.array(is_first))
    num_bytes = once["bytes"].to_numpy()
    number = min(max(math.ceil(num_bytes.sum() / FILE_BYTES), least), once.num_rows)
    if len(small) <= number:
        return None
    before = np.cumsum(num_bytes) - num_bytes
    part = np.minimum(number - 1, before * number // max(num_bytes.sum(), 1.0)).astype(int)
    starts = [*np.searchsorted(part, range(number)), once.num_rows]
    new = np.full(rows.num_rows, None, object)
    new[is_first] = [
        name
        for start, end in itertools.pairwise(starts)
        for name in [f"{folder}/{file_name(once.slice(start, end - start), key)}"] * (end - start)
    ]
    return rows.select(["file", "row"]).append_column("new", pa.array(new, pa.string()))


def _are_first(rows: pa.Table, names: list[str]) -> np.ndarray:
    """Return which rows differ in one of these columns from the row before."""
    is_first = np.ones(rows.num_rows, bool)
    is_first[1:] = False
    for name in names:
        column = rows[name].combine_chunks()
        is_first[1:] |= pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return is_first


def compact(
    store: Store,
    folder: str,
    replan: Callable[[], pa.Table | None],
    write_all: Callable[[list[pa.Table]], object],
) -> None:
    """Finish the compaction that a killed run began, then do what is planned now.

    Args:
        replan: gives a plan; called where there is no unfinished one.
        write_all: calls `write` with each part that it is given.
    """
    planned = _unfinished(store, folder)
    if planned is not None:
        _execute(store, folder, planned, write_all)
    if (planned := replan()) is not None:
        _publish(store, folder, planned)
        _execute(store, folder, planned, write_all)


def _execute(
    store: Store, folder: str, planned: pa.Table, write_all: Callable[[list[pa.Table]], object]
) -> None:
    there = set(store.files(folder))
    new = [name for name in _names(planned, "new") if name not in there]
    write_all([planned.filter(pc.equal(planned["new"], name)) for name in new])
    store.each(store.delete, copied(planned, store.files(folder)))
    for name in (marks.place(f"{folder}/{PLAN}"), f"{folder}/{PLAN}"):
        store.delete(name)


def _publish(store: Store, folder: str, planned: pa.Table) -> None:
    """Publish a plan, and remove files of other rows whose names the new ones will have.

    Names are made of ids: such a file is of videos that have changed since.
    """
    for name in (_names(planned, "new") & set(store.files(folder))) - _names(planned, "file"):
        store.delete(name)
    store.publish_table(marks.place(f"{folder}/{PLAN}"), planned, {})


def _unfinished(store: Store, folder: str) -> pa.Table | None:
    """Return the plan of a compaction that was not finished; None where there is none."""
    name = marks.find(store, f"{folder}/{PLAN}")
    if not name:
        return None
    with store.open_parquet(name) as file:
        return file.read().replace_schema_metadata(None)


def write(store: Store, part: pa.Table) -> None:
    """Publish one new file; its footer is that of the file that its first row was in."""
    tables, places = [], []
    for name in part["file"].unique().to_pylist():
        place = np.flatnonzero(pc.equal(part["file"], name).to_numpy(zero_copy_only=False))
        with store.open_parquet(name) as file:
            rows = file.read().replace_schema_metadata(None)
        tables.append(rows.take(part["row"].take(pa.array(place))))
        places.append(place)
    order = np.argsort(np.concatenate(places))
    table = pa.concat_tables(tables, promote_options="default").take(pa.array(order))
    store.publish_table(part["new"][0].as_py(), table, store.footer(part["file"][0].as_py()))


def without_copies(store: Store, folder: str, there: Sequence[str]) -> list[str]:
    """Return the files of a folder that hold each row once, where a compaction is not finished."""
    planned = _unfinished(store, folder)
    copies = set() if planned is None else set(copied(planned, there))
    return [name for name in there if name not in copies]


def copied(planned: pa.Table, there: Sequence[str]) -> list[str]:
    """Return the files of `there` whose rows are, or are to be, in other files."""
    old, new = _names(planned, "file"), _names(planned, "new")
    copies = old - new if new <= set(there) else new - old
    return [name for name in there if name in copies]


def _names(planned: pa.Table, column: str) -> set[str]:
    return set(planned[column].unique().drop_null().to_pylist())
