"""A small part of `python -m tests.chaos`, and the table of promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_killed_run_ends_as_an_undisturbed_one(data: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--kills", "1", "--seed", "7"],
        cwd=ROOT,
        env=os.environ | {"VIDEO_FISHER_DATA": str(data)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (rows,) = re.findall(r"1 kills survived, (\d+) rows compared", done.stdout)
    assert int(rows) > 500


def test_the_tests_that_the_promises_name_are_there() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    named = re.findall(r"`(tests/\w+(?:/\w+)*\.py)(?:::(\w+))?`", page)
    assert len(named) > 20
    for file, test in named:
        source = (ROOT / file).read_text()
        assert f"def {test}(" in source if test else "def test_" in source, (file, test)
