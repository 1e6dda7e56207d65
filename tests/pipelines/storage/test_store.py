import contextlib
import errno
import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cluster import sink
from pipelines.cluster.sink import pending
from pipelines.storage import store as storage_store
from pipelines.storage.columns import file_name, places_of
from pipelines.storage.filesystems import filesystem
from pipelines.storage.parquet import write_parquet
from pipelines.storage.store import Store
from pipelines.storage.tables import VIDEOS
from pipelines.storage.uris import absolute_uri


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
    assert store.footer("t/x/2.parquet") == {"made_by": "test"}
    assert store.footer("t/x/1.parquet") == {}
    assert store.read_rows("t/x", ["n"], "id", ["b", "c"]).to_pydict() == {"n": [2]}
    store.delete_folder("t/x")
    store.delete_folder("t/x")
    assert store.files("t/x") == []
    with pytest.raises(FileNotFoundError, match="run the earlier steps"):
        store.read_table("t/x")


def test_of_files_in_the_order_of_hashes_only_row_groups_that_hold_a_row_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file has a range of ids that holds nearly all of them, so that statistics rule out
    none."""
    store = Store(str(tmp_path))
    ids = [f"v{place:03d}" for place in range(200)]
    for number in range(10):
        own = ids[number::10]
        vectors = pa.array([[float(name[1:])] * 4 for name in own], pa.list_(pa.float32(), 4))
        rows = pa.table({"id": own, "vector": vectors, "n": range(20)})
        store.publish_table(f"t/{number}.parquet", rows, {"step": "test"}, rows_per_group=5)
    read = []
    whole = pq.ParquetFile.read_row_group

    def watched(self: pq.ParquetFile, group: int, *rest: object) -> pa.Table:
        read.append(group)
        return whole(self, group, *rest)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    found = store.read_rows("t", ["n", "vector"], "id", ["v013", "v199", "v100", "gone", "v003"])
    assert found.column_names == ["n", "vector"]
    assert [row[0] for row in found["vector"].to_pylist()] == [100, 3, 13, 199]
    assert read == [2, 0, 3], "v003 and v013 are in one row group"
    assert store.read_rows("t", None, "id", ["gone"]).column_names == ["id", "vector", "n"]
    assert store.read_rows("t", None, "id", []).num_rows == 0
    with pytest.raises(FileNotFoundError, match="run the earlier steps"):
        store.read_rows("none", None, "id", ["v003"])


def test_the_rows_of_many_files_come_in_their_order_and_few_pieces(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_store, "_FILES_TOGETHER", 3)
    for number in range(8):
        rows = pa.table({"id": [f"{number}a", f"{number}b"], "n": [[number], [number, 1]]})
        store.publish_table(f"t/x/{number}.parquet", rows, {})
    table = store.read_table("t/x")
    assert table["id"].to_pylist() == [f"{number}{k}" for number in range(8) for k in "ab"]
    assert table["n"].to_pylist() == [n for number in range(8) for n in ([number], [number, 1])]
    assert table["id"].num_chunks == 3


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
    assert pq.ParquetFile(io.BytesIO(write_parquet(big, {}))).metadata.num_row_groups == 3


def test_pending_is_the_plan_without_what_is_visible(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    plan = pa.table({"segment_id": ["a", "b", "c"], "source": ["1", "1", "1"]})
    key = ("segment_id", "source")
    assert pending(plan, store, "d", key).num_rows == 3
    done = pa.table({"segment_id": ["a", "b"], "source": ["1", "old"]})
    store.publish_table("d/x.parquet", done, {})
    (tmp_path / "d" / ".hidden.parquet").write_bytes(b"half a file")
    assert pending(plan, store, "d", key)["segment_id"].to_pylist() == ["b", "c"]


def test_rows_come_in_key_order_and_are_copied_only_where_they_must() -> None:
    rows = pa.table({"a": ["x", "x", "y"], "b": [1, 2, 0], "vector": [[0.0], [1.0], [2.0]]})
    assert sink.in_key_order(rows, ("a", "b")) is rows
    assert sink.in_key_order(rows.take([2, 1, 0]), ("a", "b")).equals(rows)
    by_b = sink.in_key_order(rows, ("b",))
    assert by_b["vector"].to_pylist() == [[2.0], [0.0], [1.0]]


def test_file_names_derive_from_keys_alone() -> None:
    one = pa.table({"id": ["a", "b"], "value": [1, 2]})
    other = pa.table({"id": ["a", "b"], "value": [3, 4]})
    assert file_name(one, ("id",)) == file_name(other, ("id",))
    assert file_name(one, ("id",)) != file_name(one.slice(1), ("id",))


def test_file_names_are_those_of_finished_runs() -> None:
    """With other names a run that goes on would write rows a second time."""
    frames = pa.array([0, 2**40])
    rows = pa.table(
        {"id": ["a", "b\n\u00e9"], "fold": pa.array([-1, 3], pa.int32()), "frame": frames}
    )
    assert file_name(rows, ("id", "fold", "frame")) == "ecc681a55c3dd869.parquet"


def test_places_of_rows_are_where_the_whole_key_is_the_same() -> None:
    known = pa.table({"id": ["a", "b", "a"], "n": [1, 1, 1]})
    rows = pa.table({"n": [1, 2, 1], "id": ["b", "b", "a"]})
    assert places_of(rows, known, ("id", "n")).to_pylist() == [1, None, 0]


FOLDERS = st.lists(st.sampled_from(["a", "b", "\u00fc x", "..."]), max_size=3)


@given(
    cwd=FOLDERS, target=FOLDERS, detour=st.sampled_from([".", "c/..", "c/./d/../..", "../{cwd}"])
)
def test_a_local_path_is_the_same_from_every_folder(
    cwd: list[str], target: list[str], detour: str
) -> None:
    with tempfile.TemporaryDirectory() as root:
        root = os.path.realpath(root)
        here, there = (os.path.join(root, "x", *names) for names in (cwd, target))
        os.makedirs(here)
        named = f"{detour.format(cwd=os.path.basename(here))}/{os.path.relpath(there, here)}"
        with contextlib.chdir(here):
            assert absolute_uri(named) == absolute_uri(f"{named}/") == there
            assert filesystem(named)[1] == filesystem(f"file://{named}")[1] == there
        assert ".." not in there.split("/")


def test_links_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v2").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "latest").symlink_to("v2")
    monkeypatch.chdir(tmp_path / "here")
    assert absolute_uri("../latest/x") == str(tmp_path / "latest" / "x")
    assert absolute_uri("..") == str(tmp_path)
    assert absolute_uri("../..") == str(tmp_path.parent)
    assert absolute_uri("../" * 50) == "/"


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert absolute_uri("~/../x") == filesystem("~/../x")[1] == str(tmp_path / "x")


@pytest.mark.parametrize("uri", ["s3://b/x/../y", "gs://b/..", "http://h/a/../b", "file:///a/../b"])
def test_other_uris_stay_as_they_are(uri: str) -> None:
    assert absolute_uri(uri) == absolute_uri(f"{uri}/") == uri


def test_of_two_that_create_one_does(store: Store) -> None:
    store.create("a/lock", b"one")
    with pytest.raises(FileExistsError):
        store.create("a/lock", b"two")
    assert store.read("a/lock") == b"one"
    store.delete("a/lock")
    store.delete("a/lock")
    store.create("a/lock", b"two")


def test_create_does_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(str(tmp_path))
    store.create("lock", b"one")
    with pytest.raises(FileExistsError):
        store.create("lock", b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("lock", b"one")]


KILLED = """
import os, signal, sys
from pipelines.storage.store import Store
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Store(sys.argv[1]).publish("t/x.parquet", b"half")
"""


def test_a_killed_write_leaves_what_readers_pass_over_and_the_next_run_sweeps(
    tmp_path: Path,
) -> None:
    store, root = Store(str(tmp_path)), Path(__file__).parents[3]
    store.publish("t/y.parquet", b"whole")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    left = [p for p in (tmp_path / "t").iterdir() if p.name != "y.parquet"]
    assert len(left) == 1
    assert store.files("t") == ["t/y.parquet"]
    kept = [".gitignore", ".x.parquet.0123456.part", "x.deadbeef.part", ".x.deadbeef.parts"]
    for name in kept:
        (tmp_path / "t" / name).write_bytes(b"")
    assert store.sweep(before=left[0].stat().st_mtime) == 0
    assert store.sweep(before=left[0].stat().st_mtime + 1) == 1
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == sorted([*kept, "y.parquet"])
    assert Store(str(tmp_path / "nothing here")).sweep(before=1e12) == 0


def test_a_table_that_gets_no_rows_beside_others_is_let_be(tmp_path: Path) -> None:
    """As where a video is scored again that has no activation maps."""
    rows = pa.table({"video_id": ["a"]})
    none = sink.Output(VIDEOS, "none", {}, lambda rows: rows.slice(0, 0), frozenset({"b"}))
    some = sink.Output(VIDEOS, "some", {}, visible=frozenset({"b"}))
    names = sink.publish(Store(str(tmp_path)), [none, some], rows)
    assert [name.partition("/")[0] for name in names] == ["some"]
