"""The job on a cluster that starts with no worker: nodes come for its steps and go after them.

python -m pytest tests/cluster/test_autoscaling.py -rP     # prints when what came and went
(docs/autoscaling.md)
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cluster import heads
from tests.cluster.autoscaling import Onlooker, autoscaling_head

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
NUM_NODES = 2
IDLE_S = 12.0

STAYING = """
import sys
from jobs.fcvid_encode import main
print("exit code", main(sys.argv[1:]), flush=True)
sys.stdin.read()
"""
"""The job, whose driver stays in the cluster when it is done, so that what it leaves behind is
seen."""


@pytest.fixture(scope="module")
def head() -> Iterator[heads.Head]:
    kinds = {"cpu": {"CPU": 2}, "gpu": {"CPU": 1, "GPU": 1}}
    with autoscaling_head(kinds, NUM_NODES, IDLE_S) as made:
        yield made


def job(head: heads.Head, data: Path, out: Path, *settings: str) -> subprocess.Popen:
    videos = data / "labelled" / "weizmann"
    command = [sys.executable, "-c", STAYING, "--address", head.gcs_address, "--recipe", "demo"]
    command += ["--videos", str(videos), "--labels", str(videos / "labels.csv"), "--out", str(out)]
    command += ["--steps", "index,describe", "--limit", "48"]
    always = (
        "describe.weights=random:0",
        "describe.batch_segments=2",
        "sampling.num_frames=25",
        "cluster.max_cpus=6",
        "cluster.num_decoders=3",
        # The GPUs of these nodes are a word.
        "cluster.allow_missing_gpu=true",
    )
    for setting in (*always, *settings):
        command += ["--set", setting]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(out.with_suffix(".log")).open("w"),
        text=True,
    )


def described(out: Path) -> list[str]:
    files = [file for file in out.glob("descriptors/*/*.parquet") if file.name[0] != "."]
    return [row for file in files for row in pq.read_table(file)["status"].to_pylist()]


def test_nodes_come_for_a_step_and_go_after_it(
    head: heads.Head, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with Onlooker(head.address) as onlooker:
        assert onlooker.wait_for(lambda seen: not seen.cpu_nodes | seen.gpu_nodes, 30)
        sizes = ("cluster.max_gpus=2", "cluster.num_describers=2")
        with job(head, data, out, *sizes) as driver:
            try:
                assert driver.stdout.readline() == "exit code 0\n", out.with_suffix(
                    ".log"
                ).read_text()
                # The driver is still there, and nothing of it holds a node.
                gone = onlooker.wait_for(lambda seen: not seen.cpu_nodes | seen.gpu_nodes, 90)
            finally:
                driver.stdin.close()
    print(*onlooker.changes("Probe", "Decode", "Describe"), sep="\n")
    assert gone, onlooker.seen[-1]
    assert described(out) == ["ok"] * 48
    describing = [seen for seen in onlooker.seen if seen.pool("Describe")]
    most = max(describing, key=lambda seen: len(seen.pool("Describe")))
    assert len(most.gpu_nodes) == len(set(most.pool("Describe").values())) == 2
    assert most.cpu_nodes
    for seen in onlooker.seen:
        # A whole GPU each.
        nodes = list(seen.pool("Describe").values())
        assert len(nodes) == len(set(nodes))
        assert set(nodes) <= seen.gpu_nodes | most.gpu_nodes
    # The step before had no GPU node started.
    probing = [seen for seen in onlooker.seen if seen.pool("Probe")]
    assert not any(seen.gpu_nodes for seen in probing if not seen.pool("Decode"))


def test_a_pool_that_cannot_grow_is_warned_of_and_works(
    head: heads.Head, data: Path, tmp_path: Path
) -> None:
    """More GPUs are hoped for than the autoscaler may start: as where spot capacity is missing."""
    out = tmp_path / "run"
    hoped = ("cluster.max_gpus=4", "cluster.num_describers=4", "cluster.grow_warning_s=4")
    with job(head, data, out, *hoped) as driver:
        try:
            assert driver.stdout.readline() == "exit code 0\n", out.with_suffix(".log").read_text()
        finally:
            driver.stdin.close()
    assert described(out) == ["ok"] * 48
    lines = out.with_suffix(".log").read_text().splitlines()
    warnings = [line for line in lines if "describe: the pool of describe has had" in line]
    assert warnings, lines
    assert "of 4 actors for" in warnings[0]
    assert "each actor needs 1 GPU" in warnings[0]
    assert "`ray status`" in warnings[0]
