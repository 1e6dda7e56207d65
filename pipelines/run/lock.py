"""One run at a time in an output folder: `run.lock` says who holds it.

The lock is a small JSON file that is created where none is, which local disks and most object
storage do for one of any number that try (`Store.create`). Its holder renews the time in it, the
heartbeat. A run that finds a lock

    refuses           where the heartbeat is fresh,
    takes it over     where its process is gone, which is seen at once on the same machine; where it
                      is the driver of a Ray job that this one replaces (`jobs/submit.py`); where a
                      while of watching shows no heartbeat; where the user says so.

A run whose lock is another's stops: at its next heartbeat, or at the next `check`; the first
heartbeat is a second after the lock was taken. So of two that take over the same lock in the same
moment, one stops a second later; and of two that start at once on storage that lets both create
the lock. Until then both write, and do no harm: every file of a run is whole, and named by what it
holds.
"""

import contextlib
import datetime
import json
import logging
import os
import platform
import secrets
import signal
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, Self, cast

from pydantic import Field, TypeAdapter, ValidationError

from pipelines.credentials import redact
from pipelines.errors import ConfigError, RunError
from pipelines.ray_job import NO_SUBMISSION, Submission
from pipelines.storage.store import Store

log = logging.getLogger(__name__)

LOCK = "run.lock"

HEARTBEAT_S = 20.0
"""Between two renewals."""

_WATCH_BEATS = 2.5
"""Heartbeats that a stale lock is watched before it is taken over."""

_FIRST_BEAT_S = 1.0
"""Until a run looks whether another one has taken the lock in the same moment."""

_INTERRUPT_AGAIN_S = 1.0

_STALE_BEATS = 9
"""Renewals that a holder may miss: storage may be away for some minutes."""

_MAX_HEARTBEAT_S = 3600.0

_Time = Annotated[float, Field(ge=0, le=4e9)]
"""Seconds since 1970: to the year 2096."""


class LockedError(ConfigError):
    """Another run holds the lock."""


class LockLostError(RunError):
    """Another run has taken the lock over."""


@dataclass(frozen=True)
class Holder:
    """The content of a lock.

    Attributes:
        pids: where process ids mean the same: a boot of a kernel and a process namespace of it;
            empty where the system does not say.
        pid_started: tells a process from a later one of the same id.
        command: what the user typed.
        submission_id: of the Ray job whose driver it is; empty for none.
        started, heartbeat: seconds since 1970 by the holder's clock.
        heartbeat_s: between its heartbeats.
    """

    token: str
    host: str
    pids: str
    pid: Annotated[int, Field(lt=2**31)]
    pid_started: str
    command: str
    started: _Time
    heartbeat: _Time
    heartbeat_s: Annotated[float, Field(gt=0, le=_MAX_HEARTBEAT_S)]
    submission_id: str = ""

    @classmethod
    def here(cls, command: str, heartbeat_s: float, submission_id: str) -> Self:
        """Describe this process."""
        pid, now = os.getpid(), time.time()
        return cls(
            *(secrets.token_hex(16), platform.node(), _pids(), pid, _started(pid)),
            *(redact(command), now, now, heartbeat_s, submission_id),
        )

    def to_json(self) -> bytes:
        """Return the lock file, with the time of the heartbeat in words for people who open it."""
        words = {"heartbeat_utc": _utc(self.heartbeat)}
        return json.dumps(asdict(self) | words, indent=1).encode()

    @classmethod
    def of(cls, data: bytes | None) -> "Holder | None":
        """Return the holder, or None where the file is damaged or is not there."""
        try:
            return None if data is None else _HOLDER.validate_json(data)
        except ValidationError:
            return None

    @property
    def is_gone(self) -> bool:
        """Return whether this is a process of this machine that has ended.

        False where that cannot be told.
        """
        if not self.pids or self.pids != _pids() or self.pid < 1:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _started(self.pid) != self.pid_started

    @property
    def is_fresh(self) -> bool:
        """Return whether its last heartbeat is near this machine's time; clocks may differ."""
        return abs(time.time() - self.heartbeat) < _STALE_BEATS * self.heartbeat_s

    def __str__(self) -> str:
        age_s = time.time() - self.heartbeat
        dead = age_s > _STALE_BEATS * self.heartbeat_s or self.is_gone
        return (
            f"process {self.pid} on {self.host} ({self.command}), which holds the lock since "
            f"{_utc(self.started)}; last heartbeat {age_s:.0f} s ago by the clock here"
            + (", so it looks dead" if dead else "")
        )


_HOLDER = TypeAdapter(Holder)


class RunLock:
    """A context manager that holds the lock of `store` inside, or does not enter.

    It sweeps what killed runs left. Where the lock is lost, the main thread is interrupted, so that
    a long step ends too.

    Args:
        command: what the user typed, for the message to others; credentials in it are left out.
        take_over: take the lock whoever holds it.
        submission: of this process.
        heartbeat_s: between renewals.

    Raises:
        LockedError: on entry, where another run holds the lock.
        LockLostError: on exit, where the main thread was interrupted because the lock is lost.
    """

    def __init__(
        self,
        store: Store,
        command: str,
        *,
        take_over: bool = False,
        submission: Submission = NO_SUBMISSION,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._store, self._take_over = store, take_over
        self._replaces = submission.replaces
        self.holder = Holder.here(command, heartbeat_s, submission.id)
        self._stop, self._noticed = threading.Event(), threading.Event()
        self._ending = threading.Lock()
        self._sigint: Any = None
        self._taken_by = ""
        self._thread = threading.Thread(target=self._beat, name=LOCK, daemon=True)

    def __enter__(self) -> Self:
        self._acquire()
        handler = signal.getsignal(signal.SIGINT)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and (callable(handler) or handler is signal.SIG_IGN):
            self._sigint = handler
            signal.signal(signal.SIGINT, self._interrupted)
        self._thread.start()
        if removed := self._store.sweep(self.holder.started):
            log.info("%s: removed %d files of a killed run", self._store.root, removed)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._ending:
                self._stop.set()
            self._thread.join()
            self._release()
        except KeyboardInterrupt:
            if not self._taken_by:
                raise
        finally:
            if self._sigint is not None:
                signal.signal(signal.SIGINT, self._sigint)
        if self._taken_by and (error is None or isinstance(error, KeyboardInterrupt)):
            raise self._lost(self._taken_by) from error

    def check(self) -> None:
        """Ask the storage whether the lock is still ours; return if so.

        Raises:
            LockLostError: another run has taken it over, or somebody removed it.
        """
        if taken_by := self._taken_by or self._other():
            raise self._lost(taken_by)

    def _beat(self) -> None:
        wait_s = min(_FIRST_BEAT_S, self.holder.heartbeat_s)
        while not self._stop.wait(wait_s):
            wait_s = self.holder.heartbeat_s
            try:
                other = self._other()
                if not other:
                    self._publish()
                    continue
            except Exception as error:  # noqa: BLE001 (a storage that is away may come back)
                log.warning("%s: no heartbeat: %s", self._uri, error)
                continue
            with self._ending:
                if not self._stop.is_set():
                    self._taken_by = other
                    log.error("%s", self._lost(other))
                    self._interrupt_main_thread()
            return

    def _interrupt_main_thread(self) -> None:
        # A real signal, as of Ctrl-C: `_thread.interrupt_main` does not end a call that waits. And
        # again: nor does a signal that arrives just before the call begins to wait. Another handler
        # would not say that it noticed.
        while True:
            signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGINT)
            is_ours = signal.getsignal(signal.SIGINT) == self._interrupted
            if not is_ours or self._noticed.wait(_INTERRUPT_AGAIN_S):
                return

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._taken_by and not self._noticed.is_set():
            # Also where SIGINT is ignored, as for what a script starts in the background.
            self._noticed.set()
            raise KeyboardInterrupt
        if callable(self._sigint):
            self._sigint(number, frame)

    def _release(self) -> None:
        try:
            if not self._taken_by and not self._other():
                self._store.delete(LOCK)
        except Exception as error:  # noqa: BLE001 (what the run did counts; others take over)
            log.warning("%s: not removed: %s", self._uri, error)

    def _other(self) -> str:
        """Return the holder's description; empty while the lock is ours."""
        holder = Holder.of(self._read())
        if holder is None:
            return "somebody removed or damaged it"
        return "" if holder.token == self.holder.token else f"{holder} took it over"

    @property
    def _uri(self) -> str:
        return self._store.uri(LOCK)

    def _read(self) -> bytes | None:
        try:
            return self._store.read(LOCK)
        except FileNotFoundError:
            return None

    def _content(self) -> bytes:
        return replace(self.holder, heartbeat=time.time()).to_json()

    def _publish(self) -> None:
        self._store.publish(LOCK, self._content())

    def _lost(self, taken_by: str) -> LockLostError:
        return LockLostError(
            f"{self._uri}: this run has lost its lock: {taken_by}; it stops here, and what it has "
            "finished is kept"
        )

    def _acquire(self) -> None:
        """Create the lock or take it over.

        Raises:
            LockedError: another run holds it.
        """
        while True:
            content = self._read()
            if content is None:
                # Looked at before: not every storage refuses to create what is there.
                with contextlib.suppress(FileExistsError):
                    self._store.create(LOCK, self._content())
                    return
                continue
            reason = self._why_free(content)
            if self._take_over or (reason and self._read() == content):
                self._publish()
                log.warning("%s: taken over: %s", self._uri, reason)
                return

    def _why_free(self, content: bytes) -> str:
        """Return why the lock may be taken over; empty where it changed while it was watched.

        Raises:
            LockedError: it may not.
        """
        holder = Holder.of(content)
        whose = holder or "it is damaged"
        if self._take_over:
            return f"--take-over: {whose}"
        if holder and holder.is_gone:
            return f"its process has ended: {whose}"
        if holder and holder.submission_id in self._replaces:
            return f"this job replaces that one, which was lost: {whose}"
        # Clocks of two machines may differ: an old time is a reason to watch, no more.
        if holder and holder.is_fresh:
            raise self._locked(holder)
        log.info("%s: watched, whether anybody is there: %s", self._uri, whose)
        time.sleep(_WATCH_BEATS * (holder or self.holder).heartbeat_s)
        again = self._read()
        if again == content:
            return f"no heartbeat for a long time: {whose}"
        current = Holder.of(again)
        if holder and current and current.token == holder.token:
            raise self._locked(current)
        return ""

    def _locked(self, holder: Holder) -> LockedError:
        return LockedError(
            f"{self._uri}: expected no other run in this folder, got {holder}. Wait for it or take "
            "another --out; if it is surely dead, run the same command with --take-over"
        )


def _utc(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(sep=" ", timespec="seconds")


def _pids() -> str:
    """Return a text that is equal for processes that see each other's ids.

    Containers of one machine may not.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process began, in ticks since boot; empty where it has ended or the system does
    not say.
    """
    try:
        # The name, in brackets, may hold anything; state is the first field after it, start the
        # 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
