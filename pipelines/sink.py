"""The only way rows get into a table from Ray: one finished file per write task.

The name of a file derives from the keys of its rows, so a task that is tried again replaces its own file
with the same rows. `pending` is the other half of resuming: the plan without what visible files hold.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import WriteResult

from pipelines.storage import Store
from pipelines.tables import Table


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Counter:
    """Counts rows of a step by status, and passes on what workers have to say, for the progress line.

    Where its node is lost it starts again from 0: only the progress line is wrong then, no task fails.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.latest = ""
        self.error = ""

    def add(self, counts: dict[str, int]) -> None:
        for status, number in counts.items():
            self.counts[status] = self.counts.get(status, 0) + number

    def say(self, text: str) -> None:
        self.latest = text

    def fail(self, error: str) -> None:
        self.error = error

    def failure(self) -> str:
        return self.error

    def get(self) -> tuple[dict[str, int], str]:
        return self.counts, self.latest


@dataclass(frozen=True)
class Output:
    """One table that a sink writes: `select` makes its rows out of the rows that arrive.

    `visible` are the videos whose rows a killed run has published here already, but not in every other
    output: they arrive again, and must not be written twice.
    """

    table: Table
    folder: str
    footer: dict[str, str]
    select: Callable[[pa.Table], pa.Table] = lambda rows: rows
    visible: frozenset[str] = frozenset()


class TableSink(Datasink):
    """Publishes the rows that arrive as Parquet files of one or several tables.

    The outputs are published in their order, so rows are finished when the last one is visible.

    Args:
        counter: counts the rows that arrived, by their column `status` where they have one.
        rows_per_file: blocks are gathered to at least that many rows.
    """

    def __init__(
        self,
        store: Store,
        outputs: list[Output],
        counter: ray.actor.ActorHandle,
        rows_per_file: int,
    ) -> None:
        self.store, self.outputs = store, outputs
        self.counter, self.rows_per_file = counter, rows_per_file

    @property
    def min_rows_per_write(self) -> int:
        return self.rows_per_file

    def write(self, blocks: Iterable[Block], ctx: object) -> int:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        filled = [table for table in tables if table.num_rows]
        if not filled:
            return 0
        rows = pa.concat_tables(filled)
        for output in self.outputs:
            fresh = pa.array(
                [video not in output.visible for video in rows["video_id"].to_pylist()]
            )
            table = output.select(rows.filter(fresh))
            if not table.num_rows:
                continue
            table = table.sort_by([(name, "ascending") for name in output.table.key])
            name = f"{output.folder}/{file_name(table, output.table.key)}"
            self.store.publish_table(name, table, output.footer)
        ray.get(self.counter.add.remote(_by_status(rows)))
        return rows.num_rows

    def on_write_complete(self, write_result: WriteResult[int]) -> None:
        """Nothing to commit: each file was finished when it became visible."""


def file_name(table: pa.Table, key: tuple[str, ...]) -> str:
    """A name made from the keys inside, so that the same rows always have the same name."""
    sha = hashlib.sha256()
    for column in key:
        for value in table[column]:
            sha.update(str(value).encode())
            sha.update(b"\n")
    return f"{sha.hexdigest()[:16]}.parquet"


def pending(plan: pa.Table, store: Store, folder: str, key: tuple[str, ...]) -> pa.Table:
    """The rows of `plan` whose key is in no visible file of `folder`."""
    if not store.files(folder):
        return plan
    done = store.read_table(folder, list(key))
    return plan.filter(pc.invert(pc.is_in(_joined(plan, key), value_set=_joined(done, key))))


def visible_videos(rows: pa.Table, store: Store, folder: str) -> frozenset[str]:
    """Those videos of `rows` that have rows of their present source in visible files of `folder`."""
    left = pending(rows, store, folder, ("video_id", "source"))
    return frozenset(rows["video_id"].to_pylist()) - frozenset(left["video_id"].to_pylist())


def _joined(table: pa.Table, key: tuple[str, ...]) -> pa.ChunkedArray:
    columns = [table[name].cast(pa.string()) for name in key]
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, "\n")


def _by_status(table: pa.Table) -> dict[str, int]:
    if "status" not in table.column_names:
        return {"ok": table.num_rows}
    counts = pc.value_counts(table["status"]).to_pylist()
    return {item["values"]: item["counts"] for item in counts}


class ProgressLine(threading.Thread):
    """Logs done / total, rate and time left of a step every few seconds; a context manager."""

    def __init__(
        self, log: Callable[[str], None], step: str, total: int, counter: ray.actor.ActorHandle
    ) -> None:
        super().__init__(daemon=True)
        self.log, self.step, self.total, self.counter = log, step, total, counter
        self.started = time.monotonic()
        self.stopped = threading.Event()

    def __enter__(self) -> "ProgressLine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join()

    def run(self) -> None:
        while not self.stopped.wait(5):
            counts, latest = ray.get(self.counter.get.remote())
            text = progress_text(self.step, counts, self.total, time.monotonic() - self.started)
            self.log(f"{text}; {latest}" if latest else text)


def progress_text(step: str, counts: dict[str, int], total: int, elapsed_s: float) -> str:
    """Such as `describe 120/960, 12.5/s, 67 s left (2 failed)`."""
    done = sum(counts.values())
    text = f"{step} {done}/{total}"
    if done:
        rate = done / elapsed_s
        text += f", {rate:.1f}/s, {(total - done) / rate:.0f} s left"
    odd = [f"{number} {status}" for status, number in sorted(counts.items()) if status != "ok"]
    return text + (f" ({', '.join(odd)})" if odd else "")
