"""The page docs/commands.md, from the commands themselves.

`python -m jobs.commands_page > docs/commands.md` makes it.
"""

from __future__ import annotations

import importlib

import click

from jobs.commands import COMMANDS

_HEAD = """# Commands

Every command with its flags. `video-fisher COMMAND --help` prints the same, and
`python -m jobs.MODULE` takes the same flags, as `ray job submit` wants it.

Made by `python -m jobs.commands_page > docs/commands.md`: change the commands, not this page.
"""


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join([_HEAD, *map(_chapter, COMMANDS)])


def _chapter(name: str) -> str:
    module = COMMANDS[name]
    command: click.Command = importlib.import_module(f"jobs.{module}").command
    said = (command.help or "").partition("\f")[0].strip()
    lines = [f"## {name}", "", said, "", f"`python -m jobs.{module}`", ""]
    rows = [_row(option) for option in command.params if isinstance(option, click.Option)]
    if rows:
        lines += ["| flag | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(option: click.Option) -> str:
    flag = max(option.opts, key=len)
    metavar = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
    words = " ".join((option.help or "").split()).replace("|", "\\|").replace("[", "\\[")
    needed = " Required." if option.required else ""
    often = " May be repeated." if option.multiple and "repeated" not in words else ""
    return f"| `{flag}{metavar}` | {words}{needed}{often} |"


if __name__ == "__main__":
    print(page())
