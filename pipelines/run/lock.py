"""One run at a time in an output folder: `run.lock` says who holds it.

The lock is a small JSON file that is created where none is, which local disks and object storage do
for one of any number that try (`Store.create`). Its holder renews the time in it, the heartbeat. A
run that finds a lock

    refuses           where the heartbeat is fresh,
    takes it over     where its process is gone, which is seen at once on the same machine; where it is the
                      driver of a Ray job that this one replaces (`jobs/submit.py`); where it is
                      stale, and a while of watching shows no heartbeat; where the user says so.

No two take over the same lock: the first step of that is a file named by the token of the lock, the claim, created
where none is. A run that finds a claim waits until it is gone; it removes one whose process has ended, or that stands
still for a minute. Times of different machines are compared for a first judgement only, never to take over.
A holder whose lock was taken away stops: at its next heartbeat, or at the next `check`.

What remains: a holder that was suspended and wakes up writes until its next heartbeat beside the one
that took over. Every file of a run is written as a whole under a name made from what it holds, so
the two write the same.
"""

import contextlib
import datetime
import hashlib
import json
import logging
import math
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from pipelines.errors import ConfigError, RunError
from pipelines.run.ray_job import NO_SUBMISSION, Submission
from pipelines.storage.store import Store
from pipelines.storage.uris import redact

log = logging.getLogger(__name__)

LOCK = "run.lock"

HEARTBEAT_S = 20.0
"""Between two renewals."""

_MAX_HEARTBEAT_S = 3600.0

_STALE_BEATS = 9
"""Renewals that a holder may miss: storage may be away for some minutes."""

_WATCH_BEATS = 2.5
"""How long a stale lock is watched before it is taken over."""

_SETTLE_TRIES = 3

_INTERRUPT_AGAIN_S = 1.0

_CLAIM_WATCH_S = 60.0
"""Taking over takes a moment: whose claim stands still for so long has died on the way."""


class LockedError(ConfigError):
    """Another run holds the lock."""


class LockLostError(RunError):
    """Another run has taken the lock over."""


@dataclass(frozen=True)
class Holder:
    """What a lock says.

    Attributes:
        pids: where process ids mean the same: a boot of a kernel and a process namespace of it; empty
            where the system does not say.
        pid_started: tells a process from a later one of the same id.
        command: what the user typed.
        submission_id: of the Ray job whose driver it is; empty for none.
        started, heartbeat: seconds since 1970 by the holder's clock.
        heartbeat_s: between its heartbeats.
    """

    token: str
    host: str
    pids: str
    pid: int
    pid_started: str
    command: str
    started: float
    heartbeat: float
    heartbeat_s: float
    submission_id: str = ""

    def to_json(self) -> bytes:
        """The lock file. Times are repeated in words for people who open it."""
        words = {
            "started_utc": _utc(self.started),
            "heartbeat_utc": _utc(self.heartbeat),
        }
        return json.dumps(asdict(self) | words, indent=1).encode()

    @classmethod
    def of(cls, data: bytes) -> "Holder | None":
        """The holder, or None where the file is damaged."""
        try:
            values = {"submission_id": ""} | json.loads(data)
            found = cls(**{name: kind(values[name]) for name, kind in _FIELDS.items()})
        except (ValueError, KeyError, TypeError, OverflowError):
            return None
        sound = 0 < found.heartbeat_s <= _MAX_HEARTBEAT_S and math.isfinite(found.heartbeat)
        return found if sound else None

    @property
    def is_gone(self) -> bool:
        """Whether this is a process of this machine that has ended. False where that cannot be told."""
        if not self.pids or self.pids != _pids() or self.pid < 1:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _started(self.pid) != self.pid_started


_FIELDS = {
    "token": str,
    "host": str,
    "pids": str,
    "pid": int,
    "pid_started": str,
    "command": str,
    "started": float,
    "heartbeat": float,
    "heartbeat_s": float,
    "submission_id": str,
}


class RunLock:
    """A context manager: holds the lock of `store` inside, or does not enter. Sweeps what killed runs left.

    Args:
        command: what the user typed, for the message to others; credentials in it are left out.
        take_over: take the lock whoever holds it.
        submission: of this process.
        heartbeat_s: between renewals.
        on_lost: called once, in the heartbeat's thread, when another run has taken over. The default
            interrupts the main thread until it notices, so that a long step ends too.

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
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._store, self._take_over = store, take_over
        self._replaces = submission.replaces
        self._on_lost = on_lost or self._interrupt_main_thread
        now = time.time()
        self.holder = Holder(
            token=secrets.token_hex(16),
            host=platform.node(),
            pids=_pids(),
            pid=os.getpid(),
            pid_started=_started(os.getpid()),
            command=redact(command),
            started=now,
            heartbeat=now,
            heartbeat_s=heartbeat_s,
            submission_id=submission.id,
        )
        self._stop = threading.Event()
        self._ending = threading.Lock()
        self._noticed = threading.Event()
        self._sigint: Callable[[int, FrameType | None], object] | int | None = None
        self._taken_by = ""
        self._thread = threading.Thread(target=self._beat, name="run.lock", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._store.create(LOCK, self.holder.to_json())
        except FileExistsError:
            self._succeed()
        found = signal.getsignal(signal.SIGINT)
        if _in_main_thread() and (callable(found) or found is signal.SIG_IGN):
            self._sigint = found
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
            raise self._lost_error(self._taken_by) from error

    def check(self) -> None:
        """Returns while the lock is ours: asks the storage.

        Raises:
            LockLostError: another run has taken it over, or somebody removed it.
        """
        if taken_by := self._taken_by or self._other():
            raise self._lost_error(taken_by)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._taken_by and not self._noticed.is_set():
            # Also where SIGINT is ignored, as for what a script starts in the background.
            self._noticed.set()
            raise KeyboardInterrupt
        if callable(self._sigint):
            self._sigint(number, frame)

    def _interrupt_main_thread(self) -> None:
        # A real signal, as of Ctrl-C: `_thread.interrupt_main` does not end a call that waits. And again:
        # nor does a signal that arrives just before the call begins to wait. Another handler would not say that it noticed.
        while True:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            is_ours = signal.getsignal(signal.SIGINT) == self._interrupted
            if not is_ours or self._noticed.wait(_INTERRUPT_AGAIN_S):
                return

    # --- while it is held ---------------------------------------------------------------------

    def _beat(self) -> None:
        while not self._stop.wait(self.holder.heartbeat_s):
            try:
                other = self._other()
                if not other:
                    self._publish()
                    continue
            except Exception as error:  # noqa: BLE001 (a storage that is away may come back)
                log.warning("%s: no heartbeat: %s", self._store.uri(LOCK), error)
                continue
            with self._ending:
                if not self._stop.is_set():
                    self._taken_by = other
                    log.error("%s", self._lost_error(other))
                    self._on_lost()
            return

    def _release(self) -> None:
        try:
            if not self._taken_by and not self._other():
                self._store.delete(LOCK)
        except Exception as error:  # noqa: BLE001 (what the run did counts; others take over)
            log.warning("%s: not removed: %s", self._store.uri(LOCK), error)

    def _other(self) -> str:
        """Empty while the lock is ours, else whose it is."""
        found = self._read()
        holder = Holder.of(found) if found is not None else None
        if holder is None:
            return "somebody removed or damaged it"
        return "" if holder.token == self.holder.token else f"{_who(holder)} took it over"

    def _read(self, name: str = LOCK) -> bytes | None:
        try:
            return self._store.read(name)
        except FileNotFoundError:
            return None

    def _publish(self) -> None:
        self._store.publish(LOCK, self._now())

    def _now(self) -> bytes:
        """What the lock is to say, with this moment's heartbeat."""
        return replace(self.holder, heartbeat=time.time()).to_json()

    def _lost_error(self, taken_by: str) -> LockLostError:
        return LockLostError(
            f"{self._store.uri(LOCK)}: this run has lost its lock: {taken_by}; it stops here, and what "
            "it has finished is kept"
        )

    # --- taking over --------------------------------------------------------------------------

    def _succeed(self) -> None:
        """Takes the place of the holder, or refuses."""
        while True:
            found = self._read()
            if found is None:
                # Released in this moment: whoever creates it first has it.
                with contextlib.suppress(FileExistsError):
                    self._store.create(LOCK, self.holder.to_json())
                    return
                continue
            reason = self._why_free(found)
            if reason is None:
                continue
            if self._replace(found):
                log.warning("%s: taken over: %s", self._store.uri(LOCK), reason)
                return

    def _why_free(self, found: bytes) -> str | None:
        """Why the lock may be taken over; None where it changed hands meanwhile.

        Raises:
            LockedError: it may not.
        """
        holder = Holder.of(found)
        if self._take_over:
            return f"--take-over: {_who(holder)}" if holder else "--take-over: it is damaged"
        if holder is None:
            if self._watch(LOCK, found, _WATCH_BEATS * self.holder.heartbeat_s):
                return "it is damaged, and nobody renews it"
            return None
        if holder.is_gone:
            return f"its process has ended: {_who(holder)}"
        if holder.submission_id in self._replaces:
            return f"this job replaces that one, which was lost: {_who(holder)}"
        stale_s, age_s = _STALE_BEATS * holder.heartbeat_s, time.time() - holder.heartbeat
        if -stale_s < age_s < stale_s:
            raise self._locked(holder)
        if not self._watch(LOCK, found, _WATCH_BEATS * holder.heartbeat_s):
            again = self._read()
            now = Holder.of(again) if again is not None else None
            if now is not None and now.token == holder.token:
                raise self._locked(now)
            return None
        return f"no heartbeat for a long time: {_who(holder)}"

    def _watch(self, name: str, found: bytes, seconds: float) -> bool:
        """Whether a file stays as it is for as long as a living owner would not leave it."""
        log.info("%s: watched for %.0f s: is anybody there?", self._store.uri(name), seconds)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(1.0, seconds / 5))
            if self._read(name) != found:
                return False
        return True

    def _replace(self, found: bytes) -> bool:
        """Puts our lock in the place of `found`; False where that is to be tried again."""
        before = Holder.of(found)
        token = before.token if before else hashlib.sha256(found).hexdigest()[:32]
        claim = f"_{LOCK}.{token}"
        try:
            self._store.create(claim, self._now())
        except FileExistsError:
            self._outlast(claim)
            return False
        try:
            again = self._read()
            now = Holder.of(again) if again is not None else None
            same = again == found or (now and before and now.token == before.token)
            if same:
                self._publish()
                if not (before and before.is_gone):
                    self._settle()
            return bool(same)
        finally:
            self._store.delete(claim)

    def _settle(self) -> None:
        """Outlasts a heartbeat of the holder before, which may have looked before we wrote."""
        for _ in range(_SETTLE_TRIES):
            time.sleep(min(1.0, self.holder.heartbeat_s))
            if not self._other():
                return
            self._publish()

    def _outlast(self, claim: str) -> None:
        """Returns when another run has ended taking over. Where it has died on the way, its claim is removed."""
        found = self._read(claim)
        if found is None:
            return
        other = Holder.of(found)
        if (other and other.is_gone) or self._watch(claim, found, _CLAIM_WATCH_S):
            self._store.delete(claim)

    def _locked(self, holder: Holder) -> LockedError:
        return LockedError(
            f"{self._store.uri(LOCK)}: expected no other run in this folder, got {_who(holder)}. Wait for "
            "it or take another --out; if it is surely dead, run the same command with --take-over"
        )


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _who(holder: Holder) -> str:
    now = time.time()
    dead = now - holder.heartbeat > _STALE_BEATS * holder.heartbeat_s or holder.is_gone
    return (
        f"process {holder.pid} on {holder.host} ({holder.command}), which holds the lock since "
        f"{_utc(holder.started)}; last heartbeat {_ago(now - holder.heartbeat)}"
        + (", so it looks dead" if dead else "")
    )


def _ago(seconds: float) -> str:
    if seconds < -2:
        return f"{-seconds:.0f} s in the future by the clock of this machine"
    if seconds < 120:
        return f"{max(0, seconds):.0f} s ago"
    return f"{seconds / 60:.0f} min ago"


def _utc(seconds: float) -> str:
    try:
        found = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s"
    return found.isoformat(sep=" ", timespec="seconds")


def _pids() -> str:
    """Equal for two processes that see each other's ids. Containers of one machine may not."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in ticks since boot; empty where it has ended or the system does not say."""
    try:
        # The name, in brackets, may hold anything; state is the first field after it, start the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
