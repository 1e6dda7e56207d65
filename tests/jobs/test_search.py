"""The command line of the search: its flags, its exit codes, and what it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.search import command, main
from tests.pipelines.doctor import run as doctor_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    doctor_run.make(tmp_path / "run")
    return tmp_path / "run"


def test_flags_are_frozen() -> None:
    flags = {option for parameter in command.params for option in parameter.opts}
    assert flags == {*("--out", "--query", "--encoder", "--stream", "--num", "--page", "--json")}


def test_a_table_and_a_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(run), "--query", "v0", "--num", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "similarity", "video_id", "labels"]
    assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]
    page = Path(lines[-1].removeprefix("page: "))
    assert "Videos like v0" in page.read_text()


def test_json_is_all_that_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(run), "--query", "v0", "--encoder", "ave", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["encoder"] == "ave"
    assert len(found["results"]) == 4


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--out", "/nowhere"], 2, "--out /nowhere: expected a run with its run.json, found none"),
        (["--out", "s9://bucket/run"], 2, "--out s9://bucket/run: "),
        (["--query", "v9"], 2, "--query v9: expected a video_id of the run, or a video file"),
        (["--query", "/nowhere/x.mp4"], 2, "found neither"),
    ],
)
def test_wrong_usage(
    run: Path, change: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(run), "--query", "v0", *change]) == code
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.slow
def test_it_needs_no_ray(run: Path) -> None:
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'ray':\n"
        "            raise ImportError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from jobs.search import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, "--out", str(run), "--query", "v0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rank ")
