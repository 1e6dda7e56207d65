"""Fields of settings: each says in one place its type, its bounds, its unit, what it means, and what depends on it.

A field is written `name: Annotated[type, rule, ...] = setting(default, "What it means.")`. Nothing here needs more than
Python: `pipelines.settings.text` hands the rules to pydantic, and `pipelines.settings.page` writes them down.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, TypeVar

T = TypeVar("T")


class Changes(StrEnum):
    """What depends on a field, in the words of docs/settings.md."""

    RESULTS = "yes"
    """Values are part of the digests that name folders."""
    VECTORS = "yes, but no codebook"
    """As RESULTS, but codebooks are fitted for all values at once."""
    CONTENT = "yes, by what it names"
    """What the value names is part of digests, not its name."""
    WHICH = "which there are"
    """More or fewer results, each of which is the same."""
    NOTHING = "no"
    """Time, memory or money; or which videos fail, which FAILURES say."""


def setting(default: T, description: str, changes: Changes = Changes.RESULTS) -> T:
    """A field of a settings record; read it back with `changes_of` and `description_of`."""
    return dataclasses.field(
        default=default, metadata={"description": description, "changes": changes}
    )


def changes_of(field: dataclasses.Field) -> Changes:
    """What depends on a field."""
    return field.metadata["changes"]


def description_of(field: dataclasses.Field) -> str:
    """What a field means."""
    return field.metadata["description"]


def digested(record: Any, *others: Changes) -> dict[str, Any] | None:
    """The fields of a record that its digest is made of: `RESULTS`, and those of the others named.

    Records without a field give None: so were encoders without settings digested always.
    """
    wanted = (Changes.RESULTS, *others)
    fields = dataclasses.fields(record)
    return {f.name: getattr(record, f.name) for f in fields if changes_of(f) in wanted} or None


@dataclass(frozen=True)
class Unit:
    """The unit of a number."""

    name: str


@dataclass(frozen=True)
class Rule:
    """A condition that a value must meet, in words.

    Attributes:
        is_technical: a bound of what anything can hold, which docs/settings.md says once for all fields.
    """

    words: str
    holds: Callable[[Any], bool]
    is_technical: bool = False

    def check(self, value: T) -> T:
        """Return the value.

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
    """A number that is not below `least`."""
    return Rule(f"at least {least}", lambda value: value >= least)


def at_most(most: float, *, is_technical: bool = False) -> Rule:
    """A number that is not above `most`."""
    return Rule(f"at most {most}", lambda value: value <= most, is_technical)


def more_than(bound: float) -> Rule:
    """A number above a bound."""
    return Rule(f"more than {bound}", lambda value: value > bound)


def between(least: float, most: float) -> Rule:
    """A number in a closed interval."""
    return Rule(f"{least} to {most}", lambda value: least <= value <= most)


EACH_ONCE = Rule("each once", lambda values: len(set(values)) == len(values))
ONE_OR_MORE = Rule("one or more, each once", lambda values: 0 < len(values) == len(set(values)))

LARGEST_COUNT = 2**31 - 1
"""Of whole numbers, as columns of tables and libraries hold them."""

LARGEST_S = 10**9
"""Of seconds, as timers take them."""

LARGEST_BYTES = 2**50
"""Of memory."""

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
    """Raise ValueError with where, what was expected and what was got, unless `condition` holds.

    For what several fields together must be; where is the field that a user would change.
    """
    if not condition:
        raise ValueError(f"{where}: expected {expected}, got {got!r}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """Settings whose fields say themselves what they may be."""

    # What pydantic reads: numbers are finite.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"allow_inf_nan": False}
