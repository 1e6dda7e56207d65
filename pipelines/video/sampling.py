"""The sampling of a video's frames (METHODS 1), and their segments.

Letters: n frames shown, D seconds of video, t a time in seconds after the first frame is shown.

Frames are chosen by time, because frame rates vary: the frame shown at t is the last one with a
timestamp <= t. At a constant rate this is the index rule of the papers.
"""

import math
from dataclasses import dataclass

import numpy as np

from encoders.stream_specs import FRAME, Window
from pipelines.settings.sections import Sampling
from pipelines.video.header import VideoFacts

SEGMENT_FRAMES = 64
"""Sampled frames of one segment, the unit of work."""

ASSUMED_DURATION_S = 600.0
"""Length planned for where the header gives none."""

MAX_DURATION_S = 48 * 3600.0
"""Longest length that a header is believed: a damaged one must not flood the plan."""

_HEADER_SLACK_S = 1.0
"""Headers may leave out the last frames; an empty last segment is better than frames left over."""

_TICK_S = 1e-6
"""Below the tick of every container: absorbs rounding where a target falls on a timestamp."""


@dataclass(frozen=True)
class SegmentPlan:
    """The ordinals (positions among the n shown frames) of one segment.

    Attributes:
        wanted: int64 [m], m <= 64, the segment's own frames, in order of time.
        before: int64 [b], the sampled frames before the first of `wanted`, as many as the longest
            window of sampled frames reads; fewer in the first segment, none where `wanted` is
            empty.
        partners: {window of source frames: int64 [m, num_frames]}, what it reads for each of
            `wanted`; [0, num_frames] where the video is too short for it.
        num_unplanned: sampled frames that no planned segment takes; 0 but for the last segment.
        num_beyond: frames to sample where the file was cut off.
    """

    wanted: np.ndarray
    before: np.ndarray
    partners: dict[Window, np.ndarray]
    num_unplanned: int
    num_beyond: int

    @property
    def ordinals(self) -> list[int]:
        """Return the ordinals of the frames to decode, ascending, each once."""
        read = [self.before, self.wanted, *(frames.ravel() for frames in self.partners.values())]
        return np.unique(np.concatenate(read)).tolist()


def num_segments(facts: VideoFacts, sampling: Sampling) -> int:
    """Return the number of segments to plan for a video, at least 1, from its header alone.

    The real frames decide later: a video shorter than its header leaves the last segments empty,
    and frames beyond the plan are reported as missing by the last one.
    """
    return max(1, math.ceil(_planned_frames(facts.duration_s, sampling) / SEGMENT_FRAMES))


def reads_length(sampling: Sampling) -> bool:
    """Return True if the number of frames to sample depends on the length of the video."""
    return sampling.policy not in ("uniform", "segments")


def segment_frames(sampling: Sampling) -> int:
    """Return the most sampled frames that a segment of any video has."""
    return min(SEGMENT_FRAMES, _planned_frames(MAX_DURATION_S, sampling))


def _planned_frames(duration_s: float | None, sampling: Sampling) -> int:
    if sampling.policy == "uniform":
        return sampling.num_frames
    if sampling.policy == "segments":
        return sampling.num_frames * sampling.frames_per_segment
    if sampling.policy == "fps":
        limit = math.ceil(min(sampling.max_duration_s, MAX_DURATION_S) * sampling.fps)
        if duration_s is None:
            return limit
        return min(limit, math.floor((duration_s + _HEADER_SLACK_S) * sampling.fps) + 1)
    if duration_s is None:
        duration_s = ASSUMED_DURATION_S
    believed_s = min(duration_s, MAX_DURATION_S) + _HEADER_SLACK_S
    return math.floor(believed_s / sampling.interval_s) + 1


def sample_frames(
    sampling: Sampling,
    timestamps_s: np.ndarray,
    end_s: float,
    is_key: np.ndarray,
    missing_s: float = 0.0,
) -> np.ndarray:
    """Return the ordinals of the sampled frames of a whole video: int64, ascending, each once.

    Args:
        timestamps_s: float64 [n], ascending, the first is 0: when each frame is first shown.
        end_s: D, when the last frame stops being shown.
        is_key: bool [n], the key frames; read by the policy keyframes alone.
        missing_s: seconds of video after end_s that were cut off; what would be sampled of these is
            `num_beyond`.

    Returns:
        At least one ordinal where n > 0 (keyframes: where a key frame is near enough), and nothing
        is missing.
    """
    num_frames = len(timestamps_s)
    if num_frames == 0:
        return np.empty(0, np.int64)
    if sampling.policy == "keyframes":
        times_s = timestamps_s[is_key]
        targets_s = _within(_targets(sampling, end_s + missing_s), end_s, missing_s)
        nearest = _nearest(times_s, targets_s, sampling.keyframe_tolerance_s or math.inf)
        return np.flatnonzero(is_key)[nearest]
    targets_s = _within(_targets(sampling, end_s + missing_s), end_s, missing_s)
    shown = _shown_at(timestamps_s, targets_s)
    if sampling.policy == "segments":
        length = sampling.frames_per_segment
        first = np.clip(shown - (length - 1) // 2, 0, max(0, num_frames - length))
        shown = (first[:, None] + np.arange(min(length, num_frames))).ravel()
    return np.unique(shown)


def num_beyond(sampling: Sampling, end_s: float, missing_s: float) -> int:
    """Return the number of frames to sample in the `missing_s` seconds after `end_s`."""
    targets_s = _targets(sampling, end_s + missing_s)
    num_lost = len(targets_s) - len(_within(targets_s, end_s, missing_s))
    return num_lost * (sampling.frames_per_segment if sampling.policy == "segments" else 1)


def end_of(timestamps_s: np.ndarray, fps: float | None) -> float:
    """Return D of a video: its last frame is shown as long as frames usually are (containers seldom
    know).
    """
    if len(timestamps_s) > 1:
        return float(timestamps_s[-1] + np.median(np.diff(timestamps_s)))
    return 1 / fps if len(timestamps_s) and fps else 0.0


def plan_segment(
    ordinals: np.ndarray,
    segment: int,
    num_segments: int,
    timestamps_s: np.ndarray,
    windows: tuple[Window, ...] = (FRAME,),
    num_beyond: int = 0,
) -> SegmentPlan:
    """Return the part of a video's sampled `ordinals` that segment `segment` of `num_segments`
    decodes; `num_beyond` more were cut off after these.
    """
    start = segment * SEGMENT_FRAMES
    sampled = ordinals[start : start + SEGMENT_FRAMES]
    is_last = segment == num_segments - 1
    stop = len(ordinals) + num_beyond
    stop = stop if is_last else min(stop, start + SEGMENT_FRAMES)
    reach = max(window.num_frames - 1 for window in windows if window.is_sampled)
    return SegmentPlan(
        wanted=sampled,
        before=ordinals[max(0, start - reach) : start] if len(sampled) else sampled,
        partners={
            window: window_frames(window, sampled, timestamps_s)
            for window in windows
            if not window.is_sampled
        },
        num_unplanned=max(0, len(ordinals) - start - SEGMENT_FRAMES) if is_last else 0,
        num_beyond=max(0, stop - max(start, len(ordinals))),
    )


def window_frames(window: Window, ordinals: np.ndarray, timestamps_s: np.ndarray) -> np.ndarray:
    """Return ordinals int64 [m, num_frames] of the source frames that `window` reads for each
    sampled frame.

    The last is the sampled frame itself. Near the start of the video, where the window would begin
    before the first frame, all of it is moved to where it begins with that: each sampled frame has
    one, and all lie inside the video. A video that is shorter than the window gives [0,
    num_frames].

    With `gap_s` the others are those shown nearest to the times `gap_s`, 2 `gap_s`, ... before the
    last one's, and earlier than it.
    """
    back = np.arange(window.num_frames - 1, -1, -1)
    if window.gap:
        first = int(back[0]) * window.gap
    else:
        first = int(np.searchsorted(timestamps_s, back[0] * window.gap_s - _TICK_S))
    if first >= len(timestamps_s):
        return np.empty((0, len(back)), np.int64)
    last = np.maximum(ordinals, first)[:, None]
    if window.gap:
        return last - back * window.gap
    middles_s = (timestamps_s[1:] + timestamps_s[:-1]) / 2
    targets_s = timestamps_s[last] - back * window.gap_s
    nearest = np.searchsorted(middles_s, targets_s - _TICK_S, side="left")
    return np.minimum(nearest, last - (back > 0))


def _targets(sampling: Sampling, end_s: float) -> np.ndarray:
    """Return the times, in seconds, at which frames are sampled."""
    if sampling.policy in ("uniform", "segments"):
        return (np.arange(sampling.num_frames) + 0.5) * end_s / sampling.num_frames
    if sampling.policy == "fps":
        return _every(1 / sampling.fps, min(end_s, sampling.max_duration_s))
    return _every(sampling.interval_s, end_s)


def _within(targets_s: np.ndarray, end_s: float, missing_s: float) -> np.ndarray:
    """Return the targets before `end_s`; all of them where nothing is missing after it."""
    return targets_s[targets_s < end_s - _TICK_S] if missing_s else targets_s


def _every(step_s: float, end_s: float) -> np.ndarray:
    """Return 0, step, 2 step, ... below end_s; 0 in any case."""
    return np.arange(max(1, math.ceil((end_s - _TICK_S) / step_s))) * step_s


def _shown_at(timestamps_s: np.ndarray, targets_s: np.ndarray) -> np.ndarray:
    ordinals = np.searchsorted(timestamps_s, targets_s + _TICK_S, side="right") - 1
    return ordinals.clip(0)


def _nearest(times_s: np.ndarray, targets_s: np.ndarray, tolerance_s: float) -> np.ndarray:
    """Return the indices in the ascending `times_s` of those nearest to a target, the earlier one
    of two, and no farther from it than `tolerance_s`.
    """
    if len(times_s) == 0:
        return np.empty(0, np.int64)
    middles_s = (times_s[1:] + times_s[:-1]) / 2
    nearest = np.searchsorted(middles_s, targets_s - _TICK_S, side="left")
    is_near = np.abs(times_s[nearest] - targets_s) <= tolerance_s + _TICK_S
    return np.unique(nearest[is_near])
