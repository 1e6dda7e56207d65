"""The sink that writes rows from Ray into tables: one finished file per write task.

The name of a file derives from the keys of its rows, so a task that is tried again replaces its own
file with the same rows. `pending` is the other half of resuming: the plan without what visible
files hold.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import WriteResult

from pipelines.cluster.meter import Meter, StepCounter
from pipelines.storage.columns import Table, file_name, places_of
from pipelines.storage.store import Store


@dataclass(frozen=True)
class Output:
    """One table that a sink writes: `select` makes its rows out of the rows that arrive.

    `visible` are the videos whose rows a killed run has published here already, but not in every
    other output: they arrive again, and must not be written twice.
    """

    table: Table
    folder: str
    footer: dict[str, str]
    select: Callable[[pa.Table], pa.Table] = lambda rows: rows
    visible: frozenset[str] = frozenset()


class TableSink(Datasink):
    """A sink of Ray Data that publishes rows as Parquet files of one or several tables.

    The outputs are published in their order, so rows are finished when the last one is visible.

    Args:
        counter: counts the rows that arrived, by their column `status` where they have one.
        rows_per_file: blocks are gathered to at least that many rows.
    """

    def __init__(
        self,
        store: Store,
        outputs: list[Output],
        counter: StepCounter,
        rows_per_file: int,
    ) -> None:
        self.store, self.outputs = store, outputs
        self.counter, self.rows_per_file = counter, rows_per_file

    @property
    def min_rows_per_write(self) -> int:
        return self.rows_per_file

    def write(self, blocks: Iterable[Block], ctx: object) -> int:
        meter = Meter(self.counter)
        with meter("write"):
            rows = self._write(blocks)
        if rows is None:
            return 0
        meter.done(_by_status(rows))
        return rows.num_rows

    def _write(self, blocks: Iterable[Block]) -> pa.Table | None:
        """Publish the rows; return None where there were none."""
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        filled = [table for table in tables if table.num_rows]
        if not filled:
            return None
        rows = pa.concat_tables(filled)
        publish(self.store, self.outputs, rows)
        return rows

    def on_write_complete(self, write_result: WriteResult[int]) -> None:
        """Do nothing: each file was finished when it became visible."""


def publish(store: Store, outputs: list[Output], rows: pa.Table) -> list[str]:
    """Publish the rows, one file in each output that has some of them; return the files' names."""
    names = []
    for output in outputs:
        table = _without(output.select(rows), output.visible)
        if not table.num_rows:
            continue
        table = in_key_order(table, output.table.key)
        names.append(f"{output.folder}/{file_name(table, output.table.key)}")
        store.publish_table(names[-1], table, output.footer)
    return names


def _without(rows: pa.Table, videos: frozenset[str]) -> pa.Table:
    if not videos:
        return rows
    is_new = [video not in videos for video in rows["video_id"].to_pylist()]
    return rows.filter(pa.array(is_new, pa.bool_()))


def in_key_order(table: pa.Table, key: tuple[str, ...]) -> pa.Table:
    """Return the table in the order of its key; a table in that order is not copied."""
    order = pc.sort_indices(table.select(key), [(name, "ascending") for name in key])
    in_order = np.array_equal(order.to_numpy(), np.arange(table.num_rows))
    return table if in_order else table.take(order)


def pending(plan: pa.Table, store: Store, folder: str, key: tuple[str, ...]) -> pa.Table:
    """Return the rows of `plan` whose key is in no visible file of `folder`."""
    if not store.files(folder):
        return plan
    return plan.filter(pc.is_null(places_of(plan, store.read_table(folder, list(key)), key)))


def visible_videos(rows: pa.Table, store: Store, folder: str) -> frozenset[str]:
    """Return the videos of `rows` that have rows of their present source in visible files of
    `folder`.
    """
    left = pending(rows, store, folder, ("video_id", "source"))
    return frozenset(rows["video_id"].to_pylist()) - frozenset(left["video_id"].to_pylist())


def _by_status(table: pa.Table) -> dict[str, int]:
    if "status" not in table.column_names:
        return {"ok": table.num_rows}
    counts = pc.value_counts(table["status"]).to_pylist()
    return {item["values"]: item["counts"] for item in counts}
