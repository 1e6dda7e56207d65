"""Accuracy of the recipe `actions`, and what each switch of the configuration adds to it, on sets
of labelled videos.

`python -m benchmarks.accuracy --data ../shared/data/labelled --weights FILE --out OUT` prints two
tables, the recipe's results and the switches, over the folders of --data, each with its labels.csv
(path,label,group). Each group of videos is tested by classifiers that were trained on the other
groups, and takes part in no choice of a setting. Finished work is kept under --out, and the same
command goes on from there.

--json keeps all numbers in a file, set by set as they are measured. Numbers that it holds already
appear in the tables too, so sets and switches may be measured in several calls. --docs writes the
tables into a page. With `--parts none` nothing is measured, and only earlier numbers are shown. The
exit codes are those of `jobs/fcvid_encode.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import rich_click as click

from benchmarks import accuracy_numbers
from benchmarks.accuracy_numbers import PARTS, Measured
from jobs import command_line, run_flags
from jobs.run_flags import Flags
from pipelines import flags
from pipelines.errors import ConfigError
from pipelines.settings.config import Config

if TYPE_CHECKING:
    from pipelines.run.job import Job


_FILE = click.Path(path_type=Path)


@command_line.command(__doc__)
@click.option(
    "--data",
    required=True,
    type=_FILE,
    help="Folder with a folder for each set: its videos and labels.csv (path,label,group).",
)
@click.option("--weights", default="", help="Weights of the backbone, as for describe.weights.")
@click.option("--out", default="accuracy_out", show_default=True, help="Folder of the runs.")
@click.option(
    "--sets",
    default="weizmann,ut_interaction,surveillance_fight",
    show_default=True,
    help="Sets of the recipe's table, joined by commas.",
)
@click.option(
    "--switch-sets",
    default="weizmann,ut_interaction",
    show_default=True,
    help="Sets of the table of switches, joined by commas.",
)
@click.option(
    "--parts",
    default=",".join(PARTS),
    show_default=True,
    help="Tables to measure, joined by commas, or none: only show earlier numbers.",
)
@click.option(
    "--switches",
    default="",
    help="Switches to measure, as the table names them, joined by semicolons (default: all).",
)
@run_flags.add_settings("actions")
@click.option(
    "--docs",
    type=_FILE,
    metavar="FILE",
    help="Page to write the tables into, such as docs/accuracy.md.",
)
@click.option(
    "--json",
    type=_FILE,
    metavar="FILE",
    help="File to keep the numbers in; those that it holds already are kept.",
)
@click.option(
    "--address",
    help="Ray cluster to join (default: RAY_ADDRESS if it is set, else a cluster of its own on "
    "this machine).",
)
def command(**values: Any) -> int:
    """Runs all; returns the exit code."""
    return command_line.guarded(lambda: _run(SimpleNamespace(**values)))


def main(argv: list[str] | None = None) -> int:
    """Runs all; returns the exit code."""
    return command_line.main(command, "python -m benchmarks.accuracy", argv)


def _run(arguments: SimpleNamespace) -> int:
    config = _checked(arguments)
    measure = _names(arguments.parts)
    # torch takes seconds to load: not before the settings were checked.
    from benchmarks import accuracy_run

    known = {switch.says: switch for switch in accuracy_run.SWITCHES}
    chosen = _names(arguments.switches, ";") or tuple(known)
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(
            f"--switches: expected some of {'; '.join(known)}, joined by ;, got"
            f" {'; '.join(unknown)}"
        )
    configs = {"recipe": config, "switches": accuracy_run.base_of(config)}
    parts = accuracy_numbers.read(arguments.json, configs)
    about = {"recipe_name": config.recipe, "num_cpus": os.cpu_count()}
    runs = _Runs(arguments)
    if "recipe" in measure:
        for name in _names(arguments.sets):
            job = runs.job(name, "recipe", config)
            parts["recipe"].sets[name] = accuracy_run.results_of(job)
            parts["recipe"].seconds[name] = accuracy_run.seconds_of(job)
            accuracy_numbers.write(arguments.json, parts, about)
    if "switches" in measure:
        for name in _names(arguments.switch_sets):
            found = runs.switches(name, config, [known[one] for one in chosen])
            parts["switches"].merge(name, found)
            accuracy_numbers.write(arguments.json, parts, about)
    order = [accuracy_run.BASE.says, *known]
    tables = {
        "recipe": accuracy_numbers.recipe_lines(parts["recipe"]),
        "switches": accuracy_numbers.switch_lines(parts["switches"], order),
    }
    for name, lines in tables.items():
        if parts[name].sets:
            print("\n".join(lines), end="\n\n")
            _show(arguments.docs, name, lines)
    return 0


def _checked(arguments: SimpleNamespace) -> Config:
    """The recipe's configuration. Checks now what else would be found wrong only after minutes of
    work."""
    settings = list(arguments.settings)
    if arguments.weights:
        settings.append(f"describe.weights={arguments.weights}")
    for name in _names(f"{arguments.sets},{arguments.switch_sets}"):
        if not (arguments.data / name / "labels.csv").is_file():
            raise ConfigError(
                f"--data {arguments.data}: expected {name}/labels.csv with path,label,group, found"
                " none; name the folders with --sets and --switch-sets"
            )
    if arguments.parts != "none" and (unknown := set(_names(arguments.parts)) - set(PARTS)):
        raise ConfigError(
            f"--parts: expected some of {', '.join(PARTS)}, or none, got"
            f" {', '.join(sorted(unknown))}"
        )
    if arguments.docs and not arguments.docs.is_file():
        raise ConfigError(
            f"--docs {arguments.docs}: expected a page with marks for the tables, found none"
        )
    for name in PARTS if arguments.docs else ():
        accuracy_numbers.between_marks(arguments.docs.read_text(), name, [])
    if arguments.json and not arguments.json.parent.is_dir():
        raise ConfigError(f"--json {arguments.json}: expected a file in a folder that exists")
    return flags.configuration(
        arguments.recipe, arguments.config, settings, default_recipe="actions"
    )


def _show(page: Path | None, name: str, lines: list[str]) -> None:
    if page:
        page.write_text(accuracy_numbers.between_marks(page.read_text(), name, lines))


class _Runs:
    """Runs the main job on sets."""

    def __init__(self, arguments: SimpleNamespace) -> None:
        self.arguments = arguments

    def job(self, name: str, part: str, config: Config) -> Job:
        """The finished run of a set."""
        folder = self.arguments.data / name
        given = Flags(
            videos=str(folder),
            labels=str(folder / "labels.csv"),
            out=f"{self.arguments.out.rstrip('/')}/{name}-{part}",
            address=self.arguments.address,
        )
        jobs: list[Job] = []
        code = run_flags.run(given, config, finish=jobs.append)
        if code:
            sys.exit(code)
        return jobs[0]

    def switches(self, name: str, config: Config, wanted: list) -> list[Measured]:
        """All switches on a set, the base first."""
        from benchmarks import accuracy_run

        scores = {}
        for own, switches in accuracy_run.configurations(config, wanted):
            job = self.job(name, "switches", own)
            scores |= {switch: accuracy_run.scores(job, switch) for switch in switches}
        return [
            accuracy_run.measured(
                switch, scores[switch], scores[accuracy_run.compared_with(switch)]
            )
            for switch in (accuracy_run.BASE, *wanted)
        ]


def _names(text: str, separator: str = ",") -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(separator) if part.strip())


if __name__ == "__main__":
    sys.exit(main())
