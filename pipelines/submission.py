"""A run as Ray jobs, submitted until it is done: Ray Jobs never retry, and a job is lost with its head.

A submission ends in one of three ways. It is done, or failed with an error that the next one would meet again: that is
the end. Somebody stopped it: that is the end too. Anything else (driver killed, head lost, storage away too long):
another submission goes on with what the tables lack.

The output folder's lock may still be held by the lost driver. Each submission names in its metadata those that it
replaces, all of which have ended as far as the head can tell, and their lock, and nobody else's, is taken over at
once (`pipelines.run.lock`).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import secrets
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests
from ray.dashboard.modules.job.common import JobErrorType
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipelines.errors import ConfigError, RunError
from pipelines.logs import one_line
from pipelines.run.ray_job import CODE, REPLACES
from pipelines.run.versions import code_revision
from pipelines.storage.uris import redact

log = logging.getLogger(__name__)

STOPPED_CODE, INTERRUPTED_CODE = 143, 130

_FINAL_CODES = {2: "inputs or settings are wrong", 3: "too many segments failed"}
"""Exit codes of the job that the same command would end with again."""

_POLL_S = 2.0
_REQUEST_S = 60.0
_STOP_S = 30.0
_LOG_END_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 300.0
_UP_AFTER_S = 180.0
"""A head that is away for a moment is not started anew: that would end what runs on it."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Request:
    """What is submitted, where, and how patiently.

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
    """The head did not answer, or is not ready."""


class UnknownJobError(LookupError):
    """The head answers, and knows no such job."""


class _Client(JobSubmissionClient):
    """With a time limit for each request, and errors that say what to do next."""

    def _do_request(self, *args: Any, **kwargs: Any) -> requests.Response:
        try:
            return super()._do_request(*args, **{"timeout": _REQUEST_S} | kwargs)
        except AuthenticationError as error:
            raise ConfigError(
                f"{self._address}: expected the token of this cluster, got none or another one; set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE with the file that the head was started "
                f"with, and give the same command again ({one_line(error.message.splitlines()[0])})"
            ) from None
        except requests.RequestException as error:
            raise HeadAway(_short(error)) from error

    def _raise_error(self, response: requests.Response) -> None:
        text = f"status {response.status_code}: {_last_line(response.text)}"
        if response.status_code == requests.codes.not_found:
            raise UnknownJobError(text)
        if response.status_code >= requests.codes.server_error:
            raise HeadAway(text)
        raise RunError(f"{self._address}: the head refuses the request with {text}")


@dataclass(frozen=True)
class End:
    """How a submission ended. `code` is the exit code to end with; None where the job is to be submitted again."""

    code: int | None
    reason: str


def end_of(job: JobDetails) -> End:
    """What follows from a job that has ended.

    Raises:
        RunError: the next one would not get further.
    """
    if job.status == JobStatus.SUCCEEDED:
        return End(0, "done")
    if job.status == JobStatus.STOPPED:
        return End(STOPPED_CODE, "it was stopped, and is not submitted again")
    if job.error_type == JobErrorType.RUNTIME_ENV_SETUP_FAILURE:
        raise RunError(
            f"{job.submission_id}: the nodes cannot make the environment of the job; mend --runtime-env, or "
            f"use an image that has what it needs: {_last_line(job.message or '')}"
        )
    code = job.driver_exit_code
    if code in _FINAL_CODES:
        return End(code, f"exit code {code}: {_FINAL_CODES[code]}")
    if code is None:
        return End(None, f"its driver was lost ({_last_line(job.message or '')})")
    return End(None, f"its driver ended with exit code {code}")


class Submitter:
    """Submits until the run is done.

    Args:
        say: is given the text of the job's log, once each, in order.
    """

    def __init__(
        self,
        request: Request,
        say: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.request, self._say, self._sleep = request, say, sleep
        self._lost: list[str] = []

    def run(self) -> int:
        """The exit code: that of the job, 130 after Ctrl-C, 143 where somebody else stopped it.

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
            f"{reason}; it was the last of {self.request.attempts} attempts. What is finished is kept: when "
            "the cause is gone, give the same command again"
        )

    # --- one submission -----------------------------------------------------------------------

    def _attempt(self, job_id: str) -> End:
        self._text = text = JobLog(self.client, job_id, self._say)
        self._ask(lambda: self._submit(job_id))
        submitted = time.monotonic()
        while True:
            try:
                job = self._ask(lambda: self.client.get_job_info(job_id))
            except UnknownJobError:
                return End(None, "it was lost with the head that ran it")
            if job.status.is_terminal():
                text.finish()
                return end_of(job)
            if job.status == JobStatus.RUNNING:
                text.follow()
            elif time.monotonic() - submitted > self.request.pending_timeout_s:
                with contextlib.suppress(HeadAway, UnknownJobError):
                    self.client.stop_job(job_id)
                raise RunError(
                    f"{job_id}: expected a driver within {self.request.pending_timeout_s:.0f} s, but it is "
                    f"pending still, and was given up ({one_line(job.message or '')}). Most often --runtime-env "
                    "names what the nodes cannot install: logs/runtime_env_setup-*.log on the head says what; "
                    "--pending-timeout-s gives it longer"
                )
            self._sleep(_POLL_S)

    def _submit(self, job_id: str) -> None:
        # An earlier request may have been carried out, and its answer lost.
        with contextlib.suppress(UnknownJobError):
            self.client.get_job_info(job_id)
            return
        words = list(self.request.command)
        if self._lost:
            # It was meant for the lock that the first attempt found.
            words = [word for word in words if word != "--take-over"]
        try:
            self.client.submit_job(
                entrypoint=shlex.join(words),
                submission_id=job_id,
                runtime_env=self.request.runtime_env,
                metadata={REPLACES: " ".join(self._lost), CODE: code_revision()},
            )
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--runtime-env, --working-dir: {error}") from error

    def _stop(self, job_id: str) -> None:
        """Stops the job after a signal: nobody would submit it again."""
        request = self.request
        by_hand = f"ray job stop --address {redact(request.address)} {job_id}"
        log.warning("stopping %s; Ctrl-C again leaves it running", job_id)
        try:
            self.client.stop_job(job_id)
            end = time.monotonic() + _STOP_S
            while not self.client.get_job_info(job_id).status.is_terminal():
                if time.monotonic() > end:
                    raise HeadAway(f"not stopped after {_STOP_S:.0f} s")
                time.sleep(_POLL_S / 4)
            self._text.finish()
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

    def _connect(self) -> _Client:
        if self.request.up:
            return self._ask(self._reach, up_after_s=0.0)
        try:
            return self._reach()
        except ConnectionError as error:
            raise self._wrong_address(error) from error

    def _reach(self) -> _Client:
        try:
            return _Client(self.request.address)
        except requests.HTTPError as error:
            raise HeadAway(_short(error)) from error
        except (requests.RequestException, RuntimeError, KeyError) as error:
            raise self._wrong_address(error) from error

    def _wrong_address(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"--address {redact(self.request.address)}: expected the dashboard of a Ray head "
            f"(http://HEAD:8265), but none answers ({error}); start one, or let --up start one"
        )

    def _ask(self, question: Callable[[], _Answer], up_after_s: float = _UP_AFTER_S) -> _Answer:
        """The head's answer, however long it is away.

        Raises:
            RunError: it was away for too long.
        """
        since, tries, is_started = time.monotonic(), 0, not self.request.up
        address, patience_s = redact(self.request.address), self.request.head_timeout_s
        while True:
            try:
                return question()
            except ConnectionError as error:
                away_s = time.monotonic() - since
                if away_s > patience_s:
                    raise RunError(
                        f"{address}: no answer for {away_s:.0f} s ({error}). What is finished is kept: when a "
                        "head answers there again, give the same command again"
                    ) from error
                if tries == 0:
                    log.warning("%s: no answer (%s); waiting for it", address, error)
            if not is_started and away_s >= up_after_s:
                is_started = self._up()
            tries += 1
            self._sleep(min(30.0, _POLL_S * tries))

    def _up(self) -> bool:
        """Whether `ray up` has brought a head up."""
        log.warning("ray up --yes %s", self.request.up)
        command = [sys.executable, "-m", "ray.scripts.scripts", "up", "--yes", self.request.up]
        code = subprocess.run(command, check=False).returncode
        if code:
            log.warning("ray up ended with exit code %d", code)
        return code == 0


class JobLog:
    """The log of a job, said once from its first line to its last, however often the connection breaks."""

    def __init__(
        self, client: JobSubmissionClient, job_id: str, say: Callable[[str], None]
    ) -> None:
        self._client, self._job_id, self._say = client, job_id, say
        self._said = 0
        self._lock = threading.Lock()
        self._is_finished = False
        self._thread: threading.Thread | None = None

    def follow(self) -> None:
        """Says what comes from now on, in a thread; begins again where an earlier one was cut off."""
        if self._thread is None or not self._thread.is_alive():
            # A half-open connection may hold it for ever.
            self._thread = threading.Thread(target=self._run, name="job log", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Says the rest of a job that has ended."""
        if self._thread is not None:
            self._thread.join(_LOG_END_S)
        with contextlib.suppress(ConnectionError, UnknownJobError):
            self._add(self._client.get_job_logs(self._job_id), 0)
        with self._lock:
            self._is_finished = True

    def _run(self) -> None:
        # Where it breaks off, the head's answers say why.
        with contextlib.suppress(Exception):
            asyncio.run(self._tail())

    async def _tail(self) -> None:
        place = 0
        async for text in self._client.tail_job_logs(self._job_id):
            self._add(text, place)
            place += len(text)

    def _add(self, text: str, place: int) -> None:
        """`text` stands at character `place` of the log."""
        with self._lock:
            new = text[max(0, self._said - place) :]
            if new and not self._is_finished:
                self._say(new)
                self._said += len(new)


def _new_id() -> str:
    now = datetime.datetime.now(datetime.UTC)
    return f"fcvid-encode-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _short(error: Exception) -> str:
    """Such as `Connection refused`, of what requests wraps in layers."""
    deepest: BaseException = error
    while deepest.__context__ is not None:
        deepest = deepest.__context__
    return getattr(deepest, "strerror", None) or one_line(str(deepest))[:200]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return one_line(lines[-1])[:500] if lines else "no reason given"


def working_dir(folder: str, command: str) -> str:
    """The folder as it is uploaded.

    Raises:
        ConfigError: the command is not in it.
    """
    found = Path(folder).resolve()
    if not (found / command).is_file():
        raise ConfigError(
            f"--working-dir {folder}: expected the checkout with {command}, which is not in it; change to it, "
            "or name it"
        )
    return str(found)
