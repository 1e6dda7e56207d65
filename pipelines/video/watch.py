"""Signs of life of a decoder: the kernel ends a step that hangs, even in C.

A sign is due at least every decode.frame_timeout_s: with each packet read, each frame decoded, each
block copied. The timer is the process's own, hence it also ends a child whose parent is gone. In
processes that nobody called `begin` in, signs do nothing.
"""

import signal
import time

_SMALLEST_S = 1e-3
"""setitimer takes 0 for never."""

_step_s = 0.0
_end = 0.0


def begin(step_s: float, call_s: float) -> None:
    """Let SIGALRM end this process `step_s` seconds after its last sign of life, and in any
    case `call_s` seconds from now."""
    global _step_s, _end
    _step_s, _end = step_s, time.monotonic() + call_s
    alive()


def alive() -> None:
    """Give a sign of life."""
    if _step_s:
        left_s = min(_step_s, _end - time.monotonic())
        signal.setitimer(signal.ITIMER_REAL, max(left_s, _SMALLEST_S))


def end() -> None:
    """End the watch that `begin` began."""
    global _step_s
    _step_s = 0.0
    signal.setitimer(signal.ITIMER_REAL, 0)
