"""The command line of jobs.submit: frozen flags, and user errors in one message each."""

from pathlib import Path

import pytest

from jobs.submit import main, parser

ROOT = Path(__file__).parents[2]
JOB = ["--", "--videos", "s3://bucket/videos", "--out", "/runs/fcvid"]


def test_flags_are_frozen() -> None:
    flags = {option for action in parser()._actions for option in action.option_strings}
    assert flags == {
        "-h",
        "--help",
        "--address",
        "--attempts",
        "--up",
        "--working-dir",
        "--runtime-env",
        "--pending-timeout-s",
        "--head-timeout-s",
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


@pytest.mark.parametrize("job", [[], ["--", "--videos", "v"], [*JOB, "--speed", "9"]])
def test_wrong_flags_of_the_job_show_before_it_is_submitted(
    job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(job)
    assert ended.value.code == 2
    assert "fcvid_encode: error:" in capsys.readouterr().err
