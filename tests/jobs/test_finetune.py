"""The command line of the end-to-end training: errors before a cluster, and what it prints."""

from pathlib import Path

import pytest

from jobs.finetune import main


@pytest.fixture
def weizmann(data: Path) -> dict[str, str]:
    folder = data / "labelled" / "weizmann"
    return {
        "--videos": str(folder),
        "--labels": str(folder / "labels.csv"),
        "--recipe": "demo",
        "--limit": "12",
    }


def settings(data: Path, *changed: str) -> list[str]:
    given = {
        "describe.weights": f"{data / 'weights' / 'squeezenet1_0.safetensors'}",
        "split.kind": "random",
        "fv_vae.lambda3": "10",
    }
    given |= dict(setting.split("=", 1) for setting in changed)
    return [part for name, value in given.items() for part in ("--set", f"{name}={value}")]


@pytest.mark.parametrize(
    ("flags", "changed", "message"),
    [
        ({}, ("fv_vae.lambda3=0",), "fv_vae.lambda3: expected more than 0, got 0"),
        ({}, ("fv_vae.pca_components=8",), "fv_vae.pca_components: expected 0, got 8"),
        ({}, ("describe.nodes=features.12,features.9",), "expected one node"),
        ({}, ("describe.streams=difference",), "appearance among the streams"),
        ({}, ("describe.nodes=ga", "encode.encoders=ga"), "expected a node with maps, got ga"),
        ({}, ("split.kind=group_kfold",), "got 4 folds (group_kfold); each fold would need"),
        ({}, ("fit.num_workers=90",), "training videos, got 90; each worker"),
        ({}, ("finetune.trainable_from=features.99",), "got 'features.99'; known are"),
        ({}, ("finetune.trainable_from=classifier.1",), "parameters between it and features.12"),
        ({}, ("finetune.num_frames=0",), "finetune.num_frames: expected at least 1, got 0"),
        ({}, ("finetune.learning_rate_factor=0",), "expected more than 0, got 0"),
        ({"--steps": "fit"}, (), "expected neither, because this job is one step"),
        ({"--retry-failed": "pyav"}, (), "expected neither, because this job is one step"),
        ({"--labels": None}, (), "expects labels, got none"),
    ],
)
def test_user_errors_are_one_message_and_no_cluster(
    weizmann: dict[str, str],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, str | None],
    changed: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("a cluster was started"))
    flags = {"--out": str(tmp_path / "out")} | weizmann | flags
    given = [part for flag, value in flags.items() if value for part in (flag, value)]
    code = main([*given, *settings(data, *changed)])
    printed = capsys.readouterr().err
    assert code == 2
    assert message in printed
    assert printed.startswith("error: ")
    assert "Traceback" not in printed
