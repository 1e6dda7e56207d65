"""Frames through decord: no longer maintained, x86-64 Linux alone, and without AV1.

decord turns frames by the rotation in the file and scales them itself (swscale, bicubic).
"""

import re
from typing import BinaryIO

import numpy as np

from pipelines.config import Decode, Picture
from pipelines.sampling import end_of
from pipelines.video import VideoError, check_size, open_stream

_NO_TIME_S = -1e9
"""decord writes a time far below this where the file holds none."""


class DecordVideo:
    """`pipelines.decode.Video` by decord, on one thread.

    Raises:
        VideoError: as `pipelines.video.open_stream`, and unsupported where decord refuses the file.
    """

    name = "decord"

    def __init__(self, source: str | BinaryIO, uri: str, picture: Picture, decode: Decode) -> None:
        with open_stream(source, uri) as (_, stream):
            check_size(stream, decode.max_frame_px)
        # Not at the top: there is no decord for other machines, and it is slow to load.
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self.version = decord.__version__
        self._errors = (decord.DECORDError, decord._ffi.base.DECORDLimitReachedError)
        self._crop_px = picture.crop_px
        self._margin = (picture.resize_px - picture.crop_px) // 2
        size = picture.resize_px
        try:
            self._reader = decord.VideoReader(
                source if isinstance(source, str) else f"/dev/fd/{source.fileno()}",
                width=size,
                height=size,
                num_threads=1,
                # Fail rather than put a neighbour in the place of a frame that does not decode.
                fault_tol=1e-9,
            )
        except (*self._errors, RuntimeError) as error:
            text = f"{uri}: decord refuses it; try decode.decoder = pyav: {_reason(error)}"
            raise VideoError("unsupported", text) from error
        self._list(uri)

    def _list(self, uri: str) -> None:
        spans_s = self._reader.get_frame_timestamp(range(len(self._reader)))
        times_s = np.float64(spans_s[:, 0])
        if (times_s < _NO_TIME_S).any():
            text = f"{uri}: decord gives no timestamps for it; try decode.decoder = pyav"
            raise VideoError("unsupported", text)
        # decord gives frames that an edit list hides times below 0.
        self._shown = np.flatnonzero(times_s >= 0)
        times_s = times_s[self._shown]
        is_key = np.zeros(len(self._reader), bool)
        is_key[self._reader.get_key_indices()] = True
        self.is_key = is_key[self._shown]
        # Times come as float32: rounded down, a frame that starts at a target is shown at it.
        self.timestamps_s = (times_s - times_s[:1]) * (1 - 2.0**-23)
        self.end_s = end_of(self.timestamps_s, self._reader.get_avg_fps())

    def pictures(self, ordinals: list[int]) -> tuple[dict[int, np.ndarray], str]:
        """See `pipelines.decode.Video`."""
        images, reason = {}, ""
        crop = slice(self._margin, self._margin + self._crop_px)
        for ordinal in ordinals:
            try:
                image = self._reader[int(self._shown[ordinal])].asnumpy()
            except self._errors as error:
                reason = _reason(error)
            else:
                images[ordinal] = image[crop, crop]
        return images, reason


def _reason(error: Exception) -> str:
    """decord's message without the times of day and the lines of its source."""
    return re.sub(r"\[[\d:]+\] \S+ ", "", str(error).splitlines()[0])
