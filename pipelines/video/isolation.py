"""Decoding in a child process that can be killed: crash, hang, runaway memory become VideoErrors.

C code that hangs ignores Python's time limits, so only a process can be given one. One child serves
many calls; when it has died or was killed, the next call starts another. What the child says is not
trusted: it may stop in the middle of an answer, write rubbish, fork or close its end.

No process pool of a library: docs/decoders.md says which were tried, and what each does not survive.
"""

import contextlib
import errno
import functools
import os
import pickle
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
import typing
from collections.abc import Callable
from typing import BinaryIO, NoReturn, Self, TypeVar

from pipelines.settings.sections import Decode
from pipelines.video import watch
from pipelines.video.header import VideoError

_START_S = 120.0
_ORPHAN_GRACE_S = 2.0
_EXIT_S = 5.0
"""How long a child that closed its end may take to be gone by itself, and a killed one at all."""

_POLL_S = 0.1
"""How often the parent looks whether a silent child still lives: a process that it forked may keep the pipe open."""

_MAX_MESSAGE = 2000
_RESERVE_BYTES = 2**30
"""Address space that libraries reserve and never touch (heaps of threads), on top of memory_bytes."""

_BUFFER_BYTES = 2**20
_LENGTH = struct.Struct("!Q")
_HEAD = struct.Struct("!8sI")
_MAGIC = b"vf-reply"
_MAX_PARTS = 4096
_Result = TypeVar("_Result")


class IsolatedDecoder:
    """Runs functions such as `probe` and `decode_segment` in one child process.

    decode.timeout_s bounds a call, decode.frame_timeout_s the time between two signs of life in it
    (`pipelines.video.watch`); decode.memory_bytes bounds what the calls allocate on top of what the child
    holds when it has started (on Linux; other systems set no such limit). One call at a time: not for
    several threads. Use as a context manager, or close it.

    Args:
        flow_s: what a call may take for optical flow, on top of decode.timeout_s.
    """

    def __init__(self, decode: Decode, flow_s: float = 0.0) -> None:
        self._decode, self._flow_s = decode, flow_s
        self._child: subprocess.Popen | None = None
        self._pipe: socket.socket | None = None
        self._start_bytes = 0

    def call(self, function: Callable[..., _Result], *args: object) -> _Result:
        """function(*args), computed in the child, which imports the function by its name.

        The result is checked against the class that the function is annotated to return: rubbish unpickles to anything.

        Raises:
            VideoError: the function's own, or timeout, crashed, out_of_memory or unexpected.
            RuntimeError: the child cannot start, which is no video's fault.
        """
        request = pickle.dumps((function, args))
        if not self._is_waiting():
            self._start()
        end = time.monotonic() + self._call_s
        try:
            self._send(_LENGTH.pack(len(request)) + request, end)
            reply = self._receive(end)
        except TimeoutError as error:
            self.close()
            text = f"no result after decode.timeout_s = {self._decode.timeout_s:g} s"
            if self._flow_s:
                text += f" and {self._flow_s:.0f} s more for optical flow; raise decode.timeout_s"
            raise VideoError("timeout", text) from error
        except (EOFError, OSError) as error:
            raise self._death() from error
        except Exception as error:
            # Rubbish unpickles to any exception whatever.
            self.close()
            text = f"the decoder's answer cannot be read: {_text(error)}"
            raise VideoError("crashed", text) from error
        if isinstance(reply, VideoError):
            if reply.error_type in ("out_of_memory", "unexpected"):
                # Memory that such a call leaves behind must not count against the next video.
                self.close()
            raise reply
        expected = _result_type(function)
        if not isinstance(reply, expected):
            self.close()
            text = f"the decoder's answer is a {type(reply).__name__}, no {expected.__name__}"
            raise VideoError("crashed", text)
        return reply

    @property
    def _call_s(self) -> float:
        return self._decode.timeout_s + self._flow_s

    def close(self) -> None:
        """Ends the child and what it forked, whatever they are doing."""
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # The child leads a session of its own.
            os.killpg(self._child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(_EXIT_S)
        self._pipe.close()
        self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_waiting(self) -> bool:
        """Whether a child can take a call: it lives, and has sent nothing that was not asked for."""
        if self._child is None or self._child.poll() is not None or self._has_grown():
            return False
        return not select.select([self._pipe], [], [], 0)[0]

    def _has_grown(self) -> bool:
        """Whether earlier calls have left half of memory_bytes behind: the next gets another child.

        The parent looks, because a child that ended itself could be gone just when it is sent a call.
        """
        if sys.platform != "linux":
            return False
        try:
            now = status_bytes("VmData", self._child.pid)
        except OSError:
            return True
        return now >= self._start_bytes + self._decode.memory_bytes // 2

    def _start(self) -> None:
        self.close()
        self._pipe, childs = socket.socketpair()
        limits = (self._decode.frame_timeout_s, self._call_s, self._decode.memory_bytes)
        code = f"from pipelines.video.isolation import serve; serve({childs.fileno()}, *{limits!r})"
        with childs:
            childs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[childs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,
            )
        try:
            self._receive(time.monotonic() + _START_S)
            if sys.platform == "linux":
                self._start_bytes = status_bytes("VmData", self._child.pid)
        except (EOFError, OSError):
            self.close()
            raise RuntimeError(
                f"the decoder process did not start within {_START_S:g} s; its output says why: {code}"
            ) from None

    def _send(self, content: bytes, end: float) -> None:
        self._pipe.settimeout(max(end - time.monotonic(), _POLL_S))
        self._pipe.sendall(content)

    def _receive(self, end: float) -> object:
        """The value of the parts of `_pack`. Its arrays can be written to."""
        magic, count = _HEAD.unpack(self._bytes(_HEAD.size, end))
        if magic != _MAGIC or not 0 < count <= _MAX_PARTS:
            raise pickle.UnpicklingError(f"starts with {magic!r}")
        sizes = struct.unpack(f"!{count}Q", self._bytes(count * _LENGTH.size, end))
        if sum(sizes) > self._decode.memory_bytes:
            raise pickle.UnpicklingError(f"promises {sum(sizes)} bytes")
        value, *buffers = [self._bytes(size, end) for size in sizes]
        return pickle.loads(value, buffers=buffers)

    def _bytes(self, size: int, end: float) -> bytearray:
        content = bytearray(size)
        rest = memoryview(content)
        while rest:
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._pipe.settimeout(min(left_s, _POLL_S))
            try:
                received = self._pipe.recv_into(rest)
            except TimeoutError:
                if self._child.poll() is not None and not select.select([self._pipe], [], [], 0)[0]:
                    raise EOFError from None
                continue
            if received == 0:
                raise EOFError
            rest = rest[received:]
        return content

    def _death(self) -> VideoError:
        """Why the child that closed its end of the pipe is gone."""
        try:
            exit_code = self._child.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            exit_code = None
        self.close()
        if exit_code == -signal.SIGALRM:
            text = f"no frame for decode.frame_timeout_s = {self._decode.frame_timeout_s:g} s"
            return VideoError("timeout", text)
        return VideoError("crashed", f"the decoder died: {_exit_text(exit_code)}")


@functools.cache
def _result_type(function: Callable) -> type:
    """The class that the function is annotated to return; object where that is no class."""
    hint = typing.get_type_hints(function).get("return", object)
    return hint if isinstance(hint, type) else object


def serve(file_descriptor: int, frame_timeout_s: float, call_s: float, memory_bytes: int) -> None:
    """The child: answers calls until the parent closes its end of the pipe, or is gone."""
    # Loaded now, so that calls are quick, and memory_bytes comes on top of what this takes.
    import pipelines.video.decode  # noqa: F401

    # Ctrl-C is the parent's business; SIGALRM ends this process whatever the parent ignores.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    _limit_memory(memory_bytes)
    with socket.socket(fileno=file_descriptor) as pipe, pipe.makefile("rb") as requests:
        _answer(pipe, [pickle.dumps("ready")])
        # Megabytes that a decoder may print help nobody.
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, sys.stdout.fileno())
        os.dup2(silent, sys.stderr.fileno())
        while True:
            request = _next_request(requests)
            if request is None:
                _end_session()
            watch.begin(frame_timeout_s, call_s + _ORPHAN_GRACE_S)
            reply = _reply(request)
            if os.getpid() != os.getsid(0):
                # A call forked, and this is not the process that was asked.
                os._exit(0)
            _answer(pipe, reply)
            watch.end()


def _limit_memory(memory_bytes: int) -> None:
    """Limits this process to that much more than it holds now."""
    # No core dumps: a crash becomes a row, and a copy of its memory would fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    start_bytes = status_bytes("VmData")
    for which, limit in (
        # Memory that is private and can be written, which is nearly all.
        (resource.RLIMIT_DATA, start_bytes + memory_bytes),
        # Shared memory too.
        (resource.RLIMIT_AS, status_bytes("VmSize") + memory_bytes + _RESERVE_BYTES),
    ):
        resource.setrlimit(which, (limit, limit))


def _next_request(requests: BinaryIO) -> bytes | None:
    """The parent's next call; None when it has closed the pipe or is gone."""
    with contextlib.suppress(ConnectionError):
        length = requests.read(_LENGTH.size)
        if len(length) == _LENGTH.size:
            return requests.read(_LENGTH.unpack(length)[0])
    return None


def _end_session() -> NoReturn:
    """Ends this process and what it forked."""
    os.killpg(os.getsid(0), signal.SIGKILL)
    raise SystemExit


def _answer(pipe: socket.socket, parts: list[bytes | memoryview]) -> None:
    sizes = [len(part) for part in parts]
    pipe.sendall(_HEAD.pack(_MAGIC, len(parts)) + struct.pack(f"!{len(parts)}Q", *sizes))
    for part in parts:
        pipe.sendall(part)


def _reply(request: bytes) -> list[bytes | memoryview]:
    try:
        function, args = pickle.loads(request)
        return _pack(function(*args))
    except VideoError as error:
        return _failure(error.error_type, str(error.message))
    except BaseException as error:  # noqa: BLE001 (whatever a file provokes becomes its row)
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            text = str(error) or "an allocation failed"
            return _failure("out_of_memory", f"decode.memory_bytes is not enough: {text}")
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{_text(error)} ({os.path.basename(where.filename)}:{where.lineno})"
        return _failure("unexpected", text)


def _failure(error_type: str, message: str) -> list[bytes | memoryview]:
    """A VideoError whose message any table can hold."""
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]}..."
    # Names of files may hold bytes that are no text.
    text = message.encode("utf-8", "backslashreplace").decode()
    return _pack(VideoError(error_type, text))


def _text(error: BaseException) -> str:
    """Type and message, also of an exception whose message cannot be made."""
    return traceback.format_exception_only(error)[-1].strip()


def _pack(value: object) -> list[bytes | memoryview]:
    """The value in parts: all but the arrays in it, then the arrays' memory uncopied."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return [rest, *(buffer.raw() for buffer in buffers)]


def status_bytes(name: str, process: int | str = "self") -> int:
    """A size in /proc/PROCESS/status (Linux), such as VmData or VmHWM.

    Raises:
        OSError: the process has ended.
    """
    with open(f"/proc/{process}/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
    if name not in sizes:
        raise ProcessLookupError(f"process {process} has ended")
    return int(sizes[name].split()[0]) * 1024


def peak_bytes() -> int:
    """The most memory that this process ever held; 0 where the system does not say."""
    return status_bytes("VmHWM") if sys.platform == "linux" else 0


def _exit_text(exit_code: int | None) -> str:
    if exit_code is None:
        return "it closed its end of the pipe"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
