"""Rows that threads read before they are asked for."""

import itertools
import threading

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.storage.read_ahead import TOGETHER, ReadAhead


class Rows:
    """A reader of rows that hold their own place; knows how many are read and not yet given
    away."""

    guard = threading.Lock()

    def __init__(self, log: list[tuple[str, int]]) -> None:
        self.log = log

    def read(self, name: str, row: int) -> pa.Table:
        if row == 99:
            raise OSError(f"{name}: a broken row group")
        with self.guard:
            self.log.append((name, row))
        return pa.table({"name": [name], "row": [row]})


PLACES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=120)


@settings(max_examples=50)
@given(places=PLACES, num_threads=st.integers(1, 5))
def test_rows_come_in_their_order_each_read_once_and_few_are_held(
    places: list[tuple[str, int]], num_threads: int
) -> None:
    log: list[tuple[str, int]] = []
    given_away = []
    for table in ReadAhead(lambda: Rows(log), num_threads)(iter(places)):
        given_away.append((table["name"][0].as_py(), table["row"][0].as_py()))
        # A run has at most the places that it was asked for side by side.
        longest = _longest_run(places)
        assert len(log) - len(given_away) < (num_threads + 2) * longest
    assert given_away == places
    assert sorted(log) == sorted(places)


def _longest_run(places: list[tuple[str, int]]) -> int:
    longest = current = 1
    for before, after in itertools.pairwise(places):
        same = before[0] == after[0] and before[1] // TOGETHER == after[1] // TOGETHER
        current = current + 1 if same else 1
        longest = max(longest, current)
    return longest


def test_rows_are_read_while_nobody_asks() -> None:
    both = threading.Barrier(2, timeout=10)

    class Waiting(Rows):
        def read(self, name: str, row: int) -> pa.Table:
            both.wait()
            return super().read(name, row)

    # Two files at a time: one thread alone would wait in vain.
    rows = list(ReadAhead(lambda: Waiting([]), 2)([("a", 0), ("b", 0)]))
    assert [row["name"][0].as_py() for row in rows] == ["a", "b"]


def test_an_error_comes_in_its_place() -> None:
    rows = ReadAhead(lambda: Rows([]), 2)([("a", 0), ("b", 99), ("c", 0)])
    assert next(rows)["name"].to_pylist() == ["a"]
    with pytest.raises(OSError, match="b: a broken row group"):
        next(rows)
    with pytest.raises(StopIteration):
        next(rows)


def test_a_thread_keeps_its_reader() -> None:
    made = []
    ahead = ReadAhead(lambda: made.append(1) or Rows([]), 1)
    for _ in range(3):
        list(ahead([("a", 0), ("b", 0)]))
    assert len(made) == 1
