"""Workers that Ray's memory monitor kills again and again, on a cluster of the job's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import chaos


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_a_step_whose_workers_are_only_killed_says_what_to_lower(
    data: Path, tmp_path: Path
) -> None:
    """The monitor's limit is below what this machine uses already, so that each worker is
    killed."""
    command = [sys.executable, "-m", "jobs.fcvid_encode", "--recipe", "demo", "--limit", "4"]
    command += ["--videos", str(data / "labelled" / "weizmann"), "--out", str(tmp_path / "out")]
    command += ["--steps", "index", "--set", "describe.weights=random:0"]
    limits = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "200"}
    done = subprocess.run(
        command,
        cwd=chaos.ROOT,
        env=os.environ | limits,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert re.search(
        r"\nerror: index: Ray's memory monitor has killed \d+ workers.*lower cluster.num_decoders",
        done.stderr,
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "run.lock").exists()
