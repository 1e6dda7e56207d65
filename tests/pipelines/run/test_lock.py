import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pipelines.ray_job import Submission, submission
from pipelines.run.lock import LOCK, Holder, LockedError, LockLostError, RunLock
from pipelines.storage.store import Store

BEAT_S = 0.1
ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "run"))
    return Store(f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}")


def lock(store: Store, *, take_over: bool = False, beat_s: float = BEAT_S) -> RunLock:
    return RunLock(store, "job --out x", take_over=take_over, heartbeat_s=beat_s)


def holder(**changes: object) -> Holder:
    """A living holder on another machine, but for the changes."""
    now = time.time()
    known = RunLock(Store("/nowhere"), "other job", heartbeat_s=BEAT_S).holder
    other = {"host": "elsewhere", "pids": "another boot", "pid": 7, "heartbeat": now}
    return dataclasses.replace(known, **(other | changes))


def put(store: Store, **changes: object) -> Holder:
    found = holder(**changes)
    store.publish(LOCK, found.to_json())
    return found


def read(store: Store) -> Holder:
    found = Holder.of(store.read(LOCK))
    assert found is not None
    return found


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_lock_is_held_inside_and_gone_afterwards(store: Store) -> None:
    with lock(store) as held:
        held.check()
        text = json.loads(store.read(LOCK))
        assert text["pid"] == os.getpid()
        assert text["command"] == "job --out x"
        with pytest.raises(LockedError, match=r"job --out x.*heartbeat \d s ago.*--take-over"):
            lock(store).__enter__()
        held.check()
    assert not store.exists(LOCK)
    with pytest.raises(KeyError), lock(store):
        raise KeyError
    assert not store.exists(LOCK)


def test_heartbeats_are_renewed(store: Store) -> None:
    with lock(store):
        first = read(store)
        time.sleep(5 * BEAT_S)
        later = read(store)
    assert later.heartbeat > first.heartbeat + 2 * BEAT_S
    assert dataclasses.replace(later, heartbeat=0.0) == dataclasses.replace(first, heartbeat=0.0)


def test_the_lock_of_a_job_that_was_replaced_is_taken_over_and_nobody_elses(tmp_path: Path) -> None:
    """The driver of the lost job was on another machine, and its last heartbeat is fresh."""
    store, now = Store(str(tmp_path)), Submission("new", frozenset({"lost", "lost too"}))
    for other in ("", "of another run", "new"):
        put(store, submission_id=other)
        with pytest.raises(LockedError, match="process 7 on elsewhere"):
            RunLock(store, "x", submission=now, heartbeat_s=BEAT_S).__enter__()
        assert read(store).submission_id == other
    put(store, submission_id="lost")
    with RunLock(store, "x", submission=now, heartbeat_s=BEAT_S) as held:
        held.check()
        assert read(store).submission_id == "new"


def test_what_a_job_knows_of_its_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_JOB_CONFIG_JSON_ENV_VAR"
    monkeypatch.delenv(name, raising=False)
    assert submission() == Submission()
    monkeypatch.setenv(name, json.dumps({"metadata": {"job_submission_id": "a"}}))
    assert submission() == Submission("a")
    metadata = {"job_submission_id": "c", "replaces": "a b", "code": "0.1.0 abc"}
    monkeypatch.setenv(name, json.dumps({"metadata": metadata, "runtime_env": {}}))
    assert submission() == Submission("c", frozenset("ab"), "0.1.0 abc")


def test_a_lock_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    text = json.loads(holder().to_json())
    del text["submission_id"]
    assert Holder.of(json.dumps(text).encode()).submission_id == ""


def test_credentials_in_the_command_are_left_out(tmp_path: Path) -> None:
    with RunLock(Store(str(tmp_path)), "job --videos https://me:secret@host/x?sig=s1gned"):
        assert b"secret" not in (tmp_path / LOCK).read_bytes()
        assert b"s1gned" not in (tmp_path / LOCK).read_bytes()


def test_a_fresh_heartbeat_elsewhere_refuses_at_once(store: Store) -> None:
    beat_s = 10.0
    other = put(store, heartbeat_s=beat_s)
    started = time.monotonic()
    with pytest.raises(LockedError, match="process 7 on elsewhere") as refused:
        lock(store, beat_s=beat_s).__enter__()
    assert "looks dead" not in str(refused.value)
    assert time.monotonic() - started < beat_s
    assert read(store) == other


def test_a_stale_heartbeat_is_taken_over(store: Store) -> None:
    put(store, heartbeat=time.time() - 100 * BEAT_S)
    with lock(store) as held:
        held.check()
        assert read(store).token == held.holder.token
    assert not store.exists(LOCK)
    assert store.files("", suffix="") == []


def beating(store: Store, skew_s: float, stop: threading.Event) -> None:
    token = holder().token
    while not stop.wait(BEAT_S / 2):
        put(store, token=token, heartbeat=time.time() + skew_s)


@pytest.mark.parametrize("skew_s", [-3600, -30, 30, 3600])
def test_a_living_holder_whose_clock_is_wrong_keeps_its_lock(tmp_path: Path, skew_s: float) -> None:
    store, stop = Store(str(tmp_path)), threading.Event()
    beats = threading.Thread(target=beating, args=(store, skew_s, stop))
    beats.start()
    try:
        while not store.exists(LOCK):
            time.sleep(0.01)
        with pytest.raises(LockedError):
            lock(store).__enter__()
        assert read(store).host == "elsewhere"
    finally:
        stop.set()
        beats.join()


def test_a_dead_holder_whose_clock_ran_ahead_is_taken_over(tmp_path: Path) -> None:
    put(Store(str(tmp_path)), heartbeat=time.time() + 3600)
    with lock(Store(str(tmp_path))) as held:
        held.check()


def test_a_dead_process_of_this_machine_is_taken_over_at_once(store: Store, dead_pid: int) -> None:
    with lock(store) as now:
        pids = now.holder.pids
    put(store, pids=pids, pid=dead_pid, heartbeat_s=600.0)
    started = time.monotonic()
    with lock(store) as held:
        held.check()
    assert time.monotonic() - started < 60


def test_a_process_id_that_is_used_again_is_no_living_holder(tmp_path: Path) -> None:
    mine = RunLock(Store("/nowhere"), "x").holder
    assert not mine.is_gone
    assert dataclasses.replace(mine, pid_started="1").is_gone
    assert not dataclasses.replace(mine, pid_started="1", pids="another boot").is_gone
    assert not dataclasses.replace(mine, pid_started="1", pids="").is_gone
    # A process of another user, whose start may not be shown.
    assert not dataclasses.replace(mine, pid=0, pid_started="1").is_gone


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"token": 1}', b"\xff" * 100])
def test_a_damaged_lock_is_taken_over_when_nobody_renews_it(tmp_path: Path, data: bytes) -> None:
    store = Store(str(tmp_path))
    store.publish(LOCK, data)
    with lock(store) as held:
        held.check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("heartbeat", "nan"),
        ("heartbeat", 1e300),
        ("heartbeat_s", "inf"),
        ("heartbeat_s", -1),
        ("pid", 2**40),
    ],
)
def test_odd_numbers_in_a_lock_do_no_harm(name: str, value: object) -> None:
    text = json.loads(holder().to_json()) | {name: value}
    assert Holder.of(json.dumps(text).encode()) is None


@pytest.mark.slow
def test_take_over_stops_the_one_before(store: Store) -> None:
    child = start_holder(store.root, 1.0)
    try:
        with lock(store, take_over=True) as held:
            assert child.wait(60) == 1
            held.check()
        assert not store.exists(LOCK)
    finally:
        child.kill()
        child.wait()


def test_of_two_that_take_over_the_same_lock_the_earlier_stops_soon(
    tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found it before either wrote; the heartbeat, of a minute, is not waited for."""
    store, publish, overtaken = Store(str(tmp_path)), Store.publish, []
    put(store, pids=lock(store).holder.pids, pid=dead_pid)

    def crossed(self: Store, name: str, data: bytes) -> None:
        publish(self, name, data)
        if not overtaken:
            overtaken.append(name)
            publish(self, name, holder().to_json())

    monkeypatch.setattr(Store, "publish", crossed)
    started = time.monotonic()
    with pytest.raises(LockLostError, match=r"process 7 on elsewhere .* took it over"):
        hold(store, 60.0)
    assert time.monotonic() - started < 30
    assert read(store).host == "elsewhere"


def hold(store: Store, beat_s: float) -> None:
    with lock(store, beat_s=beat_s):
        time.sleep(60)


def test_a_removed_lock_is_a_lost_one(tmp_path: Path) -> None:
    held = RunLock(Store(str(tmp_path)), "x", heartbeat_s=600.0).__enter__()
    (tmp_path / LOCK).unlink()
    with pytest.raises(LockLostError, match="somebody removed"):
        held.check()
    # The beat has not come by, so nothing but the lock itself can say so.
    with pytest.raises(LockLostError):
        held.check()
    held.__exit__(None, None, None)


def test_losing_the_lock_ends_a_long_step(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def long_step() -> None:
        with lock(store):
            put(store)
            time.sleep(60)

    with pytest.raises(LockLostError, match="lost its lock"):
        long_step()
    assert read(store).host == "elsewhere"


def test_a_storage_that_is_away_costs_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def refuse(*_: object) -> None:
        tries.append(time.monotonic())
        raise OSError("away")

    with lock(Store(str(tmp_path))) as held:
        with monkeypatch.context() as away:
            away.setattr(Store, "publish", refuse)
            while len(tries) < 3:
                time.sleep(BEAT_S / 5)
        before = read(held._store).heartbeat
        while read(held._store).heartbeat == before:
            time.sleep(BEAT_S / 5)
        held.check()


def test_the_next_run_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    store, left = Store(str(tmp_path)), tmp_path / "t" / ".x.parquet.0123abcd.part"
    store.publish("t/y.parquet", b"whole")
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 5,) * 2)
    young = left.with_name(".z.parquet.0123abcd.part")
    young.write_bytes(b"being written")
    os.utime(young, (time.time() + 5,) * 2)
    with lock(store):
        assert not left.exists()
        assert young.exists()
        with pytest.raises(LockedError):
            lock(store).__enter__()
    assert store.read("t/y.parquet") == b"whole"


# --- real processes -----------------------------------------------------------------------------

HOLD = """
import signal, sys, time
from pipelines.run.lock import RunLock
from pipelines.storage.store import Store
signal.signal(signal.SIGINT, getattr(signal, sys.argv[3]))
with RunLock(Store(sys.argv[1]), "held", heartbeat_s=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(120)
"""


def start_holder(root: str, beat_s: float, sigint: str = "default_int_handler") -> subprocess.Popen:
    """A process that holds the lock. `sigint` is its handler: what runs in the background ignores
    it."""
    command = [sys.executable, "-c", HOLD, root, str(beat_s), sigint]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    return child


def test_after_kill_9_the_same_command_works(store: Store) -> None:
    child = start_holder(store.root, 20.0)
    try:
        with pytest.raises(LockedError, match=f"process {child.pid}"):
            lock(store).__enter__()
        child.send_signal(signal.SIGKILL)
        # Not waited for: a zombie has ended too.
        deadline = time.monotonic() + 30
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert store.exists(LOCK)
        with lock(store) as held:
            held.check()
    finally:
        child.kill()
        child.wait()


def test_a_terminated_job_that_unwinds_leaves_no_lock(tmp_path: Path) -> None:
    child = start_holder(str(tmp_path), 20.0)
    child.send_signal(signal.SIGINT)
    child.wait(30)
    assert not (tmp_path / LOCK).exists()


def test_a_job_in_the_background_goes_on_through_ctrl_c(tmp_path: Path) -> None:
    child = start_holder(str(tmp_path), BEAT_S, "SIG_IGN")
    try:
        child.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        with pytest.raises(LockedError):
            lock(Store(str(tmp_path))).__enter__()
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("sigint", ["default_int_handler", "SIG_IGN"])
def test_a_suspended_holder_stops_when_it_wakes_up(tmp_path: Path, sigint: str) -> None:
    child = start_holder(str(tmp_path), BEAT_S, sigint)
    try:
        child.send_signal(signal.SIGSTOP)
        with lock(Store(str(tmp_path)), take_over=True) as held:
            child.send_signal(signal.SIGCONT)
            assert child.wait(30) != 0
            held.check()
    finally:
        child.kill()
        child.wait()


def test_an_interrupt_that_goes_astray_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill, sent = signal.pthread_kill, []

    def astray_once(thread: int, number: int) -> None:
        sent.append(number)
        if len(sent) > 1:
            kill(thread, number)

    monkeypatch.setattr(signal, "pthread_kill", astray_once)
    monkeypatch.setattr("pipelines.run.lock._INTERRUPT_AGAIN_S", BEAT_S)
    store, before = Store(str(tmp_path)), signal.getsignal(signal.SIGINT)
    ended = threading.Event()

    def take_over() -> None:
        with lock(store, take_over=True):
            ended.wait(30)

    def lose() -> None:
        with lock(store):
            other.start()
            time.sleep(30)

    other = threading.Thread(target=take_over)
    with pytest.raises(LockLostError):
        lose()
    ended.set()
    other.join()
    assert sent == [signal.SIGINT] * 2
    assert signal.getsignal(signal.SIGINT) is before


def contend(pipe: Connection) -> None:
    """Tries to hold each lock whose root and time of start arrive, for some seconds."""
    while (message := pipe.recv()) is not None:
        root, at, seconds = message
        contender = lock(Store(root), beat_s=20.0)
        while time.time() < at:
            pass
        try:
            with contender:
                time.sleep(seconds)
                pipe.send("runs")
                pipe.recv()
        except (LockedError, LockLostError) as error:
            pipe.send(f"ends: {error}")
            pipe.recv()
        except Exception as error:  # noqa: BLE001 (the other side shows it)
            pipe.send(f"failed: {error!r}")
            pipe.recv()
        pipe.send("left")


def heard(pipe: Connection) -> str:
    assert pipe.poll(60)
    return pipe.recv()


@pytest.fixture(scope="module")
def contenders(s3_bucket: str) -> Iterator[list[Connection]]:
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in range(2)]
    children = [spawn.Process(target=contend, args=(theirs,), daemon=True) for _, theirs in pipes]
    for child in children:
        child.start()
    yield [ours for ours, _ in pipes]
    for ours, _ in pipes:
        ours.send(None)
    for child in children:
        child.join(10)
        child.kill()


@pytest.mark.slow
@pytest.mark.parametrize("left_behind", [False, True])
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_of_two_that_start_at_once_exactly_one_runs(
    contenders: list[Connection],
    s3_bucket: str,
    tmp_path: Path,
    dead_pid: int,
    kind: str,
    left_behind: bool,
) -> None:
    base = str(tmp_path) if kind == "local" else f"{s3_bucket}/{tmp_path.name}"
    pids = RunLock(Store(base), "x").holder.pids
    # Two may take over the same dead lock; one of them notices with its first heartbeat.
    turns, seconds = (3, 5.0) if left_behind else (20, 0.0)
    for turn in range(turns):
        root = f"{base}/{turn}"
        if left_behind:
            put(Store(root), pids=pids, pid=dead_pid)
        at = time.time() + 0.03
        for pipe in contenders:
            pipe.send((root, at, seconds))
        said = [heard(pipe) for pipe in contenders]
        assert sorted(text.partition(":")[0] for text in said) == ["ends", "runs"], said
        for pipe in contenders:
            pipe.send("release")
        assert [heard(pipe) for pipe in contenders] == ["left", "left"]
        assert not Store(root).exists(LOCK)
