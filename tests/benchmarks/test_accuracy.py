"""The accuracy of a recipe and of switches: a small run that prints, writes a page, and goes on."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import accuracy as benchmarks_accuracy
from benchmarks import accuracy_run
from benchmarks.accuracy_numbers import PARTS
from tests.jobs.test_sweep import TINY

FEW = (
    "describe.streams=appearance,difference@gap_s=0.16:scaling=relative",
    "encode.encoders=ave@levels=1,vlad",
    "evaluate.bootstrap=20",
)
"""The recipe's results would be 40."""

EMPTY = "".join(f"<!-- {part} -->\n<!-- end {part} -->\n" for part in PARTS)


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
    for setting in (*TINY, *FEW):
        found += ["--set", setting]
    return [*found, *more]


@pytest.mark.nightly
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
    wanted = [s for s in accuracy_run.SWITCHES if s.encoder in ("ave", "vlad@temporal_pyramid=1/2")]
    monkeypatch.setattr(accuracy_run, "SWITCHES", tuple(wanted))
    page, numbers = tmp_path / "page.md", tmp_path / "numbers.json"
    page.write_text(EMPTY)
    weights = data / "weights" / "squeezenet1_0.safetensors"
    command = flags(sets, "--weights", str(weights), "--out", str(tmp_path / "out"))
    command += ["--docs", str(page), "--json", str(numbers)]
    assert benchmarks_accuracy.main(command) == 0
    printed = capsys.readouterr().out
    found = json.loads(numbers.read_text())
    switches = found["parts"]["switches"]["sets"]["small"]
    assert [one["name"] for one in switches] == [accuracy_run.BASE.says, *(s.says for s in wanted)]
    for one in switches:
        assert 0 <= one["low"] <= one["accuracy"] <= one["high"] <= 1
        assert f"| {one['name']} | {one['accuracy']:.3f} [" in printed
        assert f"| {one['name']} | {one['accuracy']:.3f} [" in page.read_text()
    names = {one["name"] for one in found["parts"]["recipe"]["sets"]["small"]}
    assert {
        "all: late_weighted",
        "vlad on features_12_appearance",
        "all, scores of all streams: given",
    } <= names
    # All is complete: the same numbers, measured again or only shown.
    assert benchmarks_accuracy.main(command) == 0
    assert json.loads(numbers.read_text())["parts"] == found["parts"]
    tables = page.read_text()
    page.write_text(EMPTY)
    shutil.rmtree(tmp_path / "out")
    assert benchmarks_accuracy.main([*command, "--parts", "none"]) == 0
    assert page.read_text() == tables


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--sets", "none"], "expected none/labels.csv with path,label,group, found none"),
        (
            ["--parts", "recipes"],
            "--parts: expected some of recipe, switches, or none, got recipes",
        ),
        (["--docs", "/nowhere.md"], "--docs /nowhere.md: expected a page with marks"),
        (
            ["--set", "picture.views=eleven"],
            "--set picture.views=eleven: picture.views: expected one of",
        ),
        (["--switches", "ten corps"], "--switches: expected some of AVE; GMM-FV; "),
        (["--docs", __file__], "--docs: expected a page with the marks <!-- recipe -->"),
        (["--json", __file__], "expected numbers of this command"),
        (
            ["--json", "/no/where.json"],
            "--json /no/where.json: expected a file in a folder that exists",
        ),
    ],
)
def test_wrong_flags_are_one_message(
    sets: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    assert benchmarks_accuracy.main(flags(sets, *change)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
