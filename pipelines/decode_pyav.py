"""Frames through PyAV: choose by the timestamps of all packets, then decode only what is needed.

Packets are listed without decoding. To reach a frame, decoding starts at the last packet before it
that the file marks as a key frame; packets in between are read and dropped, which needs no seeking
and so depends on no container's index. What is not reached like that is decoded from the start.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from pipelines import watch
from pipelines.config import Decode, Picture
from pipelines.sampling import end_of
from pipelines.video import VideoError, decode_packet, display_matrix, open_stream

# Bilinear with the support scaled, as torchvision's antialiased resize does it, at full chroma
# resolution: 0.0 to 0.3 grey levels from torchvision on test clips (1 to 2.4 without the latter).
# The other two make the result the same on every processor, at no cost.
_SCALING = (
    Interpolation.BILINEAR
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)

_NO_TICK = -(2**62)
_VP8_SHOW_FRAME = 0x10
_MAX_REORDERED = 16
"""Most frames that a decoder holds back to bring them into the order of display (H.264, HEVC)."""


@dataclass(frozen=True)
class _Listing:
    """The frames that are shown, in order of display.

    Attributes:
        ticks: int64 [n], ascending, each once: when a frame is first shown, in units of time_base.
        is_key: bool [n].
        first, last: int64 [n], the packets to decode for a frame, counted in order of the file; `last`
            is the frame's own.
    """

    ticks: np.ndarray
    is_key: np.ndarray
    first: np.ndarray
    last: np.ndarray


class PyAvVideo:
    """`pipelines.decode.Video` by PyAV, on one thread.

    Attributes:
        is_listed_by_decoding: the packets do not say which frames are shown when.
    """

    name = "pyav"
    version = f"{av.__version__} (FFmpeg {av.ffmpeg_version_info})"

    def __init__(self, source: str | BinaryIO, uri: str, picture: Picture, decode: Decode) -> None:
        self._source, self._uri = source, uri
        self._picture, self._max_frame_px = picture, decode.max_frame_px
        with open_stream(source, uri, self._max_frame_px) as (container, stream):
            # AVI stores no display times. With B-frames its packets say neither when nor whether
            # (packed bitstreams, dropped frames) a picture is shown: only decoding tells.
            self.is_listed_by_decoding = (
                container.format.name == "avi" and stream.codec_context.has_b_frames
            )
            if self.is_listed_by_decoding:
                self._listing = _list_decoded(container, stream)
            else:
                self._listing = _list_packets(container, stream)
            time_base, fps = stream.time_base, stream.average_rate
        ticks = self._listing.ticks
        start = ticks[0] if len(ticks) else 0
        self.timestamps_s = (ticks - start) * time_base.numerator / time_base.denominator
        self.end_s = end_of(self.timestamps_s, float(fps) if fps else None)
        self.is_key = self._listing.is_key

    def pictures(self, ordinals: list[int]) -> tuple[dict[int, np.ndarray], str]:
        """See `pipelines.decode.Video`."""
        first, last = self._listing.first[ordinals], self._listing.last[ordinals]
        images, reason = self._decode(_runs(first, last), ordinals)
        lost = [ordinal for ordinal in ordinals if ordinal not in images]
        if lost and (self._listing.first[lost] > 0).any():
            # A packet marked as a key frame need not be one.
            whole = [(0, int(self._listing.last[lost].max()))]
            recovered, reason = self._decode(whole, lost)
            images |= recovered
        return images, reason

    def _decode(
        self, runs: list[tuple[int, int]], ordinals: list[int]
    ) -> tuple[dict[int, np.ndarray], str]:
        wanted = {int(self._listing.ticks[ordinal]): ordinal for ordinal in ordinals}
        images: dict[int, np.ndarray] = {}
        reasons = ["the decoder gives no such frame"]
        num_spare = _MAX_REORDERED
        scaler = VideoReformatter()
        opened = open_stream(self._source, self._uri, self._max_frame_px)
        with opened as (container, stream):
            for tick, frame, flaw in _decoded(container, stream, runs, self.is_listed_by_decoding):
                if flaw:
                    reasons.append(flaw)
                    for ordinal in self._decoded_after(tick, frame, images):
                        del images[ordinal]
                elif tick in wanted:
                    images[wanted[tick]] = self._image(scaler, frame)
                if len(images) == len(wanted):
                    num_spare -= 1
                    if num_spare < 0:
                        break
        return images, reasons[-1]

    def _decoded_after(
        self, tick: int, frame: VideoFrame | None, images: dict[int, np.ndarray]
    ) -> list[int]:
        """Of the frames shown so far those that may have been predicted from a damaged `frame`.

        A frame that is shown before another one can be decoded after it.
        """
        if frame is None or not frame.is_corrupt:
            return []
        damaged = int(np.searchsorted(self._listing.ticks, tick))
        if self.is_listed_by_decoding:
            return [ordinal for ordinal in images if ordinal > damaged - _MAX_REORDERED]
        last = self._listing.last
        return [ordinal for ordinal in images if last[ordinal] > last[damaged]]

    def _image(self, scaler: VideoReformatter, frame: VideoFrame) -> np.ndarray:
        size, crop = self._picture.resize_px, self._picture.crop_px
        scaled = scaler.reformat(
            frame, size, size, "rgb24", interpolation=int(_SCALING), threads=1
        ).to_ndarray()
        margin = (size - crop) // 2
        turned = orient(scaled, display_matrix(frame))
        return turned[margin : margin + crop, margin : margin + crop].copy()


def orient(image: np.ndarray, signs: np.ndarray | None) -> np.ndarray:
    """The image [h, w, 3] as players show it; `signs` as from `pipelines.video.display_matrix`."""
    if signs is None:
        return image
    (a, b), (c, d) = signs
    return image[::d, ::a] if a else image.swapaxes(0, 1)[::b, ::c]


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The packets of the stream. One that cannot be read ends the file."""
    try:
        for packet in container.demux(stream):
            watch.alive()
            if packet.size:
                yield packet
    except (MemoryError, OSError):
        raise
    except av.FFmpegError:
        return


def _list_packets(container: InputContainer, stream: VideoStream) -> _Listing:
    is_vp8 = stream.codec_context.name == "vp8"
    ticks, keys, shown = [], [], []
    for packet in _packets(container, stream):
        tick = packet.dts if packet.pts is None else packet.pts
        hidden = is_vp8 and not memoryview(packet)[0] & _VP8_SHOW_FRAME
        ticks.append(_NO_TICK if tick is None else tick)
        shown.append(tick is not None and not packet.is_discard and not hidden)
        keys.append(packet.is_keyframe)
    tick, is_key = np.array(ticks, np.int64), np.array(keys, bool)
    # The last of equal ones, so that both have been decoded when the frame is.
    own = np.flatnonzero(shown)[::-1]
    unique, place = np.unique(tick[own], return_index=True)
    last = own[place]
    return _Listing(unique, is_key[last], _key_packets(tick, is_key, last), last)


def _key_packets(tick: np.ndarray, is_key: np.ndarray, packets: np.ndarray) -> np.ndarray:
    """For each packet the last key packet that is neither read nor shown after it; else packet 0.

    A frame that is read after a key frame but shown before it may need what comes before that.
    """
    keys = np.flatnonzero(is_key)
    keys = np.concatenate([[0], keys[keys > 0]])
    found = np.searchsorted(keys, packets, side="right") - 1
    while len(late := np.flatnonzero((found > 0) & (tick[keys[found]] > tick[packets]))):
        found[late] -= 1
    return keys[found]


def _list_decoded(container: InputContainer, stream: VideoStream) -> _Listing:
    everything = [(0, 2**62)]
    frames: dict[int, bool] = {}
    for tick, frame, _ in _decoded(container, stream, everything, by_order=True):
        frames.setdefault(tick, frame is not None and bool(frame.key_frame))
    ticks = np.array(sorted(frames), np.int64)
    is_key = np.array([frames[tick] for tick in ticks.tolist()], bool)
    return _Listing(ticks, is_key, np.zeros_like(ticks), np.full_like(ticks, everything[0][1]))


def _runs(first: np.ndarray, last: np.ndarray) -> list[tuple[int, int]]:
    """The spans of packets first..last, joined where they overlap, in order of the file."""
    runs: list[tuple[int, int]] = []
    for start, stop in sorted(zip(first.tolist(), last.tolist(), strict=True)):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
        else:
            runs.append((start, stop))
    return runs


def _decoded(
    container: InputContainer,
    stream: VideoStream,
    runs: list[tuple[int, int]],
    by_order: bool,
) -> Iterator[tuple[int, VideoFrame | None, str]]:
    """(tick, frame, flaw) of what the decoder gives for the packets of `runs`; "" is no flaw.

    After lost data all frames up to the next key frame have a flaw: they may be wrong without the
    decoder saying so. Ticks are those of the packets or, with by_order, of the moment of decoding.
    """
    remaining = iter(runs)
    run = next(remaining, None)
    tick, flaw = _NO_TICK, ""
    for index, packet in enumerate(itertools.chain(_packets(container, stream), [None])):
        if run is None:
            return
        if index < run[0]:
            continue
        if index == run[0]:
            if packet is None:
                return
            flaw = _start_flaw(packet, index)
        ends = packet is not None and index == run[1]
        for part in (packet, None) if ends else (packet,):
            frames, error = _decode_packet(stream, part)
            for frame in frames:
                flaw = _frame_flaw(frame, flaw)
                tick = _tick(frame, tick, by_order)
                yield tick, frame, flaw
            if error:
                flaw = error
                yield tick if part is None or part.dts is None else part.dts, None, flaw
        if ends:
            stream.codec_context.flush_buffers()
            run = next(remaining, None)


def _decode_packet(stream: VideoStream, packet: Packet | None) -> tuple[list[VideoFrame], str]:
    """The frames that come out when `packet` goes in (None: the last ones), or the complaint."""
    if packet is not None and packet.is_corrupt:
        return [], "a packet is incomplete"
    try:
        return decode_packet(stream.codec_context, packet), ""
    except MemoryError:
        raise
    except (av.FFmpegError, VideoError) as error:
        return [], str(error) if isinstance(error, VideoError) else error.strerror


def _start_flaw(packet: Packet, index: int) -> str:
    """What is wrong with decoding from `packet` until the decoder itself reports a key frame.

    The key frame before an edit list's first frame is decoded but not given out: nothing tells, so
    the file is believed.
    """
    if packet.is_keyframe and (index == 0 or packet.is_discard):
        return ""
    return "no key frame comes before it"


def _frame_flaw(frame: VideoFrame, before: str) -> str:
    if frame.is_corrupt:
        return "the decoder met damaged data"
    return "" if frame.key_frame else before


def _tick(frame: VideoFrame, before: int, by_order: bool) -> int:
    if not by_order:
        return frame.dts if frame.pts is None else frame.pts
    # The last frames come out when no packet goes in, and carry no time.
    return before + 1 if frame.dts is None else frame.dts
