"""Processor time and memory of a command and all processes that it starts, also those that outlive
their parents, such as Ray's."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

EVERY_S = 0.1
"""Between two looks. What a process does after the last look at it is not counted: at most this
long a process."""

SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of Linux: orphans become children of this process."""


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds by the clock and of processors, the most private bytes at once,
    and processes."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    processes: int


@dataclass
class _Watch:
    """Looks at all processes below this one until it is stopped."""

    seconds: dict[tuple[int, float], float] = field(default_factory=dict)
    peak: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        total = 0
        for process in psutil.Process().children(recursive=True):
            try:
                with process.oneshot():
                    times, memory = process.cpu_times(), process.memory_info()
                    key = process.pid, process.create_time()
            except psutil.Error:
                continue
            self.seconds[key] = times.user + times.system
            total += memory.rss - memory.shared
        self.peak = max(self.peak, total)

    def run(self) -> None:
        while not self.stopped.wait(EVERY_S):
            self.look()


def cost(command: list[str], environment: dict[str, str], log: Path) -> Cost:
    """Run a command to its end, and end what it left.

    Raises:
        SystemExit: it failed; the log's end is printed.
    """
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    watch = _Watch()
    looking = threading.Thread(target=watch.run, daemon=True)
    looking.start()
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT
        )
        code = process.wait()
    wall_s = time.perf_counter() - began
    watch.look()
    watch.stopped.set()
    looking.join()
    _end_orphans()
    if code:
        sys.exit(f"benchmarks.peers: {' '.join(command[:4])} failed:\n{log.read_text()[-2000:]}")
    return Cost(wall_s, sum(watch.seconds.values()), watch.peak, len(watch.seconds))


def _end_orphans() -> None:
    """End what the command left; this process is its parent now."""
    for process in psutil.Process().children(recursive=True):
        try:
            process.send_signal(signal.SIGTERM)
            process.wait(10)
        except (psutil.Error, ChildProcessError):
            continue
