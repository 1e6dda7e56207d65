"""Settings as text and as plain values: `section.field=value` of --set,
`name@field=value:field=value` of variants and streams, and mappings of files, which pydantic checks
against the fields of the records.

An error is a ValueError that says which field, what was expected and what was got; who gave it is
the caller's to say.
"""

import dataclasses
import functools
import re
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipelines.errors import near

T = TypeVar("T")

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "tuple": "a list",
    "string": "text",
}
"""By the first word of pydantic's type of an error."""


def split_setting(setting: str) -> tuple[str, str, str]:
    """Return section, field and value of `section.field=value`; of `section=value` the field is "".

    Raises:
        ValueError: neither.
    """
    path, equals, text = setting.partition("=")
    if not equals:
        raise ValueError("expected section.field=value, got no '='")
    section, _, name = path.strip().partition(".")
    return section, name, text.strip()


def split_entry(entry: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Return name and fields of `name@field=value:field=value`, each field as str.partition("=")
    gives it.
    """
    name, _, text = entry.partition("@")
    return name, [part.partition("=") for part in text.split(":")] if text else []


def parsed(record: Any, section: str, name: str, text: str) -> Any:
    """Return the plain value of a field's text, for `changed`. Lists have commas; None is "none".

    Raises:
        ValueError: there is no such field, or a flag is neither true nor false.
    """
    _require_field(record, section, name)
    kind = typing.get_type_hints(type(record))[name]
    kinds = (kind, *typing.get_args(kind))
    if type(None) in kinds and text.lower() == "none":
        return None
    if any(typing.get_origin(member) is tuple for member in kinds):
        return [part.strip() for part in text.split(",") if part]
    if kind is bool:
        # pydantic takes yes and 1 too.
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{section}.{name}: expected true or false, got {text!r}")
        return text.lower() == "true"
    return text


def changed(record: T, section: str, values: Mapping[str, Any]) -> T:
    """Return the record with other values of some fields, all of it checked.

    Raises:
        ValueError: the first that is wrong, as `section.field: expected ..., got ...`.
    """
    for name in values:
        _require_field(record, section, name)
    try:
        return _adapter(type(record)).validate_python({**vars(record), **values})
    except ValidationError as error:
        raise ValueError(_message(section, error.errors()[0])) from None


def _require_field(record: Any, section: str, name: str) -> None:
    names = [field.name for field in dataclasses.fields(record)]
    if name not in names:
        raise ValueError(f"{section}: no field {name!r}{near(name, names)}")


@functools.cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _message(section: str, error: Mapping[str, Any]) -> str:
    """Return the reason why pydantic refused a field, or several fields together."""
    names = [part for part in error["loc"] if isinstance(part, str)]
    where, value = ".".join((section, *names)), error["input"]
    if error["type"] == "value_error":
        reason = error["ctx"]["error"]
        return f"{where}: {reason}" if names else f"{where}.{reason}"
    if error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{where}: expected one of {choices}, got {value!r}{near(value, choices, '')}"
    expected = _EXPECTED.get(error["type"].partition("_")[0], error["msg"])
    return f"{where}: expected {expected}, got {value!r}"
