"""Errors of storage that stay, where a user meets them: one message, also of a task of Ray."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from botocore.exceptions import FlexibleChecksumError

from pipelines.errors import ConfigError, RunError, user_error
from pipelines.storage import store as storage_store
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store
from tests.faulty_s3 import FaultyS3

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full: make room"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "mount it for writing"),
        (errno.EACCES, "this user lacks the right"),
        (errno.ENOTCONN, "its mount is lost: mount it again"),
        (errno.ESTALE, "its mount is lost: mount it again"),
        (errno.EIO, "the disk or its mount has failed"),
    ],
)
def test_an_error_of_a_disk_says_where_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match=rf"{tmp_path}/t/x \(on .*cannot write it: .*{advice}"):
        Store(str(tmp_path)).publish("t/x", b"data")
    assert list((tmp_path / "t").iterdir()) == []


def test_a_wrong_checksum_is_tried_again_and_named(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_store, "_FIRST_WAIT_S", 0.01)
    store, calls = Store(f"{s3_bucket}/{tmp_path.name}"), []
    store.publish("x", b"data")
    read = store.fs.cat_file

    def damaged(path: str, **range_: int) -> bytes:
        calls.append(path)
        if len(calls) != 2:
            raise FlexibleChecksumError(error_msg="Expected checksum a did not match b")
        return read(path, **range_)

    monkeypatch.setattr(store.fs, "cat_file", damaged)
    assert store.read("x") == b"data"
    with pytest.raises(
        StorageError, match=r"/x: cannot read it: .*checksum.*tried 4 times"
    ) as said:
        store.read("x")
    assert "AWS_RESPONSE_CHECKSUM_VALIDATION=when_required" in str(said.value)


def test_the_error_for_the_user_is_found_in_what_ray_makes_of_it() -> None:
    from ray.exceptions import RayTaskError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    inner = StorageError("/x: cannot write it")
    in_task = RayTaskError("write", "Traceback ...", inner).as_instanceof_cause()
    assert str(in_task) != str(inner)
    around = RuntimeError("of the library")
    around.__cause__ = in_task
    for error in (inner, in_task, around, WorkerGroupError("lines", {1: in_task})):
        assert str(user_error(error)) == "/x: cannot write it"
        assert isinstance(user_error(error), RunError)
    assert isinstance(user_error(ControllerError(ConfigError("y"))), ConfigError)
    assert user_error(KeyError("a fault of ours")) is None


def job(data: Path, out: str, *more: str) -> subprocess.CompletedProcess:
    folder = data / "labelled" / "weizmann"
    command = [sys.executable, "-m", "jobs.fcvid_encode", "--recipe", "demo", "--limit", "8"]
    command += ["--videos", str(folder), "--labels", str(folder / "labels.csv"), "--out", out]
    settings = ("describe.weights=random:0", "sampling.num_frames=16", *more)
    command += [word for setting in settings for word in ("--set", setting)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for the weights of the network and little more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5200k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_one_message(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    for word in words:
        assert word in last


@pytest.mark.nightly
@pytest.mark.timeout(400)
def test_a_disk_that_is_full_in_a_task_is_one_message(data: Path, small_disk: Path) -> None:
    done = job(data, str(small_disk / "out"))
    assert_one_message(done, "/descriptors/", "cannot write it", "the disk is full: make room")


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("table", ["descriptors", "codebooks"])
def test_a_right_that_is_refused_in_a_task_is_one_message(
    s3_bucket: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """In a task of Ray Data, and on a worker of Ray Train."""
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], {}) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.closed = f"/{table}/"
        done = job(data, f"{s3_bucket}/{tmp_path.name}", "encode.encoders=vlad")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert_one_message(done, f"/{table}/", "cannot write it: PermissionError", "check the name")
