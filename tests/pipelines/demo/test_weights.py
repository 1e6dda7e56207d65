"""The weights of the demonstration where none can be downloaded."""

import logging

import pytest

from pipelines.demo.weights import weights_or_random


def test_without_network_the_demo_says_that_its_filters_are_random(
    monkeypatch: pytest.MonkeyPatch, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert weights_or_random(None) == "random:0"
    assert "could not be downloaded" in caplog.text
    assert "RANDOM filters" in caplog.text
    assert weights_or_random("s3://bucket/w.pth") == "s3://bucket/w.pth"
