"""Decoding in a child process that can be killed: crash, hang, runaway memory become VideoErrors.

C code that hangs ignores Python's time limits, so only a process can be given one. One child serves
many calls; when it has died or was killed, the next call starts another. What the child says is not
trusted, for it has parsed a hostile file: it may stop in the middle of an answer, lie, write
rubbish, fork or close its end. Both directions speak `pipelines.video.messages`, which makes
nothing but values of the types that are declared.

No process pool of a library: docs/decoders.md says which were tried, and what each does not
survive.
"""

import contextlib
import dataclasses
import errno
import functools
import importlib
import inspect
import itertools
import operator
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
import typing
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, NoReturn, Self, TypeVar

import numpy as np

from pipelines.settings.sections import Decode
from pipelines.storage import ranges
from pipelines.storage.ranges import Traffic
from pipelines.video import messages, watch
from pipelines.video.header import ERROR_TYPES, ErrorType, VideoError

_START_S = 120.0
_ORPHAN_GRACE_S = 2.0
_EXIT_S = 5.0
"""Longest time until a child that closed its end, or was killed, is gone."""

_POLL_S = 0.1
"""Time between two looks at whether a silent child still lives: a process that it forked may keep
the pipe open.
"""

_MAX_MESSAGE = 2000
_RESERVE_BYTES = 2**30
"""Address space that libraries reserve and never touch (heaps of threads), beside memory_bytes."""

FULL_HD_PX = 1920 * 1088
"""Pixels that the limits of time are meant for; 1088 is 1080 in whole blocks of a codec."""

_BUFFER_BYTES = 2**20
_Result = TypeVar("_Result")


def patience(width_px: int | None, height_px: int | None) -> float:
    """Return by how much a video's pictures have more pixels than full HD, at least 1: so much
    longer a decoder may take for them.
    """
    return max(1.0, (width_px or 0) * (height_px or 0) / FULL_HD_PX)


class _Child(NamedTuple):
    """A decoder process, and the parent's end of the pipe to it."""

    process: subprocess.Popen
    pipe: socket.socket


class IsolatedDecoder:
    """A decoder that runs functions such as `probe` and `decode_segment` in one child process.

    decode.timeout_s bounds a call, decode.frame_timeout_s the time between two signs of life in it
    (`pipelines.video.watch`); decode.memory_bytes bounds what the calls allocate on top of what the
    child holds when it has started (on Linux; other systems set no such limit). One call at a time:
    not for several threads. Use as a context manager, or close it.

    Args:
        flow_s: what a call may take for optical flow, on top of decode.timeout_s.
    """

    def __init__(self, decode: Decode, flow_s: float = 0.0) -> None:
        self._decode, self._flow_s = decode, flow_s
        self._patience = 1.0
        self._child: _Child | None = None
        self._start_bytes = 0
        self._traffic = Traffic()

    def call(
        self, function: Callable[..., _Result], *args: object, patience: float = 1.0
    ) -> _Result:
        """Return function(*args), computed in the child, which imports the function by its name.

        Arguments and result are of the types that the function is annotated with; where it is not
        annotated, they are plain values and arrays, and tuples and sets arrive as lists.

        Args:
            patience: multiplies decode.timeout_s and decode.frame_timeout_s; see `patience`.

        Raises:
            VideoError: the function's own, or timeout, crashed, out_of_memory or unexpected.
            RuntimeError: the child cannot start, which is no video's fault.
            TypeError: the arguments are no plain values, records and arrays.
        """
        self._patience = patience
        request = messages.pack((function.__module__, function.__qualname__, args, patience))
        if not self._is_waiting():
            self._start()
        end = time.monotonic() + self._call_s
        try:
            self._send(request, end)
            reply, arrays = self._receive(end)
            self._traffic += _traffic(reply)
            if (failure := _failed(reply)) is None:
                return _result(reply, function, arrays)
        except TimeoutError as error:
            self.close()
            raise self._late() from error
        except (EOFError, OSError) as error:
            raise self._death() from error
        except (ValueError, TypeError, RecursionError) as error:
            self.close()
            text = f"the decoder's answer cannot be read: {_cut(_text(error))}"
            raise VideoError("crashed", text) from error
        if failure.error_type in ("out_of_memory", "unexpected"):
            # Memory that such a call leaves behind must not count against the next video.
            self.close()
        raise failure

    def taken(self) -> Traffic:
        """Return what calls have read from object storage since the last time, those that ended in
        an error too; not what a child that died read in its last call.
        """
        traffic, self._traffic = self._traffic, Traffic()
        return traffic

    def _late(self) -> VideoError:
        text = f"no result after decode.timeout_s = {self._decode.timeout_s:g} s{self._longer}"
        if self._flow_s:
            text += f" and {self._flow_s:.0f} s more for optical flow; raise decode.timeout_s"
        return VideoError("timeout", text)

    @property
    def _running(self) -> _Child:
        """The child that a call is on its way to.

        Raises:
            RuntimeError: there is none.
        """
        if self._child is None:
            raise RuntimeError("the decoder has no child process; start it before it is asked")
        return self._child

    @property
    def _process(self) -> subprocess.Popen:
        return self._running.process

    @property
    def _pipe(self) -> socket.socket:
        return self._running.pipe

    @property
    def _call_s(self) -> float:
        return self._decode.timeout_s * self._patience + self._flow_s

    @property
    def _longer(self) -> str:
        return f" x {self._patience:.1f} for its large pictures" if self._patience > 1 else ""

    def close(self) -> None:
        """End the child and its children, whatever they are doing."""
        if self._child is None:
            return
        process, pipe = self._child
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # The child leads a session of its own.
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EXIT_S)
        pipe.close()
        self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_waiting(self) -> bool:
        """Return whether a child can take a call: it lives, and has sent nothing unasked."""
        if self._child is None or self._process.poll() is not None or self._has_grown():
            return False
        return not select.select([self._pipe], [], [], 0)[0]

    def _has_grown(self) -> bool:
        """Return whether earlier calls have left half of memory_bytes behind: the next gets another
        child.

        The parent looks, because a child that ended itself could be gone just when it is sent a
        call.
        """
        if sys.platform != "linux":
            return False
        try:
            now = status_bytes("VmData", self._process.pid)
        except OSError:
            return True
        return now >= self._start_bytes + self._decode.memory_bytes // 2

    def _start(self) -> None:
        self.close()
        pipe, childs = socket.socketpair()
        settings = self._decode
        limits = (settings.frame_timeout_s, settings.timeout_s, self._flow_s, settings.memory_bytes)
        code = f"from pipelines.video.isolation import serve; serve({childs.fileno()}, *{limits!r})"
        with childs:
            childs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[childs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,
            )
        self._child = _Child(process, pipe)
        try:
            self._receive(time.monotonic() + _START_S)
            if sys.platform == "linux":
                self._start_bytes = status_bytes("VmData", process.pid)
        except (EOFError, OSError, messages.MessageError):
            self.close()
            raise RuntimeError(
                f"the decoder process did not start within {_START_S:g} s; its output says why: "
                f"{code}"
            ) from None

    def _send(self, parts: list[bytes | memoryview], end: float) -> None:
        for part in parts:
            self._pipe.settimeout(max(end - time.monotonic(), _POLL_S))
            self._pipe.sendall(part)

    def _receive(self, end: float) -> tuple[object, list[np.ndarray]]:
        read = functools.partial(self._bytes, end=end)
        return messages.receive(read, self._decode.memory_bytes)

    def _bytes(self, size: int, end: float) -> memoryview:
        content = np.empty(size, np.uint8).data
        rest = content
        while rest:
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._pipe.settimeout(min(left_s, _POLL_S))
            try:
                received = self._pipe.recv_into(rest)
            except TimeoutError:
                is_gone = self._process.poll() is not None
                if is_gone and not select.select([self._pipe], [], [], 0)[0]:
                    raise EOFError from None
                continue
            if received == 0:
                raise EOFError
            rest = rest[received:]
        return content

    def _death(self) -> VideoError:
        """Return why the child that closed its end of the pipe is gone."""
        try:
            exit_code = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            exit_code = None
        self.close()
        if exit_code == -signal.SIGALRM:
            text = f"no frame for decode.frame_timeout_s = {self._decode.frame_timeout_s:g} s"
            return VideoError("timeout", text + self._longer)
        return VideoError("crashed", f"the decoder died: {_exit_text(exit_code)}")


def _failed(reply: object) -> VideoError | None:
    """Return the error of an answer ["error", type, message, traffic]; None of any other answer."""
    match reply:
        case ["error", str(error_type), str(message), _] if error_type in ERROR_TYPES:
            return VideoError(typing.cast(ErrorType, error_type), _as_text(message))
    return None


def _traffic(reply: object) -> Traffic:
    match reply:
        case [*_, [int(requests), int(num_bytes), float(seconds)]]:
            return Traffic(requests, num_bytes, seconds)
    return Traffic()


def _result(reply: object, function: Callable, arrays: list[np.ndarray]) -> Any:
    """Return the result of an answer ["result", value, traffic]."""
    match reply:
        case ["result", value, _]:
            return messages.typed(value, _types(function).get("return", object), arrays)
    raise messages.MessageError(f"neither result nor error: {str(reply)[:100]!r}")


@functools.cache
def _types(function: Callable) -> dict[str, Any]:
    """Return {parameter: type} of a function's annotations, with "return"."""
    return typing.get_type_hints(function)


def serve(
    file_descriptor: int,
    frame_timeout_s: float,
    timeout_s: float,
    flow_s: float,
    memory_bytes: int,
) -> None:
    """Answer calls in the child until the parent closes its end of the pipe, or is gone."""
    # Loaded now, so that calls are quick, and memory_bytes comes on top of what this takes.
    import pipelines.video.decode  # noqa: F401

    # Ctrl-C is the parent's business; SIGALRM ends this process whatever the parent ignores.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    _limit_memory(memory_bytes)
    with socket.socket(fileno=file_descriptor) as pipe, pipe.makefile("rb") as requests:
        _answer(pipe, messages.pack("ready"))
        # Megabytes that a decoder may print help nobody.
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, sys.stdout.fileno())
        os.dup2(silent, sys.stderr.fileno())
        while True:
            request = _next_request(requests)
            if request is None:
                _end_session()
            patience = _patience(request)
            call_s = timeout_s * patience + flow_s
            watch.begin(frame_timeout_s * patience, call_s + _ORPHAN_GRACE_S)
            reply = _reply(request)
            if os.getpid() != os.getsid(0):
                # A call forked, and this is not the process that was asked.
                os._exit(0)
            _answer(pipe, reply)
            watch.end()


def _limit_memory(memory_bytes: int) -> None:
    """Limit this process to that much more memory than it has now."""
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


def _next_request(requests: BinaryIO) -> tuple[Any, list[np.ndarray]] | None:
    """Return the parent's next call; None when it has closed the pipe or is gone."""

    def read(size: int) -> memoryview:
        content = requests.read(size)
        if len(content) < size:
            raise EOFError
        return memoryview(content)

    with contextlib.suppress(ConnectionError, EOFError):
        return messages.receive(read, sys.maxsize)
    return None


def _end_session() -> NoReturn:
    """End this process and its children."""
    os.killpg(os.getsid(0), signal.SIGKILL)
    raise SystemExit


def _answer(pipe: socket.socket, parts: list[bytes | memoryview]) -> None:
    for part in parts:
        pipe.sendall(part)


def _patience(request: tuple[Any, list[np.ndarray]]) -> float:
    match request:
        case ((_, _, _, float(patience)), _):
            return patience
    return 1.0


def _reply(request: tuple[Any, list[np.ndarray]]) -> list[bytes | memoryview]:
    try:
        (module, name, args, _), arrays = request
        function = operator.attrgetter(name)(importlib.import_module(module))
        result = function(*_arguments(function, args, arrays))
        return messages.pack(("result", result, dataclasses.astuple(ranges.taken())))
    except VideoError as error:
        return _failure(error.error_type, str(error.message))
    except BaseException as error:  # noqa: BLE001 (whatever a file provokes becomes its row)
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            text = str(error) or "an allocation failed"
            return _failure("out_of_memory", f"decode.memory_bytes is not enough: {text}")
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{_text(error)} ({os.path.basename(where.filename)}:{where.lineno})"
        return _failure("unexpected", text)


def _arguments(function: Callable, args: list, arrays: list[np.ndarray]) -> list:
    types = _types(function)
    # Functions written in C have no annotations, and some say no names of parameters.
    names = list(inspect.signature(function).parameters) if types else []
    return [
        messages.typed(value, types.get(name, object), arrays)
        for name, value in itertools.zip_longest(names[: len(args)], args)
    ]


def _failure(error_type: str, message: str) -> list[bytes | memoryview]:
    traffic = dataclasses.astuple(ranges.taken())
    return messages.pack(("error", error_type, _as_text(message), traffic))


def _as_text(message: str) -> str:
    """Return a message that any table can hold: names of files may hold bytes that are no text."""
    return _cut(message).encode("utf-8", "backslashreplace").decode()


def _cut(message: str) -> str:
    return f"{message[:_MAX_MESSAGE]}..." if len(message) > _MAX_MESSAGE else message


def _text(error: BaseException) -> str:
    """Return type and message, also of an exception whose message cannot be made."""
    return traceback.format_exception_only(error)[-1].strip()


def status_bytes(name: str, process: int | str = "self") -> int:
    """Return a size in /proc/PROCESS/status (Linux), such as VmData or VmHWM.

    Raises:
        OSError: the process has ended.
    """
    with open(f"/proc/{process}/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
    if name not in sizes:
        raise ProcessLookupError(f"process {process} has ended")
    return int(sizes[name].split()[0]) * 1024


def peak_bytes() -> int:
    """Return the most memory that this process ever had; 0 where the system does not say."""
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
