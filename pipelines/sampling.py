"""Which frames of a video are described (METHODS 1), and how they are cut into segments.

Letters: n frames shown, D seconds of video, t a time in seconds after the first frame is shown.

Frames are chosen by time, because frame rates vary: the frame shown at t is the last one with a
timestamp <= t. At a constant rate this is the index rule of the papers.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipelines.config import Sampling
from pipelines.video import VideoFacts

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
    """Ordinals (places among the n shown frames) of one segment.

    Attributes:
        wanted: int64 [m], m <= 64, the segment's own frames, in order of time.
        predecessor: the sampled frame before the first of `wanted`; None in the first segment and
            where `wanted` is empty.
        num_unplanned: sampled frames that no planned segment takes; 0 but for the last segment.
    """

    wanted: np.ndarray
    predecessor: int | None
    num_unplanned: int

    @property
    def ordinals(self) -> list[int]:
        """Of the frames to decode: the predecessor, if there is one, then `wanted`."""
        before = [] if self.predecessor is None else [self.predecessor]
        return [*before, *self.wanted.tolist()]


def num_segments(facts: VideoFacts, sampling: Sampling) -> int:
    """Segments to plan for a video, at least 1, from its header alone.

    The real frames decide later: a video shorter than its header leaves the last segments empty,
    and frames beyond the plan are reported as missing by the last one.
    """
    return max(1, math.ceil(_planned_frames(facts.duration_s, sampling) / SEGMENT_FRAMES))


def _planned_frames(duration_s: float | None, sampling: Sampling) -> int:
    if sampling.policy == "uniform":
        return sampling.num_frames
    if sampling.policy == "segments":
        return sampling.num_frames * sampling.frames_per_segment
    if sampling.policy == "fps":
        limit = math.ceil(sampling.max_duration_s * sampling.fps)
        if duration_s is None:
            return limit
        return min(limit, math.floor((duration_s + _HEADER_SLACK_S) * sampling.fps) + 1)
    if duration_s is None:
        duration_s = ASSUMED_DURATION_S
    believed_s = min(duration_s, MAX_DURATION_S) + _HEADER_SLACK_S
    return math.floor(believed_s / sampling.interval_s) + 1


def sample_frames(
    sampling: Sampling, timestamps_s: np.ndarray, end_s: float, is_key: np.ndarray
) -> np.ndarray:
    """Ordinals of the sampled frames of a whole video: int64, ascending, each once.

    Args:
        timestamps_s: float64 [n], ascending, the first is 0: when each frame is first shown.
        end_s: D, when the last frame stops being shown.
        is_key: bool [n], the key frames; read by the policy keyframes alone.

    Returns:
        At least one ordinal where n > 0 (keyframes: where a key frame is near enough).
    """
    num_frames = len(timestamps_s)
    if num_frames == 0:
        return np.empty(0, np.int64)
    if sampling.policy == "keyframes":
        times_s = timestamps_s[is_key]
        targets_s = _every(sampling.interval_s, end_s)
        nearest = _nearest(times_s, targets_s, sampling.keyframe_tolerance_s or math.inf)
        return np.flatnonzero(is_key)[nearest]
    shown = _shown_at(timestamps_s, _targets(sampling, end_s))
    if sampling.policy == "segments":
        length = sampling.frames_per_segment
        first = np.clip(shown - (length - 1) // 2, 0, max(0, num_frames - length))
        shown = (first[:, None] + np.arange(min(length, num_frames))).ravel()
    return np.unique(shown)


def end_of(timestamps_s: np.ndarray, fps: float | None) -> float:
    """D of a video: its last frame is shown as long as frames usually are (containers seldom know)."""
    if len(timestamps_s) > 1:
        return float(timestamps_s[-1] + np.median(np.diff(timestamps_s)))
    return 1 / fps if len(timestamps_s) and fps else 0.0


def plan_segment(ordinals: np.ndarray, segment: int, num_segments: int) -> SegmentPlan:
    """The part of a video's sampled `ordinals` that segment `segment` of `num_segments` decodes."""
    start = segment * SEGMENT_FRAMES
    wanted = ordinals[start : start + SEGMENT_FRAMES]
    is_last = segment == num_segments - 1
    return SegmentPlan(
        wanted=wanted,
        predecessor=int(ordinals[start - 1]) if segment > 0 and len(wanted) else None,
        num_unplanned=max(0, len(ordinals) - start - SEGMENT_FRAMES) if is_last else 0,
    )


def _targets(sampling: Sampling, end_s: float) -> np.ndarray:
    """Times, in seconds, at which frames are wanted."""
    if sampling.policy in ("uniform", "segments"):
        return (np.arange(sampling.num_frames) + 0.5) * end_s / sampling.num_frames
    if sampling.policy == "fps":
        return _every(1 / sampling.fps, min(end_s, sampling.max_duration_s))
    return _every(sampling.interval_s, end_s)


def _every(step_s: float, end_s: float) -> np.ndarray:
    """0, step, 2 step, ... below end_s; 0 in any case."""
    return np.arange(max(1, math.ceil((end_s - _TICK_S) / step_s))) * step_s


def _shown_at(timestamps_s: np.ndarray, targets_s: np.ndarray) -> np.ndarray:
    place = np.searchsorted(timestamps_s, targets_s + _TICK_S, side="right") - 1
    return place.clip(0)


def _nearest(times_s: np.ndarray, targets_s: np.ndarray, tolerance_s: float) -> np.ndarray:
    """Places in the ascending `times_s` of those nearest to a target, the earlier one of two, and no
    farther from it than `tolerance_s`."""
    if len(times_s) == 0:
        return np.empty(0, np.int64)
    middles_s = (times_s[1:] + times_s[:-1]) / 2
    nearest = np.searchsorted(middles_s, targets_s - _TICK_S, side="left")
    is_near = np.abs(times_s[nearest] - targets_s) <= tolerance_s + _TICK_S
    return np.unique(nearest[is_near])
