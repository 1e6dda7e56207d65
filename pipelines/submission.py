"""A run as Ray jobs, submitted until it is done.

Ray Jobs never retry, and a job is lost with its head.

A submission ends in one of three ways. It is done, or failed with an error that the next one would
meet again: that is the end. Somebody stopped it: that is the end too. Anything else (driver killed,
head lost, storage away too long): another submission goes on with what the tables lack.

The output folder's lock may still be held by the lost driver. Each submission names in its metadata
those that it replaces, all of which have ended as far as the head can tell, and their lock, and
nobody else's, is taken over at once (`pipelines.run.lock`).
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import queue
import re
import secrets
import shlex
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import requests
from ray.dashboard.modules.job.common import JobErrorType
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipelines.errors import ConfigError, RunError
from pipelines.logs import one_line
from pipelines.ray_job import CODE, REPLACES
from pipelines.run.versions import code_revision

log = logging.getLogger(__name__)

STOPPED_CODE, INTERRUPTED_CODE = 143, 130

_FINAL_CODES = {2: "inputs or settings are wrong", 3: "too many segments failed"}
"""Exit codes of the job that the same command would end with again."""

_POLL_S, _LOG_S = 2.0, 5.0
"""Between two looks at a job, and at its log, which is sent as a whole each time."""

_REQUEST_S, _UPLOAD_S = 60.0, 600.0
_STOP_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 300.0
_UP_AFTER_S = 180.0
"""A head that is away for a moment is not started anew: that would end what runs on it."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Request:
    """The job to submit, the cluster to submit it to, and the limits of time and attempts.

    Attributes:
        address: of the head's dashboard, http://HEAD:8265.
        command: words of the entrypoint.
        runtime_env: with the working directory.
        attempts: most submissions.
        pending_timeout_s: most time until a driver runs.
        head_timeout_s: most time that a head may be away.
        up: configuration for `ray up`, which then starts a head that is away; empty for none.
    """

    address: str
    command: tuple[str, ...]
    runtime_env: dict[str, Any]
    attempts: int = 10
    pending_timeout_s: float = 600.0
    head_timeout_s: float = 1800.0
    up: str = ""


class HeadAway(ConnectionError):  # noqa: N818 (it may come back)
    """An error of a head that did not answer, or is not ready."""


class UnknownJobError(LookupError):
    """An error of a head that answers, and knows no such job."""


def _answer(address: str, question: Callable[[], _Answer], limit_s: float) -> _Answer:
    """Return the head's answer to a request of Ray's client, which has no time limit of its own.

    Raises:
        HeadAway: no answer, or none yet.
        UnknownJobError: the head knows no such job.
        ConfigError: the head wants a token.
        RunError: the head refuses.
    """
    # A daemon thread: a half-open connection may hold it for ever.
    answers: queue.Queue[tuple[_Answer | None, Exception | None]] = queue.Queue()

    def ask() -> None:
        try:
            answers.put((question(), None))
        except Exception as error:  # noqa: BLE001 (the asker raises it)
            answers.put((None, error))

    threading.Thread(target=ask, name="request", daemon=True).start()
    try:
        answer, error = answers.get(timeout=limit_s)
    except queue.Empty:
        raise HeadAway(f"no answer within {limit_s:.0f} s") from None
    if error is not None:
        explained = _explained(address, error)
        raise explained from (error if explained is not error else None)
    return typing.cast(_Answer, answer)


def _explained(address: str, error: Exception) -> Exception:
    """Return an error of Ray's client as one that says what to do next."""
    if isinstance(error, AuthenticationError):
        reason = one_line(error.message.splitlines()[0])
        return ConfigError(
            f"{address}: expected the token of this cluster, got none or another one; set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE with the file that the head was "
            f"started with, and give the same command again ({reason})"
        )
    if isinstance(error, requests.RequestException | ConnectionError):
        return HeadAway(_short(error))
    # The client gives the status only in its message.
    if not (refused := re.search(r"status code (\d+): (.*)", str(error), re.DOTALL)):
        return error
    status, text = int(refused[1]), f"status {refused[1]}: {_last_line(refused[2])}"
    if status == HTTPStatus.NOT_FOUND:
        return UnknownJobError(text)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return HeadAway(text)
    return RunError(f"{address}: the head refuses the request with {text}")


@dataclass(frozen=True)
class End:
    """The end of a submission.

    `code` is the exit code to end with; None where the job is to be submitted again.
    """

    code: int | None
    reason: str


def end_of(job: JobDetails) -> End:
    """Return the consequence of a job that has ended.

    Raises:
        RunError: the next one would not get further.
    """
    if job.status == JobStatus.SUCCEEDED:
        return End(0, "done")
    if job.status == JobStatus.STOPPED:
        return End(STOPPED_CODE, "it was stopped, and is not submitted again")
    if job.error_type == JobErrorType.RUNTIME_ENV_SETUP_FAILURE:
        raise RunError(
            f"{job.submission_id}: the nodes cannot make the environment of the job; mend "
            "--runtime-env, or use an image that has what it needs: "
            f"{_last_line(job.message or '')}"
        )
    code = job.driver_exit_code
    if code in _FINAL_CODES:
        return End(code, f"exit code {code}: {_FINAL_CODES[code]}")
    if code is None:
        return End(None, f"its driver was lost ({_last_line(job.message or '')})")
    return End(None, f"its driver ended with exit code {code}")


class Submitter:
    """A loop that submits a run until it is done.

    Args:
        say: is given the text of the job's log, each character once, in order.
    """

    def __init__(
        self,
        request: Request,
        say: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.request, self._say, self._sleep = request, say, sleep
        self._address, self._pending_s = request.address, request.pending_timeout_s
        self._lost: list[str] = []

    def run(self) -> int:
        """Submit until the run is done; return the exit code: that of the job, 130 after Ctrl-C,
        143 where somebody else stopped it.

        Raises:
            ConfigError: no head at the address, or it wants a token.
            RunError: attempts or patience are used up.
        """
        self.client = self._connect()
        reason = ""
        for attempt in range(1, self.request.attempts + 1):
            if attempt > 1:
                pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 2))
                log.warning("%s; another attempt in %.0f s", reason, pause_s)
                self._sleep(pause_s)
            job_id = _new_id()
            log.info("attempt %d of %d: %s", attempt, self.request.attempts, job_id)
            try:
                end = self._attempt(job_id)
            except (KeyboardInterrupt, SystemExit):
                self._stop(job_id)
                return INTERRUPTED_CODE
            reason = f"{job_id}: {end.reason}"
            if end.code is not None:
                log.log(logging.WARNING if end.code else logging.INFO, "%s", reason)
                return end.code
            self._lost.append(job_id)
        raise RunError(
            f"{reason}; it was the last of {self.request.attempts} attempts. What is finished "
            "is kept: when the cause is gone, give the same command again"
        )

    # --- one submission -----------------------------------------------------------------------

    def _attempt(self, job_id: str) -> End:
        self._said = 0
        self._patiently(lambda: self._submit(job_id))
        submitted = logged = time.monotonic()
        while True:
            try:
                job = self._patiently(lambda: self._ask(self.client.get_job_info, job_id))
            except UnknownJobError:
                return End(None, "it was lost with the head that ran it")
            now = time.monotonic()
            if job.status.is_terminal():
                self._say_log(job_id)
                return end_of(job)
            if job.status == JobStatus.RUNNING and now - logged > _LOG_S:
                self._say_log(job_id)
                logged = now
            elif job.status == JobStatus.PENDING and now - submitted > self._pending_s:
                self._give_up(job_id, job.message or "")
            self._sleep(_POLL_S)

    def _say_log(self, job_id: str) -> None:
        """Say what is new in the job's log."""
        with contextlib.suppress(HeadAway, UnknownJobError):
            text = self._ask(self.client.get_job_logs, job_id)
            if new := text[self._said :]:
                self._say(new)
            self._said = max(self._said, len(text))

    def _give_up(self, job_id: str, message: str) -> NoReturn:
        with contextlib.suppress(HeadAway, UnknownJobError):
            self._ask(self.client.stop_job, job_id)
        raise RunError(
            f"{job_id}: expected a driver within {self._pending_s:.0f} s, but it is pending "
            f"still, and was given up ({one_line(message)}). Most often --runtime-env names what "
            "the nodes cannot install: logs/runtime_env_setup-*.log on the head says what; "
            "--pending-timeout-s gives it longer"
        )

    def _submit(self, job_id: str) -> None:
        # An earlier request may have been carried out, and its answer lost.
        with contextlib.suppress(UnknownJobError):
            self._ask(self.client.get_job_info, job_id)
            return
        words = list(self.request.command)
        if self._lost:
            # It was meant for the lock that the first attempt found.
            words = [word for word in words if word != "--take-over"]
        submit = functools.partial(
            self.client.submit_job,
            entrypoint=shlex.join(words),
            submission_id=job_id,
            runtime_env=self.request.runtime_env,
            metadata={REPLACES: " ".join(self._lost), CODE: code_revision()},
        )
        try:
            _answer(self._address, submit, _UPLOAD_S)
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--runtime-env, --working-dir: {error}") from error

    def _stop(self, job_id: str) -> None:
        """Stop the job after a signal: nobody would submit it again."""
        by_hand = f"ray job stop --address {self._address} {job_id}"
        log.warning("stopping %s; Ctrl-C again leaves it running", job_id)
        try:
            self._ask(self.client.stop_job, job_id)
            end = time.monotonic() + _STOP_S
            while not self._ask(self.client.get_job_info, job_id).status.is_terminal():
                if time.monotonic() > end:
                    raise HeadAway(f"not stopped after {_STOP_S:.0f} s")
                time.sleep(_POLL_S / 4)
            self._say_log(job_id)
            log.warning(
                "stopped: what is finished is kept, and the same command goes on from there"
            )
        except (KeyboardInterrupt, SystemExit):
            log.warning("left to itself; `%s` stops it", by_hand)
        except UnknownJobError:
            log.warning("the head knows no such job (any more); the same command goes on")
        except HeadAway as error:
            log.warning("%s: it may still run; `%s` stops it", error, by_hand)

    # --- the head -----------------------------------------------------------------------------

    def _connect(self) -> JobSubmissionClient:
        make = functools.partial(JobSubmissionClient, self.request.address)
        try:
            if self.request.up:
                return self._patiently(
                    lambda: _answer(self._address, make, _REQUEST_S), up_after_s=0.0
                )
            return _answer(self._address, make, _REQUEST_S)
        except (HeadAway, RuntimeError, KeyError) as error:
            raise ConfigError(
                f"--address {self._address}: expected the dashboard of a Ray head "
                f"(http://HEAD:8265), but none answers ({error}); start one, or let --up start one"
            ) from error

    def _ask(self, method: Callable[[str], _Answer], job_id: str) -> _Answer:
        return _answer(self._address, lambda: method(job_id), _REQUEST_S)

    def _patiently(
        self, question: Callable[[], _Answer], up_after_s: float = _UP_AFTER_S
    ) -> _Answer:
        """Return the head's answer, however long it is away.

        Raises:
            RunError: it was away for too long.
        """
        since, tries, is_started = time.monotonic(), 0, not self.request.up
        while True:
            try:
                return question()
            except HeadAway as error:
                away_s = time.monotonic() - since
                if away_s > self.request.head_timeout_s:
                    raise RunError(
                        f"{self._address}: no answer for {away_s:.0f} s ({error}). What is "
                        "finished is kept: when a head answers there again, give the same command "
                        "again"
                    ) from error
                if tries == 0:
                    log.warning("%s: no answer (%s); waiting for it", self._address, error)
            if not is_started and away_s >= up_after_s:
                is_started = self._up()
            tries += 1
            self._sleep(min(30.0, _POLL_S * tries))

    def _up(self) -> bool:
        """Start a head by `ray up`; return whether that went well."""
        log.warning("ray up --yes %s", self.request.up)
        command = [sys.executable, "-m", "ray.scripts.scripts", "up", "--yes", self.request.up]
        code = subprocess.run(command, check=False).returncode
        if code:
            log.warning("ray up ended with exit code %d", code)
        return code == 0


def _new_id() -> str:
    now = datetime.datetime.now(datetime.UTC)
    return f"fcvid-encode-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _short(error: Exception) -> str:
    """Return the short reason, such as `Connection refused`, of an error that requests wraps in
    layers."""
    deepest: BaseException = error
    while deepest.__context__ is not None:
        deepest = deepest.__context__
    return getattr(deepest, "strerror", None) or one_line(str(deepest))[:200]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return one_line(lines[-1])[:500] if lines else "no reason given"


def working_dir(folder: str, command: str) -> str:
    """Return the folder as it is uploaded.

    Raises:
        ConfigError: the command is not in it.
    """
    checkout = Path(folder).resolve()
    if not (checkout / command).is_file():
        raise ConfigError(
            f"--working-dir {folder}: expected the checkout with {command}, which is not in it; "
            "change to it, or name it"
        )
    return str(checkout)
