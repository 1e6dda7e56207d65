"""Numbers that several calls measured: kept in a file, put into tables and a page."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import accuracy_numbers, accuracy_run
from benchmarks.accuracy_numbers import Measured, Numbers, between_marks, recipe_lines, switch_lines
from pipelines.errors import ConfigError
from pipelines.settings.recipes import recipe

RECIPE = recipe("actions").with_settings(["describe.weights=random:0"])
UP = Measured("x", 0.9, 0.8, 1.0, 0.1, 0.0, 0.2)
DOWN = Measured("x", 0.5, 0.4, 0.6, -0.1, -0.2, 0.0)
SAME = Measured("x", 0.6, 0.4, 0.7, 0.0, -0.1, 0.1)


def named(one: Measured, name: str) -> Measured:
    return dataclasses.replace(one, name=name)


def test_a_line_has_a_gain_for_each_set_and_a_verdict() -> None:
    lines = switch_lines(Numbers({}, {"a": [UP], "b": [DOWN]}), ["x"])
    assert lines == [
        "| switch | a | b | helps |",
        "|---|---|---|---|",
        (
            "| x | 0.900 [0.800, 1.000], +0.100 [+0.000, +0.200] | 0.500 [0.400, 0.600], -0.100"
            " [-0.200, +0.000] | on some |"
        ),
    ]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [([UP], "on all"), ([DOWN], "nowhere"), ([UP, SAME], "on some"), ([SAME, SAME], "")],
)
def test_verdicts(found: list[Measured], verdict: str) -> None:
    sets = {f"{place}": [one] for place, one in enumerate(found)}
    assert switch_lines(Numbers({}, sets), ["x"])[-1].endswith(f"| {verdict} |")


def test_what_is_not_measured_on_all_sets_has_empty_cells_and_no_verdict() -> None:
    sets = {"a": [UP, named(UP, "y")], "b": [DOWN]}
    lines = switch_lines(Numbers({}, sets), ["z", "y", "x"])
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| y", "| x"], "in the order asked for"
    assert lines[2].endswith("+0.200] |  |  |")


def test_the_recipe_table_has_the_best_result_first() -> None:
    sets = {
        "a": [UP, named(DOWN, "y"), named(UP, "z")],
        "b": [named(DOWN, "y"), named(DOWN, "z")],
    }
    rows = recipe_lines(Numbers({}, sets, {"a": 90.0, "b": 6.0}))
    assert [row.split(" | ")[0] for row in rows[2:5]] == ["| z", "| y", "| x"]
    assert rows[2].endswith(" | 0.500 [0.400, 0.600] | 0.700 |")
    assert rows[4] == "| x | 0.900 [0.800, 1.000] |  |  |", "no mean of some sets"
    assert rows[-1] == "All steps of a run, one after the other: a 1.5 min, b 0.1 min."


def test_calls_add_up(tmp_path: Path) -> None:
    """The second call measures one switch again, adds one, and another set."""
    file, configs = tmp_path / "numbers.json", {"recipe": RECIPE, "switches": RECIPE}
    parts = accuracy_numbers.read(file, configs)
    parts["switches"].merge("a", [UP, named(DOWN, "y")])
    parts["recipe"].sets["a"], parts["recipe"].seconds["a"] = [UP], 2.0
    accuracy_numbers.write(file, parts, {"num_cpus": 2})
    again = accuracy_numbers.read(file, configs)
    assert again == parts
    again["switches"].merge("a", [DOWN, named(UP, "z")])
    again["switches"].merge("b", [UP])
    accuracy_numbers.write(file, again, {"num_cpus": 2})
    last = accuracy_numbers.read(file, configs)
    assert {one.name: one.accuracy for one in last["switches"].sets["a"]} == {
        "x": 0.5,
        "y": 0.5,
        "z": 0.9,
    }
    assert last["switches"].sets["b"] == [UP]
    assert last["recipe"] == parts["recipe"]
    assert [one.name for one in tmp_path.iterdir()] == ["numbers.json"]


def test_numbers_of_another_configuration_are_in_no_table_together(tmp_path: Path) -> None:
    file, base = tmp_path / "numbers.json", accuracy_run.base_of(RECIPE)
    configs = {"recipe": RECIPE, "switches": base}
    accuracy_numbers.write(file, accuracy_numbers.read(file, configs), {})
    other = RECIPE.with_settings(["sampling.num_frames=10", "run.seed=3"])
    with pytest.raises(ConfigError, match=r"same sampling\.num_frames, run\.seed as here"):
        accuracy_numbers.read(file, configs | {"recipe": other})
    # Where the weights lie and on what it runs makes no other numbers, nor do the recipe's streams
    # to switches.
    moved = RECIPE.with_settings(
        ["describe.weights=/else/where.safetensors", "cluster.max_cpus=4", "decode.timeout_s=9"]
    )
    streams = accuracy_run.base_of(RECIPE.with_settings(["describe.streams=appearance"]))
    assert accuracy_numbers.read(file, {"recipe": moved, "switches": streams})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"parts": {"recipe": {}}}', '{"parts": 3}'])
def test_a_file_of_something_else_is_a_message(tmp_path: Path, text: str) -> None:
    file = tmp_path / "numbers.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="expected numbers of this command"):
        accuracy_numbers.read(file, {"recipe": RECIPE})


def test_the_committed_numbers_make_the_committed_tables() -> None:
    root = Path(__file__).parents[2]
    file = root / "benchmarks/results/accuracy-2core-cpu.json"
    configs = {"recipe": recipe("actions"), "switches": accuracy_run.base_of(recipe("actions"))}
    parts = accuracy_numbers.read(file, configs)
    page = (root / "docs/accuracy.md").read_text()
    assert between_marks(page, "recipe", recipe_lines(parts["recipe"])) == page
    order = [switch.says for switch in (accuracy_run.BASE, *accuracy_run.SWITCHES)]
    assert between_marks(page, "switches", switch_lines(parts["switches"], order)) == page
    assert json.loads(file.read_text())["recipe_name"] == "actions"


def test_a_page_keeps_what_is_around_its_table() -> None:
    page = "before\n<!-- t -->\nold\n<!-- end t -->\nafter\n"
    assert (
        between_marks(page, "t", ["new", "er"])
        == "before\n<!-- t -->\nnew\ner\n<!-- end t -->\nafter\n"
    )
    with pytest.raises(ConfigError, match="expected a page with the marks <!-- u -->"):
        between_marks(page, "u", [])
