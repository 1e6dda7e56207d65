"""Random kills: the tables of a run that was killed are those of an undisturbed one.

    python -m tests.chaos --kills 20 --seed 0

Every run is the demo's recipe on a few real videos, on a local Ray cluster of three nodes (a head
without CPUs and two workers). In each, one of the driver, a worker, an actor or a node is killed
with SIGKILL at a random time in a random step; the same command is given again until it succeeds.
Its tables are compared with those of an undisturbed run, value by value, no file that the killed
run had published may have been written again, and the doctor must find no error. Needs no
privileges, ends only processes that it started.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipelines.cluster import doors

ROOT = Path(__file__).parents[1]
STEPS = ("index", "describe", "fit", "encode", "classify", "evaluate")
VICTIMS = ("driver", "worker", "actor", "node")
MAX_TRIES = 5
UNEQUAL = ("decode_s", "seconds")
"""Columns that tell how long something took."""

ONCE = ("videos", "segments", "scores")
"""Tables whose files, once published, no later run writes again. Others are written whole, or put
together, at the end of a step."""

SETTINGS = (
    "sampling.num_frames=3",
    "fit.num_frames=40",
    "fit.checkpoint_s=3",
    "vlad.num_centroids=4",
    "fv_vae.hidden=16",
    "fv_vae.num_latents=5",
    "fv_vae.num_steps=40",
    "fv_vae.batch_frames=4",
    "split.num_folds=2",
    "encode.encoders=vlad,fv_vae",
    "encode.batch_videos=2",
)


@dataclass
class Nodes:
    """Three Ray nodes of this machine; a killed one is replaced."""

    cluster: object
    workers: list = field(default_factory=list)

    @classmethod
    def start(cls) -> Nodes:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 300 * 2**20}
        nodes = cls(Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=True))
        for _ in range(2):
            nodes.add()
        return nodes

    def add(self) -> None:
        node = self.cluster.add_node(num_cpus=2, object_store_memory=300 * 2**20)
        self.workers.append(node)

    def kill(self, rng: random.Random) -> str:
        node = self.workers.pop(rng.randrange(len(self.workers)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.add()
        return "node"

    def processes(self) -> list:
        """What Ray runs for tasks and actors on the worker nodes."""
        import psutil

        found = []
        for node in self.workers:
            for info in node.all_processes.get("raylet", []):
                for child in psutil.Process(info.process.pid).children(recursive=True):
                    try:
                        name = "".join(child.cmdline()[:1])
                        # Without its agents a raylet ends itself: that would be a node.
                        if name.startswith("ray::") and not name.endswith("Agent"):
                            found.append(child)
                    except psutil.Error:
                        continue
        return found


def job(data: Path, out: Path, address: str) -> Driver:
    """The demo's recipe on 12 videos, started."""
    folder = data / "labelled" / "weizmann"
    weights = f"describe.weights={data / 'weights' / 'squeezenet1_0.safetensors'}"
    command = [sys.executable, "-m", "jobs.fcvid_encode", "--recipe", "demo", "--limit", "12"]
    command += ["--videos", str(folder), "--labels", str(folder / "labels.csv")]
    command += ["--out", str(out), "--address", address, "--verbose"]
    for setting in (weights, *SETTINGS):
        command += ["--set", setting]
    return Driver(command, os.environ | {"OMP_NUM_THREADS": "1"})


class Driver:
    """The job in a process of its own, whose lines say which step it is in."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.step_s: dict[str, float] = {}
        self.step_began = time.monotonic()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            now = time.monotonic()
            if done := re.search(r" (\w+): done in ", line):
                self.step_s[done[1]] = now - self.step_began
                self.step_began = now
            elif "index: " in line and not self.step_s:
                self.step_began = now

    def wait_for(self, step: str) -> bool:
        """Until the driver speaks of `step`; False where it ends before."""
        before = STEPS[STEPS.index(step) - 1] if step != "index" else None
        mark = f"{before}: done" if before else "index: "
        while self.process.poll() is None:
            if any(mark in line for line in self.lines):
                return True
            time.sleep(0.05)
        return False

    def end(self, timeout_s: float = 900) -> int:
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            tail = "\n".join(self.lines[-30:])
            raise SystemExit(f"the job did not end within {timeout_s:.0f} s:\n{tail}") from None
        self.reader.join(5)
        return code

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def strike(victim: str, driver: Driver, nodes: Nodes, rng: random.Random) -> str:
    """Kills; returns what, or "" where there was nothing of that kind."""
    if victim == "driver":
        driver.kill()
        return f"driver {driver.process.pid}"
    if victim == "node":
        return nodes.kill(rng)
    processes = nodes.processes()
    names = {process: process.cmdline()[0] for process in processes}
    is_actor = {p for p, name in names.items() if re.search("MapWorker|Train|Counter", name)}
    # What is left of Ray's own: none of the job's work is in it.
    is_other = {
        p for p, name in names.items() if re.search("IDLE|Actor|Manager|Cleaner|Preemption", name)
    }
    chosen = [p for p in processes if (p in is_actor) == (victim == "actor") and p not in is_other]
    if not chosen:
        return ""
    process = rng.choice(chosen)
    process.kill()
    return names[process]


def tables(out: Path | str) -> dict[str, object]:
    """Today's tables by name, sorted, without `UNEQUAL` columns."""
    from pipelines.storage.store import Store
    from pipelines.storage.tables import TABLES

    store = Store(str(out))
    keys = {table.name: table.key for table in TABLES}
    found = {}
    for name, folder in store.read_json("run.json")["tables"].items():
        if store.files(folder):
            table = store.read_table(folder)
            order = [(key, "ascending") for key in keys[name.partition("/")[0]]]
            table = table.sort_by(order)
            found[name] = table.select([n for n in table.column_names if n not in UNEQUAL])
    return found


def compare(expected: dict[str, object], found: dict[str, object]) -> int:
    """The number of rows compared; ends the program where one differs."""
    if expected.keys() != found.keys():
        raise SystemExit(f"tables differ: {sorted(expected.keys() ^ found.keys())}")
    for name, table in expected.items():
        if not found[name].equals(table):
            other = found[name]
            pairs = zip(table.to_pylist(), other.to_pylist(), strict=False)
            differing = sum(row != found_row for row, found_row in pairs)
            raise SystemExit(
                f"{name}: expected the {table.num_rows} rows of the undisturbed run, got "
                f"{other.num_rows} rows, {differing} of them different"
            )
    return sum(table.num_rows for table in found.values())


def examine(out: Path) -> None:
    """Ends the program where the doctor finds an error: an orphan, a duplicate, a file that cannot
    be read."""
    from pipelines.doctor import examine as doctor_examine
    from pipelines.storage.store import Store

    report = doctor_examine.examine(Store(str(out)))
    if report.has_errors:
        raise SystemExit("\n".join(report.lines()))


def published(out: Path) -> dict[object, float]:
    """When each file of `ONCE` that a reader sees was written, and how long each segment took to
    decode.

    Files of DESCRIPTORS and ENCODINGS are put together at the end of their step; but a segment that
    is decoded a second time does not take exactly as long.
    """
    files = [path for table in ONCE for path in (out / table).rglob("*.parquet")]
    return decoded(out) | {
        path: path.stat().st_mtime_ns for path in files if path.name[0] not in "._"
    }


def decoded(out: Path) -> dict[object, float]:
    """Seconds that each segment of DESCRIPTORS took to decode."""
    import pyarrow.parquet as pq

    found = {}
    for path in (out / "descriptors").glob("*/[!._]*.parquet"):
        for row in pq.read_table(path, columns=["segment_id", "decode_s"]).to_pylist():
            found[row["segment_id"]] = row["decode_s"]
    return found


@dataclass(frozen=True)
class Kill:
    """One survived kill: where it struck, the rows compared, the seconds of steps that had to be
    done again."""

    where: str
    rows: int
    repeated_s: float


def one_kill(
    data: Path, out: Path, nodes: Nodes, rng: random.Random, expected: dict, calm: Driver
) -> Kill | None:
    """A run with a kill in it; None where the run was over before there was something to kill."""
    step, victim = rng.choice(STEPS), rng.choice(VICTIMS)
    delay_s = rng.uniform(0, calm.step_s[step])
    later = STEPS[STEPS.index(step) :]
    hit, work_s = "", 0.0
    for attempt in range(MAX_TRIES):
        before = published(out)
        with job(data, out, nodes.cluster.address) as driver:
            if attempt == 0 and driver.wait_for(step):
                time.sleep(delay_s)
                while not hit and driver.process.poll() is None:
                    hit = strike(victim, driver, nodes, rng)
                    time.sleep(0.1)
            code = driver.end()
        ended = time.monotonic()
        after = published(out)
        if again := [path for path, when in before.items() if after.get(path) != when]:
            raise SystemExit(f"{step}, {victim}: written again or gone: {again}")
        work_s += sum(driver.step_s.get(name, 0.0) for name in later)
        if code == 0:
            break
        work_s += ended - driver.step_began
        if code == 2 or attempt == MAX_TRIES - 1:
            tail = "\n".join(driver.lines[-30:])
            raise SystemExit(f"{step}, {victim}: the job ended with {code}:\n{tail}")
    rows = compare(expected, tables(out))
    examine(out)
    repeated_s = max(0.0, work_s - sum(calm.step_s[name] for name in later))
    where = f"{step} + {delay_s:.1f} s, {victim}: {hit}"
    return Kill(where, rows, round(repeated_s, 1)) if hit else None


def main(argv: list[str] | None = None) -> int:
    """Runs the kills; 0 if the tables were equal each time."""
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args(argv)
    # So that the cluster and the files are cleared away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Driver and nodes are of this process, and have its token.
    doors.close()
    data = Path(os.environ.get("VIDEO_FISHER_DATA", ROOT / ".." / "shared" / "data")).resolve()
    rng = random.Random(arguments.seed)
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        nodes = Nodes.start()
        try:
            undisturbed = Path(temporary) / "undisturbed"
            with job(data, undisturbed, nodes.cluster.address) as calm:
                if code := calm.end():
                    raise SystemExit(f"undisturbed: exit {code}\n" + "\n".join(calm.lines[-30:]))
            expected = tables(undisturbed)
            steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in calm.step_s.items())
            print(f"undisturbed: {steps}", flush=True)
            while len(kills) < arguments.kills:
                out = Path(temporary) / "run"
                if kill := one_kill(data, out, nodes, rng, expected, calm):
                    kills.append(kill)
                    print(
                        f"{len(kills)}/{arguments.kills} {kill.where}: {kill.rows} rows equal, "
                        f"{kill.repeated_s:.0f} s repeated",
                        flush=True,
                    )
                shutil.rmtree(out)
        finally:
            nodes.cluster.shutdown()
    rows = sum(kill.rows for kill in kills)
    seconds = sum(kill.repeated_s for kill in kills)
    print(f"{len(kills)} kills survived, {rows} rows compared, {seconds:.0f} s of work repeated")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(kill) for kill in kills], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
