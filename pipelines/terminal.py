"""The line of a step while it works: a bar on a terminal, plain lines in a log."""

import logging
import sys
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Time between two looks at how far a step is."""

_MOST_S = 60.0
"""Longest time between two lines of a log."""

FIRST_S = 5.0


def is_terminal() -> bool:
    """Return whether messages go to a terminal, where a line can change."""
    return sys.stderr.isatty()


def due(often: bool) -> Iterator[float]:
    """Yield the times, in seconds of a step, at which a log gets a line: at first every few
    seconds, later every minute.

    Args:
        often: every few seconds all the time.
    """
    time_s, step_s = FIRST_S, FIRST_S
    while True:
        yield time_s
        time_s += step_s
        step_s = step_s if often else min(2 * step_s, _MOST_S)


class StepLine:
    """The progress of one step, as a bar or as lines.

    Args:
        step: its name.
        total: rows that it has to do.
        details: with lines every few seconds that say what is busy, as `-v` asks for.
    """

    def __init__(self, step: str, total: int, *, details: bool) -> None:
        self.step, self.total, self.details = step, total, details
        self._due = due(details)
        self._next_s = next(self._due)
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if is_terminal() and not self.details:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self.step, total=self.total or None, text="starting")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, counts: dict[str, int], elapsed_s: float, busy: str, latest: str) -> None:
        """Show how far the step is.

        Args:
            counts: rows that are done, by status.
            busy: which stages are at work, for details.
            latest: what a worker said last.
        """
        text = progress_text(counts, self.total, elapsed_s)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=sum(counts.values()), text=text)
        elif elapsed_s >= self._next_s:
            while self._next_s <= elapsed_s:
                self._next_s = next(self._due)
            parts = (f"{self.step} {text}", *((busy, latest) if self.details else ()))
            log.info("; ".join(part for part in parts if part))


def progress_text(counts: dict[str, int], total: int, elapsed_s: float) -> str:
    """Return how far a step is, such as `120/960, 12.5/s, 1:07 left (2 failed)`."""
    num_done = sum(counts.values())
    text = f"{num_done:,}/{total:,}"
    if num_done:
        rate = num_done / elapsed_s
        text += f", {rate:.3g}/s, {duration((total - num_done) / rate)} left"
    odd = [f"{number} {status}" for status, number in sorted(counts.items()) if status != "ok"]
    return text + (f" ({', '.join(odd)})" if odd else "")


def duration(seconds: float) -> str:
    """Return a time for people: 12 s, 3 min 05 s, 2 h 07 min, 3 d 4 h."""
    whole = round(seconds)
    for size, large, small, each in (
        (86_400, "d", "h", 3600),
        (3600, "h", "min", 60),
        (60, "min", "s", 1),
    ):
        if whole >= size:
            rest = whole % size // each
            return (
                f"{whole // size} {large} {rest:02} {small}"
                if size < 86_400
                else (f"{whole // size} {large} {rest} {small}")
            )
    return f"{whole} s"
