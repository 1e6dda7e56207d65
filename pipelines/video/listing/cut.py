"""Files that were cut off: containers say in bytes how long they are, and in seconds.

A file is cut off where its container's own sizes lead beyond its end. Seconds alone are no sign:
headers count sound that is longer than the picture, and frames that are repeated.
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from pipelines.storage.ranges import RangeFile

_TAIL_BYTES = 2**17
_FRAMES = 2
"""Frames that a header may promise and the file lack (UT-Interaction's lack one or two)."""


@dataclass(frozen=True)
class Ending:
    """The end of a file.

    Attributes:
        is_cut: the container's sizes lead beyond it.
        promised_s: length of the video by its header; None: it does not say.
    """

    is_cut: bool
    promised_s: float | None

    def missing_s(self, end_s: float, frame_s: float) -> float | None:
        """Return the seconds that are missing after `end_s`; 0: none; None: nobody knows."""
        if not self.is_cut:
            return 0.0
        if self.promised_s is None:
            return None
        missing_s = self.promised_s - end_s
        return missing_s if missing_s > (_FRAMES + 0.5) * frame_s else 0.0


def ending(
    file: BinaryIO | RangeFile, container: InputContainer, stream: VideoStream, fps: float | None
) -> Ending:
    """Return the end of the open file; its position stays."""
    name = container.format.name.split(",")[0]
    before = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        is_cut = name in _ENDS_EARLY and _ENDS_EARLY[name](file, size)
        promised_s = _promised_s(file, name, container, stream, fps) if is_cut else None
    finally:
        file.seek(before)
    return Ending(is_cut, promised_s)


def _promised_s(
    file: BinaryIO | RangeFile,
    name: str,
    container: InputContainer,
    stream: VideoStream,
    fps: float | None,
) -> float | None:
    if name in ("mpegts", "mpeg", "ogg"):
        # FFmpeg takes the length from the last times in the file.
        return None
    if name == "asf":
        return _asf(file)[1]
    if name == "avi" and stream.frames and fps:
        return stream.frames / fps
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    start_s = float((stream.start_time or 0) * (stream.time_base or 0))
    return container.duration / av.time_base - start_s if container.duration else None


def _read(file: BinaryIO | RangeFile, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _mp4(file: BinaryIO | RangeFile, size: int) -> bool:
    at = 0
    while at + 8 <= size:
        length, _, longer = struct.unpack(">I4sQ", _read(file, at, 16).ljust(16, b"\0"))
        length = longer if length == 1 else length
        if length < 8:
            # 0: to the end of the file; anything else is no box.
            return False
        at += length
    return at != size


def _matroska(file: BinaryIO | RangeFile, size: int) -> bool:
    return matroska_end(file) > size


def matroska_end(file: BinaryIO | RangeFile) -> int:
    """Return the place where the first recording ends by its header; 0: it does not say."""
    head = _read(file, 0, 4096)
    at = 4
    length, at = _vint(head, at)
    at += length + 4
    if head[at - 4 : at] != b"\x18\x53\x80\x67":
        return 0
    unknown = (1 << 7 * _vint_bytes(head[at : at + 1])) - 1
    length, at = _vint(head, at)
    return 0 if length == unknown else at + length


def _vint_bytes(head: bytes) -> int:
    return 9 - head[0].bit_length() if head and head[0] else 8


def _vint(head: bytes, at: int) -> tuple[int, int]:
    """Return the number of variable length at `at`, and the place after it."""
    num_bytes = _vint_bytes(head[at : at + 1])
    stop = at + num_bytes
    return int.from_bytes(head[at:stop]) & (1 << 7 * num_bytes) - 1, stop


def _avi(file: BinaryIO | RangeFile, size: int) -> bool:
    """A RIFF of 0 bytes was never finished; one larger than the file was."""
    return avi_end(file) > size


def avi_end(file: BinaryIO | RangeFile) -> int:
    """Return the place where the first recording ends by its header: with what an AVI of more than
    1 GiB calls AVIX.
    """
    at, form = 0, b"AVIX"
    while form == b"AVIX":
        at += int.from_bytes(_read(file, at + 4, 4), "little") + 8
        form = _read(file, at + 8, 4)
    return at


def _flv(file: BinaryIO | RangeFile, size: int) -> bool:
    """Each tag is followed by its size, the last one too."""
    length = int.from_bytes(_read(file, size - 4, 4))
    tag = _read(file, size - 4 - length, 4) if 11 <= length <= size - 13 else b""
    return len(tag) < 4 or tag[0] & 31 not in (8, 9, 18) or int.from_bytes(tag[1:]) != length - 11


def _asf(file: BinaryIO | RangeFile) -> tuple[int, float | None]:
    """Return size in bytes and length by the File Properties; 0 and None where they do not say."""
    head = _read(file, 0, _TAIL_BYTES)
    at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if at < 0 or len(head) < at + 92:
        return 0, None
    size, _, _, play, _, preroll_ms, flags = struct.unpack_from("<7Q", head, at + 40)
    is_broadcast = flags & 1
    return (0, None) if is_broadcast else (size, play / 1e7 - preroll_ms / 1e3)


def _ogg(file: BinaryIO | RangeFile, size: int) -> bool:
    """The last page is not whole."""
    tail = _read(file, max(0, size - _TAIL_BYTES), _TAIL_BYTES)
    at = tail.rfind(b"OggS")
    if at < 0 or len(tail) < at + 27:
        return at >= 0
    num = tail[at + 26]
    lengths = tail[at + 27 : at + 27 + num]
    return at + 27 + num + sum(lengths) > len(tail)


def _mpegts(file: BinaryIO | RangeFile, size: int) -> bool:
    head = _read(file, 0, 204 * 8)
    for length, first in ((188, 0), (192, 4), (204, 0)):
        if all(byte == 0x47 for byte in head[first::length]):
            return size % length != 0
    return False


def _mpeg(file: BinaryIO | RangeFile, size: int) -> bool:
    """The last packet of a program stream is not whole."""
    tail = _read(file, max(0, size - _TAIL_BYTES), _TAIL_BYTES)
    at = max(tail.rfind(b"\0\0\1" + bytes([kind])) for kind in (0xBD, 0xC0, 0xE0))
    return at >= 0 and at + 6 + int.from_bytes(tail[at + 4 : at + 6]) > len(tail)


_ENDS_EARLY: dict[str, Callable[[BinaryIO | RangeFile, int], bool]] = {
    "mov": _mp4,
    "matroska": _matroska,
    "avi": _avi,
    "flv": _flv,
    "asf": lambda file, size: _asf(file)[0] > size,
    "ogg": _ogg,
    "mpegts": _mpegts,
    "mpeg": _mpeg,
}
