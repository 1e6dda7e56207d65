"""Nodes that join a head of `tests.cluster.heads`, as far apart from it and each other as one
machine allows: each has a working folder, a home, a folder for temporary files and Ray files of its
own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray  # noqa: F401 (which brings psutil)

# isort: split
import psutil

from tests.cluster.heads import END_S, START_S, Head, free_ports

_PORTS = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
_FOLDERS = ("work", "home", "tmp", "ray")


@dataclass(frozen=True)
class Node:
    """A node that runs. work, home and tmp lie in `folder`; `logs` has Ray's log files."""

    folder: Path
    process: subprocess.Popen

    @property
    def logs(self) -> Path:
        (session,) = (self.folder / "ray").glob("session_2*")
        return session / "logs"

    def files(self) -> list[Path]:
        """What was written into its working folder."""
        return [path for path in (self.folder / "work").rglob("*") if path.is_file()]

    def has_worked(self) -> bool:
        """Whether a task or an actor has run here."""
        logs = self.logs.glob("worker-*.out")
        return any(":task_name:" in text or ":actor_name:" in text for text in map(_text, logs))


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


@contextmanager
def joined(head: Head, *flags: str, num_cpus: int, environment: dict[str, str]) -> Iterator[Node]:
    """A node of that head; it has ended, with its folders removed, when the block is left."""
    # Sockets lie in it, whose paths may not be longer than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="node-"))
    for name in _FOLDERS:
        (folder / name).mkdir()
    changes = {"RAY_AUTH_MODE": "disabled", "HOME": f"{folder}/home", "TMPDIR": f"{folder}/tmp"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    command += [f"--address={head.gcs_address}", "--node-ip-address=127.0.0.1"]
    command += [f"--temp-dir={folder}/ray", f"--num-cpus={num_cpus}", "--disable-usage-stats"]
    command += [f"--object-store-memory={200 * 2**20}"]
    ports = zip(_PORTS, free_ports(len(_PORTS)), strict=True)
    command += [f"--{name}={port}" for name, port in ports]
    # The node's own ones of the machine would be taken by another node.
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    log = folder / "start.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *flags],
            cwd=folder / "work",
            env=os.environ | changes | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        while b"Ray runtime started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"ray start did not come up:\n{_text(log)[-3000:]}")
            time.sleep(0.2)
        yield Node(folder, process)
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen) -> None:
    try:
        root = psutil.Process(process.pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        processes = []
    if process.poll() is None:
        process.terminate()
    _, alive = psutil.wait_procs(processes, END_S)
    for one in alive:
        one.kill()
    process.wait()
