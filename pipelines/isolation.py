"""Decoding in a child process that can be killed: crash, hang, runaway memory become VideoErrors.

C code that hangs ignores Python's time limits, so only a process can be given one. One child serves
many calls; when it has died or was killed, the next call starts another.

No process pool: pebble 5.2 stops answering for good when its worker is killed while it sends a
result, and multiprocessing's spawn imports the `__main__` of its parent, in a Ray actor all of Ray.
"""

import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Self, TypeVar

from pipelines.config import Decode
from pipelines.video import VideoError

_LOG = logging.getLogger(__name__)
_START_S = 120.0
_ORPHAN_GRACE_S = 2.0
_Result = TypeVar("_Result")


class IsolatedDecoder:
    """Runs functions such as `probe` and `decode_segment` in one child process.

    decode.timeout_s bounds a call; decode.memory_bytes bounds what it allocates on top of what the
    child holds when it has started (on Linux; other systems set no such limit). One call at a time:
    not for several threads. Use as a context manager, or close it.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._child: subprocess.Popen | None = None
        self._pipe: Connection | None = None

    def call(self, function: Callable[..., _Result], *args: object) -> _Result:
        """function(*args), computed in the child, which imports the function by its name.

        Raises:
            VideoError: the function's own, or timeout, crashed, out_of_memory or unexpected.
            RuntimeError: the child cannot start, which is no video's fault.
        """
        request = pickle.dumps((function, args))
        if self._child is None or self._child.poll() is not None:
            self._start()
        try:
            self._pipe.send_bytes(request)
            if not self._pipe.poll(self._decode.timeout_s):
                self.close()
                text = f"no result after decode.timeout_s = {self._decode.timeout_s:g} s"
                raise VideoError("timeout", text)
            reply = _receive(self._pipe)
        except (EOFError, OSError) as error:
            text = f"the decoder died: {_exit_text(self._child.wait())}"
            raise VideoError("crashed", text) from error
        if isinstance(reply, VideoError):
            raise reply
        return reply

    def close(self) -> None:
        """Ends the child, whatever it is doing."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._pipe.close()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self.close()
        self._pipe, childs = Pipe()
        limits = f"{self._decode.timeout_s!r}, {self._decode.memory_bytes!r}"
        code = f"from pipelines.isolation import serve; serve({childs.fileno()}, {limits})"
        with childs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[childs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        try:
            if self._pipe.poll(_START_S):
                self._pipe.recv_bytes()
                return
        except (EOFError, ConnectionError):
            pass
        self.close()
        raise RuntimeError(
            f"the decoder process did not start within {_START_S:g} s; its output says why: {code}"
        )


def serve(file_descriptor: int, timeout_s: float, memory_bytes: int) -> None:
    """The child: answers calls until the parent closes its end of the pipe, or is gone."""
    # Loaded now, so that calls are quick and the limit is on top of it.
    import pipelines.decode  # noqa: F401

    # Ctrl-C is the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        limit = _data_bytes() + memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with Connection(file_descriptor) as pipe:
        pipe.send_bytes(b"ready")
        while True:
            try:
                request = pipe.recv_bytes()
            except (EOFError, ConnectionError):
                return
            # Should the parent be killed, the kernel ends a call that hangs in C.
            signal.setitimer(signal.ITIMER_REAL, timeout_s + _ORPHAN_GRACE_S)
            reply = _reply(request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            for part in reply:
                pipe.send_bytes(part)


def _reply(request: bytes) -> list[bytes | memoryview]:
    try:
        function, args = pickle.loads(request)
        return _pack(function(*args))
    except VideoError as error:
        return _pack(error)
    except MemoryError as error:
        text = f"decode.memory_bytes is not enough: {error or 'an allocation failed'}"
        return _pack(VideoError("out_of_memory", text))
    except Exception as error:  # noqa: BLE001 (whatever a file provokes becomes its row)
        _LOG.exception("decoding failed in a way that was not foreseen")
        return _pack(VideoError("unexpected", f"{type(error).__name__}: {error}"))


def _pack(value: object) -> list[bytes | memoryview]:
    """The value in parts: sizes of the arrays in it, the rest, and the arrays' memory uncopied."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    arrays = [buffer.raw() for buffer in buffers]
    return [pickle.dumps([array.nbytes for array in arrays]), rest, *arrays]


def _receive(pipe: Connection) -> object:
    """The value of the parts of `_pack`. Its arrays can be written to."""
    sizes, rest = pickle.loads(pipe.recv_bytes()), pipe.recv_bytes()
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        pipe.recv_bytes_into(buffer)
    return pickle.loads(rest, buffers=buffers)


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process: memory that is private and can be written."""
    with open("/proc/self/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
    return int(sizes["VmData"].split()[0]) * 1024


def _exit_text(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
