"""Three nodes that share nothing but an object storage: the tables are those of one process, and
the storage is asked for the weights once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

from pipelines.storage.store import Store
from tests import chaos
from tests.cluster.heads import Head, head
from tests.cluster.nodes import Node, joined
from tests.faulty_s3 import FaultyS3

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
NUM_VIDEOS = 12


@dataclass(frozen=True)
class Machines:
    """A head with one CPU, a node with two, and one with one CPU and something of its own."""

    head: Head
    nodes: tuple[Node, Node]
    storage: FaultyS3
    bucket: str
    folder: Path

    def run(self, module: str, *arguments: str) -> subprocess.CompletedProcess:
        """A Python program as the user starts it, in an empty folder."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    def job(self, out: str, *flags: str) -> None:
        """The whole job on the videos of the bucket."""
        command = ["--recipe", "demo", "--out", f"{self.bucket}/{out}", *flags]
        command += ["--videos", f"{self.bucket}/in/videos", "--labels", f"{self.bucket}/in/l.csv"]
        weights = f"describe.weights={self.bucket}/in/w.safetensors"
        for setting in (weights, *chaos.SETTINGS):
            command += ["--set", setting]
        done = self.run("jobs.fcvid_encode", *command)
        assert done.returncode == 0, done.stderr[-5000:]

    def reads(self, part: str) -> int:
        """How often objects with that in their name were read."""
        return sum(
            count
            for (method, path), count in self.storage.paths.items()
            if method == "GET" and part in path
        )


@pytest.fixture(scope="module")
def machines(
    data: Path, s3_bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machines]:
    with ExitStack() as stack:
        storage = stack.enter_context(FaultyS3(os.environ["AWS_ENDPOINT_URL"], {}))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("AWS_ENDPOINT_URL", storage.url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        upload(data, Store(f"{s3_bucket}/in"))
        # Without a path to the code: it comes with the job.
        environment = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
        first = stack.enter_context(head(num_cpus=1, environment=environment))
        nodes = [
            stack.enter_context(joined(first, *flags, num_cpus=num_cpus, environment=environment))
            for num_cpus, flags in ((2, ()), (1, ('--resources={"scratch": 1}',)))
        ]
        folder = tmp_path_factory.mktemp("empty")
        yield Machines(first, tuple(nodes), storage, s3_bucket, folder)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def upload(data: Path, store: Store) -> None:
    """Some videos of several classes and people, their labels, and weights."""
    folder = data / "labelled" / "weizmann"
    header, *rows = (folder / "labels.csv").read_text().splitlines()
    chosen = [rows[place * len(rows) // NUM_VIDEOS] for place in range(NUM_VIDEOS)]
    for row in chosen:
        name = row.split(",")[0]
        store.publish(f"videos/{name}", (folder / name).read_bytes())
    store.publish("l.csv", "\n".join([header, *chosen]).encode())
    weights = data / "weights" / "squeezenet1_0.safetensors"
    store.publish("w.safetensors", weights.read_bytes())


def test_three_nodes_make_the_tables_of_one_process(machines: Machines) -> None:
    machines.job("one")
    machines.storage.paths.clear()
    machines.job("three", "--address", machines.head.gcs_address)
    expected, found = (chaos.tables(f"{machines.bucket}/{name}") for name in ("one", "three"))
    assert len(expected) > 15
    assert chaos.compare(expected, found) > 500
    assert machines.reads("/three/weights/") == 1
    for node in machines.nodes:
        assert node.has_worked()
        assert node.files() == []
    assert list(machines.folder.iterdir()) == []


def test_the_storage_is_asked_for_the_weights_once_however_many_describers(
    machines: Machines,
) -> None:
    machines.storage.paths.clear()
    arguments = (machines.head.gcs_address, f"{machines.bucket}/in", "w.safetensors")
    done = machines.run("tests.cluster.describers", *arguments)
    assert done.returncode == 0, done.stderr[-5000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert [len(digests) for digests in said["digests"].values()] == [2, 2, 2]
    assert len({digest for digests in said["digests"].values() for digest in digests}) == 1
    assert machines.reads("/in/w.safetensors") == 1
    # A node that describes has fetched it once, for all its describers.
    assert sorted(said["holders"]) == sorted(said["digests"])
