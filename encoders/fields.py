"""Fields of settings: type, bounds, unit, meaning and what depends on a field, all in one place.

A field is written `name: Annotated[type, rule, ...] = setting(default, "Its meaning.")`. Nothing
here needs more than Python: `pipelines.settings.text` hands the rules to pydantic, and
`pipelines.settings.page` writes them down.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, TypeVar

T = TypeVar("T")


class Changes(StrEnum):
    """Effects of a field on the results of a run, in the words of docs/settings.md."""

    RESULTS = "yes"
    """Values are part of the digests that name folders."""
    VECTORS = "yes, but no codebook"
    """Like RESULTS, but codebooks are fitted for all values at once."""
    CONTENT = "yes, by what it names"
    """The content that the value names is part of digests, the name is not."""
    WHICH = "which there are"
    """More or fewer results, each of which is the same."""
    NOTHING = "no"
    """Time, memory or money; or which videos fail, which FAILURES say."""


def setting(
    default: T, description: str, changes: Changes = Changes.RESULTS, *, added: bool = False
) -> T:
    """Return a field of a settings record; `changes_of` and `description_of` read it back.

    Args:
        added: the field came when there were runs already, whose results are those of its default.
            At its default it is in no digest, so that these runs stay complete. It stays so for
            good, as does the default.
    """
    return dataclasses.field(
        default=default,
        metadata={"description": description, "changes": changes, "added": added},
    )


def changes_of(field: dataclasses.Field) -> Changes:
    """Return the effect of a field on the results of a run."""
    return field.metadata["changes"]


def description_of(field: dataclasses.Field) -> str:
    """Return the meaning of a field."""
    return field.metadata["description"]


def said(record: Any) -> list[dataclasses.Field]:
    """Return the fields of a record that digests name: not `added` ones at their default."""
    return [
        field
        for field in dataclasses.fields(record)
        if not field.metadata.get("added") or getattr(record, field.name) != field.default
    ]


def digested(record: Any, *others: Changes) -> dict[str, Any] | None:
    """Return the fields of a record that go into its digest: `RESULTS` and the kinds in `others`.

    A record without fields gives None: so do the digests of all runs made up to now have it.
    """
    kinds = (Changes.RESULTS, *others)
    return {f.name: getattr(record, f.name) for f in said(record) if changes_of(f) in kinds} or None


@dataclass(frozen=True)
class Unit:
    """The unit of a number."""

    name: str


@dataclass(frozen=True)
class Rule:
    """A condition that a value must meet, with its words for messages.

    Attributes:
        is_technical: a bound that comes from data types; docs/settings.md says it once for all
            fields.
    """

    words: str
    holds: Callable[[Any], bool]
    is_technical: bool = False

    def check(self, value: T) -> T:
        """Return the value if the condition holds.

        Raises:
            ValueError: the condition does not hold.
        """
        if not self.holds(value):
            raise ValueError(f"expected {self.words}, got {value!r}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema  # pydantic alone calls this

        return core_schema.no_info_after_validator_function(self.check, handler(source))


def at_least(least: float) -> Rule:
    """Return a number that is not below `least`."""
    return Rule(f"at least {least}", lambda value: value >= least)


def at_most(most: float, *, is_technical: bool = False) -> Rule:
    """Return a number that is not above `most`."""
    return Rule(f"at most {most}", lambda value: value <= most, is_technical)


def more_than(bound: float) -> Rule:
    """Return a number above a bound."""
    return Rule(f"more than {bound}", lambda value: value > bound)


def between(least: float, most: float) -> Rule:
    """Return a number in a closed interval."""
    return Rule(f"{least} to {most}", lambda value: least <= value <= most)


EACH_ONCE = Rule("each once", lambda values: len(set(values)) == len(values))
ONE_OR_MORE = Rule("one or more, each once", lambda values: 0 < len(values) == len(set(values)))

LARGEST_COUNT = 2**31 - 1
"""Largest whole number that columns of tables and libraries can hold."""

LARGEST_S = 10**9
"""Largest number of seconds that timers accept."""

LARGEST_BYTES = 2**50
"""Largest amount of memory that a setting may name."""

COUNTABLE = at_most(LARGEST_COUNT, is_technical=True)
TIMED = at_most(LARGEST_S, is_technical=True)

Count = Annotated[int, at_least(1), COUNTABLE]
CountOrZero = Annotated[int, at_least(0), COUNTABLE]
Pixels = Annotated[int, at_least(1), COUNTABLE, Unit("px")]
Seconds = Annotated[float, more_than(0), TIMED, Unit("s")]
WholeSeconds = Annotated[int, more_than(0), TIMED, Unit("s")]
Bytes = Annotated[int, more_than(0), at_most(LARGEST_BYTES, is_technical=True), Unit("bytes")]
Positive = Annotated[float, more_than(0)]
NotNegative = Annotated[float, at_least(0)]


def require(condition: bool, where: str, expected: str, got: object) -> None:
    """Raise an error unless a condition on several fields together holds.

    Args:
        condition: the condition.
        where: the field that a user would change.
        expected: the values that are allowed, in words.
        got: the value that was given.

    Raises:
        ValueError: the condition does not hold.
    """
    if not condition:
        raise ValueError(f"{where}: expected {expected}, got {got!r}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """Settings whose fields carry their own rules."""

    # pydantic reads this: numbers must be finite.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"allow_inf_nan": False}
