"""Small files become large ones: the same rows, the same files however they were written, through
any kill."""

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.ledger import compaction, marks
from pipelines.storage.columns import file_name
from pipelines.storage.store import Store

KEY = ("id", "attempts")
NUM_ROWS = 90


def rows() -> pa.Table:
    ids = [f"v{i:03d}" for i in range(NUM_ROWS)]
    frames = pa.array([1 + i % 5 for i in range(NUM_ROWS)], pa.int32())
    columns = {"id": ids, "attempts": [1] * NUM_ROWS, "source": ["s"] * NUM_ROWS, "frames": frames}
    return pa.table(columns | {"x": [float(i) for i in range(NUM_ROWS)]})


def scatter(store: Store, seed: int) -> None:
    """Write the rows in small files, in an order and sizes of their own; some twice, as a kill may
    leave them."""
    rng, table = random.Random(seed), rows()
    order = rng.sample(range(NUM_ROWS), NUM_ROWS)
    while order:
        part, order = order[: (n := rng.randint(1, 6))], order[n:]
        chosen = table.take(sorted(part))
        store.publish_table(f"t/{file_name(chosen, KEY)}", chosen, {"made": "by a step"})
    again = table.slice(rng.randrange(NUM_ROWS - 3), 3)
    store.publish_table(f"t/{file_name(again, KEY)}", again, {"made": "by a step"})


def compacted(store: Store, least: int = 1) -> None:
    compaction.compact(
        store,
        "t",
        lambda: compaction.plan(store, "t", KEY, ("frames", 10.0), least),
        lambda parts: [compaction.write(store, part) for part in parts],
    )


def contents(store: Store) -> dict[str, pa.Table]:
    found = {}
    for name in store.files("t"):
        with store.open_parquet(name) as file:
            found[name] = file.read().replace_schema_metadata(None)
    return found


@pytest.fixture(params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}"


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, pa.Table]:
    monkeypatch.setattr(compaction, "FILE_BYTES", 600)
    store = Store(str(tmp_path / "expected"))
    scatter(store, 0)
    compacted(store)
    return contents(store)


def test_rows_stay_and_files_are_large(expected: dict[str, pa.Table], tmp_path: Path) -> None:
    assert pa.concat_tables(expected.values()).sort_by("id").equals(rows())
    # 90 rows with 3 frames on average, each of 10 bytes.
    assert len(expected) == 5
    for name, table in expected.items():
        assert name == f"t/{file_name(table, KEY)}"
        assert 400 <= 10 * sum(table["frames"].to_pylist()) <= 700
    assert Store(str(tmp_path / "expected")).footer(min(expected)) == {"made": "by a step"}


@pytest.mark.parametrize("seed", [1, 2])
def test_the_files_are_the_same_however_the_small_ones_were(
    base: str, expected: dict[str, pa.Table], seed: int
) -> None:
    store = Store(f"{base}/other")
    scatter(store, seed)
    compacted(store)
    assert contents(store) == expected
    assert not marks.find(store, f"t/{compaction.PLAN}")
    # Again: nothing to do.
    compacted(store)
    assert contents(store) == expected


def test_one_file_for_each_node_at_least(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    scatter(store, 0)
    compacted(store, least=8)
    assert len(store.files("t")) == 8
    compacted(store, least=8)
    assert len(store.files("t")) == 8
    assert pa.concat_tables(contents(store).values()).sort_by("id").equals(rows())


class Killed(BaseException):
    pass


def dying(call: Callable, left: list[int]) -> Callable:
    def maybe(*arguments: object, **named: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return call(*arguments, **named)

    return maybe


def test_a_compaction_killed_anywhere_any_number_of_times_ends_with_the_same_files(
    tmp_path: Path, expected: dict[str, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, kills = Store(str(tmp_path / "run")), 0
    scatter(store, 3)
    steps = 1
    while True:
        with monkeypatch.context() as patch:
            # Each try gets a little further than the plan, or the first file, or a deletion.
            left = [steps]
            patch.setattr(Store, "publish", dying(Store.publish, left))
            patch.setattr(Store, "delete", dying(Store.delete, left))
            try:
                compacted(store)
                break
            except Killed:
                kills += 1
        steps = 1 + kills % 2
        # Whoever looks now sees each row, and the doctor each row once.
        names = compaction.without_copies(store, "t", store.files("t"))
        found = {name: table for name, table in contents(store).items() if name in names}
        seen = pa.concat_tables(found.values())["id"].to_pylist()
        assert len(set(seen)) == NUM_ROWS
        if marks.find(store, f"t/{compaction.PLAN}"):
            assert 0 <= len(seen) - NUM_ROWS <= 3
    assert kills > 10
    assert contents(store) == expected


def test_rows_of_a_changed_file_under_the_same_ids_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, pa.Table]
) -> None:
    store = Store(str(tmp_path / "changed"))
    for name, table in expected.items():
        old = table.set_column(2, "source", pa.array(["old"] * table.num_rows))
        store.publish_table(name, old, {})
    scatter(store, 1)
    compacted(store)
    assert contents(store) == expected
