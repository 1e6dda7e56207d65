"""List every setting that `--set` takes: its name, default, unit and meaning.

`python -m jobs.settings describe` lists those of a section, or those whose name or meaning has the
word.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

import rich_click as click

from jobs import command_line
from pipelines.errors import near
from pipelines.settings.config import Config
from pipelines.settings.page import Described, described

_WIDEST = 120


@command_line.command(__doc__)
@click.argument("words", nargs=-1, metavar="[WORD]...")
def command(words: tuple[str, ...]) -> int:
    """Print the settings of sections or with words; return the exit code."""
    found = matching(words)
    if not found:
        known = [*Config.sections(), *(one.name for one in _every())]
        said = f"{' '.join(words)}: no setting has it in its name or meaning"
        raise click.UsageError(said + near(words[0], known, ""))
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    for one in found:
        print(f"{one.name} = {one.default}{f' {one.units}' if one.units else ''}")
        about = f"{one.meaning} ({'; '.join(filter(None, (one.kind, one.rules)))})"
        print(textwrap.fill(about, width, initial_indent="    ", subsequent_indent="    "))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the settings and return the exit code."""
    return command_line.main(command, "python -m jobs.settings", argv)


def matching(words: Sequence[str]) -> list[Described]:
    """Return the settings of a section or with each of the words; all where there is no word."""
    wanted = [word.lower() for word in words]
    if len(wanted) == 1 and wanted[0] in Config.sections():
        return [one for one in _every() if one.name.startswith(f"{wanted[0]}.")]
    return [
        one
        for one in _every()
        if all(word in f"{one.name} {one.meaning}".lower() for word in wanted)
    ]


def _every() -> Iterator[Described]:
    config = Config()
    for section in config.sections():
        yield from described(section, getattr(config, section))


if __name__ == "__main__":
    sys.exit(main())
