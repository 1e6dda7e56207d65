"""The job that trains one network is the main job with its recipe."""

from pathlib import Path

import pytest

from jobs import run_flags, train_network
from pipelines.settings.config import Config


def configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *flags: str) -> Config:
    seen = []
    monkeypatch.setattr(run_flags, "run", lambda _, config: seen.append(config) or 0)
    inputs = ["--videos", str(tmp_path), "--labels", "l.csv", "--out", str(tmp_path / "out")]
    assert train_network.main([*inputs, *flags]) == 0
    return seen[0]


def test_a_network_has_its_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = configured(monkeypatch, tmp_path, "--network", "tdn")
    assert config.recipe == "tdn"
    assert config.network.networks == ("tdn",)
    assert config.tdn.num_steps == (30_000, 10_000)
    assert (config.tdn.learning_rate, config.tdn.segments, config.tdn.decay) == (0.01, 3, 1e-4)


def test_another_recipe_keeps_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = ("--network", "tsn", "--recipe", "hmdb51", "--set", "tsn.segments=5")
    config = configured(monkeypatch, tmp_path, *flags)
    assert config.network.networks == ("tsn",)
    assert config.network.streams == ("rgb", "flow")
    assert (config.tsn.segments, config.tsn.dropout, config.tsn.batch_norm) == (5, 0.8, "first")
    flow = config.tsn.on("flow")
    assert (flow.learning_rate, flow.dropout, flow.clip_norm) == (0.005, 0.7, 20)


def test_an_unknown_network_is_refused(capsys: pytest.CaptureFixture) -> None:
    flags = ["--network", "tdm", "--videos", "v", "--out", "o"]
    assert train_network.main(flags) == 2
    assert "--network" in capsys.readouterr().err
