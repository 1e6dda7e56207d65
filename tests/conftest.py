import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real videos, weights and oracles; `VIDEO_FISHER_DATA` names another one."""
    default = Path(__file__).parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("VIDEO_FISHER_DATA", default)).resolve()
    if not (folder / "README.md").exists():
        pytest.fail(f"no test data at {folder}: set VIDEO_FISHER_DATA to the data folder")
    return folder
