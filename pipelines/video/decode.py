"""Decoding of a segment of a video: its sampled frames as pictures.

Two decoders behind one function: PyAV (FFmpeg) and decord. `decode.decoder` picks one; where it
fails, the other is not tried. A frame is the right picture or missing: a neighbour is never taken
for it, and damage that the decoder notices is not concealed (decoders of VP8 and VP6 notice little,
decord nothing: docs/decoders.md).
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from encoders.stream_specs import FRAME, FlowWindow, Window
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.storage.ranges import RangeFile
from pipelines.video import flow
from pipelines.video.decord_decoder import DecordVideo
from pipelines.video.header import ErrorType, VideoError, local_path, open_remote, reading
from pipelines.video.images.frame import Box
from pipelines.video.images.names import is_picture
from pipelines.video.images.pillow import PillowVideo
from pipelines.video.listing.stretch import PartOfVideo, Stretch, Video
from pipelines.video.pyav_decoder import Choose, PyAvVideo
from pipelines.video.sampling import (
    SEGMENT_FRAMES,
    SegmentPlan,
    num_beyond,
    plan_segment,
    sample_frames,
)


@dataclass(frozen=True)
class SegmentFrames:
    """The frames of one segment.

    Attributes:
        images: uint8 [u, *decoded_shape, 3], RGB, contiguous: the source frames that the windows
            read, each once, in order of time. These are the segment's own sampled frames,
            sampled frames before its first one, and neighbours of all these in the source: results
            do not depend on where the video was cut.
        image_indices: int64 [u], places among the frames of the video in order of display.
        frame_indices: int64 [m], those of the segment's own sampled frames.
        timestamps_s: float64 [m], when each is shown, after the first frame of the video.
        places: {window: int64 [k, num_frames]}, places in `images` of the frames that the window
            reads for each of the last k of the m frames. k < m where a window of sampled frames
            would begin before the video's first frame or with a lost one; k = 0 where the video is
            too short. For optical flow [k, 1], places in `flows`.
        flows: {window of optical flow: uint8 [k, decoded_px, decoded_px, 2L]}, levels of
            `pipelines.video.flow`. The pictures that it was computed on are not in `images`.
        num_missing: wanted frames that are not among the m, because they or frames read with them
            do not decode.
        error_type, error: why, where num_missing > 0.
        num_parts: recordings that the file holds one after the other.
    """

    images: np.ndarray
    image_indices: np.ndarray
    frame_indices: np.ndarray
    timestamps_s: np.ndarray
    places: dict[Window, np.ndarray]
    flows: dict[FlowWindow, np.ndarray]
    num_missing: int
    error_type: ErrorType | None
    error: str | None
    decoder: str
    decoder_version: str
    num_parts: int = 1

    def __post_init__(self) -> None:
        num_frames = len(self.frame_indices)
        for name, array, dtype, shape in (
            ("images", self.images, np.uint8, (len(self.image_indices), None, None, 3)),
            ("image_indices", self.image_indices, np.int64, (None,)),
            ("frame_indices", self.frame_indices, np.int64, (None,)),
            ("timestamps_s", self.timestamps_s, np.float64, (num_frames,)),
            *((f"places {w}", a, np.int64, (None, w.num_read)) for w, a in self.places.items()),
            *(
                (f"flows {w}", a, np.uint8, (len(self.places[w]), None, None, w.num_channels))
                for w, a in self.flows.items()
            ),
        ):
            _require_form(name, array, dtype, shape)
        for window, places in self.places.items():
            if isinstance(window, FlowWindow) and window in self.flows:
                num_read = len(self.flows[window])
            else:
                num_read = len(self.images)
            is_inside = not places.size or 0 <= places.min() <= places.max() < num_read
            if len(places) > num_frames or not is_inside:
                raise ValueError(
                    f"places {window}: not of {num_frames} frames, {num_read} pictures"
                )
        if (self.num_missing > 0) != (self.error_type is not None) or self.num_missing < 0:
            raise ValueError(f"{self.num_missing} frames missing, error_type {self.error_type}")

    def require(self, shape: tuple[int, int], windows: tuple[Window, ...]) -> None:
        """Check height and width of the frames, and their windows.

        Raises:
            VideoError: crashed, they are not: the decoder's process is damaged.
        """
        sizes = {array.shape[1:3] for array in (self.images, *self.flows.values())}
        moving = {window for window in windows if isinstance(window, FlowWindow)}
        if sizes != {shape} or set(self.places) != set(windows) or set(self.flows) != moving:
            text = f"the decoder's answer has pictures of {sizes} px, windows {list(self.places)}"
            raise VideoError("crashed", f"{text}; expected {shape} px and {list(windows)}")


def _require_form(name: str, array: np.ndarray, dtype: type, shape: tuple[int | None, ...]) -> None:
    is_shape = len(array.shape) == len(shape) and all(
        size in (None, length) for size, length in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not is_shape:
        expected = f"{np.dtype(dtype)} {shape}"
        raise ValueError(f"{name}: expected {expected}, got {array.dtype} {array.shape}")


# Of videos; pictures are read by Pillow, whatever decode.decoder says.
DECODERS = {"pyav": PyAvVideo, "decord": DecordVideo}


def decode_segment(  # noqa: PLR0913 (what a child is asked in one message)
    uri: str,
    segment: int,
    num_segments: int,
    sampling: Sampling,
    picture: Picture,
    decode: Decode,
    windows: tuple[Window, ...] = (FRAME,),
    stretch: tuple[float, float] | None = None,
    box: Box | None = None,
) -> SegmentFrames:
    """Decode segment `segment` (0-based) of the `num_segments` planned for the video at `uri`, with
    what `windows` read.

    Args:
        stretch: begin and end in seconds of the file, where that alone is the video; indices and
            times of frames stay those of the file.
        box: the part of the picture that is the video.

    Raises:
        VideoError: the file cannot be opened, holds no frame, none of those wanted decodes, or the
            box is not in the picture.
    """
    shape = picture.decoded_shape
    if any(isinstance(window, FlowWindow) for window in windows):
        # Motion across the border of the crop is seen in the whole picture alone.
        picture = replace(picture, crop_px=picture.resize_px)
    is_last = segment + 1 >= num_segments
    with _opened(_key(uri, picture, decode, box), is_last) as opened, reading(uri):

        def choose(timestamps_s: np.ndarray, end_s: float, is_key: np.ndarray) -> list[int]:
            part = Stretch.of(stretch, timestamps_s, end_s)
            times_s, is_key = part.times_s(timestamps_s), is_key[part.first : part.last]
            ordinals = sample_frames(sampling, times_s, part.end_s, is_key)
            plan = plan_segment(ordinals, segment, num_segments, times_s, windows)
            return [part.first + ordinal for ordinal in plan.ordinals]

        whole = opened.video(choose)
        part = Stretch.of(stretch, whole.timestamps_s, whole.end_s)
        video = whole if stretch is None else PartOfVideo(whole, stretch, part)
        if stretch is not None and len(whole.timestamps_s) and not len(video.timestamps_s):
            raise VideoError(
                "no_frames",
                f"{uri}: expected frames from {stretch[0]:g} to {stretch[1]:g} s, got a video that "
                f"ends at {whole.end_s:.2f} s",
            )
        if len(video.timestamps_s) == 0:
            raise VideoError("no_frames", f"{uri}: the header is fine, but no frame follows it")
        plan = _plan(uri, video, sampling, segment, num_segments, windows)
        images, reason = video.pictures(plan.ordinals)
    frames = _segment_frames(uri, video, plan, windows, images, reason, shape)
    return replace(
        frames,
        image_indices=frames.image_indices + part.first,
        frame_indices=frames.frame_indices + part.first,
        timestamps_s=frames.timestamps_s + part.begin_s,
    )


def _plan(
    uri: str,
    video: Video,
    sampling: Sampling,
    segment: int,
    num_segments: int,
    windows: tuple[Window, ...],
) -> SegmentPlan:
    missing_s = video.missing_s or 0.0
    ordinals = sample_frames(sampling, video.timestamps_s, video.end_s, video.is_key, missing_s)
    beyond = num_beyond(sampling, video.end_s, missing_s) if missing_s else 0
    if len(ordinals) == 0 and not beyond:
        raise VideoError("no_frames", f"{uri}: {_no_key_frame(sampling, video)}")
    plan = plan_segment(ordinals, segment, num_segments, video.timestamps_s, windows, beyond)
    if video.missing_s != 0.0 and segment == min(
        (len(ordinals) - 1) // SEGMENT_FRAMES, num_segments - 1
    ):
        # Also where no frame is wanted of what is missing, or nobody knows.
        plan = replace(plan, num_beyond=max(1, plan.num_beyond))
    if plan.num_beyond and not len(plan.wanted):
        raise VideoError("shorter_than_planned", f"{uri}: {_cut_off(video)}")
    return plan


def _cut_off(video: Video) -> str:
    """Return how much of the video is missing, in words."""
    if video.missing_s is None:
        return f"the file was cut off after {video.end_s:.2f} s, and does not say what is missing"
    whole_s = video.end_s + video.missing_s
    return f"the file was cut off: {video.missing_s:.2f} of {whole_s:.2f} s are missing"


def _no_key_frame(sampling: Sampling, video: Video) -> str:
    num_keys = int(video.is_key.sum())
    if num_keys == 0:
        return "marks no key frame; take another sampling.policy"
    return (
        f"none of its {num_keys} key frames lies within sampling.keyframe_tolerance_s = "
        f"{sampling.keyframe_tolerance_s:g} s of a time that is sampled; raise it, or take another "
        "sampling.policy"
    )


def _segment_frames(
    uri: str,
    video: Video,
    plan: SegmentPlan,
    windows: tuple[Window, ...],
    images: dict[int, np.ndarray],
    reason: str,
    shape: tuple[int, int],
) -> SegmentFrames:
    complete = np.isin(plan.wanted, list(images))
    for frames in plan.partners.values():
        # All streams have the same frames: one whose neighbours are lost is missing from every
        # stream.
        complete[: len(frames)] &= np.isin(frames, list(images)).all(1)
    sampled = plan.wanted[complete]
    num_lost = len(plan.wanted) - len(sampled)
    if num_lost and not len(sampled):
        raise VideoError("damaged", f"{uri}: none of {num_lost} wanted frames decodes: {reason}")
    errors: list[tuple[ErrorType, str]] = []
    if num_lost:
        errors.append(
            ("damaged", f"{num_lost} of {len(plan.wanted)} frames do not decode: {reason}")
        )
    if plan.num_unplanned:
        text = f"{plan.num_unplanned} frames lie beyond the end that the header promised"
        errors.append(("longer_than_planned", text))
    if plan.num_beyond:
        # First, because the frames that it tore may do damage too.
        errors.insert(0, ("shorter_than_planned", _cut_off(video)))
    before = plan.before[np.isin(plan.before, list(images))]
    read = {
        window: frames[complete] if len(frames) else frames
        for window, frames in plan.partners.items()
    }
    for window in windows:
        if window.is_sampled:
            read[window] = _sampled(window, plan, before, sampled)
    moving = {w: read.pop(w) for w in windows if isinstance(w, FlowWindow)}
    shown = np.unique(
        np.concatenate([before, sampled, *(frames.ravel() for frames in read.values())])
    )
    stacked = np.empty((len(shown), *shape, 3), np.uint8)
    for index, ordinal in enumerate(shown.tolist()):
        stacked[index] = flow.centre(images[ordinal], shape[1]) if moving else images[ordinal]
    indices = {window: np.searchsorted(shown, frames) for window, frames in read.items()}
    indices |= {window: np.arange(len(frames))[:, None] for window, frames in moving.items()}
    return SegmentFrames(
        images=stacked,
        image_indices=shown,
        frame_indices=sampled,
        timestamps_s=video.timestamps_s[sampled],
        places=indices,
        flows={w: flow.stacks(images, frames, w, shape[1]) for w, frames in moving.items()},
        num_missing=num_lost + plan.num_unplanned + plan.num_beyond,
        error_type=errors[0][0] if errors else None,
        error=f"{uri}: " + "; ".join(text for _, text in errors) if errors else None,
        decoder=video.name,
        decoder_version=f"{video.version}, OpenCV {flow.opencv_version()}"
        if moving
        else video.version,
        num_parts=video.num_parts,
    )


def _sampled(
    window: Window, plan: SegmentPlan, before: np.ndarray, sampled: np.ndarray
) -> np.ndarray:
    """Return ordinals [k, num_frames] of the neighbouring sampled frames that `window` reads for
    the last k of `sampled`.
    """
    reach = window.num_frames - 1
    near = before[np.isin(before, plan.before[-reach:])] if reach else before[:0]
    frames = np.concatenate([near, sampled])
    if len(frames) <= reach:
        return np.empty((0, window.num_frames), np.int64)
    return np.lib.stride_tricks.sliding_window_view(frames, window.num_frames)


@dataclass(frozen=True)
class _Key:
    """The identity of a video. state: of a local file, which may be replaced between two calls."""

    uri: str
    state: tuple[int, ...]
    picture: Picture
    decode: Decode
    box: Box | None


class _Opened:
    """A video, open from one segment to the next: copied once, and by PyAV listed once."""

    def __init__(self, key: _Key) -> None:
        self.key, self._files = key, ExitStack()
        self.source = self._files.enter_context(
            _seekable(key.uri, whole=key.decode.decoder == "decord")
        )
        self._video: Video | None = None

    def video(self, choose: Choose) -> Video:
        """Return the video in its decoder. decord's is opened anew for each segment: it may keep
        traces of what it met.
        """
        if isinstance(self._video, PyAvVideo):
            return self._video
        self._close_video()
        key = self.key
        video: Video
        if is_picture(key.uri):
            video = PillowVideo(self.source, key.uri, key.picture, key.decode, key.box)
        else:
            kind = DECODERS[key.decode.decoder]
            video = kind(self.source, key.uri, key.picture, key.decode, choose, key.box)
        self._video = video
        return video

    def close(self) -> None:
        """Close the file. A copy has no name, so it is gone then, or with the process."""
        self._close_video()
        self._files.close()

    def _close_video(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video = None


_kept: _Opened | None = None
"""The video of this process's last call, where more segments of it may be asked for."""


def _key(uri: str, picture: Picture, decode: Decode, box: Box | None) -> _Key:
    with reading(uri):
        return _Key(uri, _state(uri), picture, decode, box)


@contextmanager
def _opened(key: _Key, is_last: bool) -> Iterator[_Opened]:
    """Yield the video. It stays open for the next segment unless this is the last one or fails."""
    global _kept
    opened, _kept = _kept, None
    if opened and opened.key != key:
        opened.close()
        opened = None
    opened = opened or _Opened(key)
    with ExitStack() as failing:
        failing.callback(opened.close)
        yield opened
        if not is_last:
            failing.pop_all()
            _kept = opened


def _state(uri: str) -> tuple[int, ...]:
    path = local_path(uri)
    if path is None:
        return ()
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _seekable(uri: str, *, whole: bool) -> Iterator[str | RangeFile]:
    """Yield the path of a local file; of any other a copy of the ranges that are read, or of the
    whole file for decord.
    """
    if (path := local_path(uri)) is not None:
        yield path
        return
    with open_remote(uri) as file:
        if whole:
            file.fetch_all()
        yield file
