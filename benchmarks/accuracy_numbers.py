"""Accuracies that were measured set by set, in as many calls as it takes, and the tables that show
them (docs/accuracy.md)."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pipelines.errors import ConfigError
from pipelines.settings.config import Config

PARTS = ("recipe", "switches")
"""The tables: results of a recipe, and what each switch gives."""

BESIDE = ("cluster.", "decode.", "plan.", "describe.weights")
"""Settings that change no accuracy, and where the weights lie."""


@dataclass(frozen=True)
class Measured:
    """A result: accuracy and its 95 % interval; for a switch also its gain over what it changes."""

    name: str
    accuracy: float
    low: float
    high: float
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None


@dataclass
class Numbers:
    """What one table shows.

    Attributes:
        config: what `settings_of` says of the configuration that was measured, the same one for all
        sets.
        sets: of each set, its results.
        seconds: of each set, all steps of its run; for the recipe alone.
    """

    config: dict[str, object]
    sets: dict[str, list[Measured]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, record: dict) -> Self:
        sets = {name: [Measured(**row) for row in rows] for name, rows in record["sets"].items()}
        return cls(record["config"], sets, record["seconds"])

    def merge(self, name: str, found: Sequence[Measured]) -> None:
        """Puts results of a set in, in place of those of the same names."""
        new = {one.name for one in found}
        self.sets[name] = [*found, *(one for one in self.sets.get(name, []) if one.name not in new)]


def settings_of(config: Config) -> dict[str, object]:
    """The settings, as section.field, that are not the default ones."""
    plain, default = (json.loads(json.dumps(one.to_json())) for one in (config, Config()))
    return {
        f"{section}.{name}": value
        for section, own in plain.items()
        if isinstance(own, dict)
        for name, value in own.items()
        if value != default[section][name] and not f"{section}.{name}".startswith(BESIDE)
    }


def read(file: Path | None, wanted: dict[str, Config]) -> dict[str, Numbers]:
    """The parts of a file of numbers; empty ones where it has none, is not there, or none is named.

    Args:
        wanted: each part's configuration.

    Raises:
        ConfigError: it is no such file, or has numbers of another configuration.
    """
    try:
        records = json.loads(file.read_text()) if file and file.exists() else {}
        parts = {name: Numbers.of(record) for name, record in records.get("parts", {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ConfigError(
            f"--json {file}: expected numbers of this command, got {error!r}; name another file"
        ) from None
    for name, config in wanted.items():
        settings = settings_of(config)
        part = parts.setdefault(name, Numbers(settings))
        other = [key for key in settings | part.config if settings.get(key) != part.config.get(key)]
        if other:
            raise ConfigError(
                f"--json {file}: expected {name} with the same {', '.join(other)} as here, got"
                " others; numbers of both are in no table together: name another file"
            )
    return parts


def write(file: Path | None, parts: dict[str, Numbers], about: dict) -> None:
    """All numbers, whole or not at all; nothing where no file is named."""
    if file is None:
        return
    records = {name: dataclasses.asdict(part) for name, part in parts.items()}
    beside = file.with_name(f".{file.name}.part")
    beside.write_text(json.dumps(about | {"parts": records}, indent=1) + "\n")
    beside.replace(file)


def recipe_lines(part: Numbers) -> list[str]:
    """A Markdown table of the recipe's results, one column a set and their mean, the best first;
    results that are not of all sets come last and have none."""
    values = {name: {one.name: one for one in own} for name, own in part.sets.items()}

    def mean(name: str) -> float | None:
        own = [found[name].accuracy for found in values.values() if name in found]
        return sum(own) / len(own) if len(own) == len(values) else None

    means = {name: mean(name) for found in values.values() for name in found}
    lines = _head(["result", *values, "mean"])
    for name in sorted(means, key=lambda name: (-(means[name] or 0), name)):
        own, of_all = [_accuracy(found.get(name)) for found in values.values()], means[name]
        lines.append(_row([name, *own, "" if of_all is None else f"{of_all:.3f}"]))
    took = ", ".join(f"{name} {value / 60:.1f} min" for name, value in part.seconds.items())
    return [*lines, "", f"All steps of a run, one after the other: {took}."]


def switch_lines(part: Numbers, order: Sequence[str]) -> list[str]:
    """A Markdown table of switches, with the gain over what each changes.

    Args:
        order: names of switches; those that are not measured on any set have no line, and a verdict
            is given only where a switch is measured on all.
    """
    values = [{one.name: one for one in own} for own in part.sets.values()]
    lines = _head(["switch", *part.sets, "helps"])
    for name in order:
        found = [own.get(name) for own in values]
        if any(found):
            lines.append(_row([name, *map(_with_gain, found), _verdict(found)]))
    return lines


def _head(cells: list[str]) -> list[str]:
    return [_row(cells), "|---" * len(cells) + "|"]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _verdict(found: Sequence[Measured | None]) -> str:
    if None in found:
        return ""
    gains = [one.gain or 0.0 for one in found if one]
    if not any(gains):
        return ""
    better = sum(gain > 0 for gain in gains)
    return "on all" if better == len(gains) else "on some" if better else "nowhere"


def _accuracy(one: Measured | None) -> str:
    return f"{one.accuracy:.3f} [{one.low:.3f}, {one.high:.3f}]" if one else ""


def _with_gain(one: Measured | None) -> str:
    if one is None:
        return ""
    return f"{_accuracy(one)}, {one.gain:+.3f} [{one.gain_low:+.3f}, {one.gain_high:+.3f}]"


def between_marks(page: str, name: str, lines: Iterable[str]) -> str:
    """The page with what stands between <!-- name --> and <!-- end name --> replaced.

    Raises:
        ConfigError: the page has no such marks.
    """
    first, last = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = page.partition(first)
    _, closed, after = rest.partition(last)
    if not (found and closed):
        raise ConfigError(
            f"--docs: expected a page with the marks {first.strip()} and {last}, each on a line,"
            " found none; put them in"
        )
    return before + first + "\n".join(lines) + "\n" + last + after
