"""Decoders that misbehave, for test_poison.py. The child imports this module and plants them.

`decode_segment` stands in for that of pipelines.video.decode: the first part of the file's name, up
to the first dot, is the misbehaviour; any other file is decoded as ever.
"""

import ctypes
import mmap
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from encoders.stream_specs import FRAME, Window
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.video import decode, messages, watch
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


def _say(content: bytes) -> None:
    """Writes to every file that is open, the pipe to the parent among them."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, content)
        except OSError:
            continue


def scribble() -> None:
    _say(b"\0\0\x40\0 this is no answer " * 4)


def scribble_later() -> None:
    """After the answer, which a busy machine may not have sent before some tenths of a second."""
    threading.Timer(2.0, scribble).start()
    raise VideoError("damaged", "and more to come")


def promise_too_much() -> None:
    """The head of an answer whose header has 2**60 bytes."""
    _say(messages.HEAD.pack(messages.MAGIC, 2**60))


def promise_a_huge_array() -> None:
    _say(
        message(
            '{"value": ["result", {"array": 0}], "arrays": [["uint8", [4294967296, 4294967296]]]}'
        )
    )


def message(header: str, rest: bytes = b"") -> bytes:
    """An answer with any header."""
    return messages.HEAD.pack(messages.MAGIC, len(header.encode())) + header.encode() + rest


class Bomb:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> tuple:
        return (Path.touch, (Path(os.environ[BOMB_MARK]),))


BOMB_MARK = "VIDEO_FISHER_TEST_MARK"


def answer_with_a_pickle() -> None:
    _say(pickle.dumps(Bomb()))


def answer_with_a_pickle_inside() -> None:
    content = pickle.dumps(Bomb())
    _say(messages.HEAD.pack(messages.MAGIC, len(content)) + content)


def answer_with_pickled_objects() -> np.ndarray:
    """An array whose type says that its bytes are objects."""
    content = pickle.dumps(Bomb())
    header = f'{{"value": ["result", {{"array": 0}}], "arrays": [["object", [{len(content)}]]]}}'
    _say(message(header, content))


def answer_too_short() -> None:
    """Promises some bytes more than come, and waits for the next call."""
    _say(message('{"value": ["result", {"array": 0}], "arrays": [["uint8", [100]]]}', b"x" * 60))
    hang_in_python()


def answer_half_and_leave() -> None:
    _say(message('{"value": ["result", {"array": 0}], "arrays": []}')[:30])
    os._exit(3)


def answer_with_another_length() -> SegmentFrames:
    """Frames whose pictures are fewer than the places say."""
    found = _real(GOOD, 0, 1, Sampling(policy="uniform", num_frames=8), SIDE_32, Decode())
    object.__setattr__(found, "images", found.images[:3])
    return found


def answer_with_other_pictures() -> SegmentFrames:
    """Frames of another size than was asked for."""
    picture = Picture(resize_px=16, crop_px=16)
    return _real(GOOD, 0, 1, Sampling(policy="uniform", num_frames=8), picture, Decode())


def answer_with_text() -> str:
    return "no frames"


SIDE_32 = Picture(resize_px=32, crop_px=32)
GOOD = os.path.join(os.environ.get("VIDEO_FISHER_DATA", ""), "clips", "carphone_pristine.mp4")


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


def result_no_message() -> object:
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


def decode_segment(
    uri: str,
    segment: int,
    num_segments: int,
    sampling: Sampling,
    picture: Picture,
    settings: Decode,
    windows: tuple[Window, ...] = (FRAME,),
) -> SegmentFrames:
    behaviour = globals().get(Path(uri).name.split(".")[0])
    if behaviour is None:
        return _real(uri, segment, num_segments, sampling, picture, settings, windows)
    return behaviour()
