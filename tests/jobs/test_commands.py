"""The command `video-fisher`: what it lists, what it takes, and that it loads what it runs."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.commands import COMMANDS, main
from pipelines.settings.config import Config

ROOT = Path(__file__).parents[2]


def test_every_job_is_a_command() -> None:
    shared = {"__init__", "command_line", "commands_page", "commands", "run_flags"}
    files = {file.stem for file in (ROOT / "jobs").glob("*.py")} - shared
    assert files == set(COMMANDS.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_the_flags_of_its_job(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    job = importlib.import_module(f"jobs.{COMMANDS[name]}")
    assert f"Usage: video-fisher {name}" in printed
    assert " ".join(job.__doc__.split()[:4]) in " ".join(printed.split())
    for parameter in job.command.params:
        assert parameter.opts[0] in printed or parameter.param_type_name == "argument"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serch"], "serch: no such command; did you mean search?"),
        (["search", "--quer", "x"], "--quer: no such flag; did you mean --query"),
        (["run", "--encoder-typo"], "--encoder-typo: no such flag"),
        (["run", "--videos", "v"], "--out: expected a value, got none"),
        (["run", "--videos", "v", "--out", "o", "--limit", "x"], "--limit: 'x' is not a valid int"),
        (["run", "--videos", "v", "--out", "o", "more"], "unexpected extra argument"),
        (["sweep", "--sweep", "lamda3"], "--sweep: 'lamda3' is not one of"),
        (["--versio"], "--versio: no such flag; did you mean --version?"),
        (["settings", "polcy"], "polcy: no setting has it in its name or meaning"),
    ],
)
def test_wrong_flags_are_one_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert line.endswith("--help` says more")
    assert captured.out == ""


def test_settings_are_those_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.partition(" = ")[0] for line in lines if not line.startswith(" ")]
    page = (ROOT / "docs" / "settings.md").read_text()
    assert all(f"| `{name}` |" in page for name in listed)
    plain = dataclasses.asdict(Config())
    assert len(listed) == sum(len(plain[section]) for section in Config.sections())
    assert main(["settings", "vlad"]) == 0
    printed = capsys.readouterr().out
    assert "vlad.num_centroids = 256\n    Centroids of k-means. (whole number;" in printed
    assert "gmm_fv." not in printed
    assert main(["settings", "TIMEOUT", "decode"]) == 0
    assert "decode.timeout_s = " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "found"),
    [("video-fisher se", ["search", "settings"]), ("video-fisher search --e", ["--encoder"])],
)
def test_a_shell_completes_commands_and_flags(
    typed: str, found: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_VIDEO_FISHER_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    with pytest.raises(SystemExit, match="0"):
        main([])
    assert capsys.readouterr().out.splitlines() == [f"plain,{name}" for name in found]


def test_help_loads_no_job(tmp_path: Path) -> None:
    """Of this process's own time: others may have the machine."""
    script = """
import sys, time
sys.argv = ["video-fisher", "--help"]
from video_fisher.__main__ import main
code = main()
print(code, sorted(name for name in sys.modules if name in ("torch", "ray", "pyarrow", "pydantic")))
print(time.process_time())
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    *_, found, seconds = done.stdout.splitlines()
    assert found == "0 []", done.stderr
    assert float(seconds) < 1.0


@pytest.mark.parametrize("name", ["jobs", "pipelines"])
def test_a_folder_with_a_package_of_its_own(tmp_path: Path, name: str) -> None:
    """Python finds it before what is installed; the command passes over it."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('not video-fisher')")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = [
        subprocess.run(
            [sys.executable, *start], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        for start in (
            ["-m", "video_fisher", "run", "--videos"],
            ["-c", "import video_fisher; print(video_fisher.RunError.__module__)"],
        )
    ]
    assert done[0].returncode == 2
    assert done[0].stderr.startswith("error: --videos: Option '--videos' requires an arg")
    if name == "jobs":
        assert (done[1].returncode, done[1].stdout) == (0, "pipelines.errors\n")
        return
    assert done[1].returncode == 1
    assert "expected its own package pipelines in" in done[1].stderr.splitlines()[-1]
