"""The content of run.json, as readers count on it. Needs neither torch nor Ray."""

from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from pipelines.errors import ConfigError
from pipelines.storage.store import Store


class _Window(TypedDict):
    num_frames: int
    gap: int
    gap_s: float


class _Stream(TypedDict):
    name: str
    width: int
    cells: int
    views: int
    window: _Window


class _Combination(TypedDict):
    encoder: str
    stream: str
    parts: list[tuple[str, str]]


class _Split(TypedDict):
    num_folds: int


class _Record(TypedDict):
    """The parts of run.json that a reader counts on; there are more."""

    steps: dict[str, dict[str, Any]]
    tables: dict[str, str]
    config: dict[str, Any]
    streams: NotRequired[list[_Stream]]
    combinations: NotRequired[list[_Combination]]
    split: NotRequired[_Split]


_RECORD = TypeAdapter(_Record)


def malformed(record: object) -> str:
    """Return why this is not the content of a run.json; "" where it is."""
    try:
        _RECORD.validate_python(record)
    except ValidationError as error:
        found = error.errors()
        missing = [str(one["loc"][0]) for one in found if one["type"] == "missing"]
        if missing and all(len(one["loc"]) == 1 for one in found):
            return f"lacks {', '.join(missing)}"
        return f"has {'.'.join(map(str, found[0]['loc']))} of another kind ({found[0]['msg']})"
    return ""


def read_record(store: Store) -> dict[str, Any] | None:
    """Return the content of run.json; None where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    record = store.read_json("run.json")
    if record is not None and (reason := malformed(record)):
        raise ConfigError(
            f"{store.uri('run.json')}: expected what a run writes, but it {reason}; move the file "
            "away, and the job writes it again"
        )
    return record
