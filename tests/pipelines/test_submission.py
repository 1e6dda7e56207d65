"""Resubmission against a server that speaks as much of Ray's job API as is asked of it, scripted
job by job."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import ray

from pipelines import submission
from pipelines.errors import ConfigError, RunError
from pipelines.run.versions import code_revision
from pipelines.submission import Request, Submitter

LOST = {"status": "FAILED", "message": "Job supervisor actor died: gone", "driver_exit_code": None}
DONE = {"status": "SUCCEEDED", "driver_exit_code": 0}


def failed(code: int) -> dict:
    return {"status": "FAILED", "message": f"exit code {code}", "driver_exit_code": code}


class FakeHead:
    """Attributes:
    ends: what becomes of each submission, in order; None: the head forgets it, as a new one would.
    refuses: the status of every answer while it is set.
    """

    def __init__(self) -> None:
        self.ends: list[dict | None] = []
        self.refuses = 0
        self.log = ""
        self.deaf_submissions = 0
        self.submitted: list[dict] = []
        self.stopped: list[str] = []
        self.jobs: dict[str, dict] = {}
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(*head.get(self.path))

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                self.answer(*head.post(self.path, self.rfile.read(size)))

            def answer(self, status: int, content: object) -> None:
                if head.refuses:
                    status, content = head.refuses, "refused"
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def get(self, path: str) -> tuple[int, object]:
        if path == "/api/version":
            return 200, {"version": "4", "ray_version": ray.__version__, "ray_commit": "x"}
        job_id = path.removeprefix("/api/jobs/").removesuffix("/logs")
        if job_id not in self.jobs:
            return 404, f"{job_id} does not exist"
        if path.endswith("/logs"):
            return 200, {"logs": self.log or f"log of {job_id}\n"}
        return 200, self.jobs[job_id]

    def post(self, path: str, body: bytes) -> tuple[int, object]:
        if path.endswith("/stop"):
            job_id = path.split("/")[-2]
            self.stopped.append(job_id)
            self.jobs[job_id] |= {"status": "STOPPED"}
            return 200, {"stopped": True}
        request = json.loads(body)
        self.submitted.append(request)
        job_id = request["submission_id"]
        if (end := self.ends.pop(0)) is not None:
            self.jobs[job_id] = {"type": "SUBMISSION", "submission_id": job_id, "entrypoint": ""}
            self.jobs[job_id] |= {"message": "", **end}
        if self.deaf_submissions:
            self.deaf_submissions -= 1
            return 500, "the answer is lost"
        return 200, {"job_id": job_id, "submission_id": job_id}


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHead]:
    made = FakeHead()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", made.address)
    yield made
    made.server.shutdown()
    made.server.server_close()


class Run:
    """A Submitter whose pauses are listed and not slept."""

    def __init__(self, head: FakeHead, **changes: object) -> None:
        self.said: list[str] = []
        self.slept: list[float] = []
        self.on_sleep: Callable[[], None] = lambda: None
        command = ("python", "jobs/fcvid_encode.py", "--out", "it's here", "--take-over")
        request = Request(address=head.address, command=command, runtime_env={}, **changes)
        self.submitter = Submitter(request, self.said.append, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.on_sleep()

    def code(self) -> int:
        return self.submitter.run()


def test_a_done_job_is_submitted_once(head: FakeHead) -> None:
    head.ends = [DONE]
    run = Run(head)
    assert run.code() == 0
    (only,) = head.submitted
    assert only["entrypoint"] == (
        """python jobs/fcvid_encode.py --out 'it'"'"'s here' --take-over"""
    )
    assert only["metadata"] == {"replaces": "", "code": code_revision()}
    assert "".join(run.said) == f"log of {only['submission_id']}\n"


def test_lost_jobs_are_replaced_until_one_is_done(
    head: FakeHead, caplog: pytest.LogCaptureFixture
) -> None:
    """Driver lost, head lost, killed, failed, done: five submissions, each with a reason and a
    longer pause."""
    caplog.set_level(logging.INFO)
    head.ends = [LOST, None, failed(-9), failed(1), DONE]
    run = Run(head)
    assert run.code() == 0
    ids = [job["submission_id"] for job in head.submitted]
    assert len(set(ids)) == 5
    replaced = [job["metadata"]["replaces"].split() for job in head.submitted]
    assert replaced == [ids[:k] for k in range(5)]
    assert run.slept == [10, 20, 40, 80]
    reasons = [text for text in caplog.messages if "another attempt" in text]
    assert [text.partition(": ")[0] for text in reasons] == ids[:4]
    for text, why in zip(
        reasons, ("died: gone", "lost with the head", "-9", "code 1"), strict=True
    ):
        assert why in text
    # Whoever holds the lock later is not whom --take-over was meant for.
    assert ["--take-over" in job["entrypoint"] for job in head.submitted] == [True, *[False] * 4]


@pytest.mark.parametrize("code", [2, 3])
def test_what_would_end_alike_is_not_tried_again(head: FakeHead, code: int) -> None:
    head.ends = [failed(code)]
    assert Run(head).code() == code
    assert len(head.submitted) == 1


def test_attempts_are_bounded(head: FakeHead) -> None:
    head.ends = [failed(1)] * 3
    with pytest.raises(RunError, match=r"exit code 1; it was the last of 3 attempts.*same command"):
        Run(head, attempts=3).code()
    assert len(head.submitted) == 3


def test_a_job_that_somebody_stopped_stays_stopped(head: FakeHead) -> None:
    head.ends = [{"status": "STOPPED"}]
    assert Run(head).code() == 143
    assert len(head.submitted) == 1


def test_an_environment_that_cannot_be_made_is_not_tried_again(head: FakeHead) -> None:
    head.ends = [
        {
            "status": "FAILED",
            "error_type": "RUNTIME_ENV_SETUP_FAILURE",
            "message": "Traceback\nno matching distribution",
        }
    ]
    with pytest.raises(RunError, match=r"mend --runtime-env.*no matching distribution"):
        Run(head).code()


def test_a_job_that_stays_pending_is_given_up_and_stopped(head: FakeHead) -> None:
    head.ends = [{"status": "PENDING", "message": "It may be waiting for the environment."}]
    with pytest.raises(
        RunError, match=r"within 0 s.*waiting for the environment.*runtime_env_setup"
    ):
        Run(head, pending_timeout_s=1e-9).code()
    assert head.stopped == [head.submitted[0]["submission_id"]]


def test_a_head_that_is_away_for_a_while_costs_nothing(head: FakeHead) -> None:
    head.ends = [{"status": "RUNNING"}]
    run = Run(head)

    def later() -> None:
        head.refuses = 503 if len(run.slept) < 4 else 0
        if len(run.slept) > 5:
            next(iter(head.jobs.values())).update(DONE)

    run.on_sleep = later
    assert run.code() == 0
    assert len(head.submitted) == 1


def test_patience_with_a_head_is_bounded(head: FakeHead) -> None:
    head.ends = [{"status": "RUNNING"}]
    run = Run(head, head_timeout_s=1e-9)
    run.on_sleep = lambda: setattr(head, "refuses", 503)
    with pytest.raises(RunError, match=r"no answer for \d+ s .status 503.*same command"):
        run.code()


def test_a_submission_whose_answer_was_lost_is_not_sent_twice(head: FakeHead) -> None:
    head.ends = [DONE]
    head.deaf_submissions = 1
    assert Run(head).code() == 0
    assert len(head.submitted) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_token_is_one_message(head: FakeHead, status: int) -> None:
    head.refuses = status
    with pytest.raises(
        ConfigError, match="RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE"
    ) as told:
        Run(head).code()
    assert "\n" not in str(told.value)


def test_an_address_without_a_head_is_said_at_once(head: FakeHead) -> None:
    head.server.shutdown()
    head.server.server_close()
    run = Run(head)
    with pytest.raises(ConfigError, match=r"--address http://.*Connection refused.*--up"):
        run.code()
    assert run.slept == []


def test_a_head_that_is_away_is_started_by_up(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    head.ends, head.refuses = [DONE], 503
    commands = []

    def start(command: list[str], check: bool) -> object:
        commands.append(command)
        head.refuses = 0
        return type("Done", (), {"returncode": 0})

    # Of this module alone: the code's revision is asked for by another process.
    monkeypatch.setattr(submission, "subprocess", SimpleNamespace(run=start))
    assert Run(head, up="cluster.yaml").code() == 0
    (command,) = commands
    assert command[-3:] == ["up", "--yes", "cluster.yaml"]


def test_ctrl_c_stops_the_job_and_a_second_one_leaves(
    head: FakeHead, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    head.ends = [{"status": "RUNNING"}] * 2
    run = Run(head)
    run.on_sleep = interrupt
    assert run.code() == 130
    assert head.stopped == [head.submitted[0]["submission_id"]]
    assert "same command goes on" in caplog.messages[-1]
    run = Run(head)

    def again() -> None:
        monkeypatch.setattr(run.submitter, "_ask", interrupt)
        interrupt()

    run.on_sleep = again
    assert run.code() == 130
    assert f"ray job stop --address {head.address}" in caplog.messages[-1]


def test_no_line_is_said_twice_or_never_whatever_the_connection_does(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_LOG_S", 0.0)
    text = "".join(f"line {k} \u00e4\u00f6\n" for k in range(40))
    head.ends = [{"status": "RUNNING"}]
    head.log = text[:1]
    run = Run(head)

    def later() -> None:
        head.log = text[: 41 * len(run.slept)]
        head.refuses = 503 if len(run.slept) in (3, 4) else 0
        if len(head.log) == len(text):
            next(iter(head.jobs.values())).update(DONE)

    run.on_sleep = later
    assert run.code() == 0
    assert "".join(run.said) == text
    assert len(run.said) > 5


def test_a_head_that_keeps_a_request_for_ever_is_away(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a machine that vanished, whose end of the connection nobody closes."""
    monkeypatch.setattr(submission, "_REQUEST_S", 0.2)
    freed = threading.Event()
    head.ends = [DONE]
    run = Run(head)
    answer = head.get

    def deaf(path: str) -> tuple[int, object]:
        if head.submitted and not run.slept:
            freed.wait(60)
        return answer(path)

    monkeypatch.setattr(head, "get", deaf)
    assert run.code() == 0
    assert run.slept
    freed.set()
