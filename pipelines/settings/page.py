"""The page docs/settings.md, from the fields of the configuration.

`python -m pipelines.settings.page > docs/settings.md` makes it.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from encoders.fields import Changes, Rule, Unit, changes_of, description_of
from encoders.settings import FV_VAE_PRESETS
from encoders.stream_specs import SPECS, StreamSpec
from pipelines.settings.config import Config

_HEAD = """\
# Settings

Made by `python -m pipelines.settings.page > docs/settings.md`: change the fields, not this page.

`--set section.field=value` changes one setting, lists are written with commas; `--config FILE`
takes YAML or JSON of {section: {field: value}}, or the run.json of a run, under the `--set`.
`--recipe` says what the others start from: the defaults below are those of a setting that a recipe
leaves alone.

Numbers are finite. Whole numbers are at most 2^31 - 1, seconds at most 10^9, memory at most 2^50
bytes.

What "changes results" says:
"""

_CHANGES = {
    Changes.RESULTS: "part of the digests that name folders: another value makes anew what depends "
    "on it",
    Changes.VECTORS: "another value makes vectors and what follows anew, from the same codebooks",
    Changes.CONTENT: "what the value names or comes to is part of the digests, not the value",
    Changes.WHICH: "more or fewer results; each of them is the same",
    Changes.NOTHING: "time, memory, money, or which videos fail (FAILURES say it)",
}

_COLUMNS = ("setting", "type", "default", "bound", "unit", "changes results", "meaning")


def page() -> str:
    """Return the text of docs/settings.md."""
    lines = [_HEAD, *(f"- {name}: {meaning}" for name, meaning in _CHANGES.items())]
    config = Config()
    for section in config.sections():
        record = getattr(config, section)
        lines += [
            "",
            f"## {section}",
            "",
            _one_line(type(record).__doc__),
            "",
            *_table(section, record),
        ]
        if section == "fv_vae":
            lines += ["", *_presets()]
        if section == "describe":
            lines += ["", *_streams()]
    return "\n".join(lines) + "\n"


class Described(NamedTuple):
    """A setting in words."""

    name: str
    kind: str
    default: str
    rules: str
    units: str
    changes: Changes
    meaning: str


def described(section: str, record: Any) -> Iterator[Described]:
    """Yield the fields of a settings record, with the defaults of its class.

    Args:
        section: its name in the configuration; "" names the fields alone.
    """
    hints = typing.get_type_hints(type(record), include_extras=True)
    for field in dataclasses.fields(record):
        kind, marks = hints[field.name], tuple(_marks(hints[field.name]))
        rules = [m.words for m in marks if isinstance(m, Rule) and not m.is_technical]
        units = [m.name for m in marks if isinstance(m, Unit)]
        yield Described(
            name=f"{section}.{field.name}" if section else field.name,
            kind=_kind(kind),
            default=_text(field.default),
            rules=", ".join(dict.fromkeys(rules)),
            units=", ".join(units),
            changes=changes_of(field),
            meaning=description_of(field),
        )


def _table(section: str, record: Any, skipped: tuple[str, ...] = ()) -> Iterator[str]:
    yield _row(_COLUMNS)
    yield _row("---" for _ in _COLUMNS)
    for one in described(section, record):
        if one.name not in skipped:
            default = one.default and f"`{one.default}`"
            yield _row((f"`{one.name}`", one.kind, default, *one[3:]))


def _presets() -> Iterator[str]:
    """Return the lines of the presets that `--set fv_vae=NAME` takes."""
    yield "Presets, taken with `--set fv_vae=NAME`; the section starts as `paper`:"
    yield ""
    for name, preset in FV_VAE_PRESETS.items():
        values = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
        changed = [
            f"{f.name}={_text(values[f.name])}"
            for f in dataclasses.fields(preset)
            if values[f.name] != f.default
        ]
        yield f"- `{name}`: {', '.join(f'`{setting}`' for setting in changed)}"


def _streams() -> Iterator[str]:
    """Return the lines of the fields of describe.streams; shared fields stand once."""
    shared = tuple(field.name for field in dataclasses.fields(StreamSpec))
    yield (
        "Fields of an entry of `describe.streams`, written `kind@field=value:field=value`, "
        "of every kind:"
    )
    yield ""
    yield from _table("", StreamSpec())
    for kind, spec in SPECS.items():
        if len(dataclasses.fields(spec)) > len(shared):
            yield ""
            yield f"`{kind}`: {_one_line(type(spec).__doc__)}"
            yield ""
            yield from _table("", spec, shared)


def _marks(kind: Any) -> Iterator[object]:
    """Return rules and units of an annotated type and of the types in it."""
    if typing.get_origin(kind) is Annotated:
        inner, *marks = typing.get_args(kind)
        yield from _marks(inner)
        yield from marks
    elif typing.get_origin(kind) in (tuple, types.UnionType, typing.Union):
        for part in typing.get_args(kind):
            yield from _marks(part)


def _kind(kind: Any) -> str:
    """Return a type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is tuple:
        part = _kind(arguments[0])
        return f"list of {part}" if part.endswith("`") else f"list of {part}s"
    if origin is Literal:
        return " / ".join(f"`{value}`" if value else "nothing" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(part) for part in arguments)
    words = {int: "whole number", float: "number", bool: "true / false", str: "text"}
    return words.get(kind, "none")


def _text(value: object) -> str:
    """Return a value as --set takes it."""
    if isinstance(value, tuple):
        return ",".join(_text(part) for part in value)
    return str(value).lower() if isinstance(value, bool | types.NoneType) else str(value)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _row(cells: Any) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


if __name__ == "__main__":
    print(page(), end="")
