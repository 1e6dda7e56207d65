"""The accuracy of a recipe and of switches: a small run that prints, writes a page, and goes on."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from jobs import benchmark_accuracy
from pipelines import accuracy
from tests.jobs.test_sweep import TINY


@pytest.fixture
def sets(tmp_path: Path, data: Path) -> Path:
    """A folder with one set: two people, two actions."""
    folder = data / "labelled" / "weizmann"
    with (folder / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in ("bend", "walk")]
    people = sorted({row["group"] for row in rows})[:2]
    (tmp_path / "data" / "small").mkdir(parents=True)
    with (tmp_path / "data" / "small" / "labels.csv").open("w") as file:
        writer = csv.DictWriter(file, ("path", "label", "group"))
        writer.writeheader()
        for row in rows:
            if row["group"] in people:
                video = folder / row["path"]
                shutil.copy(video, tmp_path / "data" / "small")
                writer.writerow(row | {"path": video.name})
    return tmp_path / "data"


def flags(sets: Path, *more: str) -> list[str]:
    found = ["--data", str(sets), "--sets", "small", "--switch-sets", "small"]
    for setting in TINY:
        found += ["--set", setting]
    return [*found, *more]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.timeout(300)
def test_tables_of_a_small_set(
    sets: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = [s for s in accuracy.SWITCHES if s.encoder in ("ave", "vlad@temporal_pyramid=1/2")]
    monkeypatch.setattr(accuracy, "SWITCHES", tuple(wanted))
    page, numbers = tmp_path / "page.md", tmp_path / "numbers.json"
    page.write_text("".join(f"<!-- {p} -->\n<!-- end {p} -->\n" for p in benchmark_accuracy.PARTS))
    weights = data / "weights" / "squeezenet1_0.safetensors"
    command = flags(sets, "--weights", str(weights), "--out", str(tmp_path / "out"))
    command += ["--docs", str(page), "--json", str(numbers)]
    assert benchmark_accuracy.main(command) == 0
    printed = capsys.readouterr().out
    found = json.loads(numbers.read_text())
    switches = found["switches"]["small"]
    assert [one["name"] for one in switches] == [accuracy.BASE.says, *(s.says for s in wanted)]
    for one in switches:
        assert 0 <= one["low"] <= one["accuracy"] <= one["high"] <= 1
        assert f"| {one['name']} | {one['accuracy']:.3f} [" in printed
        assert f"| {one['name']} | {one['accuracy']:.3f} [" in page.read_text()
    names = {one["name"] for one in found["recipe"]["small"]}
    assert {
        "all: late_weighted",
        "vlad on features_12_appearance",
        "all, scores of all streams: given",
    } <= names
    before = numbers.read_text()
    assert benchmark_accuracy.main(command) == 0
    again = json.loads(numbers.read_text())
    assert {k: again[k] for k in ("recipe", "switches")} == {
        k: json.loads(before)[k] for k in ("recipe", "switches")
    }, "all is complete: the same numbers, from what is there"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--sets", "none"], "expected none/labels.csv with path,label,group, found none"),
        (["--parts", "recipes"], "--parts: expected some of recipe, switches, got recipes"),
        (["--docs", "/nowhere.md"], "--docs /nowhere.md: expected a page with marks"),
        (["--set", "picture.views=eleven"], "picture.views=eleven: expected one of"),
        (["--without", "ten corps"], "--without: expected texts of switches"),
    ],
)
def test_wrong_flags_are_one_message(
    sets: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    assert benchmark_accuracy.main(flags(sets, *change)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
