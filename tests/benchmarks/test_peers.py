"""The script written by hand gives our descriptors; what processes cost is all counted."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import __main__ as peers
from benchmarks.peers.script import pooled
from benchmarks.peers.tree import Cost, cost
from encoders.descriptors.streams import appearance

FORK = """
import os, time
done, to_tell = os.pipe()
if not os.fork():
    os.setsid()
    if not os.fork():
        kept = bytearray(100_000_000)
        end = time.process_time() + 0.4
        while time.process_time() < end: pass
        time.sleep(0.5)
    os._exit(0)
os.close(to_tell)
os.wait()
os.read(done, 1)  # until the orphan has ended
"""


def test_the_script_pools_as_the_pipeline_does() -> None:
    maps = torch.randn(3, 16, 13, 13, generator=torch.Generator().manual_seed(0)).relu_()
    torch.testing.assert_close(pooled(maps), appearance(maps, "per_position"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="orphans are found by Linux's subreaper")
def test_a_process_that_outlives_its_parent_is_counted(tmp_path: Path) -> None:
    found = cost([sys.executable, "-c", FORK], {}, tmp_path / "log")
    assert found.cpu_s >= 0.35
    assert found.peak_bytes > 90_000_000
    assert found.processes >= 2
    with pytest.raises(SystemExit, match="ended here"):
        cost([sys.executable, "-c", "raise SystemExit('ended here')"], {}, tmp_path / "log")


def test_a_row_is_the_ratio_of_medians_and_other_descriptors_are_refused() -> None:
    ours = [Cost(30.0, 60.0, 4 * 10**9, 9), Cost(34.0, 64.0, 4 * 10**9, 9)]
    found = {"ours": ours, "script": [Cost(32.0, 62.0, 4 * 10**9, 3)] * 2}
    rows = peers._rows("script", found, 200)
    assert [row.ratio for row in rows] == [1.0, 1.0, 1.0]
    assert [row.met for row in rows] == [True, True, True]
    mean = torch.from_numpy(np.linspace(0, 1, 8))
    peers._check("daft", mean, mean * 1.001)
    with pytest.raises(peers.Disagreement, match="daft: expected the script's descriptors"):
        peers._check("daft", mean.flip(0), mean)
