"""Frames through PyAV: choose by the timestamps of all packets, then decode only what is needed.

Packets are listed without decoding. To reach a frame, decoding starts at the last packet before it
that the file marks as a key frame. The spans of packets that this takes are joined where they
overlap, so that the file's distance between key frames decides: one span from start to end where
key frames are rare, one per group of samples or per sample where they are frequent. Within a span,
frames that no other one is predicted from are passed over, where their codec says which these are.
Frames that cannot be decoded so are tried again with every frame of the span, then with every frame
from the start of the file.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from pipelines.settings.sections import Decode, Picture
from pipelines.video.door import Source
from pipelines.video.header import VideoError, decode_packet, display_matrix
from pipelines.video.packets import NO_TICK, PacketReader, Packets
from pipelines.video.sampling import end_of

# Bilinear with the support scaled, as torchvision's antialiased resize does it, at full chroma
# resolution: 0.0 to 0.3 grey levels from torchvision on test clips (1 to 2.4 without the latter).
# The other two make the result the same on every processor, at no cost.
_SCALING = (
    Interpolation.BILINEAR
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)

_MAX_REORDERED = 16
"""Most frames that a decoder holds back to bring them into the order of display (H.264, HEVC)."""

_MARKS_UNREFERENCED = ("h264", "mpeg1video", "mpeg2video")
"""Codecs that mark the frames which no other one is predicted from, and whose decoders can pass
these over. Not HEVC, whose mark excludes only the frames of the same temporal layer, nor VP8, where
such a frame may change how the next one is read.
"""

Choose = Callable[[np.ndarray, float, np.ndarray], list[int]]
"""Ordinals of the frames to take from a video of these timestamps_s, end_s and is_key."""


_WHOLE = (0, 2**62)
"""From the first packet to the last."""


@dataclass(frozen=True)
class _Listing:
    """The frames that are shown, in order of display.

    Attributes:
        ticks: int64 [n], ascending, each once: when a frame is first shown, in units of time_base.
        is_key: bool [n].
        first, last: int64 [n], the packets to decode for a frame, counted in order of the file;
            `last` is the frame's own.
    """

    ticks: np.ndarray
    is_key: np.ndarray
    first: np.ndarray
    last: np.ndarray


class PyAvVideo:
    """`pipelines.video.decode.Video` by PyAV, on one thread.

    Args:
        choose: which frames `pictures` will be asked for. A file that must be decoded to be listed
            calls it with a guess of its listing, to keep these frames while it is decoded.

    Attributes:
        is_listed_by_decoding: the packets do not say which frames are shown when.
    """

    name = "pyav"
    version = f"{av.__version__} (FFmpeg {av.ffmpeg_version_info})"

    def __init__(
        self,
        source: Source,
        uri: str,
        picture: Picture,
        decode: Decode,
        choose: Choose | None = None,
    ) -> None:
        self._source, self._picture = source, picture
        self._reader = PacketReader(source, uri, decode)
        self._is_fresh = True
        stream = self._reader.stream
        self._time_base, self._fps = _time_base(stream), stream.average_rate
        # AVI stores no display times. With B-frames its packets say neither when nor whether
        # (packed bitstreams, dropped frames) a picture is shown: only decoding tells.
        self.is_listed_by_decoding = (
            self._reader.container.format.name == "avi" and self._reader.context.has_b_frames
        )
        self._packets = self._reader.scan()
        self._early: dict[int, np.ndarray] = {}
        if self.is_listed_by_decoding:
            ticks, is_key = _guess(self._packets)
            guess = choose(*self._times(ticks), is_key) if choose else []
            self._listing = self._list_decoded(frozenset(guess))
        else:
            self._listing = _list_shown(self._packets)
        self._can_skip = (
            self._reader.context.name in _MARKS_UNREFERENCED
            and not self.is_listed_by_decoding
            and _tells_frames_apart(self._packets)
        )
        self.timestamps_s, self.end_s = self._times(self._listing.ticks)
        self.is_key = self._listing.is_key

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def pictures(self, ordinals: list[int]) -> tuple[dict[int, np.ndarray], str]:
        """Decode pictures as `pipelines.video.decode.Video` says."""
        images = {ordinal: self._early[ordinal] for ordinal in ordinals if ordinal in self._early}
        reason = ""
        for can_skip, from_start in ((True, False), (False, False), (False, True)):
            lost = [ordinal for ordinal in ordinals if ordinal not in images]
            if not lost:
                break
            first, last = self._listing.first[lost], self._listing.last[lost]
            if (can_skip and not self._can_skip) or (from_start and not first.any()):
                continue
            # A packet marked as a key frame need not be one.
            runs = [(0, int(last.max()))] if from_start else _runs(first, last)
            decoded, reason = self._decode(runs, lost, can_skip)
            images |= decoded
        return images, reason

    def _times(self, ticks: np.ndarray) -> tuple[np.ndarray, float]:
        """Return timestamps_s and end_s."""
        start = ticks[0] if len(ticks) else 0
        timestamps_s = (ticks - start) * self._time_base.numerator / self._time_base.denominator
        return timestamps_s, end_of(timestamps_s, float(self._fps) if self._fps else None)

    def _list_decoded(self, guess: frozenset[int]) -> _Listing:
        """Return the listing by decoding all packets.

        The frames that are about to be asked for, if `guess` is right, are taken on the way, which
        saves decoding them once more.
        """
        frames: dict[int, bool] = {}
        taken: dict[int, np.ndarray] = {}
        is_sound, before = True, NO_TICK
        scaler = VideoReformatter()
        for tick, frame, flaw in self._decoded([_WHOLE], frozenset()):
            frames.setdefault(tick, frame is not None and bool(frame.key_frame))
            is_sound &= not flaw and tick > before
            before = tick
            if is_sound and frame is not None and len(frames) - 1 in guess:
                taken[len(frames) - 1] = self._image(scaler, frame)
        if is_sound:
            self._early = taken
        ticks = np.array(sorted(frames), np.int64)
        is_key = np.array([frames[tick] for tick in ticks.tolist()], bool)
        return _Listing(ticks, is_key, np.zeros_like(ticks), np.full_like(ticks, _WHOLE[1]))

    def _decode(
        self, runs: list[tuple[int, int]], ordinals: list[int], can_skip: bool
    ) -> tuple[dict[int, np.ndarray], str]:
        ordinal_of = {int(self._listing.ticks[ordinal]): ordinal for ordinal in ordinals}
        images: dict[int, np.ndarray] = {}
        reasons = ["the decoder gives no such frame"]
        num_spare = _MAX_REORDERED
        scaler = VideoReformatter()
        needed = frozenset(ordinal_of) if can_skip else frozenset()
        for tick, frame, flaw in self._decoded(runs, needed):
            if can_skip and frame is not None and frame.interlaced_frame:
                # Of two fields in packets of their own the second one would be passed over.
                break
            if flaw:
                reasons.append(flaw)
                for ordinal in self._decoded_after(tick, frame, images):
                    del images[ordinal]
            elif frame is not None and tick in ordinal_of:
                images[ordinal_of[tick]] = self._image(scaler, frame)
            if len(images) == len(ordinal_of):
                num_spare -= 1
                if num_spare < 0:
                    break
        return images, reasons[-1]

    def _decoded(
        self, runs: list[tuple[int, int]], needed: frozenset[int]
    ) -> Iterator[tuple[int, VideoFrame | None, str]]:
        """Yield (tick, frame, flaw) of each frame from the decoder for the packets of `runs`; "" is
        no flaw.

        After lost data all frames up to the next key frame have a flaw: they may be wrong without
        the decoder saying so. Ticks are those of the packets or, where the file is listed by
        decoding, of the moment of decoding.

        Args:
            needed: the ticks of the frames that are wanted, where others that nothing is predicted
                from may be passed over; empty: all frames come.
        """
        if not self._is_fresh:
            self._reader.reopen()
        self._is_fresh = False
        context, by_order = self._reader.context, self.is_listed_by_decoding
        tick, flaw = NO_TICK, ""
        for first, last in runs:
            index = first
            for packet in itertools.chain(self._reader.read(first, last), [None]):
                if index == first:
                    if packet is None:
                        break
                    flaw = _start_flaw(packet, index)
                if needed and packet is not None:
                    is_needed = int(self._packets.tick[index]) in needed
                    context.skip_frame = "DEFAULT" if is_needed else "NONREF"
                index += 1
                frames, error = _decode_packet(context, packet)
                for frame in frames:
                    flaw = _frame_flaw(frame, flaw)
                    tick = _tick(frame, tick, by_order)
                    yield tick, frame, flaw
                if error:
                    flaw = error
                    yield tick if packet is None or packet.dts is None else packet.dts, None, flaw
            context.flush_buffers()

    def _decoded_after(
        self, tick: int, frame: VideoFrame | None, images: dict[int, np.ndarray]
    ) -> list[int]:
        """Return the frames shown so far that may have been predicted from a damaged `frame`.

        A frame that is shown before another one can be decoded after it.
        """
        if frame is None or not frame.is_corrupt:
            return []
        if tick == NO_TICK:
            raise RuntimeError("the decoder gives a damaged frame without a time")
        damaged = int(np.searchsorted(self._listing.ticks, tick))
        if self.is_listed_by_decoding:
            return [ordinal for ordinal in images if ordinal > damaged - _MAX_REORDERED]
        last = self._listing.last
        return [ordinal for ordinal in images if last[ordinal] > last[damaged]]

    def _image(self, scaler: VideoReformatter, frame: VideoFrame) -> np.ndarray:
        size, crop = self._picture.resize_px, self._picture.decoded_px
        # In planes: at full chroma resolution the scaler writes these more than twice as fast.
        scaled = scaler.reformat(frame, size, size, "gbrp", interpolation=int(_SCALING), threads=1)
        margin = (size - crop) // 2
        signs = display_matrix(frame)
        image = np.empty((crop, crop, 3), np.uint8)
        for channel, plane in zip((1, 2, 0), scaled.planes, strict=True):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(size, plane.line_size)[
                :, :size
            ]
            turned = orient(rows, signs)
            image[..., channel] = turned[margin : margin + crop, margin : margin + crop]
        return image


def orient(image: np.ndarray, signs: np.ndarray | None) -> np.ndarray:
    """Return the image [h, w] or [h, w, 3] as players show it; `signs` are of
    `pipelines.video.header.display_matrix`.
    """
    if signs is None:
        return image
    (a, b), (c, d) = signs
    return image[::d, ::a] if a else image.swapaxes(0, 1)[::b, ::c]


def _list_shown(packets: Packets) -> _Listing:
    """Return the listing by the packets' numbers."""
    # The last of equal ones, so that both have been decoded when the frame is.
    shown = np.flatnonzero(packets.is_shown)[::-1]
    unique, first_of_equal = np.unique(packets.tick[shown], return_index=True)
    last = shown[first_of_equal]
    is_key = packets.is_key
    return _Listing(unique, is_key[last], _key_packets(packets.tick, is_key, last), last)


def _guess(packets: Packets) -> tuple[np.ndarray, np.ndarray]:
    """Return ticks and is_key of AVI with B-frames, which are right for most files: each packet
    that is not empty holds one frame, shown when the next one is decoded.
    """
    _, decoded, _, size = packets.mark.T
    holds = size > 1
    ticks = decoded[holds]
    return np.append(ticks[1:], ticks[-1:] + 1), packets.is_key[holds]


def _tells_frames_apart(packets: Packets) -> bool:
    """Return whether each packet has a display time of its own, which its frame carries."""
    shown = packets.mark[:, 0]
    return bool((shown != NO_TICK).all()) and len(np.unique(shown)) == len(shown)


def _key_packets(tick: np.ndarray, is_key: np.ndarray, packets: np.ndarray) -> np.ndarray:
    """Return for each packet the last key packet that is neither read nor shown after it; else
    packet 0.

    A frame that is read after a key frame but shown before it may need what comes before that.
    """
    keys = np.flatnonzero(is_key)
    keys = np.concatenate([[0], keys[keys > 0]])
    index = np.searchsorted(keys, packets, side="right") - 1
    while len(late := np.flatnonzero((index > 0) & (tick[keys[index]] > tick[packets]))):
        index[late] -= 1
    return keys[index]


def _runs(first: np.ndarray, last: np.ndarray) -> list[tuple[int, int]]:
    """Return the spans of packets first..last, joined where they overlap, in order of the file."""
    runs: list[tuple[int, int]] = []
    for start, stop in sorted(zip(first.tolist(), last.tolist(), strict=True)):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
        else:
            runs.append((start, stop))
    return runs


def _decode_packet(
    context: VideoCodecContext, packet: Packet | None
) -> tuple[list[VideoFrame], str]:
    """Return the frames that come out when `packet` goes in (None: the last ones), or the
    complaint.
    """
    if packet is not None and packet.is_corrupt:
        return [], "a packet is incomplete"
    try:
        return decode_packet(context, packet), ""
    except MemoryError:
        raise
    except (FFmpegError, VideoError) as error:
        return [], str(error) if isinstance(error, VideoError) else error.strerror or ""


def _start_flaw(packet: Packet, index: int) -> str:
    """Return the flaw of decoding from `packet` until the decoder itself reports a key frame.

    The key frame before an edit list's first frame is decoded but not given out. Nothing tells
    whether that went well, so the file is believed.
    """
    if packet.is_keyframe and (index == 0 or packet.is_discard):
        return ""
    return "no key frame comes before it"


def _time_base(stream: VideoStream) -> Fraction:
    """Return the seconds of a tick.

    Raises:
        RuntimeError: FFmpeg does not know it, although it sets one for every stream.
    """
    if stream.time_base is None:
        raise RuntimeError("FFmpeg gives no time base of the video stream")
    return stream.time_base


def _frame_flaw(frame: VideoFrame, before: str) -> str:
    if frame.is_corrupt:
        return "the decoder met damaged data"
    return "" if frame.key_frame else before


def _tick(frame: VideoFrame, before: int, by_order: bool) -> int:
    if not by_order:
        tick = frame.dts if frame.pts is None else frame.pts
        return NO_TICK if tick is None else tick
    # The last frames come out when no packet goes in, and carry no time.
    return before + 1 if frame.dts is None else frame.dts
