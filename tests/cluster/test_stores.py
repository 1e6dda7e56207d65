"""The whole job on object storage that nobody here wrote, killed in the middle and given again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from pipelines.errors import RunError
from pipelines.index.manifest import list_videos
from pipelines.prepare import open_store
from pipelines.run.lock import LOCK, LockedError, LockLostError, RunLock
from pipelines.storage.store import Store
from pipelines.storage.trial import try_out
from tests import chaos
from tests.servers import SERVERS, Storage

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
CREATES_TWICE = ("s3rver", "rclone")
"""Servers without conditional writes."""


@pytest.fixture(scope="module", params=SERVERS)
def storage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Storage]:
    """A server, whose bucket the environment of this process reaches too."""
    with (
        SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as found,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in ("AWS_ENDPOINT_URL", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
            patch.delenv(name, raising=False)
        for name, value in found.environment.items():
            patch.setenv(name, value)
        _forget_clients(found)
        yield found
        _forget_clients(found)


def _forget_clients(storage: Storage) -> None:
    fsspec.get_filesystem_class(storage.uri.partition(":")[0]).clear_instance_cache()


def command(data: Path, out: str) -> list[str]:
    folder = data / "labelled" / "weizmann"
    flags = [sys.executable, "-m", "jobs.fcvid_encode", "--recipe", "demo", "--limit", "12"]
    flags += ["--videos", str(folder), "--labels", str(folder / "labels.csv"), "--out", out]
    for setting in ("describe.weights=random:0", *chaos.SETTINGS):
        flags += ["--set", setting]
    return flags


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The tables of an undisturbed run on a disk."""
    out = str(tmp_path_factory.mktemp("disk") / "out")
    done = subprocess.run(command(data, out), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return chaos.tables(out)


@pytest.mark.timeout(900)
def test_a_job_that_is_killed_in_fit_ends_as_on_a_disk(
    storage: Storage, expected: dict[str, object], data: Path
) -> None:
    out = f"{storage.uri}/run"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with subprocess.Popen(
        command(data, out),
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as first:
        said = []
        for line in first.stderr:
            said.append(line)
            if "fit 0/" in line or "fit 1/" in line:
                os.killpg(first.pid, signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL, "".join(said)
    assert Store(out).exists(LOCK)
    again = subprocess.run(
        command(data, out), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "describe: complete, nothing to do" in again.stderr
    assert chaos.compare(expected, chaos.tables(out)) > 500
    chaos.examine(out)
    assert not Store(out).exists(LOCK)
    assert not Store(out).exists("train")


def test_a_video_that_is_replaced_is_seen(storage: Storage) -> None:
    store, found = Store(f"{storage.uri}/videos"), []
    for data in (b"one", b"two"):
        store.publish("a.avi", data)
        (row,) = list_videos(store.root).to_pylist()
        found.append(row)
        assert Store(store.root).fs.cat_file(row["uri"]) == data
    assert found[0]["size_bytes"] == found[1]["size_bytes"] == 3
    assert None not in (found[0]["modified"], found[1]["modified"])
    assert found[0]["modified"] != found[1]["modified"]


def test_the_trial_warns_of_storage_that_creates_twice(
    storage: Storage, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(f"{storage.uri}/tried")
    try_out(store)
    creates_twice = request.node.callspec.params["storage"] in CREATES_TWICE
    assert ("no conditional writes" in caplog.text) == creates_twice
    assert store.files("", suffix="") == []


def test_a_lock_that_is_held_refuses(storage: Storage) -> None:
    store = Store(f"{storage.uri}/locked")
    with RunLock(store, "first") as first:
        with pytest.raises(LockedError, match="first"):
            RunLock(store, "second").__enter__()
        first.check()
    assert not store.exists(LOCK)


def test_of_two_that_start_at_once_one_runs(
    storage: Storage, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has looked before the first wrote; where its create succeeds, the first stops."""
    store = Store(f"{storage.uri}/both")
    second, looks = RunLock(store, "second"), [None]
    read = second._read
    monkeypatch.setattr(second, "_read", lambda: looks.pop() if looks else read())

    def both() -> None:
        with RunLock(store, "first"):
            # Of another thread, as of another process: it leaves the signals of this one alone.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(second.__enter__).result()
            time.sleep(30)

    if request.node.callspec.params["storage"] in CREATES_TWICE:
        with pytest.raises(LockLostError, match=r"\(second\).* took it over"):
            both()
        second.check()
        second.__exit__(None, None, None)
    else:
        with pytest.raises(LockedError, match="first"):
            both()
    assert not store.exists(LOCK)


def test_storage_whose_ranges_have_wrong_checksums_is_refused_and_named(
    storage: Storage, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.callspec.params["storage"] != "rclone":
        pytest.skip("rclone alone gives such checksums")
    monkeypatch.delenv("AWS_RESPONSE_CHECKSUM_VALIDATION")
    _forget_clients(storage)
    with pytest.raises(RunError, match=r"a ranged read failed: .*AWS_RESPONSE_CHECKSUM_VALIDATION"):
        open_store(f"{storage.uri}/tried")
    _forget_clients(storage)
