"""Object storage that fails: what is written is whole, what is read is right, or an error says what
happened."""

import errno
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from botocore.retries.standard import ExponentialBackoff

from pipelines.doctor.tensors import tensors_in
from pipelines.run.lock import RunLock
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.storage import store as storage_store
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store
from pipelines.video.decode import decode_segment
from pipelines.video.header import probe
from tests.conftest import SECRET
from tests.faulty_s3 import KINDS, FaultyS3

pytestmark = pytest.mark.nightly

STORMY = {"500": 0.08, "503": 0.08, "delay": 0.05, "cut_get": 0.08, "cut_put": 0.06, "lost": 0.05}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_store, "_FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.01)


@pytest.fixture
def faulty(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A proxy that the environment names as the endpoint; without faults until a test sets some."""
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], {}, seed=7) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield proxy
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def store(faulty: FaultyS3, s3_bucket: str, tmp_path: Path) -> Store:
    return Store(f"{s3_bucket}/{tmp_path.name}")


def operations(store: Store) -> list[object]:
    """Something of everything that a store does; what it says."""
    table = pa.table({"id": [f"v{i}" for i in range(300)], "x": np.arange(300.0)})
    said: list[object] = [store.exists("a.json"), store.files("t")]
    store.publish_json("a.json", {"x": 1})
    store.create("lock", b"held")
    try:
        store.create("lock", b"other")
    except FileExistsError:
        said.append("refused")
    for number in range(4):
        part = table.slice(number * 75, 75)
        store.publish_table(f"t/{number}.parquet", part, {"part": str(number)})
    store.publish("blob", os.urandom(0) + b"0123456789" * 30_000)
    said += [store.exists("a.json"), store.read_json("a.json"), store.read("lock")]
    said += [store.files("t"), store.folders(""), store.read_table("t").to_pydict()]
    said += [store.read_table("t", ["x"]).to_pydict(), store.read_range("blob", 3, 100_003)]
    with store.open_parquet("t/2.parquet") as file:
        said += [file.metadata.metadata[b"part"], file.read_row_group(0, ["id"]).to_pydict()]
    store.delete("lock")
    store.delete_folder("t")
    said += [store.exists("lock"), store.files("t"), store.size_bytes("blob")]
    return said


def test_every_operation_gives_the_same_through_faults(
    faulty: FaultyS3, store: Store, s3_bucket: str
) -> None:
    calm = operations(Store(f"{store.root}-calm"))
    faulty.rates = STORMY
    assert operations(store) == calm
    assert faulty.faults.total() > 5


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_is_tried_again(faulty: FaultyS3, store: Store, kind: str) -> None:
    data = b"0123456789" * 50_000
    faulty.rates = {kind: 0.4}
    for name in "abc":
        store.publish(name, data)
        assert store.read(name) == data
        assert store.read_range(name, 10, 200_010) == data[10:200_010]
        assert store.files("", suffix=name) == [f"/{name}"]
    assert faulty.faults[kind] > 0


def test_what_may_not_be_deleted_is_an_error_that_names_it(faulty: FaultyS3, store: Store) -> None:
    for name in ("t/a", "t/kept", "t/x/b", "u"):
        store.publish(name, b"data")
    faulty.kept = "t/kept"
    with pytest.raises(
        StorageError, match=r"cannot remove it: .*/t/kept: .*s3:DeleteObject"
    ) as said:
        store.delete_folder("t")
    assert store.uri("t") in str(said.value)
    assert [store.exists(name) for name in ("t/a", "t/kept", "t/x/b")] == [False, True, False]
    faulty.kept = ""
    store.delete_folder("t")
    assert not store.exists("t/kept")
    assert store.exists("u")


def test_an_upload_in_parts_is_whole_or_not_there(
    faulty: FaultyS3, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(3 * 5 * 2**20)
    in_parts = (5 * 2**20, None, "overwrite")
    monkeypatch.setattr(type(store.fs)._pipe_file, "__defaults__", in_parts)
    faulty.rates = {"500": 0.2, "cut_put": 0.2, "lost": 0.1}
    store.publish("big", data)
    assert faulty.requests["POST"] >= 2
    faulty.rates = {}
    assert store.read("big") == data
    faulty.rates = {"500": 1.0}
    with pytest.raises(StorageError):
        store.publish("never", data)
    faulty.rates = {}
    assert not store.exists("never")
    assert store.read("big") == data


def test_a_reader_sees_the_old_object_or_the_new_one(faulty: FaultyS3, store: Store) -> None:
    versions = [bytes([n]) * 200_000 for n in range(6)]
    store.publish("file", versions[0])
    faulty.rates = STORMY
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(store.read("file"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in versions:
            store.publish("file", version)
    finally:
        done.set()
        reader.join()
    assert seen
    assert seen <= set(versions)


def test_the_last_error_says_what_where_and_how_often(faulty: FaultyS3, store: Store) -> None:
    faulty.rates = {"503": 1.0}
    started = time.monotonic()
    with pytest.raises(
        StorageError, match=r"a/b\.json: cannot read it: .*tried 4 times in"
    ) as said:
        store.read("a/b.json")
    assert time.monotonic() - started < 90
    assert store.root in str(said.value)
    assert "again when the storage answers" in str(said.value)
    # It crosses from workers to the driver.
    assert str(pickle.loads(pickle.dumps(said.value))) == str(said.value)


def test_patience_ends(faulty: FaultyS3, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_store, "_PATIENCE_S", 0.0)
    faulty.rates = {"503": 1.0}
    with pytest.raises(StorageError, match="tried 1 times"):
        store.read("x")


def test_what_does_not_pass_is_tried_once(
    faulty: FaultyS3, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def refuse(*_: object, **__: object) -> None:
        calls.append(1)
        raise PermissionError(errno.EACCES, "Access Denied")

    monkeypatch.setattr(store.fs, "pipe_file", refuse)
    with pytest.raises(StorageError, match=r"cannot write it: PermissionError.*the rights"):
        store.publish("x", b"")
    assert calls == [1]
    with pytest.raises(FileNotFoundError):
        store.read("not there")


def test_missing_credentials_say_so(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StorageError, match="credentials"):
        Store(f"{s3_bucket}/x").publish("x", b"")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_lost_answer_to_create_is_no_other_holder(faulty: FaultyS3, store: Store) -> None:
    faulty.rates = {"lost": 0.6}
    for turn in range(5):
        inner = Store(f"{store.root}/{turn}")
        with RunLock(inner, "job", heartbeat_s=30.0) as lock:
            lock.check()
        assert not inner.exists("run.lock")
    assert faulty.faults["lost"] > 5


def test_listings_are_never_stale(store: Store, s3_bucket: str) -> None:
    """What another process has written since is seen: nothing is remembered."""
    store.publish("late/w.parquet", b"0")
    assert not store.exists("late/x.parquet")
    assert store.files("late") == ["late/w.parquet"]
    other = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    other.pipe_file(f"{store.path('late/x.parquet')}", b"1")
    assert store.exists("late/x.parquet")
    assert store.files("late") == ["late/w.parquet", "late/x.parquet"]
    assert store.size_bytes("late/x.parquet") == 1
    other.pipe_file(f"{store.path('late/x.parquet')}", b"22")
    assert store.read("late/x.parquet") == b"22"


def test_a_parquet_column_is_read_in_ranges(faulty: FaultyS3, store: Store) -> None:
    wide = pa.table({"id": ["a"] * 64, "x": [os.urandom(2**15) for _ in range(64)]})
    store.publish_table("t/x.parquet", wide, {})
    asked = []
    read = Store.read_range

    def watched(self: Store, name: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        return read(self, name, start, end)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "read_range", watched)
        assert store.read_table("t", ["id"]).num_rows == 64
        assert store.read_rows("t", ["id"], "id", ["a"]).num_rows == 64
    assert sum(asked) < 400_000 < store.size_bytes("t/x.parquet")


def test_rows_and_tensors_are_read_through_faults(
    faulty: FaultyS3, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a search, a report and the doctor read."""
    rows = pa.table({"id": [f"v{i}" for i in range(300)], "x": np.arange(300.0)})
    for number in range(4):
        store.publish_table(f"t/{number}.parquet", rows.slice(number * 75, 75), {"step": "test"})
    tensors = {"x": np.arange(1000.0), "bad": np.array([np.nan])}
    store.publish("x.safetensors", safetensors.numpy.save(tensors))
    faulty.rates = STORMY
    for _ in range(3):
        found = store.read_rows("t", None, "id", ["v3", "v299"])
        assert found.to_pydict() == {"id": ["v3", "v299"], "x": [3.0, 299.0]}
        with store.open_parquet("t/2.parquet") as file:
            assert file.read().num_rows == 75
        found = tensors_in(store.read("x.safetensors"))
        assert [name for name, _, is_finite in found if not is_finite] == ["bad"]
    assert faulty.faults.total() > 5
    faulty.rates = {"503": 1.0}
    monkeypatch.setattr(Store, "files", lambda *_: ["t/0.parquet"])
    with pytest.raises(StorageError, match=r"t/0\.parquet: cannot .*tried 4 times in"):
        store.read_rows("t", None, "id", ["v3"])


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_video_reads_the_same_through_faults(
    faulty: FaultyS3, store: Store, data: Path, decoder: str
) -> None:
    if decoder == "decord":
        pytest.importorskip("decord")
    clip = sorted((data / "labelled" / "weizmann").rglob("*.avi"))[0]
    store.publish("clip.avi", clip.read_bytes())
    settings = (Sampling(policy="uniform", num_frames=4), Picture(), Decode(decoder=decoder))
    facts, frames = probe(str(clip)), decode_segment(str(clip), 0, 1, *settings)
    faulty.rates = STORMY
    assert probe(store.uri("clip.avi")) == facts
    found = decode_segment(store.uri("clip.avi"), 0, 1, *settings)
    np.testing.assert_array_equal(found.images, frames.images)
    np.testing.assert_array_equal(found.timestamps_s, frames.timestamps_s)
    assert faulty.faults.total() > 0


def everything(store: Store, folder: str) -> dict[str, object]:
    """Names and contents of the tables below a folder, but for how long things took."""
    found: dict[str, object] = {}
    for inner in store.folders(folder):
        for name in store.files(inner):
            with store.open_parquet(name) as file:
                table = file.read().replace_schema_metadata(None)
            took = [column for column in table.column_names if column == "decode_s"]
            found[name.partition("/")[2]] = table.drop_columns(took)
    return found


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_job_through_faults_writes_the_same(
    local_ray: None, faulty: FaultyS3, s3_bucket: str, data: Path, tmp_path: Path
) -> None:
    """The workers of a cluster of its own see the proxy; those of this process the server
    itself."""
    from jobs.fcvid_encode import main

    base = f"{s3_bucket}/{tmp_path.name}"
    for number, clip in enumerate(sorted((data / "labelled" / "weizmann").rglob("*.avi"))[:2]):
        Store(f"{base}/videos").publish(f"{number}.avi", clip.read_bytes())
    flags = ["--videos", f"{base}/videos", "--recipe", "demo", "--steps", "index,describe"]
    for setting in ("describe.weights=random:0", "sampling.num_frames=2"):
        flags += ["--set", setting]
    assert main([*flags, "--out", f"{base}/calm"]) == 0
    faulty.rates = {kind: rate / 2 for kind, rate in STORMY.items()}
    command = [sys.executable, "-m", "jobs.fcvid_encode", *flags, "--out", f"{base}/stormy"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    faulty.rates = {}
    assert faulty.faults.total() > 3
    calm, stormy = Store(f"{base}/calm"), Store(f"{base}/stormy")
    for table in ("videos", "segments", "descriptors"):
        expected = everything(calm, table)
        assert expected
        assert everything(stormy, table) == expected
    assert SECRET not in done.stdout + done.stderr
