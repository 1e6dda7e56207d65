"""A toy encoder, a toy step and a toy maker of results get in by one file and one line each
(tests/toys/plugin.py), and the contract suites take them up by themselves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SUITES = {
    "tests/encoders/encodings/test_contract.py": 20,
    "tests/pipelines/run/test_steps.py": 9,
    "tests/pipelines/run/test_makers.py": 7,
}
"""{suite: tests that a new entry of its table gets, at least}"""


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.parametrize(("suite", "least"), SUITES.items())
def test_a_contract_suite_takes_up_a_toy(suite: str, least: int) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.toys.plugin", "-q", suite]
    done = subprocess.run(
        [*command, "-k", "toy", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= least


def test_each_toy_is_one_file_and_one_line() -> None:
    lines = (ROOT / "tests/toys/plugin.py").read_text().splitlines()
    assert len([line for line in lines if '["toy"] =' in line]) == 3
    assert {path.name for path in (ROOT / "tests/toys").glob("*.py")} == {
        "encoder.py",
        "plugin.py",
        "result.py",
        "step.py",
    }
    for layer in ("encoders", "pipelines", "jobs"):
        for path in (ROOT / layer).rglob("*.py"):
            assert "toy" not in path.read_text(encoding="utf-8"), path
