"""The header of a video, and VideoError, the only error that a video may cause.

The video stream of a file is the one that FFmpeg calls best (`av_find_best_stream`): one that is
marked as default; of several the one with most frames, counted up to five, in what opening the file
reads; then the one of the highest bit rate; then the first. Where that is cover art (an attached
picture), the file holds no video.
"""

import errno
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, cast, get_args

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.format import Flags
from av.packet import Packet
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from fsspec.implementations.local import LocalFileSystem

from pipelines.credentials import redact
from pipelines.settings.sections import Decode
from pipelines.storage.filesystems import filesystem
from pipelines.storage.ranges import RangeFile
from pipelines.video import watch
from pipelines.video.door import RefusedContainerError, Source, open_container
from pipelines.video.listing.contents import Holds, content_check

ErrorType = Literal[
    "not_found",  # no file there
    "unreadable",  # there is a file, but storage does not give it
    "empty_file",  # 0 bytes
    "not_a_video",  # no container that FFmpeg knows, or its header is broken
    "refused_format",  # not one of `pipelines.video.door.CONTAINERS`: a playlist, text, picture
    "no_video_stream",  # audio or cover art alone
    "unsupported",  # the chosen decoder cannot read this file
    "frame_too_large",  # more than decode.max_frame_px
    "box_outside",  # the box of the video is not in its picture
    "no_frames",  # the header is fine, but no frame follows it
    "damaged",  # wanted frames could not be decoded
    "longer_than_planned",  # frames lie beyond what the header promised
    "changed",  # another file than the one that was planned
    "not_finite",  # the network gave NaN or infinity
    "shorter_than_planned",  # the file was cut off before the end that its header promised
    "timeout",
    "crashed",
    "out_of_memory",
    "unexpected",
]
ERROR_TYPES: tuple[str, ...] = get_args(ErrorType)

ListedBy = Literal["packets", "decoding"]
"""What tells which frames a file shows when: times of packets, or only decoding them all."""

_READ_AHEAD_BYTES = 512 * 2**10
_ROTATION_PACKETS = 64
"""Packets after which a decoder that gives no frame is no longer asked for the rotation."""

_MAX_INT = 2**31 - 1
_REFUSED = (
    "it is taken for {}; expected a file that holds a video itself, of a container that "
    "docs/decoders.md lists. Of a playlist or manifest make one file: ffmpeg -i IT -c copy v.mp4"
)
_REFUSED_SIZE = re.compile(r"Picture size (\d+)x(\d+) ")

# What FFmpeg logs about damaged files helps no user, and the errors that matter are raised. Only
# that a frame is too large is logged alone: `decode_packet` finds it there.
av.logging.set_level(av.logging.ERROR)
logging.getLogger("libav").propagate = False
logging.getLogger("libav").addHandler(logging.NullHandler())


def _unnamed(kind: type[SideDataType], value: int) -> SideDataType:
    member = object.__new__(kind)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return member


# PyAV's table lacks side data that FFmpeg knows (EXIF, views of stereo), and without this hook of
# Enum a frame that carries some could be asked for none of its side data.
SideDataType._missing_ = classmethod(_unnamed)  # pyright: ignore[reportAttributeAccessIssue]


class VideoError(Exception):
    """An error of a video that cannot be read, in part or at all.

    Becomes a row, never the end of a job.
    """

    def __init__(self, error_type: ErrorType, message: str) -> None:
        # Into tables and logs: a storage may name an address that it has signed.
        message = redact(message)
        super().__init__(error_type, message)
        self.error_type: ErrorType = error_type
        self.message = message

    def __str__(self) -> str:
        return f"{self.error_type}: {self.message}"


@dataclass(frozen=True)
class VideoFacts:
    """The header of a video. `width_px` and `height_px` are as shown, after `rotation_deg`
    (counter-clockwise; 0 where the file holds none or nonsense). None: the header does not say."""

    container: str
    codec: str
    width_px: int
    height_px: int
    rotation_deg: Literal[0, 90, 180, 270]
    duration_s: float | None
    fps: float | None
    num_frames_header: int | None
    listed_by: ListedBy | None = "packets"
    is_mirrored: bool | None = False

    def __post_init__(self) -> None:
        numbers = (self.duration_s or 0.0, self.fps or 0.0)
        sizes = (self.width_px, self.height_px)
        if not (all(map(math.isfinite, numbers)) and all(0 <= size <= _MAX_INT for size in sizes)):
            raise ValueError(f"no facts of a video: {self}")


def probe(uri: str, max_frame_px: int = Decode.max_frame_px) -> VideoFacts:
    """Read the header of the video at `uri`: a local path, or whatever fsspec opens (s3://, gs://,
    memory://).

    Reads the header and the packets up to the first frame, which carries the rotation.

    Raises:
        VideoError: the file is not there or holds no video that can be shown.
    """
    with open_source(uri) as source:
        return facts_of(source, uri, max_frame_px)


def facts_of(source: Source, uri: str, max_frame_px: int) -> VideoFacts:
    """Read the header of an opened source, as `probe`."""
    with open_stream(source, uri, max_frame_px) as (container, stream):
        width_px, height_px = stream.codec_context.width, stream.codec_context.height
        try:
            frame, has_times, has_pairs = _first_frame(container, stream)
        except VideoError as error:
            raise VideoError(error.error_type, f"{uri}: {error.message}") from error
        rotation_deg = rotation(frame) if frame else 0
        if rotation_deg in (90, 270):
            width_px, height_px = height_px, width_px
        return VideoFacts(
            container=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            width_px=width_px,
            height_px=height_px,
            rotation_deg=rotation_deg,
            duration_s=_duration_s(container, stream),
            fps=float(rate) if (rate := frame_rate(container, stream, has_pairs)) else None,
            num_frames_header=stream.frames or None,
            listed_by="decoding"
            if is_reordered_avi(container, stream) or not has_times
            else "packets",
            is_mirrored=bool(frame) and is_mirrored(frame),
        )


@contextmanager
def open_source(uri: str) -> Iterator[Source]:
    """Yield a source for FFmpeg: the path of a local file, else ranges of it."""
    if (path := local_path(uri)) is not None:
        yield path
        return
    with reading(uri), open_remote(uri) as file:
        yield file


def local_path(uri: str) -> str | None:
    """Return the absolute path of a local URI, None of any other."""
    if "://" not in uri:
        # Absolute, because FFmpeg takes "a:b.mp4" for a protocol named a.
        return os.path.abspath(uri)
    files, path = filesystem(uri)
    return path if isinstance(files, LocalFileSystem) else None


@contextmanager
def open_remote(uri: str) -> Iterator[RangeFile]:
    """Yield the file at `uri`, of which ranges are fetched when they are read."""
    with reading(uri):
        opened = RangeFile(uri, watch.alive)
    with opened as file:
        yield file


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Turn errors of storage into VideoError."""
    try:
        yield
    except FileNotFoundError as error:
        raise VideoError("not_found", f"{uri}: no such file") from error
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        raise VideoError("unreadable", f"{uri}: {error.strerror or error}") from error


@contextmanager
def open_stream(
    source: Source, uri: str, max_frame_px: int = Decode.max_frame_px
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container and its best video stream, with a decoder that uses one thread.

    Frames of more than max_frame_px are refused before there is memory for them: by the header now,
    by `decode_packet` later.

    Raises:
        VideoError: not_found, unreadable, empty_file, not_a_video, refused_format, no_video_stream,
            unsupported or frame_too_large.
    """
    # FFmpeg holds the numbers of its options in an int.
    options = {"max_pixels": str(min(max_frame_px, _MAX_INT))}
    with ExitStack() as opened:
        with reading(uri):
            try:
                container = opened.enter_context(open_container(source, uri, options))
            except MemoryError:
                raise
            except RefusedContainerError as error:
                raise VideoError("refused_format", f"{uri}: {_REFUSED.format(error)}") from error
            except (FFmpegError, ValueError) as error:
                if isinstance(error, OSError):
                    raise
                if _is_empty(source):
                    raise VideoError("empty_file", f"{uri}: 0 bytes") from error
                raise VideoError("not_a_video", f"{uri}: {_reason(error)}") from error
        watch.alive()
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            raise VideoError("no_video_stream", f"{uri}: holds no video stream")
        context = stream.codec_context
        if context is None:
            raise VideoError("unsupported", f"{uri}: FFmpeg has no decoder for this codec")
        # There is a worker for each core: threads of one would only take cores from the others.
        context.thread_type, context.thread_count = "NONE", 1
        if context.width * context.height > max_frame_px:
            num_px = context.width * context.height
            text = (
                f"{context.width}x{context.height} = {num_px} pixels, at most {max_frame_px} are "
                "decoded"
            )
            raise VideoError("frame_too_large", f"{uri}: {text}; raise decode.max_frame_px")
        context.options = options
        yield container, stream


def decode_packet(context: VideoCodecContext, packet: Packet | None) -> list[VideoFrame]:
    """Return the frames that come out when `packet` goes in (None: the last ones).

    Raises:
        VideoError: frame_too_large, where the header said less.
        FFmpegError: the packet does not decode.
    """
    with av.logging.Capture() as remarks:
        try:
            return context.decode(packet)
        except FFmpegError:
            for _, _, remark in remarks:
                size = _REFUSED_SIZE.match(remark)
                if size and (num_px := int(size[1]) * int(size[2])) > 0:
                    text = (
                        f"{size[1]}x{size[2]} = {num_px} pixels, which is not what the header says"
                    )
                    raise VideoError(
                        "frame_too_large", f"{text}; see decode.max_frame_px"
                    ) from None
            raise
        finally:
            watch.alive()


def display_matrix(frame: VideoFrame) -> np.ndarray | None:
    """Return the signs [2, 2] of the frame's display matrix [[a, b], [c, d]]: a pixel at (x, y) is
    shown at (a x + c y, b x + d y), y downwards. None where there is none or it turns by no
    multiple of 90 degrees.
    """
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return None
    signs = np.sign(np.frombuffer(bytes(side_data), np.int32).reshape(3, 3)[:2, :2])
    turned = np.abs(signs)
    if (turned.sum(0) == 1).all() and (turned.sum(1) == 1).all():
        return signs
    return None


def rotation(frame: VideoFrame) -> Literal[0, 90, 180, 270]:
    """Return the degrees counter-clockwise by which players turn the frame, after they have
    mirrored it where `is_mirrored`.
    """
    signs = display_matrix(frame)
    if signs is None:
        return 0
    (a, _), (c, _) = signs
    # Of a mirrored frame x was negated before.
    degrees = math.degrees(math.atan2(c, -a if is_mirrored(frame) else a))
    return cast(Literal[0, 90, 180, 270], round(degrees) % 360)


def is_mirrored(frame: VideoFrame) -> bool:
    """Return whether players mirror the frame, left and right, before they turn it."""
    signs = display_matrix(frame)
    return signs is not None and bool(np.linalg.det(signs) < 0)


def is_reordered_avi(container: InputContainer, stream: VideoStream) -> bool:
    """Return whether the file is AVI with B-frames.

    AVI stores no display times. With B-frames its packets say neither when nor whether (packed
    bitstreams, dropped frames) a picture is shown: only decoding tells.
    """
    return container.format.name == "avi" and bool(stream.codec_context.has_b_frames)


def _first_frame(
    container: InputContainer, stream: VideoStream
) -> tuple[VideoFrame | None, bool, bool]:
    """Return the first frame that decodes, whether the packets up to it have times, and whether
    one of these holds the second field of a frame.
    """
    check = content_check(stream.codec_context)
    has_times, has_pairs = True, False
    try:
        for number, packet in enumerate(container.demux(stream)):
            if number == 0:
                has_times = packet.pts is not None or packet.dts is not None
            if check and packet.size:
                has_pairs |= check(packet) == Holds.SECOND_FIELD
            for frame in decode_packet(stream.codec_context, packet if packet.size else None):
                return frame, has_times, has_pairs
            if number + 1 == _ROTATION_PACKETS:
                break
    except FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
    return None, has_times, has_pairs


def _duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def frame_rate(
    container: InputContainer, stream: VideoStream, has_pairs: bool = False
) -> Fraction | None:
    """Return the frames of a second, in the mean; None where the header does not say.

    Args:
        has_pairs: packets hold single fields, two for each frame.
    """
    average, base = stream.average_rate, stream.base_rate
    if container.format.flags & Flags.no_timestamps.value:
        # The average is the demuxer's guess, the other one what the codec's own header says.
        return stream.guessed_rate or average
    if not average or not base:
        return average
    if has_pairs and average > base * Fraction(3, 4):
        # Both are of fields.
        return base / 2
    if stream.time_base and average * stream.time_base >= 1:
        # A frame each tick: what is left where nobody says a rate, as in raw DV.
        return min(average, base)
    return average


def _is_empty(source: Source) -> bool:
    if isinstance(source, str):
        return os.path.getsize(source) == 0
    return source.seek(0, os.SEEK_END) == 0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
