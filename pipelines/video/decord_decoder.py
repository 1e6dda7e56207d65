"""Frames through decord: no longer maintained, x86-64 Linux alone, and without AV1.

decord turns frames by the rotation in the file and scales them itself (swscale, bicubic).

Its codecs and containers are FFmpeg's of 2018: a file comes here only after
`pipelines.video.door` let PyAV open it.

It is used only where its list of the frames (number, times, key frames) is that of the packets.
Where they differ it gives wrong pictures without a word: after an edit list, the fifth frame after
the right one; in HEVC with open groups of pictures it counts key frames in order of the file, and
after a seek gives neighbours. docs/decoders.md names the clips.
"""

import re
from contextlib import closing

import numpy as np
from PIL import Image

from pipelines.settings.sections import Decode, Picture
from pipelines.video import watch
from pipelines.video.door import Source, opened
from pipelines.video.header import VideoError
from pipelines.video.images.frame import Box, centre, framed
from pipelines.video.pyav_decoder import Choose, PyAvVideo

_TIME_TOLERANCE = 2.0**-20
"""decord's times are float32: this is eight of their smallest steps."""


class DecordVideo:
    """`pipelines.video.decode.Video` by decord, on one thread.

    It decodes no frame before it is asked for, so it needs no `choose`.

    Raises:
        VideoError: as `pipelines.video.header.open_stream`, and unsupported where decord refuses
            the file or would give the wrong frames of it.
    """

    name = "decord"

    def __init__(
        self,
        source: Source,
        uri: str,
        picture: Picture,
        decode: Decode,
        choose: Choose | None = None,
        box: Box | None = None,
    ) -> None:
        with closing(PyAvVideo(source, uri, picture, decode)) as listed:
            if listed.listed_by == "decoding":
                text = f"{uri}: stores no display times of its frames, which decord needs"
                raise VideoError("unsupported", f"{text}; set decode.decoder = pyav")
        self.timestamps_s, self.end_s = listed.timestamps_s, listed.end_s
        self.is_key, self.missing_s = listed.is_key, listed.missing_s
        self.num_parts = listed.num_parts
        # Not at the top: there is no decord for other machines, and it is slow to load.
        import decord
        from decord._ffi.base import DECORDError, DECORDLimitReachedError

        watch.alive()
        decord.logging.set_level(decord.logging.QUIET)
        self.version = decord.__version__
        self._errors = (DECORDError, DECORDLimitReachedError)
        self._picture, self._box = picture, box
        # -1: as large as they are; decord itself can but stretch.
        self._is_whole = box is not None or bool(picture.scales) or picture.resize != "stretch"
        size = -1 if self._is_whole else picture.resize_px
        try:
            with opened(source) as file:
                self._reader = decord.VideoReader(
                    # Nothing that FFmpeg takes for a suffix or for a pattern of names.
                    f"/dev/fd/{file.fileno()}",
                    width=size,
                    height=size,
                    num_threads=1,
                    # Fail rather than put a neighbour in the place of a frame that does not decode.
                    # decord has no types; its default is the int -1, but a ratio is taken too.
                    fault_tol=1e-9,  # pyright: ignore[reportArgumentType]
                )
        except (*self._errors, RuntimeError) as error:
            text = f"{uri}: decord refuses it; set decode.decoder = pyav: {_reason(error)}"
            raise VideoError("unsupported", text) from error
        if difference := self._difference():
            text = f"{uri}: decord would give wrong frames: {difference}; set decode.decoder = pyav"
            raise VideoError("unsupported", text)

    def _difference(self) -> str:
        """Return the difference of decord's list of frames from that of the packets; "" where there
        is none.
        """
        num_frames = len(self._reader)
        if num_frames != len(self.timestamps_s):
            return f"it lists {num_frames} frames, the packets {len(self.timestamps_s)}"
        spans_s = np.asarray(self._reader.get_frame_timestamp(range(num_frames)), np.float64)
        times_s = spans_s[:, 0]
        distance_s = np.abs(times_s - times_s[:1] - self.timestamps_s)
        if not (distance_s <= _TIME_TOLERANCE * (1 + np.abs(times_s))).all():
            return "it lists other times than the packets"
        if self._reader.get_key_indices() != np.flatnonzero(self.is_key).tolist():
            return "it lists other key frames than the packets"
        return ""

    def close(self) -> None:
        """Close the file."""
        del self._reader

    def pictures(self, ordinals: list[int]) -> tuple[dict[int, np.ndarray], str]:
        """Decode pictures as `pipelines.video.decode.Video` says."""
        images, reason = {}, ""
        for ordinal in ordinals:
            watch.alive()
            try:
                image = self._reader[ordinal].asnumpy()
            except self._errors as error:
                reason = _reason(error)
            else:
                images[ordinal] = (
                    framed(Image.fromarray(image), self._picture, self._box)
                    if self._is_whole
                    else centre(image, self._picture.decoded_px)
                )
        return images, reason


def _reason(error: Exception) -> str:
    """Return decord's message without the times of day and the lines of its source."""
    return re.sub(r"\[[\d:]+\] \S+ ", "", str(error).splitlines()[0])
