"""Packets that hold no frame of their own, known by their first bytes, without decoding.

Most codecs put one shown frame into each packet. VP8 and VP9 have hidden frames, GIF has comments,
chained Theora has headers again, and interlaced H.264 may have the two fields of a frame in packets
of their own.
"""

from collections.abc import Callable
from enum import IntEnum

from av.packet import Packet
from av.video.codeccontext import VideoCodecContext


class Holds(IntEnum):
    """The content of a packet."""

    FRAME = 0
    NOTHING_SHOWN = 1
    SECOND_FIELD = 2  # of the frame that the packet before it began


def content_check(context: VideoCodecContext) -> Callable[[Packet], Holds] | None:
    """Return what tells the content of a packet; None where each holds a frame."""
    if context.name in _SHOWS:
        shows = _SHOWS[context.name]
        return lambda packet: Holds.FRAME if shows(memoryview(packet)) else Holds.NOTHING_SHOWN
    if context.name == "h264":
        fields = _FieldPairs(context.extradata or b"")
        return None if fields.has_frames_only else fields
    return None


def _theora_shows(data: memoryview) -> bool:
    """Return whether the packet is no header, as come again in chained Ogg."""
    return not data[0] & 0x80


def _vp8_shows(data: memoryview) -> bool:
    return bool(data[0] & 0x10)


def _vp9_shows(data: memoryview) -> bool:
    """Return whether any frame of the packet is shown: several may be bundled, with an index."""
    marker = data[-1]
    num, size_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index_bytes = 2 + num * size_bytes
    if marker & 0xE0 != 0xC0 or len(data) <= index_bytes or data[-index_bytes] != marker:
        return _vp9_frame_shows(data)
    sizes, start = data[1 - index_bytes : -1], 0
    for place in range(0, num * size_bytes, size_bytes):
        if start < len(data) - index_bytes and _vp9_frame_shows(data[start:]):
            return True
        start += int.from_bytes(sizes[place : place + size_bytes], "little")
    return False


def _vp9_frame_shows(data: memoryview) -> bool:
    # Marker (2 bits), profile (2, and 1 more of profile 3), show_existing_frame, type, show_frame.
    bits = int.from_bytes(data[:2].tobytes().ljust(2, b"\0"))
    if bits >> 12 & 3 == 3:
        bits <<= 1
    return bool(bits & 0x0800 or bits & 0x0200)


def _gif_shows(data: memoryview) -> bool:
    """Return whether a picture comes among the blocks of the packet."""
    at = 0
    if bytes(data[:3]) == b"GIF":
        at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while at + 2 < len(data) and data[at] == 0x21:
        at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return at < len(data) and data[at] == 0x2C


_SHOWS = {"vp8": _vp8_shows, "vp9": _vp9_shows, "gif": _gif_shows, "theora": _theora_shows}

_START_CODE = b"\0\0\1"
_SLICE_BYTES = 32
"""Bytes that hold what is read of a slice's header."""

_WITH_CHROMA = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))
"""Profiles whose sequence parameter set says more of chroma and scaling (H.264, 7.3.2.1.1)."""


class _Bits:
    """Bits of a NAL unit, read from the left. Past the end: ValueError."""

    def __init__(self, unit: bytes) -> None:
        content = unit.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(content), 8 * len(content)

    def u(self, num_bits: int) -> int:
        self._left -= num_bits
        if self._left < 0:
            raise ValueError("the unit ends early")
        return self._value >> self._left & (1 << num_bits) - 1

    def ue(self) -> int:
        """Return an Exp-Golomb number; a signed one takes as many bits."""
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def skip_ue(self, times: int) -> None:
        for _ in range(times):
            self.ue()

    def se(self) -> int:
        number = self.ue()
        return (number + 1) // 2 if number % 2 else -(number // 2)


class _FieldPairs:
    """Tells second fields of H.264: such as follow a field of the other parity and same number."""

    def __init__(self, extradata: bytes) -> None:
        self._length_bytes = 0
        self._sequence: tuple[bool, int, bool] | None = None
        self._open_field: tuple[int, int] | None = None
        if extradata[:1] == b"\1" and len(extradata) > 8:
            self._length_bytes = (extradata[4] & 3) + 1
            self._read_sequence(extradata[8:])
        else:
            self._units(extradata)

    @property
    def has_frames_only(self) -> bool:
        """Whether the stream is known to have no fields."""
        return self._sequence is not None and self._sequence[0]

    def __call__(self, packet: Packet) -> Holds:
        field = self._units(bytes(packet))
        if field and self._open_field == (field[0], 1 - field[1]):
            self._open_field = None
            return Holds.SECOND_FIELD
        self._open_field = field
        return Holds.FRAME

    def _units(self, data: bytes) -> tuple[int, int] | None:
        """Return frame number and parity of the first slice, where it is of a field."""
        at = 0
        while at < len(data):
            if size := self._length_bytes:
                start = at + size
                at = start + int.from_bytes(data[at:start])
            else:
                found = data.find(_START_CODE, at)
                if found < 0:
                    return None
                at = start = found + 3
            kind = data[start] & 31 if start < len(data) else 0
            if kind == 7:
                self._read_sequence(data[start : start + 1024])
            elif kind in (1, 5):
                return self._field(data[start : start + _SLICE_BYTES])
        return None

    def _field(self, unit: bytes) -> tuple[int, int] | None:
        if self._sequence is None or self._sequence[0]:
            return None
        _, number_bits, has_planes = self._sequence
        try:
            bits = _Bits(unit[1:])
            bits.skip_ue(3)
            bits.u(2 if has_planes else 0)
            number = bits.u(number_bits)
            return (number, bits.u(1)) if bits.u(1) else None
        except ValueError:
            return None

    def _read_sequence(self, unit: bytes) -> None:
        try:
            self._sequence = _sequence(_Bits(unit[1:]))
        except ValueError:
            return


def _sequence(bits: _Bits) -> tuple[bool, int, bool]:
    """Return frame_mbs_only_flag, bits of frame_num, separate_colour_plane_flag (7.3.2.1.1)."""
    profile = bits.u(8)
    bits.u(16)
    bits.skip_ue(1)
    has_planes = False
    if profile in _WITH_CHROMA:
        chroma = bits.ue()
        has_planes = chroma == 3 and bool(bits.u(1))
        bits.skip_ue(2)
        bits.u(1)
        if bits.u(1):
            for place in range(12 if chroma == 3 else 8):
                if bits.u(1):
                    _pass_scaling(bits, 16 if place < 6 else 64)
    number_bits = bits.ue() + 4
    order = bits.ue()
    if order == 0:
        bits.skip_ue(1)
    elif order == 1:
        bits.u(1)
        bits.skip_ue(2)
        bits.skip_ue(min(bits.ue(), 255))
    bits.skip_ue(1)
    bits.u(1)
    bits.skip_ue(2)
    return bool(bits.u(1)), number_bits, has_planes


def _pass_scaling(bits: _Bits, num: int) -> None:
    last = following = 8
    for _ in range(num):
        if following:
            following = (last + bits.se()) % 256
        last = following or last
