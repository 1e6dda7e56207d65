"""docs/python.md: what it shows runs as it stands, and the tables name what there is."""

import inspect
import re
from pathlib import Path

import pytest

import video_fisher as vf
from pipelines.export.registry import FORMATS
from tests.pipelines.doctor import run as made

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()


def code(chapter: str) -> str:
    text = PAGE.partition(f"\n## {chapter}\n")[2].partition("\n## ")[0]
    return "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))


def test_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.make(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    names: dict = {"vf": vf}
    exec(code("Read a run"), names)
    assert names["vectors"].shape[0] == len(names["ids"]) == 5


def test_descriptors_of_ones_own() -> None:
    names: dict = {"vf": vf}
    exec(code("Descriptors of your own"), names)
    assert names["vectors"].shape == (20, 64)
    assert names["search"].best_score_ > 0.9


def test_arguments_and_members_are_named() -> None:
    cells = re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    arguments = set(inspect.signature(vf.run).parameters) - {"sections"} | {"vf"}
    members = {name for name in vars(vf.Run) if not name.startswith("_")}
    assert arguments | members | set(vf.estimators.__all__) | set(FORMATS) == named
