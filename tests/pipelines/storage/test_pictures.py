"""Pictures of wanted rows in a mapped file."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.storage.pictures import mapped
from pipelines.storage.store import Store


def test_pictures_of_wanted_rows_are_in_their_places(tmp_path: Path) -> None:
    store, draw = Store(str(tmp_path)), np.random.default_rng(0)
    pictures = {n: draw.integers(0, 256, (n + 1, 2, 2, 3), np.uint8) for n in range(5)}
    for n, own in pictures.items():
        # Of each clip there is one of a file that has changed since, too.
        columns = {
            "clip_id": [f"c{n}"] * 2,
            "source": ["old", "new"],
            "pictures": [bytes(own.size), own.tobytes()],
        }
        kinds = {"clip_id": pa.string(), "source": pa.string(), "pictures": pa.large_binary()}
        table = pa.table(columns, schema=pa.schema(kinds))
        store.publish_table(f"clips/{n}.parquet", table, {})
    first = {("c3", "new"): 0, ("c1", "new"): 4}
    key = ("clip_id", "source")
    found = mapped(store, "clips", "pictures", key, first, (6, 2, 2, 3))
    np.testing.assert_array_equal(found, np.concatenate([pictures[3], pictures[1]]))
    assert mapped(store, "clips", "pictures", key, {}, (0, 2, 2, 3)).shape == (0, 2, 2, 3)
