"""The main job as a Ray job on real heads: submitted, stopped, lost, resubmitted, with a token,
step by step."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from pipelines.run.versions import code_revision
from pipelines.storage.store import Store
from tests import chaos
from tests.cluster.heads import Head, head

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "ray.scripts.scripts", "job"]
JOB = ["python", "jobs/fcvid_encode.py", "--verbose"]
STOPPED = "stopped: what is finished is kept, and the same command goes on from there"


def flags(data: Path, out: Path, *more: str, recipe: str = "weizmann") -> list[str]:
    folder = data / "labelled" / "weizmann"
    return [
        *("--videos", str(folder), "--labels", str(folder / "labels.csv"), "--out", str(out)),
        *("--recipe", recipe, "--set", "describe.weights=random:0", *more),
    ]


def environment(of: Head) -> dict[str, str]:
    """That of a client of the head: without what makes this checkout, or a token, known
    otherwise."""
    changes = {"PYTHONPATH": None, "RAY_ADDRESS": None, "RAY_AUTH_MODE": "disabled"}
    found = os.environ | changes | of.environment
    return {name: value for name, value in found.items() if value is not None}


class Submit:
    """`python -m jobs.submit` in a process, whose lines are read while it runs."""

    def __init__(self, of: Head, *words: str, **changes: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "jobs.submit", "--address", of.address, *words],
            cwd=ROOT,
            env=environment(of) | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, times: int = 1, timeout_s: float = 400) -> None:
        wait_until(lambda: len(re.findall(pattern, self.text())) >= times, timeout_s, self.text)

    def end(self, timeout_s: float = 400) -> int:
        code = self.process.wait(timeout_s)
        self.reader.join(5)
        return code


@contextmanager
def submitted(of: Head, *words: str, **changes: str) -> Iterator[Submit]:
    submit = Submit(of, *words, **changes)
    try:
        yield submit
    finally:
        submit.process.kill()
        submit.process.wait()


def wait_until(
    is_so: Callable[[], object], timeout_s: float, text: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, text()
        time.sleep(0.1)


def assert_described(out: Path, num_segments: int) -> None:
    (folder,) = (out / "descriptors").iterdir()
    table = Store(str(out)).read_table(f"descriptors/{folder.name}", ["segment_id", "status"])
    assert len(set(table["segment_id"].to_pylist())) == table.num_rows == num_segments
    assert set(table["status"].to_pylist()) == {"ok"}
    assert not (out / "run.lock").exists()


@pytest.fixture(scope="module")
def one_head() -> Iterator[Head]:
    with head() as made:
        yield made


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_a_job_tells_its_story_and_nodes_name_bad_videos(data: Path, tmp_path: Path) -> None:
    """`ray job submit` as the README has it; of five videos one is damaged and one empty."""
    videos = tmp_path / "videos"
    videos.mkdir()
    whole = sorted((data / "labelled" / "weizmann").glob("*/*.avi"))[:3]
    for video in whole:
        shutil.copy(video, videos)
    damaged = bytearray(whole[0].read_bytes())
    half, quarter = len(damaged) // 2, len(damaged) // 4
    damaged[half : half + quarter] = random.Random(0).randbytes(quarter)
    (videos / "it's broken.avi").write_bytes(damaged)
    (videos / "empty.avi").write_bytes(b"")
    command = ["--videos", str(videos), "--out", str(tmp_path / "out"), "--recipe", "demo"]
    command += ["--steps", "index,describe", "--set", "describe.weights=random:0"]
    with head() as made:
        address = ["--address", made.address]
        done = subprocess.run(
            [*CLI, "submit", *address, "--working-dir", ".", "--", *JOB, *command],
            cwd=ROOT,
            env=environment(made),
            capture_output=True,
            text=True,
        )
        log = done.stdout
        assert done.returncode == 0, log + done.stderr
        workers = "".join(path.read_text() for path in made.logs.glob("worker-*.err"))
    assert "\r" not in log
    told = [
        r"index: 5 videos, 5 of them to probe",
        r"index: done in \d+ s",
        r"describe: 5 segments",
    ]
    places = [re.search(text, log) for text in [*told, r"describe: done in \d+ s"]]
    assert all(places), log
    assert [place.start() for place in places] == sorted(place.start() for place in places)
    ours = [line for line in workers.splitlines() if "video=" in line]
    assert any(re.search(r"video=empty\.avi index failed: empty_file: ", line) for line in ours)
    assert any(
        re.search(
            r"""video="it's broken\.avi" segment="it's broken\.avi#00000" decode partial: """, line
        )
        for line in ours
    ), workers
    assert not any(video.name in line for line in ours for video in whole)


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_a_stopped_job_is_resumable(one_head: Head, data: Path, tmp_path: Path) -> None:
    """Stopped by Ctrl-C of jobs.submit, then by `ray job stop`, then done: no segment decoded
    twice."""
    out = tmp_path / "out"
    job = ["--", *flags(data, out, "--steps", "index,describe")]
    with submitted(one_head, *job) as submit:
        submit.wait_for(r"describe \d+/60")
        submit.process.send_signal(signal.SIGINT)
        assert submit.end() == 130
    first = chaos.decoded(out)
    assert "stopping fcvid-encode-" in submit.text()
    assert STOPPED in submit.lines
    assert "Traceback" not in submit.text()
    assert "SIGTERM received" not in submit.text()
    assert not (out / "run.lock").exists()
    with submitted(one_head, *job) as submit:
        wait_until(lambda: len(chaos.decoded(out)) > len(first), 400, submit.text)
        (job_id,) = re.findall(r"attempt 1 of 10: (\S+)", submit.text())
        command = [*CLI, "stop", "--address", one_head.address, job_id]
        subprocess.run(command, env=environment(one_head), check=True, capture_output=True)
        assert submit.end() == 143
    assert STOPPED in submit.lines
    assert not (out / "run.lock").exists()
    second = chaos.decoded(out)
    assert {segment: second[segment] for segment in first} == first
    with submitted(one_head, *job) as submit:
        assert submit.end() == 0, submit.text()
    last = chaos.decoded(out)
    assert {segment: last[segment] for segment in second} == second
    assert_described(out, 60)


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_lost_drivers_and_heads_are_survived(data: Path, tmp_path: Path) -> None:
    """The driver is killed, then the head with all on it; a new head answers at the same
    address."""
    out = tmp_path / "out"
    with head() as made:
        job = ["--", *flags(data, out, "--steps", "index,describe")]
        with submitted(made, *job) as submit:
            wait_until(lambda: chaos.decoded(out), 400, submit.text)
            (driver,) = [
                process
                for process in made.processes()
                if "jobs/fcvid_encode.py" in process.cmdline() and "python" in process.name()
            ]
            driver.kill()
            submit.wait_for("attempt 2 of 10")
            submit.wait_for("describe: 60 segments", times=2)
            made.kill()
            submit.wait_for("no answer")
            made.start(made.ports)
            submit.wait_for("attempt 3 of 10")
            assert submit.end() == 0, submit.text()
    text = submit.text()
    ids = re.findall(r"attempt \d of 10: (\S+)", text)
    assert len(set(ids)) == 3
    # Of the shell around it, or its own.
    assert re.search(
        rf"{ids[0]}: its driver ended with exit code (137|-9); another attempt in 10", text
    )
    assert f"{ids[1]}: it was lost with the head that ran it; another attempt in 20 s" in text
    assert len(re.findall("run.lock: taken over", text)) == 2
    assert_described(out, 60)
    # Each line of each log once: a progress line, with its time, never comes again.
    progress = re.findall(r"^.* describe \d+/\d+.*$", text, re.MULTILINE)
    assert len(progress) == len(set(progress))


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_cluster_that_demands_a_token(data: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    job = ["--", *flags(data, tmp_path / "out", "--steps", "index", "--limit", "4")]
    with head(environment=secret) as made:
        plain = Head(made.temp, environment={"RAY_AUTH_MODE": None})
        plain.ports = made.ports
        with submitted(plain, *job, HOME=str(tmp_path)) as submit:
            assert submit.end(120) == 2
        (line,) = submit.lines
        assert line.startswith(f"error: {made.address}: expected the token of this cluster")
        assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE" in line
        wrong = tmp_path / "wrong"
        wrong.write_text("f" * 64)
        with submitted(made, *job, RAY_AUTH_TOKEN_PATH=str(wrong)) as submit:
            assert submit.end(120) == 2
        assert "expected the token" in submit.text()
        # The path alone is enough for jobs.submit.
        with submitted(plain, *job, RAY_AUTH_TOKEN_PATH=str(token)) as submit:
            assert submit.end() == 0, submit.text()
        jobs = subprocess.run(
            [*CLI, "list", "--address", made.address], env=environment(made), capture_output=True
        )
        assert jobs.stdout.count(b"driver_exit_code=0") == 1


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_steps_on_different_clusters_give_the_tables_of_one_run(
    one_head: Head, data: Path, tmp_path: Path
) -> None:
    settings = [word for setting in chaos.SETTINGS for word in ("--set", setting)]
    job = ("--limit", "12", *settings)
    with submitted(one_head, "--", *flags(data, tmp_path / "one", *job, recipe="demo")) as submit:
        assert submit.end(400) == 0, submit.text()
    apart = flags(data, tmp_path / "apart", *job, recipe="demo")
    with submitted(one_head, "--", *apart, "--steps", "fit,encode") as submit:
        assert submit.end() == 2
    assert "--steps fit,encode: step index is not complete" in submit.text()
    with submitted(one_head, "--", *apart, "--steps", "index,describe") as submit:
        assert submit.end() == 0, submit.text()
    with head(num_cpus=3) as other:
        for steps in ("fit,encode", "classify,evaluate"):
            with submitted(other, "--", *apart, "--steps", steps) as submit:
                assert submit.end() == 0, submit.text()
    expected = chaos.tables(tmp_path / "one")
    assert chaos.compare(expected, chaos.tables(tmp_path / "apart")) > 500
    chaos.examine(tmp_path / "apart")
    # The upload is no checkout, yet files say which code made them.
    assert Store(str(tmp_path / "apart")).read_json("run.json")["code"] == code_revision()


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_an_environment_that_cannot_be_made_ends_in_one_message(
    one_head: Head, data: Path, tmp_path: Path
) -> None:
    environment_file = tmp_path / "env.yaml"
    # Fails sooner than pip, for which Ray copies the whole virtual environment first, three times.
    environment_file.write_text("conda: no-such-environment\n")
    words = ["--runtime-env", str(environment_file)]
    with submitted(one_head, *words, "--", *flags(data, tmp_path / "out")) as submit:
        assert submit.end() == 1
    assert submit.lines[-1].startswith("error: fcvid-encode-")
    assert "--runtime-env" in submit.lines[-1]
    (job_id,) = re.findall(r"attempt 1 of 10: (\S+)", submit.text())
    client = JobSubmissionClient(one_head.address)
    wait_until(lambda: client.get_job_status(job_id).is_terminal(), 300)
    assert len(re.findall("attempt", submit.text())) == 1
