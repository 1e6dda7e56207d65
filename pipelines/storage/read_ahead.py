"""Rows of files, read by threads before they are asked for. Needs no Ray and no torch."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import pyarrow as pa

TOGETHER = 2
"""Most neighbouring rows of a file that a thread reads in one go: often they are in one row group.

More would make the first rows wait longer.
"""

_RowRef = tuple[str, int]
"""A file and a row of it."""


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(
    pool: ThreadPoolExecutor, call: Callable[[_Item], _Result], items: Iterable[_Item], window: int
) -> Iterator[_Result]:
    """Yield call(item) of each item in order.

    At most `window` calls wait or run in the pool at a time.
    """
    items = iter(items)
    waiting = deque(pool.submit(call, item) for item in itertools.islice(items, window))
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(call, item) for item in itertools.islice(items, 1))
            yield result
    finally:
        # Whoever asked may have stopped before the end.
        for future in waiting:
            future.cancel()


class Reader(Protocol):
    """A reader of single rows; it may keep what it has read last."""

    def read(self, name: str, row: int) -> pa.Table: ...


class ReadAhead:
    """Rows in the order in which they are asked for, while threads read the next ones.

    At most TOGETHER * (num_threads + 2) rows are held, however many are asked for.

    Args:
        reader: makes the reader of a thread.
    """

    def __init__(self, reader: Callable[[], Reader], num_threads: int) -> None:
        self.reader, self.num_threads = reader, num_threads
        self.pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read")
        self.local = threading.local()

    def __call__(self, row_refs: Iterable[_RowRef]) -> Iterator[pa.Table]:
        """Yield the row of each reference, in order; an error of reading it comes in its turn."""
        runs = (list(run) for _, run in itertools.groupby(row_refs, _neighbours))
        for rows in in_order(self.pool, self._read, runs, self.num_threads + 1):
            yield from rows

    def _read(self, run: list[_RowRef]) -> list[pa.Table]:
        if not hasattr(self.local, "reader"):
            self.local.reader = self.reader()
        return [self.local.reader.read(*row_ref) for row_ref in run]


def _neighbours(row_ref: _RowRef) -> _RowRef:
    """Return a key that is the same for rows that are read together."""
    return row_ref[0], row_ref[1] // TOGETHER
