"""Decoders that misbehave, for test_poison.py. The child imports this module and plants them.

`decode_segment` stands in for that of pipelines.video.decode: the first part of the file's name, up to the
first dot, is the misbehaviour; any other file is decoded as ever.
"""

import ctypes
import mmap
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from pipelines.video import decode, watch
from pipelines.video.decode import SegmentFrames
from pipelines.video.header import VideoError

_real = decode.decode_segment


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__(lambda: None)


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no message")


class Alien(BaseException):
    """Not even an Exception."""


def hang_in_python() -> None:
    while True:
        pass


def hang_in_c() -> None:
    """Holds the interpreter's lock: no Python of this process runs any more."""
    ctypes.PyDLL(None).sleep(3600)


def hang_deaf() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    hang_in_c()


def hang_without_alarm() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    hang_in_c()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_while_answering() -> np.ndarray:
    threading.Timer(0.05, stop).start()
    return np.zeros(2**27, np.uint8)


def die_while_answering() -> np.ndarray:
    threading.Timer(0.05, os._exit, [9]).start()
    return np.zeros(2**27, np.uint8)


def slow() -> None:
    """Gives a sign of life often enough, and does not end."""
    while True:
        watch.alive()
        time.sleep(0.05)


def abort() -> None:
    os.abort()


def segfault() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def close_everything() -> None:
    os.closerange(3, 256)
    hang_in_python()


def scribble() -> None:
    """Writes to every file that is open, the pipe to the parent among them."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\0\0\x40\0 this is no answer " * 4)
        except OSError:
            continue


def scribble_later() -> None:
    """After the answer, which a busy machine may not have sent before some tenths of a second."""
    threading.Timer(2.0, scribble).start()
    raise VideoError("damaged", "and more to come")


def promise_too_much() -> None:
    """The head of an answer of 2**60 bytes."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"vf-reply\0\0\0\x01" + (2**60).to_bytes(8, "big"))
        except OSError:
            continue


def fill_heap() -> None:
    kept = []
    while True:
        kept.append(bytearray(2**22))


def fill_shared_memory() -> None:
    kept = [mmap.mmap(-1, 2**26) for _ in range(64)]
    raise ValueError(f"got {len(kept)} times 64 MiB")


def leak() -> None:
    """Keeps nearly all it may have, and fails for another reason."""
    sys.leaked = bytearray(200 * 2**20)
    raise ValueError("after a leak")


def error_unpicklable() -> None:
    raise UnpicklableError


def error_mute() -> None:
    raise MuteError


def error_alien() -> None:
    raise Alien("from elsewhere")


def error_exit() -> None:
    raise SystemExit(0)


def error_interrupt() -> None:
    raise KeyboardInterrupt


def error_huge() -> None:
    raise ValueError("x" * 2**26)


def error_not_text() -> None:
    raise VideoError("damaged", "a name with \udcff\udc00 in it")


def result_unpicklable() -> object:
    return lambda: None


def babble() -> None:
    for descriptor in (1, 2):
        for _ in range(8):
            os.write(descriptor, b"x" * 2**20)
    print("y" * 2**23)
    raise ValueError("after babbling")


def fork_and_die() -> None:
    if os.fork() == 0:
        time.sleep(3600)
    os.abort()


def fork_and_return() -> None:
    """Both processes go on to answer."""
    os.fork()
    raise ValueError("one of two")


def decode_segment(uri: str, *arguments: object) -> SegmentFrames:
    behaviour = globals().get(Path(uri).name.split(".")[0])
    if behaviour is None:
        return _real(uri, *arguments)
    return behaviour()
