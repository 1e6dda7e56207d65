import io
import os
import pickle
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.sink import file_name, pending, progress_text
from pipelines.storage import Store, absolute_uri, write_parquet


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "run"))
    return Store(f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}")


def test_what_is_published_is_read(store: Store) -> None:
    assert not store.exists("a/b.json")
    assert store.read_json("a/b.json") is None
    store.publish_json("a/b.json", {"x": 1})
    store.publish_json("a/b.json", {"x": 2})
    assert store.read_json("a/b.json") == {"x": 2}
    assert pickle.loads(pickle.dumps(store)).exists("a/b.json")


def test_tables_lists_and_removal(store: Store) -> None:
    table = pa.table({"id": ["a", "b"], "n": [1, 2]})
    assert store.files("t/x") == []
    store.publish_table("t/x/2.parquet", table, {"made_by": "test"})
    store.publish_table("t/x/1.parquet", table.slice(0, 1), {})
    store.publish_json("t/x/_done.json", {})
    assert store.files("t/x") == ["t/x/1.parquet", "t/x/2.parquet"]
    assert store.folders("t") == ["t/x"]
    assert store.read_table("t/x", ["id"])["id"].to_pylist() == ["a", "a", "b"]
    with store.open_parquet("t/x/2.parquet") as file:
        assert file.metadata.metadata[b"made_by"] == b"test"
    store.delete_folder("t/x")
    store.delete_folder("t/x")
    assert store.files("t/x") == []
    with pytest.raises(FileNotFoundError, match="run the earlier steps"):
        store.read_table("t/x")


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    versions = [bytes([n]) * 200_000 for n in range(20)]
    store.publish("file", versions[0])
    seen = []

    def read() -> None:
        while len(seen) < 200:
            seen.append(store.read("file"))

    reader = threading.Thread(target=read)
    reader.start()
    while reader.is_alive():
        for version in versions:
            store.publish("file", version)
    assert set(seen) <= set(versions)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        Store(str(tmp_path)).publish("a/file", b"data")
    assert list((tmp_path / "a").iterdir()) == []


def test_row_groups_stay_small_enough_to_fetch_one_video() -> None:
    big = pa.table({"x": pa.array([b"0" * 2**20] * 40, pa.binary())})
    buffer = io.BytesIO()
    write_parquet(big, buffer, {})
    assert pq.ParquetFile(buffer).metadata.num_row_groups == 3


def test_pending_is_the_plan_without_what_is_visible(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    plan = pa.table({"segment_id": ["a", "b", "c"], "source": ["1", "1", "1"]})
    key = ("segment_id", "source")
    assert pending(plan, store, "d", key).num_rows == 3
    done = pa.table({"segment_id": ["a", "b"], "source": ["1", "old"]})
    store.publish_table("d/x.parquet", done, {})
    (tmp_path / "d" / ".hidden.parquet").write_bytes(b"half a file")
    assert pending(plan, store, "d", key)["segment_id"].to_pylist() == ["b", "c"]


def test_file_names_derive_from_keys_alone() -> None:
    one = pa.table({"id": ["a", "b"], "value": [1, 2]})
    other = pa.table({"id": ["a", "b"], "value": [3, 4]})
    assert file_name(one, ("id",)) == file_name(other, ("id",))
    assert file_name(one, ("id",)) != file_name(one.slice(1), ("id",))


def test_progress_says_what_is_left() -> None:
    assert progress_text("describe", {"ok": 8, "failed": 2}, 110, 5.0) == (
        "describe 10/110, 2.0/s, 50 s left (2 failed)"
    )
    assert progress_text("describe", {}, 110, 5.0) == "describe 0/110"


def test_local_paths_become_absolute() -> None:
    assert absolute_uri("out") == str(Path.cwd() / "out")
    assert absolute_uri("s3://bucket/out/") == "s3://bucket/out"
