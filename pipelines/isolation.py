"""Decoding in a child process that can be killed: crashes, hangs and runaway memory become VideoErrors.

C code that hangs holds no promise to return, so only a process can be given a time limit. One child
serves many calls; after it died or was killed, the next call gets a new one.
"""

import logging
import multiprocessing
import resource
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as CallTimeoutError
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Self, TypeVar

from pebble import ProcessExpired, ProcessPool

from pipelines.config import Decode
from pipelines.video import VideoError

_LOG = logging.getLogger(__name__)
_ORPHAN_GRACE_S = 2.0
_MAIN = ("__file__", "__spec__")
"""What multiprocessing reads of `__main__` to import it again."""

_Result = TypeVar("_Result")


class IsolatedDecoder:
    """Runs functions of `pipelines.video` and `pipelines.decode` in one spawned child, one at a time.

    decode.timeout_s bounds a call; decode.memory_bytes bounds what a call may allocate on top of what
    the child holds when it has started (Linux alone keeps the latter). Not for several threads.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._pool = ProcessPool(
            max_workers=1,
            context=_Context(),
            initializer=_prepare_child,
            initargs=(decode.memory_bytes,),
        )

    def call(self, function: Callable[..., _Result], *args: object) -> _Result:
        """function(*args), computed in the child. Function, arguments and result are pickled.

        Raises:
            VideoError: the function's own, or timeout, crashed, out_of_memory or unexpected.
        """
        timeout_s = self._decode.timeout_s
        future = self._pool.schedule(_run, args=(timeout_s, function, args), timeout=timeout_s)
        try:
            return future.result()
        except VideoError:
            raise
        except CallTimeoutError as error:
            text = f"no result after decode.timeout_s = {timeout_s:g} s"
            raise VideoError("timeout", text) from error
        except ProcessExpired as error:
            text = f"the decoder died: {_exit_text(error.exitcode)}"
            raise VideoError("crashed", text) from error
        except MemoryError as error:
            text = f"more than decode.memory_bytes = {self._decode.memory_bytes} were needed"
            raise VideoError("out_of_memory", text) from error
        except Exception as error:
            _LOG.warning("decoding failed in an unforeseen way", exc_info=error)
            raise VideoError("unexpected", f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Ends the child, whatever it is doing. Calls after this fail."""
        self._pool.stop()
        self._pool.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _exit_text(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"


def _prepare_child(memory_bytes: int) -> None:
    # Loaded now, so that the limit is on top of them.
    import pipelines.decode  # noqa: F401

    if sys.platform == "linux":
        limit = _data_bytes() + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _run(timeout_s: float, function: Callable[..., _Result], args: tuple) -> _Result:
    # The kernel ends a call that nobody waits for any more: a child that hangs must not outlive an
    # actor that was killed.
    signal.setitimer(signal.ITIMER_REAL, timeout_s + _ORPHAN_GRACE_S)
    try:
        return function(*args)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process: memory that is private and can be written."""
    with open("/proc/self/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
    return int(sizes["VmData"].split()[0]) * 1024


class _Process(SpawnProcess):
    """A spawned process that does not import the `__main__` of its parent.

    In a Ray actor that is Ray's worker script, which loads Ray; in a script without the `if __name__`
    guard it would start the script again. The child needs neither: what it runs is found by import.
    """

    _lock = threading.Lock()

    @staticmethod
    def _Popen(process: "_Process") -> object:  # noqa: N802
        main = sys.modules["__main__"]
        with _Process._lock:
            hidden = {name: main.__dict__.pop(name) for name in _MAIN if name in main.__dict__}
            main.__dict__["__spec__"] = None
            try:
                return SpawnProcess._Popen(process)
            finally:
                main.__dict__.update(hidden)


class _Context(SpawnContext):
    Process = _Process
