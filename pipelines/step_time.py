"""How long a step took in all processes that worked on it: what a killed one had spent is not lost."""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from pipelines.storage import Store

log = logging.getLogger(__name__)

FILE = "step_time.json"
"""Only there while a step is unfinished."""

EVERY_S = 20.0
"""Between two notes; at most so much of a killed process is missing."""


class StepTime:
    """A context manager around a step. It notes the time so far in FILE, also where the step ends in an error.

    Args:
        digest: of the step; a note of another one does not count.
        every_s: between two notes.
    """

    def __init__(self, store: Store, step: str, digest: str, every_s: float = EVERY_S) -> None:
        self._store, self._every_s = store, every_s
        self._key = {"step": step, "digest": digest}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._note_often, name=FILE, daemon=True)

    def __enter__(self) -> Self:
        found = self._store.read_json(FILE) or {}
        same = {name: found.get(name) for name in self._key} == self._key
        self.earlier_s: float = found["seconds"] if same else 0.0
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.own_s = time.monotonic() - self._started
        self._stop.set()
        self._thread.join()
        if error is not None:
            self._note()

    def forget(self) -> None:
        """Removes the note: the step is finished, and its time is in run.json."""
        self._store.delete(FILE)

    def _note_often(self) -> None:
        while not self._stop.wait(self._every_s):
            self._note()

    def _note(self) -> None:
        seconds = self.earlier_s + time.monotonic() - self._started
        try:
            self._store.publish_json(FILE, self._key | {"seconds": round(seconds, 3)})
        except Exception as error:  # noqa: BLE001 (only a time is lost)
            log.warning("%s: not written: %s", self._store.uri(FILE), error)
