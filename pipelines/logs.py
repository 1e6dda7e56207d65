"""Logs of all processes: one format, whole lines, in the driver and in workers.

A worker's lines are in the log files of its process on its node, `logs/worker-*.err` in the folder
of Ray's session. A line that concerns a video names it, and the segment if there is one, in front.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from pipelines.credentials import redact

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT = "%(asctime)s %(about)s%(message)s"
_DATE = "%Y-%m-%d %H:%M:%S"


def configure(*, verbose: bool = False) -> None:
    """Log one line per event of our own, and of libraries warnings only.

    Does nothing the second time.

    Args:
        verbose: with details of each step.
    """
    handler = _ToErrors()
    handler.setFormatter(_Formatter(_FORMAT, _DATE, defaults={"about": ""}))
    sys.excepthook = _report
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("video_fisher", "jobs", "pipelines", "encoders"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)


class _ToErrors(logging.StreamHandler):
    """A handler of whatever sys.stderr is just now: a bar moves lines above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # pyright: ignore[reportIncompatibleVariableOverride]
        return sys.stderr


class _Formatter(logging.Formatter):
    """Lines without credentials, also in the text of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _report(*error: Any) -> None:
    """Print the traceback of an error that nothing expected, without credentials."""
    print(redact("".join(traceback.format_exception(*error))), end="", file=sys.stderr)


def of_video(log: logging.Logger, row: dict[str, Any]) -> logging.LoggerAdapter:
    """Return a log whose lines begin with `video=<id> segment=<id> `.

    Args:
        row: of any table that has video_id; segment_id if it is there.
    """
    names = {"video": row["video_id"], "segment": row.get("segment_id")}
    prefixes = [f"{name}={_quoted(value)} " for name, value in names.items() if value is not None]
    return logging.LoggerAdapter(log, {"about": "".join(prefixes)})


@contextmanager
def naming(log: logging.Logger, stage: str, rows: pa.Table) -> Iterator[None]:
    """Log an exception inside for each video or segment of `rows`, and raise it again.

    Ray fails the step with the same exception, but does not know what was being worked on.
    """
    try:
        yield
    except Exception as error:
        ids = [name for name in ("video_id", "segment_id") if name in rows.column_names]
        for row in rows.select(ids).to_pylist():
            of_video(log, row).error("%s failed: %s", stage, one_line(f"{error!r}"))
        raise


def one_line(text: str) -> str:
    """Return `text` with characters that break a line or a terminal written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _quoted(text: str) -> str:
    """Return the text as it is, or in quotes where it would not be one word."""
    is_word = text.isprintable() and not set(text) & set(" \"'=")
    return text if is_word and text else repr(text)
