"""The flags of the demo."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_videos_and_labels_go_together() -> None:
    command = [sys.executable, "-m", "jobs.demo", "--videos", "somewhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--videos and --labels go together" in done.stderr
