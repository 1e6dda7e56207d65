"""Which rows of DESCRIPTORS count, where segments were tried again and files have changed."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.index.current_rows import current

KEY = st.tuples(st.sampled_from(["a#0", "a#1", "b#0", "é#0"]), st.sampled_from(["old", "new"]))
SCHEMA = pa.schema([("segment_id", pa.string()), ("source", pa.string()), ("attempts", pa.int32())])


@given(
    planned=st.sets(st.sampled_from(["a#0", "a#1", "b#0", "é#0"])),
    rows=st.sets(st.tuples(KEY, st.integers(1, 4)), max_size=12),
)
def test_each_planned_segment_counts_once_by_its_last_attempt(
    planned: set[str], rows: set[tuple[tuple[str, str], int]]
) -> None:
    found = [{"segment_id": s, "source": f, "attempts": n} for (s, f), n in rows]
    plan = [{"segment_id": name, "source": "new"} for name in planned]
    expected: dict[str, int] = {}
    for row in found:
        if row["segment_id"] in planned and row["source"] == "new":
            last = max(row["attempts"], expected.get(row["segment_id"], 0))
            expected[row["segment_id"]] = last
    table = current(
        pa.Table.from_pylist(plan, schema=pa.schema(list(SCHEMA)[:2])),
        pa.Table.from_pylist(found, schema=SCHEMA),
    )
    assert table.num_rows == len(expected)
    given_back = zip(table["segment_id"].to_pylist(), table["attempts"].to_pylist(), strict=True)
    assert dict(given_back) == expected
