"""Pages are of this code, short where they must be, and begin with what the reader gets."""

from pathlib import Path

import yaml

from jobs.commands_page import page

ROOT = Path(__file__).parents[1]


def test_the_readme_is_a_screen_and_a_half() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 120] == []


def test_the_page_of_commands_is_up_to_date() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert text == page() + "\n", "python -m jobs.commands_page > docs/commands.md"


def test_every_page_is_in_the_site_once() -> None:
    def files(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [file for value in values for file in files(value)]

    listed = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(listed) == len(set(listed))
    assert set(listed) == {file.name for file in (ROOT / "docs").glob("*.md")}
