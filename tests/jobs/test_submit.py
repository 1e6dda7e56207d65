"""The command line of jobs.submit: frozen flags, and user errors in one message each."""

from pathlib import Path

import pytest

from jobs.submit import command, main

ROOT = Path(__file__).parents[2]
JOB = ["--", "--videos", "s3://bucket/videos", "--out", "/runs/fcvid"]


def test_flags_are_frozen() -> None:
    flags = {option for parameter in command.params for option in parameter.opts}
    assert flags == {
        "--address",
        "--attempts",
        "--up",
        "--working-dir",
        "--runtime-env",
        "--pending-timeout-s",
        "--head-timeout-s",
        "job",
    }


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--address", "HEAD:6379"], "--address HEAD:6379: expected http://HEAD:8265"),
        (["--attempts", "0"], "--attempts: expected more than 0, got 0"),
        (["--pending-timeout-s", "nan"], "--pending-timeout-s: expected more than 0"),
        (["--working-dir", "/tmp"], "expected the checkout with jobs/fcvid_encode.py"),
        (["--runtime-env", "/nowhere.yaml"], "--runtime-env /nowhere.yaml: cannot be read"),
        (["--runtime-env", __file__], "--runtime-env"),
        (["--labels", "labels.csv"], "--labels labels.csv: expected a URI, or the absolute path"),
    ],
)
def test_user_errors_are_one_message(
    flags: list[str],
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    # Set by the job; put back afterwards.
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    # The last one is a flag of the job.
    words = [*JOB, *flags] if flags[0] == "--labels" else [*flags, *JOB]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert text in line


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ([], "--videos: expected a value, got none"),
        (["--", "--videos", "v"], "--out: expected a value, got none"),
        ([*JOB, "--speed", "9"], "--speed: no such flag"),
        ([*JOB, "--step", "9"], "--step: no such flag; did you mean --steps"),
    ],
)
def test_wrong_flags_of_the_job_show_before_it_is_submitted(
    job: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(job) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}")
    assert "`jobs/fcvid_encode.py --help` says more" in printed
