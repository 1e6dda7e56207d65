"""A video as decoders give it, and a stretch of one as a video of its own."""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

_TICK_S = 1e-6
"""Below the tick of every container."""


class Video(Protocol):
    """A video opened by one decoder. The frames are those that a player shows, in order of display.

    Attributes:
        timestamps_s: float64 [n], ascending, the first is 0.
        end_s: when the last frame stops being shown.
        is_key: bool [n].
        num_parts: recordings that the file holds one after the other.
        missing_s: seconds that were cut off after end_s; None: some, and nobody knows how many.
    """

    name: str
    version: str
    timestamps_s: np.ndarray
    end_s: float
    is_key: np.ndarray
    num_parts: int
    missing_s: float | None

    def pictures(self, ordinals: list[int]) -> tuple[dict[int, np.ndarray], str]:
        """Return {ordinal: uint8 [*decoded_shape, 3]} of the frames that decode, and why the others
        do not.

        Size and crop are those of the `Picture` that the video was opened with.
        """
        ...

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class Stretch:
    """The frames of a file that a stretch of time shows.

    Attributes:
        first, last: ordinals among the file's frames; `last` is behind the last one.
        begin_s: the time of the first one in the file.
        end_s: when the last one stops being shown, after begin_s.
    """

    first: int
    last: int
    begin_s: float
    end_s: float

    @classmethod
    def of(cls, times: tuple[float, float] | None, timestamps_s: np.ndarray, end_s: float) -> Self:
        """Return the stretch between two times of the file; the whole file without any.

        The frame that is shown at its begin is in it.
        """
        if times is None or not len(timestamps_s):
            return cls(0, len(timestamps_s), 0.0, end_s)
        start_s, stop_s = times
        first = int(np.searchsorted(timestamps_s, start_s + _TICK_S, side="right")) - 1
        last = int(np.searchsorted(timestamps_s, stop_s - _TICK_S))
        if start_s >= end_s or last <= first:
            return cls(0, 0, 0.0, 0.0)
        first = max(first, 0)
        begin_s = float(timestamps_s[first])
        return cls(first, last, begin_s, min(stop_s, end_s) - begin_s)

    def times_s(self, timestamps_s: np.ndarray) -> np.ndarray:
        """Return the times of its frames, the first of which is 0."""
        return timestamps_s[self.first : self.last] - self.begin_s


class PartOfVideo:
    """A stretch of a video, whose first frame is frame 0 at time 0."""

    def __init__(self, video: Video, times: tuple[float, float], part: Stretch) -> None:
        self._video, self._first = video, part.first
        self.name, self.version, self.num_parts = video.name, video.version, video.num_parts
        self.timestamps_s = part.times_s(video.timestamps_s)
        self.end_s = part.end_s
        self.is_key = video.is_key[part.first : part.last]
        self.missing_s = _missing_s(video, times[1])

    def pictures(self, ordinals: list[int]) -> tuple[dict[int, np.ndarray], str]:
        """Return {ordinal in the stretch: picture}, and why others do not decode."""
        pictures, reason = self._video.pictures([self._first + n for n in ordinals])
        return {ordinal - self._first: picture for ordinal, picture in pictures.items()}, reason

    def close(self) -> None:
        """Close the file."""
        self._video.close()


def _missing_s(video: Video, stop_s: float) -> float | None:
    """Return the seconds of a stretch that were cut off the file; None: some, unknown how many."""
    if video.missing_s is None:
        return None if stop_s > video.end_s else 0.0
    return max(0.0, min(stop_s, video.end_s + video.missing_s) - video.end_s)
