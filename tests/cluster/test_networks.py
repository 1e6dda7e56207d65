"""A network that fails: nodes with addresses of their own, whose cables are pulled while the job
runs. The tables are those of an undisturbed run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
import ray  # noqa: F401 (which brings psutil)

# isort: split
import psutil

from pipelines.storage.store import Store
from tests import chaos
from tests.cluster.heads import END_S, START_S
from tests.cluster.networks import Host, Network, network, why_not
from tests.cluster.test_nodes import upload

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

ROOT = Path(__file__).parents[2]

DOWN_S = 30.0
"""Time that a cable is out."""

TOKEN = "0" * 64
KEY = "of-the-storage"
GCS_PORT, S3_PORT = 6379, 5000


@dataclass
class Machines:
    """A head with one CPU, workers with two, a storage, and a cable from each to the bridge."""

    net: Network
    stack: ExitStack
    head: Host
    storage: Host
    workers: list[Host] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What every process knows; nothing of the tests' own cluster."""
        own = ("RAY_", "VIDEO_FISHER_OWN_TOKEN")
        environment = {n: value for n, value in os.environ.items() if not n.startswith(own)}
        return environment | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "AWS_ENDPOINT_URL": f"http://{self.storage.address}:{S3_PORT}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, host: Host, *flags: str) -> None:
        """Start a Ray node, with folders of its own, that ends with the test."""
        folder = Path(tempfile.mkdtemp(prefix="net-"))
        self.stack.callback(shutil.rmtree, folder, ignore_errors=True)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += [f"--node-ip-address={host.address}", f"--temp-dir={folder}"]
        command += [f"--object-store-memory={200 * 2**20}", "--disable-usage-stats", *flags]
        log = folder / "start.log"
        process = self.stack.enter_context(
            started(host.command(*command), self.environment, log, cwd=folder)
        )
        deadline = time.monotonic() + START_S
        while b"Ray runtime started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"ray start did not come up:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)

    def add_worker(self) -> None:
        """Add a worker. Ray gives up a node that does not come up in half a minute; on a machine
        that is busy another one is tried."""
        for left in (2, 1, 0):
            host = self.net.add()
            try:
                self.start(host, f"--address={self.head.address}:{GCS_PORT}", "--num-cpus=2")
            except RuntimeError:
                if not left:
                    raise
            else:
                self.workers.append(host)
                return

    def job(self, out: str) -> chaos.Driver:
        """The whole job on the head, as `ray job submit` would run it there."""
        command = [sys.executable, "-m", "jobs.fcvid_encode", "--recipe", "demo"]
        command += ["--videos", "s3://bucket/in/videos", "--labels", "s3://bucket/in/l.csv"]
        command += ["--out", f"s3://bucket/{out}", "--verbose"]
        command += ["--address", f"{self.head.address}:{GCS_PORT}"]
        for setting in ("describe.weights=s3://bucket/in/w.safetensors", *chaos.SETTINGS):
            command += ["--set", setting]
        return chaos.Driver(self.head.command(*command), self.environment)

    def run(self, out: str, disturb: Callable[[], None]) -> dict[str, object]:
        """Run the job, call `disturb` as soon as each step has begun; return the tables."""
        with self.job(out) as driver:
            for step in chaos.STEPS:
                assert driver.wait_for(step), "\n".join(driver.lines[-30:])
                disturb()
            code = driver.end()
        assert code == 0, "\n".join(driver.lines[-60:])
        return chaos.tables(f"s3://bucket/{out}")

    def without(self, host: Host) -> None:
        """Have a host without its cable for a while."""
        self.net.pull(host)
        time.sleep(DOWN_S)
        self.net.plug(host)


@contextmanager
def started(
    command: list[str], environment: dict[str, str], log: Path, cwd: Path
) -> Iterator[subprocess.Popen]:
    """A process, which has ended with its children when the block is left."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=cwd,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        processes = []
        if process.poll() is None:
            root = psutil.Process(process.pid)
            processes = [root, *root.children(recursive=True)]
            process.terminate()
        _, alive = psutil.wait_procs(processes, END_S)
        for one in alive:
            one.kill()
        process.wait()


@pytest.fixture(scope="module")
def machines(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with ExitStack() as stack:
        net = stack.enter_context(network())
        made = Machines(net, stack, head=net.add(), storage=net.add())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in made.environment.items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("storage")
        server = [sys.executable, "-m", "moto.server", "-H", made.storage.address]
        server += ["-p", str(S3_PORT)]
        stack.enter_context(
            started(made.storage.command(*server), os.environ | {}, folder / "log", folder)
        )
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        _make_bucket(made)
        upload(data, Store("s3://bucket/in"))
        made.start(made.head, "--head", f"--port={GCS_PORT}", "--num-cpus=1")
        for _ in range(2):
            made.add_worker()
        yield made
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _make_bucket(machines: Machines) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError

    deadline = time.monotonic() + START_S
    while True:
        try:
            boto3.client("s3", **_client(machines)).create_bucket(Bucket="bucket")
            return
        except BotoCoreError:
            assert time.monotonic() < deadline, "the storage does not answer"
            time.sleep(0.2)


def _client(machines: Machines) -> dict[str, str]:
    return {
        "endpoint_url": machines.environment["AWS_ENDPOINT_URL"],
        "aws_access_key_id": "testing",
        "aws_secret_access_key": KEY,
        "region_name": "us-east-1",
    }


@pytest.fixture(scope="module")
def expected(machines: Machines) -> dict[str, object]:
    """Tables of the run that nothing disturbs."""
    found = machines.run("calm", lambda: None)
    assert len(found) > 15
    return found


def test_a_worker_without_its_cable_for_half_a_minute_in_each_step(
    machines: Machines, expected: dict[str, object]
) -> None:
    found = machines.run("worker", lambda: machines.without(machines.workers[0]))
    assert chaos.compare(expected, found) > 500


def test_a_storage_without_its_cable_for_half_a_minute_in_each_step(
    machines: Machines, expected: dict[str, object]
) -> None:
    found = machines.run("storage", lambda: machines.without(machines.storage))
    assert chaos.compare(expected, found) > 500


def test_a_node_lost_for_good_in_each_step(machines: Machines, expected: dict[str, object]) -> None:
    """Nobody says that it is gone: its cable stays out. Another node comes in its place."""

    def lose() -> None:
        machines.net.pull(machines.workers.pop(0))
        machines.add_worker()

    found = machines.run("lost", lose)
    assert chaos.compare(expected, found) > 500
