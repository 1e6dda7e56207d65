"""The doctor's command line: its report, its file and its exit codes."""

import json
from pathlib import Path

import pytest

from jobs.doctor import command, main
from tests.pipelines.doctor import run as doctor_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    doctor_run.make(tmp_path / "run")
    return tmp_path / "run"


def test_flags_are_frozen() -> None:
    flags = {option for parameter in command.params for option in parameter.opts}
    assert flags == {"--out", "--json", "--quick"}


def test_a_sound_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    assert main(["--out", str(run), "--json", str(tmp_path / "report.json")]) == 0
    out = capsys.readouterr().out
    assert "segments: 7 planned = 5 ok + 1 partial + 1 failed" in out
    assert "no problem found: " in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["findings"] == []
    assert report["segments"]["planned"] == 7
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_errors_are_explained_worst_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (run / doctor_run.TABLES["descriptors"] / ".x.part").write_bytes(b"x")
    file = next((run / doctor_run.TABLES["videos"]).glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:100])
    assert main(["--out", str(run), "--json", str(tmp_path / "report.json"), "--quick"]) == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == f"ERROR file.damaged {doctor_run.TABLES['videos']}"
    assert out.index("ERROR file.damaged") < out.index("NOTE file.leftover")
    assert f"{file.name}: expected the bytes that were written" in out
    assert "1 error(s): " in lines[-1]
    assert "--quick" in lines[-1]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [f["check"] for f in report["findings"]] == ["file.damaged", "file.leftover"]
    assert (report["num_errors"], report["num_warnings"], report["num_notes"]) == (1, 0, 1)
    assert report["is_quick"] is True


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "/nowhere"], "--out /nowhere: expected a run with its run.json, found none"),
        (["--out", "s9://bucket/run"], "--out s9://bucket/run: cannot list it"),
        (["--out", "RUN", "--json", "/nowhere/x.json"], "--json /nowhere/x.json: cannot write it"),
    ],
)
def test_wrong_usage(
    run: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    flags = [str(run) if flag == "RUN" else flag for flag in flags]
    assert main(flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.out == ""


def test_missing_flags_are_wrong_usage(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == (
        "error: --out: expected a value, got none; `python -m jobs.doctor --help` says more\n"
    )
