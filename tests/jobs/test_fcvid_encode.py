"""The command line: frozen flags, and every user error before a cluster starts, in one message."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.fcvid_encode import command, main
from jobs.run_flags import configuration, parsed
from pipelines.run.steps import STEPS

ROOT = Path(__file__).parents[2]


def test_flags_are_frozen() -> None:
    """A new setting is a field of the configuration, not a flag."""
    (steps,) = (one for one in command.params if one.name == "steps")
    assert ",".join(STEPS) in steps.help
    flags = {option for parameter in command.params for option in parameter.opts}
    assert flags == {
        "--videos",
        "--labels",
        "--out",
        "--recipe",
        "--config",
        "--set",
        "--steps",
        "--verbose",
        "-v",
        "--limit",
        "--plan",
        "--retry-failed",
        "--take-over",
        "--address",
    }


@pytest.fixture
def weizmann(data: Path) -> dict[str, str]:
    folder = data / "labelled" / "weizmann"
    return {
        "--videos": str(folder),
        "--labels": str(folder / "labels.csv"),
        "--recipe": "demo",
        "--set": f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--recipe": "ucf11"}, "--recipe: expected one of"),
        (
            {"--set": "describe.streams=motion"},
            "expected one of ['appearance', 'difference', 'positions', 'dense', 'rank', 'flow', ",
        ),
        ({"--set": "encode.encoders=vlat"}, "encode.encoders: expected some of"),
        ({"--set": "encode.encoders=ga"}, "ga reads streams of kind global, but"),
        (
            {"--set": "encode.encoders=gmm_fv@pca_components=600"},
            (
                "gmm_fv@pca_components=600 has pca_components = 600, but descriptors of"
                " features_12_appearance have 512"
            ),
        ),
        (
            {"--set": "describe.streams=positions", "--more": "encode.encoders=ave@per_level=true"},
            "tells the cells of a spatial pyramid apart, and features_12_positions has none",
        ),
        (
            {"--set": "describe.nodes=ga", "--more": "describe.streams=difference@gap=3"},
            "expected a difference of a node with maps, got ga, which gives a vector",
        ),
        (
            {"--set": "fit.num_workers=1000"},
            "fit.num_workers: expected at most the 60 training videos, got 1000; each worker",
        ),
        ({"--set": "evaluate.stream_weights=1,2,3"}, "expected none, or one for each of features"),
        ({"--set": "describe.backbone=squeezenet"}, "known are squeezenet1"),
        ({"--set": "describe.nodes=features.99"}, "describe.nodes"),
        ({"--set": "describe.streams=difference@nodes=features.99"}, "got 'features.99'; known"),
        (
            {"--set": "describe.streams=difference,difference@gap=0"},
            "got features_12_difference of 'features.12' and 'features.12'",
        ),
        (
            {"--set": "describe.streams=difference@gap=3:nodes=features.12/stages/stages"},
            "nodes: expected each once",
        ),
        ({"--set": "describe.weights=/nowhere.pth"}, "cannot read '/nowhere.pth'"),
        ({"--set": "describe.weights=IMAGENET21K_V1"}, "describe.weights: squeezenet1_0 has"),
        ({"--set": "describe.weights=random:x"}, "expected random:SEED"),
        ({"--videos": "/nowhere"}, "nothing is there"),
        ({"--labels": "/nowhere.csv"}, "--labels /nowhere.csv: no such file"),
        ({"--labels": None, "--steps": "classify"}, "need labels"),
        (
            {"--labels": None, "--steps": "index,fit", "--set": "fv_vae.lambda3=1"},
            "fv_vae trains with a class loss and expects labels, got none",
        ),
        ({"--steps": "decode"}, "--steps decode: expected all, or some of"),
        ({"--steps": "classify"}, "step index is not complete"),
        ({"--limit": "0"}, "--limit: expected at least 1"),
        ({"--out": "/proc/nowhere"}, "--out /proc/nowhere: cannot write there"),
        ({"--out": "s4://bucket/run"}, "--out s4://bucket/run"),
        ({"--out": "memory://run"}, "--out memory://run: expected a folder, s3://, gs:// or az://"),
        ({"--videos": "memory://run"}, "--videos memory://run: expected a folder, s3://"),
    ],
)
def test_user_errors_are_one_message_and_no_cluster(
    weizmann: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str | None],
    message: str,
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("a cluster was started"))
    flags = {"--out": str(tmp_path / "out")} | weizmann | change
    named = [(flag.replace("--more", "--set"), value) for flag, value in flags.items() if value]
    code = main([part for flag in named for part in flag])
    printed = capsys.readouterr().err
    assert code == 2
    assert message in printed
    assert printed.startswith("error: ")
    assert "Traceback" not in printed


def test_old_codecs_are_asked_for(
    weizmann: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [part for flag in {**weizmann, "--out": str(tmp_path)}.items() for part in flag]
    assert main([*flags, "--retry-failed", "decord"]) == 2
    printed = capsys.readouterr().err
    assert "FFmpeg's codecs of 2018" in printed
    assert "add --set decode.accept_old_codecs=true" in printed
    assert not any(tmp_path.iterdir())
    asked = ["--retry-failed", "decord", "--set", "decode.accept_old_codecs=true"]
    given = parsed(command, [*flags, *asked], "fcvid_encode")
    assert configuration(given).decode.accept_old_codecs


def test_weights_that_cannot_be_downloaded_stop_the_job(
    weizmann: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    flags = weizmann | {"--out": str(tmp_path / "out"), "--set": "describe.weights=IMAGENET1K_V1"}
    assert main([part for pair in flags.items() for part in pair]) == 2
    assert "could not be downloaded" in capsys.readouterr().err


@pytest.mark.parametrize("start", [["-m", "jobs.fcvid_encode"], ["jobs/fcvid_encode.py"]])
def test_it_starts_as_module_and_as_script_and_fails_in_a_second(start: list[str]) -> None:
    """Settings are checked before torch and Ray are loaded."""
    command = [sys.executable, *start, "--videos", "x", "--out", "y", "--set", "fit.num_workers=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: --set fit.num_workers=0: fit.num_workers: expected at least 1, got 0\n"
    )


def test_a_ray_job_refuses_relative_paths(
    weizmann: dict[str, str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would lie in the copy of the working directory, which goes with the job."""
    known = {"metadata": {"job_submission_id": "a"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(known))
    flags = weizmann | {"--out": "runs/a"}
    assert main([part for pair in flags.items() for part in pair]) == 2
    assert "--out runs/a: expected a URI, or the absolute path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_unwinds_the_job(number: signal.Signals, code: int) -> None:
    script = """
import signal, sys, time
from jobs.command_line import guarded
# Whatever starts the tests may ignore it, as a shell does for what runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def job():
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        print("lock given back", flush=True)
sys.exit(guarded(job))
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "at work\n"
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (code, "lock given back\n")
    assert err == "stopped: what is finished is kept, and the same command goes on from there\n"
