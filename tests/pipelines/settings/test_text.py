"""Settings as text: any value of any field comes back from its text, and errors say what was
expected."""

import dataclasses
import json
import types
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.settings import FvVaeSettings
from encoders.stream_specs import SPECS
from pipelines.errors import near
from pipelines.settings.config import Config
from pipelines.settings.text import changed, parsed, split_entry, split_setting

RECORDS = [
    *(getattr(Config(), field.name) for field in dataclasses.fields(Config)[1:]),
    *SPECS.values(),
]
FIELDS = [(record, field.name) for record in RECORDS for field in dataclasses.fields(record)]


def values(kind: Any) -> st.SearchStrategy:
    """Values of an annotated type, as far as text can tell them apart."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(values(kind) for kind in arguments)
    plain = {
        types.NoneType: st.none(),
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False),
        str: st.text(st.characters(exclude_characters=","), min_size=1).filter(
            lambda text: text == text.strip()
        ),
    }
    return plain[kind]


def accepted(record: Any, name: str, value: object) -> Any:
    """The record with the value; None where the field does not take it."""
    try:
        return changed(record, "section", {name: value})
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("record", "name"), FIELDS, ids=[f"{type(record).__name__}.{name}" for record, name in FIELDS]
)
def test_no_field_has_two_meanings_of_none(record: object, name: str) -> None:
    """`none` as text is None, or a word of the field's own, never either."""
    kinds = typing.get_args(typing.get_type_hints(type(record))[name])
    words = [word for kind in kinds for word in typing.get_args(kind)]
    assert types.NoneType not in kinds or "none" not in words


@settings(max_examples=500)
@given(st.sampled_from(FIELDS), st.data())
def test_any_value_of_any_field_comes_back(field: tuple[object, str], data: st.DataObject) -> None:
    """As text, and as what JSON makes of it."""
    record, name = field
    value = data.draw(values(typing.get_type_hints(type(record))[name]))
    made = accepted(record, name, value)
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    for plain in (parsed(record, "section", name, text), json.loads(json.dumps(value))):
        assert accepted(record, name, plain) == made
    if made is not None:
        assert getattr(made, name) == value
        assert type(getattr(made, name)) is type(value)


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("vlad.intra=true", ("vlad", "intra", "true")),
        (" describe.weights= /w=1/a.pth ", ("describe", "weights", "/w=1/a.pth")),
        ("fv_vae=released", ("fv_vae", "", "released")),
        ("fv_vae.hidden=", ("fv_vae", "hidden", "")),
        ("a.b.c=1", ("a", "b.c", "1")),
    ],
)
def test_a_setting_is_cut_at_its_first_signs(setting: str, parts: tuple) -> None:
    assert split_setting(setting) == parts


def test_what_is_no_setting_says_so() -> None:
    with pytest.raises(ValueError, match=r"^expected section\.field=value, got no '='$"):
        split_setting("vlad.intra")


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("vlad", ("vlad", [])),
        ("vlad@", ("vlad", [])),
        ("rank@gap=1:frames=5", ("rank", [("gap", "=", "1"), ("frames", "=", "5")])),
        ("a@b=c=d@e", ("a", [("b", "=", "c=d@e")])),
        ("a@b:=c:", ("a", [("b", "", ""), ("", "=", "c"), ("", "", "")])),
    ],
)
def test_an_entry_is_a_name_and_its_fields(entry: str, parts: tuple) -> None:
    assert split_entry(entry) == parts


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("num_step", "1", r": no field 'num_step'; did you mean num_steps"),
        ("num_steps", "1.5", r"\.num_steps: expected a whole number, got '1.5'"),
        ("lambda3", "much", r"\.lambda3: expected a number, got 'much'"),
        ("per_level", "1", r"\.per_level: expected true or false, got '1'"),
        ("hidden", "8,x", r"\.hidden: expected a whole number, got 'x'"),
    ],
)
def test_a_wrong_value_says_what_was_expected(name: str, text: str, message: str) -> None:
    record = FvVaeSettings()

    def read() -> FvVaeSettings:
        return changed(record, "fv_vae", {name: parsed(record, "fv_vae", name, text)})

    with pytest.raises(ValueError, match=f"^fv_vae{message}"):
        read()


def test_an_unknown_name_is_answered_with_those_like_it_or_with_all() -> None:
    known = ["sampling", "cluster", "describe"]
    assert near("sampler", known) == "; did you mean sampling?"
    assert near("xyz", known) == "; there are sampling, cluster, describe"
