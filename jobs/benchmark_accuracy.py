"""Accuracy of the recipe `actions`, and what each switch of the configuration gives, on folders of labelled videos.

`python -m jobs.benchmark_accuracy --data ../shared/data/labelled --weights FILE --out OUT` prints a table of the recipe's results
and one of switches, over the folders of --data, each with its labels.csv (path,label,group). Groups are left out in
turn; nothing is chosen by a tested one. --docs writes the tables into a page, --json all numbers. What is done is kept
under --out, and the same command goes on from there. Exit codes as those of `jobs/fcvid_encode.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import fcvid_encode
from pipelines.config import Config, ConfigError
from pipelines.recipes import recipe

if TYPE_CHECKING:
    from pipelines.accuracy import Measured
    from pipelines.layout import Job

PARTS = ("recipe", "switches")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser("benchmark_accuracy", description=__doc__.splitlines()[0])
    out.add_argument(
        "--data", required=True, type=Path, help="folder of sets: SET/labels.csv and videos"
    )
    out.add_argument("--weights", default="", help="of the network, as describe.weights")
    out.add_argument("--out", default="accuracy_out", help="folder of the runs (accuracy_out)")
    out.add_argument("--sets", default="weizmann,ut_interaction,surveillance_fight")
    out.add_argument(
        "--switch-sets", default="weizmann,ut_interaction", help="of the table of switches"
    )
    out.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)} (all)")
    out.add_argument("--without", default="", help="switches to leave out, joined by ; (texts)")
    out.add_argument("--recipe", default="actions")
    out.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="SECTION.FIELD=VALUE"
    )
    out.add_argument(
        "--docs", type=Path, help="page whose tables are written, such as docs/accuracy.md"
    )
    out.add_argument("--json", type=Path, help="file for all numbers")
    out.add_argument(
        "--address", help="Ray cluster to join; default: RAY_ADDRESS, else one started here"
    )
    return out


def main(argv: list[str] | None = None) -> int:
    """Runs all; returns the exit code."""
    arguments = parser().parse_args(argv)
    return fcvid_encode.guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    config = _checked(arguments)
    parts = _names(arguments.parts)
    # torch takes seconds to load: not before the settings were checked.
    from pipelines import accuracy

    left_out = _names(arguments.without, ";")
    if unknown := set(left_out) - {switch.says for switch in accuracy.SWITCHES}:
        raise ConfigError(
            f"--without: expected texts of switches joined by ;, got {'; '.join(sorted(unknown))}"
        )
    runs = _Runs(arguments)
    found: dict[str, dict[str, list[Measured]]] = {}
    tables: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    if "recipe" in parts:
        found["recipe"] = {}
        for name in _names(arguments.sets):
            job = runs.job(name, "recipe", config)
            seconds[name] = accuracy.seconds_of(job)
            found["recipe"][name] = accuracy.results_of(job)
        tables["recipe"] = accuracy.recipe_lines(found["recipe"], seconds)
    if "switches" in parts:
        wanted = [switch for switch in accuracy.SWITCHES if switch.says not in left_out]
        sets = _names(arguments.switch_sets)
        found["switches"] = {name: runs.switches(name, config, wanted) for name in sets}
        tables["switches"] = accuracy.switch_lines(found["switches"])
    for lines in tables.values():
        print("\n".join(lines), end="\n\n")
    _write(arguments, tables)
    if arguments.json:
        about = {"recipe_name": arguments.recipe, "num_cpus": os.cpu_count(), "seconds": seconds}
        arguments.json.write_text(accuracy.to_json(found, about))
    return 0


def _checked(arguments: argparse.Namespace) -> Config:
    """The recipe's configuration; what could only show after minutes is looked at now."""
    settings = list(arguments.settings)
    if arguments.weights:
        settings.append(f"describe.weights={arguments.weights}")
    for name in _names(f"{arguments.sets},{arguments.switch_sets}"):
        if not (arguments.data / name / "labels.csv").is_file():
            raise ConfigError(
                f"--data {arguments.data}: expected {name}/labels.csv with path,label,group, found none; name the "
                "folders with --sets and --switch-sets"
            )
    if unknown := set(_names(arguments.parts)) - set(PARTS):
        raise ConfigError(
            f"--parts: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}"
        )
    if arguments.docs and not arguments.docs.is_file():
        raise ConfigError(
            f"--docs {arguments.docs}: expected a page with marks for the tables, found none"
        )
    return recipe(arguments.recipe).with_settings(settings)


def _write(arguments: argparse.Namespace, tables: dict[str, list[str]]) -> None:
    """The tables into the page."""
    from pipelines import accuracy

    if arguments.docs:
        page = arguments.docs.read_text()
        for name, lines in tables.items():
            page = accuracy.between_marks(page, name, lines)
        arguments.docs.write_text(page)


class _Runs:
    """The main job on sets."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments

    def job(self, name: str, part: str, config: Config) -> Job:
        """The finished run of a set."""
        folder = self.arguments.data / name
        flags = ["--videos", str(folder), "--labels", str(folder / "labels.csv")]
        flags += ["--out", f"{self.arguments.out.rstrip('/')}/{name}-{part}"]
        if self.arguments.address:
            flags += ["--address", self.arguments.address]
        jobs: list[Job] = []
        code = fcvid_encode.run(fcvid_encode.parser().parse_args(flags), config, finish=jobs.append)
        if code:
            sys.exit(code)
        return jobs[0]

    def switches(self, name: str, config: Config, wanted: list) -> list[Measured]:
        """All switches on a set, the base first."""
        from pipelines import accuracy

        scores = {}
        for own, switches in accuracy.configurations(config, wanted):
            job = self.job(name, "switches", own)
            scores |= {switch: accuracy.scores(job, switch) for switch in switches}
        return [
            accuracy.measured(switch, scores[switch], scores[accuracy.compared_with(switch)])
            for switch in (accuracy.BASE, *wanted)
        ]


def _names(text: str, separator: str = ",") -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(separator) if part.strip())


if __name__ == "__main__":
    sys.exit(main())
