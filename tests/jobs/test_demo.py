"""The demo's own parts: weights that cannot be had, and queries that can be pasted."""

import logging
import subprocess
import sys

import pytest

from jobs import demo


def test_without_network_the_demo_says_that_its_filters_are_random(
    monkeypatch: pytest.MonkeyPatch, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert demo._weights(None) == "random:0"
    assert "could not be downloaded" in caplog.text
    assert "RANDOM filters" in caplog.text
    assert demo._weights("s3://bucket/w.pth") == "s3://bucket/w.pth"


@pytest.mark.slow
def test_videos_and_labels_go_together() -> None:
    command = [sys.executable, "-m", "jobs.demo", "--videos", "somewhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "VIDEOS and LABELS go together" in done.stderr
