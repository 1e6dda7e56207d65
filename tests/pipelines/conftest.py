"""Fixtures of the tests of this folder."""

from pathlib import Path

import pytest

from tests.pipelines.doctor import run


@pytest.fixture(scope="session")
def sound_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `doctor_run`; no test changes it."""
    root = tmp_path_factory.mktemp("sound")
    run.make(root)
    return root
