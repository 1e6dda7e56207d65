"""A Ray head node of its own for one test: `ray start --head --block` in its own folder and on free
ports.

Any number of them, and other clusters, live on a machine side by side. `ray stop` would end them
all, hence each is ended by its process ids.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ray  # noqa: F401 (which brings psutil)

# isort: split
import psutil

START_S = 90.0
"""Most time until a head answers."""

END_S = 20.0
"""Most time that a head has for ending itself."""

_PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
)
"""Flags whose defaults are fixed ports."""


@dataclass
class Head:
    """A head that runs.

    Attributes:
        temp: Ray's files; `temp / "session_latest" / "logs"` has the logs of the node.
        flags: of `ray start` beyond those that every head has, such as `--num-gpus=1`.
        environment: changes to the environment of this process; None removes a name.
    """

    temp: Path
    num_cpus: int = 2
    flags: tuple[str, ...] = ()
    environment: dict[str, str | None] = field(default_factory=dict)
    ports: dict[str, int] = field(init=False)
    process: subprocess.Popen = field(init=False)

    @property
    def address(self) -> str:
        """For `ray job --address`."""
        return f"http://127.0.0.1:{self.ports['dashboard-port']}"

    @property
    def gcs_address(self) -> str:
        """For `ray.init(address=...)` and nodes that join."""
        return f"127.0.0.1:{self.ports['port']}"

    @property
    def logs(self) -> Path:
        """The folder of the node's log files."""
        return self.temp / "session_latest" / "logs"

    def start(self, ports: dict[str, int] | None = None) -> None:
        """Starts it and waits until it answers; `ports` are those of a head that is gone."""
        self.ports = ports or dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        # `python` of an entrypoint is the one that runs the tests.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        changes = {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": None, "PATH": path}
        environment = os.environ | changes | self.environment
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
        command += [f"--temp-dir={self.temp}", f"--num-cpus={self.num_cpus}"]
        command += [f"--object-store-memory={200 * 2**20}", "--disable-usage-stats"]
        command += [f"--{name}={port}" for name, port in self.ports.items()]
        log = self.temp / "start.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, *self.flags],
                env={name: value for name, value in environment.items() if value is not None},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"ray start did not come up:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)

    def processes(self) -> list[psutil.Process]:
        """`ray start` and all that it has started, drivers of jobs included."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        """Ends it as an administrator would; what has not ended in time is killed."""
        processes = self.processes()
        if self.process.poll() is None:
            self.process.terminate()
        _, alive = psutil.wait_procs(processes, END_S)
        _kill(alive)
        self.process.wait()

    def kill(self) -> None:
        """Ends everything at once, as a machine that is lost."""
        _kill(self.processes())
        self.process.wait()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.address}/api/version", timeout=2).close()
        except urllib.error.HTTPError:
            return True  # It wants a token.
        except OSError:
            return False
        return True


@contextmanager
def head(
    *flags: str, num_cpus: int = 2, environment: dict[str, str | None] | None = None
) -> Iterator[Head]:
    """A head that has ended, with its folder removed, when the block is left."""
    # Sockets lie in it, whose paths may not be longer than 107 characters: not in the folder of a
    # test.
    temp = Path(tempfile.mkdtemp(prefix="head-"))
    made = Head(temp, num_cpus, flags, environment or {})
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(temp, ignore_errors=True)


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, END_S)
