from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.classify import read_encodings, target_matrix
from pipelines.storage import Store
from pipelines.tables import encoding_type


def test_vectors_meet_the_labels_of_their_video_and_source(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    values = pa.array(np.arange(10, dtype=np.float16))
    vectors = pa.FixedSizeListArray.from_arrays(values, type=encoding_type(2, "float16"))
    table = pa.table(
        {
            "video_id": ["c", "a", "b", "a", "other"],
            "source": ["1", "old", "1", "new", "1"],
            "vector": vectors,
        }
    )
    store.publish_table("e/1.parquet", table.slice(0, 2), {})
    store.publish_table("e/2.parquet", table.slice(2), {})
    labels = pa.table(
        {
            "video_id": ["a", "b", "c", "failed"],
            "source": ["new", "1", "1", "1"],
            "labels": [["x"], ["y"], ["x", "y"], ["x"]],
            "fold": [0, 1, 2, 3],
        }
    )
    videos, found = read_encodings(store, "e", labels)
    assert videos["video_id"].to_pylist() == ["a", "b", "c"]
    assert videos["fold"].to_pylist() == [0, 1, 2]
    np.testing.assert_array_equal(found, [[6, 7], [4, 5], [0, 1]])
    assert found.dtype == np.float32


def test_targets_are_one_column_per_class() -> None:
    targets = target_matrix([["b"], ["a", "b"], []], ["a", "b", "c"])
    np.testing.assert_array_equal(targets, [[0, 1, 0], [1, 1, 0], [0, 0, 0]])
