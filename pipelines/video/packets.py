"""The packets of one video stream: listed in one pass without decoding, then read again in spans.

Packets of a small stream are kept, so that its file is opened and read once. A longer file is read
again, with a seek where much lies between two spans. Where a seek leads to packets that were not
listed so, the file is read in order.
"""

import itertools
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from pipelines.settings.sections import Decode
from pipelines.storage.ranges import RangeFile
from pipelines.video import watch
from pipelines.video.door import Source
from pipelines.video.header import open_stream
from pipelines.video.listing.contents import Holds, content_check

KEPT_BYTES = 64 * 2**20
"""Size up to which the packets of a stream are kept, at most an eighth of decode.memory_bytes."""

SEEK_BYTES = 2**20
"""Size of the packets between two spans from which on a seek is cheaper than reading them."""

NO_TICK = -(2**62)
_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_BOX_BYTES, _MOST_BOXES = 8, 1000


@dataclass(frozen=True)
class Packets:
    """Numbers of the n packets of a stream, in order of the file.

    Attributes:
        tick: int64 [n], when the packet's frame is first shown, in units of time_base; NO_TICK:
            unknown.
        is_key, is_shown: bool [n].
        is_second: bool [n], the second field of the frame that the packet before began.
        mark: int64 [n, 4], what a packet is known by when it is read again: display time, decoding
            time, place in the file, size.
    """

    tick: np.ndarray
    is_key: np.ndarray
    is_shown: np.ndarray
    is_second: np.ndarray
    mark: np.ndarray
    end_tick: int

    @property
    def has_times(self) -> bool:
        """Whether the packets carry times; those of raw streams do not."""
        return not len(self.tick) or bool((self.tick != NO_TICK).any())


class PacketReader:
    """A reader of the best video stream of a file. Close it, or leave that to its end.

    Raises:
        VideoError: as `pipelines.video.header.open_stream`.
    """

    def __init__(self, source: Source, uri: str, decode: Decode) -> None:
        self._source = source
        self._open = partial(open_stream, source, uri, decode.max_frame_px)
        self._keep_bytes = min(KEPT_BYTES, decode.memory_bytes // 8)
        self._file = ExitStack()
        self._scanned: Packets | None = None
        self._kept: list[Packet] | None = []
        self._can_seek = True
        self.container: InputContainer
        self.stream: VideoStream
        self.reopen()

    @property
    def context(self) -> VideoCodecContext:
        """The decoder."""
        return self.stream.codec_context

    @property
    def _listed(self) -> Packets:
        """The packets that `scan` listed.

        Raises:
            RuntimeError: there was no `scan`.
        """
        if self._scanned is None:
            raise RuntimeError("packets are read before they are listed; call scan first")
        return self._scanned

    def reopen(self) -> None:
        """Start again from nothing: a decoder keeps traces of earlier packets."""
        self.close()
        self.container, self.stream = self._file.enter_context(self._open())
        self._demuxed = packets(self.container, self.stream)
        self._next, self._is_checked = 0, False

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def scan(self) -> Packets:
        """List all packets in one pass over the file."""
        check = content_check(self.context)
        content = self._content() if check is None else range(0)
        if content:
            self._kept = None
        ticks, marks = array("q"), array("q")
        keys, shown, seconds = bytearray(), bytearray(), bytearray()
        num_bytes, end_tick, end_before, is_torn = 0, NO_TICK, NO_TICK, False
        with self._without(content):
            for packet in self._demuxed:
                tick = packet.dts if packet.pts is None else packet.pts
                holds = Holds.FRAME if check is None else check(packet)
                ticks.append(NO_TICK if tick is None else tick)
                is_frame = holds == Holds.FRAME
                is_shown = is_frame and tick is not None and not packet.is_discard
                shown.append(is_shown)
                end_before, is_torn = end_tick, packet.is_corrupt
                if is_shown and tick is not None:
                    end_tick = max(end_tick, tick + (packet.duration or 0))
                seconds.append(holds == Holds.SECOND_FIELD)
                keys.append(packet.is_keyframe)
                marks.extend(_mark(packet))
                num_bytes += packet.size
                if num_bytes > self._keep_bytes:
                    self._kept = None
                if self._kept is not None:
                    self._kept.append(packet)
        if is_torn:
            # What the end of a cut-off file tears is missing with what comes after it.
            shown[-1], end_tick = False, end_before
        self._next = len(ticks)
        self._scanned = Packets(
            tick=np.array(ticks, np.int64),
            is_key=self._marked_in_index(marks) if content else np.array(keys, bool),
            is_shown=np.array(shown, bool),
            is_second=np.array(seconds, bool),
            mark=np.array(marks, np.int64).reshape(-1, 4),
            end_tick=end_tick,
        )
        if content:
            # FFmpeg holds some of what was not there.
            self.reopen()
        return self._scanned

    def _content(self) -> range:
        """Return the span of a remote file that can be passed over while packets are listed."""
        source = self._source
        if not isinstance(source, RangeFile) or source.size <= self._keep_bytes:
            return range(0)
        if self.container.format.name != _MOV:
            return range(0)
        position = source.tell()
        try:
            return content_of(source, source.size)
        finally:
            # FFmpeg goes on where it was.
            source.seek(position)

    @contextmanager
    def _without(self, content: range) -> Iterator[None]:
        if isinstance(self._source, RangeFile) and content:
            with self._source.without_content(content.start, content.stop):
                yield
        else:
            yield

    def _marked_in_index(self, marks: array) -> np.ndarray:
        """Return which packets are key frames by the index; FFmpeg's own marks depend on what is in
        the packets, and are the same in files that are not damaged.
        """
        keys = {entry.pos for entry in self.stream.index_entries if entry.is_keyframe}
        return np.array([place in keys for place in marks[2::4]], bool)

    def read(self, first: int, last: int) -> Iterator[Packet]:
        """Yield the packets first..last, counted in order of the file from 0, their times replaced
        by these numbers: a frame from the decoder says so which packet began it.

        Ends early where the file, after a seek, does not give what was listed: it is then read in
        order from its start the next time.
        """
        if self._kept is not None:
            for index, packet in enumerate(self._kept[first : last + 1], first):
                yield _numbered(packet, index)
            return
        if isinstance(self._source, RangeFile):
            _, _, start, _ = self._listed.mark[first]
            _, _, end, size = self._listed.mark[min(last, len(self._listed.mark) - 1)]
            self._source.expect(int(start), int(end + size))
        self._go_to(first)
        for packet in self._demuxed:
            index = self._next
            self._next += 1
            if self._is_checked and not self._is_listed(packet, index):
                self._can_seek, self._next = False, len(self._listed.tick)
                return
            if index >= first:
                yield _numbered(packet, index)
            if index >= last:
                return

    def _go_to(self, first: int) -> None:
        """Seek so that the next packet is `first` or one before it."""
        sizes = self._listed.mark[self._next : first, 3]
        if self._next <= first and sizes.sum() < SEEK_BYTES:
            return
        if self._can_seek and not self._seek(first):
            self._can_seek = False
            self._next = len(self._listed.tick)
        if self._next > first:
            self.reopen()

    def _seek(self, first: int) -> bool:
        """Return whether a seek led to a listed packet that is `first` or before it."""
        # Some containers are indexed by display time, others by decoding time, which is no later.
        return any(self._seek_time(tick, first) for tick in self._listed.mark[first, :2].tolist())

    def _seek_time(self, tick: int, first: int) -> bool:
        try:
            self.container.seek(tick, stream=self.stream)
        except MemoryError:
            raise
        except FFmpegError:
            return False
        demuxed = packets(self.container, self.stream)
        packet = next(demuxed, None)
        if packet is None:
            return False
        indices = np.flatnonzero((self._listed.mark == _mark(packet)).all(axis=1))
        if len(indices) != 1 or indices[0] > first:
            return False
        self._demuxed = itertools.chain([packet], demuxed)
        self._next, self._is_checked = int(indices[0]), True
        return True

    def _is_listed(self, packet: Packet, index: int) -> bool:
        marks = self._listed.mark
        return index < len(marks) and tuple(marks[index].tolist()) == _mark(packet)


def packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Yield the packets of the stream. One that cannot be read ends the file."""
    try:
        for packet in container.demux(stream):
            watch.alive()
            if packet.size:
                yield packet
    except (MemoryError, OSError):
        raise
    except FFmpegError:
        return


def _numbered(packet: Packet, index: int) -> Packet:
    packet.pts = packet.dts = index
    return packet


def _mark(packet: Packet) -> tuple[int, int, int, int]:
    return _known(packet.pts), _known(packet.dts), _known(packet.pos), packet.size


def _known(number: int | None) -> int:
    return NO_TICK if number is None else number


def content_of(file: BinaryIO | RangeFile, size: int) -> range:
    """Return the span of the frames' bytes in an MP4 or MOV whose index lists them all; else none.

    A file in fragments has an index for each, which lies between their content.
    """
    boxes: list[tuple[bytes, range]] = []
    position = 0
    while position + _BOX_BYTES <= size:
        file.seek(position)
        head = file.read(2 * _BOX_BYTES)
        length, kind, header = int.from_bytes(head[:4], "big"), head[4:8], _BOX_BYTES
        if length == 1:
            length, header = int.from_bytes(head[8:], "big"), 2 * _BOX_BYTES
        elif length == 0:
            length = size - position
        if length < header or len(boxes) == _MOST_BOXES:
            return range(0)
        boxes.append((kind, range(position + header, min(position + length, size))))
        position += length
    kinds = [kind for kind, _ in boxes]
    if kinds.count(b"moov") != 1 or b"moof" in kinds or b"mdat" not in kinds:
        return range(0)
    return max((span for kind, span in boxes if kind == b"mdat"), key=len)
