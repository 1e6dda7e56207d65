"""docs/settings.md is made of the fields, and says all of each."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from encoders.fields import Rule, Unit, changes_of, description_of
from encoders.stream_specs import SPECS
from pipelines.settings.config import Config
from pipelines.settings.page import page

ROOT = Path(__file__).parents[3]
RECORDS = {name: getattr(Config(), name) for name in Config.sections()} | {
    f"stream {kind}": spec for kind, spec in SPECS.items()
}
FIELDS = [
    pytest.param(record, field, id=f"{name}.{field.name}")
    for name, record in RECORDS.items()
    for field in dataclasses.fields(record)
]
UNITS = {"s": "s", "px": "px", "bytes": "bytes", "fps": "frames/s"}
"""By the last word of a name."""


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == page(), (
        "run python -m pipelines.settings.page > docs/settings.md"
    )


def test_every_setting_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \|", page(), re.MULTILINE)
    config = Config()
    assert rows == [
        f"{section}.{field.name}"
        for section in config.sections()
        for field in dataclasses.fields(getattr(config, section))
    ]


@pytest.mark.parametrize(("record", "field"), FIELDS)
def test_a_field_says_all_that_the_page_and_the_checks_need(
    record: object, field: dataclasses.Field
) -> None:
    assert re.match(r".+[.]$", description_of(field))
    assert changes_of(field)
    hint = typing.get_type_hints(type(record), include_extras=True)[field.name]
    marks = getattr(hint, "__metadata__", ())
    units = [mark.name for mark in marks if isinstance(mark, Unit)]
    if wanted := UNITS.get(field.name.rpartition("_")[2]):
        assert units == [wanted]
    if typing.get_origin(hint) is typing.Annotated and typing.get_args(hint)[0] in (int, float):
        assert any(isinstance(mark, Rule) for mark in marks), "a number without a bound"
    assert hint not in (int, float), "a number without a bound"
