"""Settings as text: `section.field=value` of --set, `name@field=value:field=value` of variants and streams, and back.

What a value must be is said by the annotation of its field. An error is a ValueError that says what was expected and
what was got; where it was is the caller's to say.
"""

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal


def split_setting(setting: str) -> tuple[str, str, str]:
    """Section, field and value of `section.field=value`; of `section=value` the field is "".

    Raises:
        ValueError: neither.
    """
    path, equals, text = setting.partition("=")
    if not equals:
        raise ValueError("expected section.field=value, got no '='")
    section, _, name = path.strip().partition(".")
    return section, name, text.strip()


def split_entry(entry: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Name and fields of `name@field=value:field=value`, each field as str.partition("=") gives it."""
    name, _, text = entry.partition("@")
    return name, [part.partition("=") for part in text.split(":")] if text else []


def parsed(record: object, name: str, text: str) -> Any:
    """`text` as the value of a field of a dataclass; lists are written with commas.

    Raises:
        ValueError: there is no such field, or that is no value of its type.
    """
    hints = typing.get_type_hints(type(record))
    fields = {field.name: hints[field.name] for field in dataclasses.fields(record)}
    if name not in fields:
        raise ValueError(f"no field {name!r}{near(name, list(fields))}")
    return _as(fields[name], text)


def text_of(value: object) -> str:
    """The inverse of `parsed`, of a value or of what JSON makes of it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def near(name: str, known: list[str]) -> str:
    """The end of a message about an unknown name: those like it, or all that there are."""
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(found)}?" if found else f"; there are {', '.join(known)}"


def _as(kind: Any, text: str) -> Any:
    """`text` as an annotated type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(_as(arguments[0], part.strip()) for part in text.split(",") if part)
    if origin is Literal:
        if text not in arguments:
            raise ValueError(f"expected one of {list(arguments)}, got {text!r}")
        return text
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return _as(next(a for a in arguments if a is not type(None)), text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"expected true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        names = {int: "a whole number", float: "a number"}
        raise ValueError(f"expected {names.get(kind, kind.__name__)}, got {text!r}") from None
