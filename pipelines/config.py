"""The one frozen configuration of a run: sections of plain values, checked before the cluster is touched.

Units are in the names. A wrong value raises ConfigError with the section, what was expected, what
was got and what to do.
"""

from dataclasses import dataclass
from typing import Literal


class ConfigError(ValueError):
    """A setting that cannot be right; the message is meant for the user as it stands."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a video are described (METHODS 1). Each policy reads only its own fields.

    uniform:   num_frames spread evenly over the video (DQ 5.2: 25).
    interval:  one frame every interval_s seconds (VU 5.4.1: 3 s).
    fps:       `fps` frames per second of the first max_duration_s seconds (VU 3.4.1: 1 fps, 300 s).
    segments:  num_frames equal segments, frames_per_segment consecutive frames from the middle of each
               (VU 5.3.4).
    keyframes: the key frames nearest to the times that `interval_s` gives.
    """

    policy: Literal["uniform", "interval", "fps", "segments", "keyframes"] = "interval"
    num_frames: int = 25
    interval_s: float = 3.0
    fps: float = 1.0
    max_duration_s: float = 300.0
    frames_per_segment: int = 2


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a decoded frame becomes: resize_px x resize_px (aspect ratio not kept, as VU 5.4.1), then the
    centre crop_px x crop_px."""

    resize_px: int = 256
    crop_px: int = 224


@dataclass(frozen=True, kw_only=True)
class Decode:
    """The decoder, and the budget of one segment; what goes over it becomes a failed row."""

    decoder: Literal["pyav", "decord"] = "pyav"
    timeout_s: float = 120.0
    memory_bytes: int = 4 * 2**30
    max_frame_px: int = 64 * 2**20
