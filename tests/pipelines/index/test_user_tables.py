"""Whatever is wrong with a file or folder that a user names is one message."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipelines import prepare
from pipelines.errors import ConfigError, RunError
from pipelines.index.labels import read_labels
from pipelines.index.manifest import list_videos
from pipelines.index.user_tables import column_names
from pipelines.storage import store as storage_store
from pipelines.storage.filesystems import filesystem
from pipelines.storage.store import Store

READERS = [("--videos", list_videos), ("--labels", read_labels), ("--out", prepare.open_store)]


@pytest.fixture
def new_clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients of S3 that read today's environment, and soon give up."""
    monkeypatch.setattr(storage_store, "_FIRST_WAIT_S", 0.001)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(("flag", "call"), READERS)
@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(
    flag: str, call: Callable[[str], object], name: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{flag}: expected a path or URI, got an empty one"):
        call(name)


@pytest.mark.parametrize("name", ["s3://", "s3:///", "file://"])
def test_an_output_needs_a_place(name: str) -> None:
    with pytest.raises(ConfigError, match="--out: expected a path or URI, got an empty one"):
        prepare.open_store(name)


@pytest.mark.parametrize(("flag", "call"), READERS)
def test_storage_without_credentials(
    flag: str,
    call: Callable[[str], object],
    new_clients: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=rf"^{flag} s3://bucket/x.csv: .*NoCredentialsError"):
        call("s3://bucket/x.csv")


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "call"), READERS)
def test_storage_that_does_not_answer_may_do_so_later(
    flag: str,
    call: Callable[[str], object],
    new_clients: None,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not a ConfigError, after which `jobs.submit` would give up."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=rf"^{flag} s3://bucket/x.csv: .*when the storage answers"):
        call("s3://bucket/x.csv")


@pytest.mark.parametrize(("flag", "call"), READERS[:2])
def test_a_file_that_may_not_be_read(
    flag: str, call: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object, path: str, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(LocalFileSystem, "cat_file", refuse)
    (tmp_path / "x.csv").touch()
    with pytest.raises(
        ConfigError, match=rf"^{flag} .*x.csv: cannot read it \(PermissionError.* the rights"
    ):
        call(f"{tmp_path}/x.csv")


def test_a_row_that_storage_refuses_is_named(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> dict:
        raise PermissionError("Forbidden")

    # fsspec keeps the file system of an endpoint, with methods of its own.
    monkeypatch.setattr(filesystem(s3_bucket)[0], "info", refuse)
    (tmp_path / "list.csv").write_text(f"path\n{s3_bucket}/a.mp4\n")
    with pytest.raises(
        ConfigError, match=r"^--videos s3://bucket/a.mp4: cannot read it .*Forbidden"
    ):
        list_videos(f"{tmp_path}/list.csv")


@pytest.mark.parametrize(
    "data", [b"\npath,label\n", b"path,label\r", b"\xef\xbb\xbf\r\npath,label\r\n"]
)
def test_the_header_is_found_and_labels_stay_text(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(data + b"a.mp4,007" + data[-1:])
    assert read_labels(f"{tmp_path}/labels.csv").labels == {"a.mp4": ["007"]}


@pytest.mark.parametrize("column", ["path", "label", "group", "split"])
@pytest.mark.parametrize("cell", [["x"], b"\xff"])
def test_cells_of_parquet_that_are_no_text(tmp_path: Path, column: str, cell: object) -> None:
    cells = {"path": "a.mp4", "label": "x", "group": "g", "split": "test"} | {column: cell}
    table = pa.table({name: [value] for name, value in cells.items()})
    pq.write_table(table, tmp_path / "x.parquet")
    readers = READERS[:2] if column == "path" else READERS[1:2]
    for flag, call in readers:
        with pytest.raises(
            ConfigError, match=rf"^{flag} .*expected text in column '{column}', got"
        ):
            call(f"{tmp_path}/x.parquet")


# --- --out --------------------------------------------------------------------------------------


def test_an_output_folder_is_made_and_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare.open_store(f"{tmp_path}/a/b")
    assert list((tmp_path / "a" / "b").iterdir()) == []

    def refuse(_: str, new: str) -> None:
        raise PermissionError(13, "Permission denied", new)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(
        ConfigError,
        match=r"^--out .*/a/b: cannot write there: .*a create failed: .*PermissionError.*"
        "lacks the right",
    ):
        prepare.open_store(f"{tmp_path}/a/b")


def test_a_bucket_is_not_made_by_a_wrong_name(s3_bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--out s3://buckt/x: .*bucket does not exist"):
        prepare.open_store("s3://buckt/x")
    assert "buckt" not in {found["Name"] for found in boto3.client("s3").list_buckets()["Buckets"]}
    store = prepare.open_store(f"{s3_bucket}/{tmp_path.name}")
    assert store.fs.find(store.path("")) == []
    assert isinstance(store, Store)


@pytest.mark.parametrize("suffix", ["csv", "utf16.csv", "parquet"])
def test_columns_are_known_by_the_head_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    file = tmp_path / f"videos.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"path": ["a"], "label": ["x"]}), file)
    else:
        text = "path,label\n" + "\u00e9.mp4,x\n" * 50_000
        file.write_text(text, encoding="utf-16" if suffix != "csv" else "utf-8")
    sizes = []
    whole = LocalFileSystem.cat_file

    def measured(fs: LocalFileSystem, path: str, **limits: int) -> bytes:
        sizes.append(len(data := whole(fs, path, **limits)))
        return data

    monkeypatch.setattr(LocalFileSystem, "cat_file", measured)
    assert column_names("--videos", str(file)) == ["path", "label"]
    assert all(size < file.stat().st_size for size in sizes)
    with pytest.raises(ConfigError, match="no such file"):
        column_names("--videos", str(tmp_path / f"gone.{suffix}"))
