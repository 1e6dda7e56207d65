"""What a plan reads of a video beside its header. The decoder's child process runs it: no torch here."""

import sys
from dataclasses import dataclass

import numpy as np

from encoders.stream_specs import FRAME, Window
from pipelines.settings.sections import Sampling
from pipelines.video.header import open_source, open_stream, reading
from pipelines.video.isolation import status_bytes
from pipelines.video.packets import packets
from pipelines.video.sampling import end_of, sample_frames, window_frames


def peak_bytes() -> int:
    """The most memory that this process ever held; 0 where the system does not say (other than Linux)."""
    return status_bytes("VmHWM") if sys.platform == "linux" else 0


@dataclass(frozen=True)
class KeyFrames:
    """Frames of a video, how many of them are key frames, and how many are decoded for those sampled."""

    num_frames: int
    num_keys: int
    num_sampled: int
    num_decoded: int


def key_frames(
    uri: str, sampling: Sampling, max_frame_px: int, windows: tuple[Window, ...] = (FRAME,)
) -> KeyFrames:
    """Counted over the packets, which are read and not decoded.

    `num_decoded` counts from the key frame before each frame that the windows read: what an exact decoder that starts at
    key frames cannot save. Files without display times count in the order of their packets.

    Raises:
        VideoError: as `pipelines.video.header.open_stream`.
    """
    shown = []
    with (
        open_source(uri) as source,
        reading(uri),
        open_stream(source, uri, max_frame_px) as (container, stream),
    ):
        # A damaged end: what was read before it counts.
        for packet in packets(container, stream):
            time = packet.dts if packet.pts is None else packet.pts
            shown.append((len(shown) if time is None else time, packet.is_keyframe))
        tick_s = float(stream.time_base or 1)
    if not shown:
        return KeyFrames(0, 0, 0, 0)
    shown.sort()
    ticks, is_key = (np.array(column) for column in zip(*shown, strict=True))
    times_s = (ticks - ticks[0]) * tick_s
    sampled = sample_frames(sampling, times_s, end_of(times_s, None), is_key)
    # The last key frame at or before each frame; the first frame stands in where there is none.
    start = np.maximum.accumulate(np.where(is_key, np.arange(len(ticks)), 0))
    reached = {}
    read = [window_frames(w, sampled, times_s).ravel() for w in windows if not w.is_sampled]
    for frame in np.unique(np.concatenate([sampled, *read])).tolist():
        reached[int(start[frame])] = frame
    num_decoded = sum(last - first + 1 for first, last in reached.items())
    return KeyFrames(len(ticks), int(is_key.sum()), len(sampled), num_decoded)
