"""Progress of the doctor, for the terminal."""

import sys
import time


class Progress:
    """A line on stderr every few seconds: bytes read of all, and the time left."""

    def __init__(self, total_bytes: int, every_s: float = 5.0) -> None:
        self.total_bytes, self.every_s = max(1, total_bytes), every_s
        self.num_bytes, self.num_files = 0, 0
        self.started = self.last_line = time.monotonic()

    def add(self, num_bytes: int) -> None:
        self.num_bytes, self.num_files = self.num_bytes + num_bytes, self.num_files + 1
        now = time.monotonic()
        if now - self.last_line > self.every_s:
            self.last_line = now
            share = max(1, self.num_bytes) / self.total_bytes
            left_s = (now - self.started) * (1 / share - 1)
            line = f"doctor: {self.num_files} files, {share:.0%}, {left_s:.0f} s left"
            print(line, file=sys.stderr)
