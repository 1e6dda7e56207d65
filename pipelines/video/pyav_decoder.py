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
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from pipelines.settings.sections import Decode, Picture
from pipelines.video.door import Source, opened
from pipelines.video.header import (
    ListedBy,
    VideoError,
    decode_packet,
    display_matrix,
    frame_rate,
    is_reordered_avi,
)
from pipelines.video.images.frame import Box, centre, covers, framed, resized_px
from pipelines.video.listing.cut import ending
from pipelines.video.listing.shown import Listing, is_open_at_start, list_shown, may_jump
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


class PyAvVideo:
    """`pipelines.video.decode.Video` by PyAV, on one thread.

    Args:
        choose: which frames `pictures` will be asked for. A file that must be decoded to be listed
            calls it with a guess of its listing, to keep these frames while it is decoded.

    Attributes:
        listed_by: packets, or decoding where these do not say which frames are shown when.
    """

    name = "pyav"
    listed_by: ListedBy = "packets"
    version = f"{av.__version__} (FFmpeg {av.ffmpeg_version_info})"

    def __init__(
        self,
        source: Source,
        uri: str,
        picture: Picture,
        decode: Decode,
        choose: Choose | None = None,
        box: Box | None = None,
    ) -> None:
        self._source, self._picture, self._box = source, picture, box
        self._reader = PacketReader(source, uri, decode)
        self._is_fresh = True
        stream = self._reader.stream
        self._time_base = _time_base(stream)
        self._fps = frame_rate(self._reader.container, stream)
        # 25: FFmpeg's own rate of streams that say none.
        self._frame_ticks = max(1, round(1 / (self._time_base * (self._fps or 25))))
        self._is_reordered_avi = is_reordered_avi(self._reader.container, stream)
        self._packets = self._reader.scan()
        self._early: dict[int, np.ndarray] = {}
        self._can_skip = self._reader.context.name in _MARKS_UNREFERENCED
        self._listing = self._list(choose)
        self.timestamps_s, self.end_s = self._times(self._listing.ticks)
        self.is_key = self._listing.is_key
        self.num_parts = self._listing.num_parts
        self.missing_s = self._missing_s()

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

    def _missing_s(self) -> float | None:
        reader, frame_s = self._reader, np.diff(self.timestamps_s, append=self.end_s)
        with opened(self._source) as file:
            fps = float(self._fps) if self._fps else None
            end = ending(file, reader.container, reader.stream, fps)
        if not len(frame_s):
            return 0.0
        # The last frame may be shown longer than others, as in slide shows.
        shown_s = float((self._packets.end_tick - int(self._listing.ticks[0])) * self._time_base)
        return end.missing_s(max(self.end_s, shown_s), float(np.median(frame_s)))

    def _list(self, choose: Choose | None) -> Listing:
        if self._is_reordered_avi or not self._packets.has_times:
            self.listed_by = "decoding"
            self._can_skip &= not self._is_reordered_avi
            ticks, is_key = _guess(self._packets, self._frame_ticks)
            guess = choose(*self._times(ticks), is_key) if choose else []
            return self._list_decoded(frozenset(guess))
        self._can_skip &= not self._packets.is_second.any()
        listing = self._list_packets(self._packets)
        if is_open_at_start(self._packets):
            for at, frame, flaw in self._decoded([_WHOLE], frozenset()):
                if frame is not None and not flaw and at >= 0 and listing.ordinal[at] >= 0:
                    return listing.begin_at(int(listing.ordinal[at]))
        return listing

    def _list_packets(self, packets: Packets) -> Listing:
        return list_shown(packets, float(self._time_base), may_jump(self._reader.container.format))

    def _list_decoded(self, guess: frozenset[int]) -> Listing:
        """Return the listing by decoding all packets.

        The frames that are about to be asked for, if `guess` is right, are taken on the way, which
        saves decoding them once more.
        """
        ticks: dict[int, bool] = {}
        begun_by: list[int] = []
        taken: dict[int, np.ndarray] = {}
        is_sound, before = True, NO_TICK
        scaler = VideoReformatter()
        for at, frame, flaw in self._decoded([_WHOLE], frozenset()):
            if self._is_reordered_avi:
                tick = self._decoding_tick(at)
            elif frame is None:
                is_sound = False
                continue
            else:
                tick = len(begun_by) * self._frame_ticks
                begun_by.append(at)
            ticks.setdefault(tick, frame is not None and bool(frame.key_frame))
            is_sound &= not flaw and tick > before
            before = tick
            if is_sound and frame is not None and len(ticks) - 1 in guess:
                taken[len(ticks) - 1] = self._image(scaler, frame)
        if is_sound:
            self._early = taken
        if not self._is_reordered_avi:
            return self._list_packets(_timed(self._packets, begun_by, self._frame_ticks))
        shown = np.array(sorted(ticks), np.int64)
        is_key = np.array([ticks[tick] for tick in shown.tolist()], bool)
        whole = np.full_like(shown, _WHOLE[1])
        return Listing(shown, is_key, np.zeros_like(shown), whole, np.empty(0, np.int64))

    def _decode(
        self, runs: list[tuple[int, int]], ordinals: list[int], can_skip: bool
    ) -> tuple[dict[int, np.ndarray], str]:
        wanted = frozenset(ordinals)
        images: dict[int, np.ndarray] = {}
        reasons = ["the decoder gives no such frame"]
        num_spare = _MAX_REORDERED
        scaler = VideoReformatter()
        needed = frozenset(self._listing.last[ordinals].tolist()) if can_skip else frozenset()
        for at, frame, flaw in self._decoded(runs, needed):
            if can_skip and frame is not None and frame.interlaced_frame:
                # Of two fields in packets of their own the second one would be passed over.
                break
            ordinal = self._ordinal(at)
            if flaw:
                reasons.append(flaw)
                for lost in self._decoded_after(at, frame, images):
                    del images[lost]
            elif frame is not None and ordinal in wanted:
                images[ordinal] = self._image(scaler, frame)
            if len(images) == len(wanted):
                num_spare -= 1
                if num_spare < 0:
                    break
        return images, reasons[-1]

    def _decoded(
        self, runs: list[tuple[int, int]], needed: frozenset[int]
    ) -> Iterator[tuple[int, VideoFrame | None, str]]:
        """Yield (packet, frame, flaw) of each frame from the decoder for the packets of `runs`; ""
        is no flaw.

        After lost data all frames up to the next key frame have a flaw: they may be wrong without
        the decoder saying so. The packet is the one that the frame begins in or, of AVI with
        reordered frames, the one that it comes out at; beyond the last one where none goes in.

        Args:
            needed: the packets of the frames that are wanted, where others that nothing is
                predicted from may be passed over; empty: all frames come.
        """
        if not self._is_fresh:
            self._reader.reopen()
        self._is_fresh = False
        context, at, flaw = self._reader.context, -1, ""
        for first, last in runs:
            index = first
            for packet in itertools.chain(self._reader.read(first, last), [None]):
                if index == first:
                    if packet is None:
                        break
                    flaw = _start_flaw(packet, index)
                if needed and packet is not None:
                    context.skip_frame = "DEFAULT" if index in needed else "NONREF"
                frames, error = _decode_packet(context, packet)
                for frame in frames:
                    flaw = _frame_flaw(frame, flaw)
                    at = self._begun_at(frame, at)
                    yield at, frame, flaw
                if error:
                    flaw = error
                    yield index, None, flaw
                index += 1
            context.flush_buffers()

    def _begun_at(self, frame: VideoFrame, before: int) -> int:
        if not self._is_reordered_avi:
            return -1 if frame.pts is None else frame.pts
        # The last frames come out when no packet goes in, and carry no number.
        return before + 1 if frame.dts is None else frame.dts

    def _decoding_tick(self, index: int) -> int:
        decoded = self._packets.mark[:, 1]
        beyond = max(0, index - len(decoded) + 1)
        return int(decoded[min(index, len(decoded) - 1)]) + beyond

    def _ordinal(self, at: int) -> int:
        """Return the frame that is shown of the packet `at`; -1: none."""
        if not self._is_reordered_avi:
            return int(self._listing.ordinal[at]) if at >= 0 else -1
        ticks, tick = self._listing.ticks, self._decoding_tick(at)
        ordinal = int(np.searchsorted(ticks, tick))
        return ordinal if ordinal < len(ticks) and ticks[ordinal] == tick else -1

    def _decoded_after(
        self, at: int, frame: VideoFrame | None, images: dict[int, np.ndarray]
    ) -> list[int]:
        """Return the frames shown so far that may have been predicted from a damaged `frame`.

        A frame that is shown before another one can be decoded after it.
        """
        if frame is None or not frame.is_corrupt:
            return []
        if self._is_reordered_avi:
            damaged = self._ordinal(at)
            return [ordinal for ordinal in images if ordinal > damaged - _MAX_REORDERED]
        return [ordinal for ordinal in images if self._listing.last[ordinal] > at]

    def _image(self, scaler: VideoReformatter, frame: VideoFrame) -> np.ndarray:
        picture = self._picture
        signs = display_matrix(frame)
        size = (frame.width, frame.height)
        is_lying = signs is not None and not signs[0, 0]
        if picture.scales or not covers(self._box, *(size[::-1] if is_lying else size)):
            # What is resized is a part of the picture as it is shown, or it is resized more often.
            whole = self._shown(scaler, frame, *size)
            return framed(Image.fromarray(whole), picture, self._box)
        resized = resized_px(picture, *size, picture.resize_px)
        return self._shown(scaler, frame, *resized, picture.decoded_px)

    def _shown(
        self,
        scaler: VideoReformatter,
        frame: VideoFrame,
        width: int,
        height: int,
        crop: int | None = None,
    ) -> np.ndarray:
        """Return a frame resized, turned as players show it, and the centre of that, if asked."""
        # In planes: at full chroma resolution the scaler writes these more than twice as fast.
        scaled = scaler.reformat(
            frame, width, height, "gbrp", interpolation=int(_SCALING), threads=1
        )
        signs = display_matrix(frame)
        channels = []
        for plane in scaled.planes:
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
            turned = orient(rows[:, :width], signs)
            channels.append(centre(turned, crop) if crop else turned)
        green, blue, red = channels
        return np.stack([red, green, blue], axis=-1)


def orient(image: np.ndarray, signs: np.ndarray | None) -> np.ndarray:
    """Return the image [h, w] or [h, w, 3] as players show it; `signs` are of
    `pipelines.video.header.display_matrix`.
    """
    if signs is None:
        return image
    (a, b), (c, d) = signs
    return image[::d, ::a] if a else image.swapaxes(0, 1)[::b, ::c]


def _guess(packets: Packets, frame_ticks: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ticks and is_key that are right for most files that are listed by decoding: each
    packet that is not empty holds one frame, in AVI shown when the next one is decoded.
    """
    _, decoded, _, size = packets.mark.T
    holds = size > 1
    if not packets.has_times:
        return np.arange(holds.sum()) * frame_ticks, packets.is_key[holds]
    ticks = decoded[holds]
    return np.append(ticks[1:], ticks[-1:] + 1), packets.is_key[holds]


def _timed(packets: Packets, begun_by: list[int], frame_ticks: int) -> Packets:
    """Return the packets with the times that decoding found: `begun_by` are those that begin a
    frame, in order of display.
    """
    tick, is_shown = np.full_like(packets.tick, NO_TICK), np.zeros_like(packets.is_shown)
    tick[begun_by] = np.arange(len(begun_by)) * frame_ticks
    is_shown[begun_by] = True
    return replace(packets, tick=tick, is_shown=is_shown)


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
