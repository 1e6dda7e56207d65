"""Pictures as videos of one frame, animated ones of several, by Pillow.

Frames are as a viewer shows them: turned and mirrored by EXIF, grey and CMYK as RGB, 16 bits as 8,
transparent places white. A file of several pages (TIFF) is its first page.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.settings.sections import Decode, Picture
from pipelines.video import watch
from pipelines.video.door import Source, opened
from pipelines.video.header import VideoError, VideoFacts, open_source, reading
from pipelines.video.images.frame import Box, framed

_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "AVIF", "HEIF")
_ANIMATED = ("PNG", "WEBP", "AVIF")
_STILL_MS = 100.0
"""Time of a frame of an animation that names none, as browsers show it."""

# The limit is decode.max_frame_px, by the header, before there is memory for the picture.
Image.MAX_IMAGE_PIXELS = None


def probe_picture(uri: str, max_frame_px: int = Decode.max_frame_px) -> VideoFacts:
    """Return the header of the picture at `uri`: a local path, or whatever fsspec opens.

    Raises:
        VideoError: not_found, unreadable, empty_file, not_a_video or frame_too_large.
    """
    with open_source(uri) as source, reading(uri), _opened(source, uri, max_frame_px) as image:
        width_px, height_px = image.size
        if image.getexif().get(0x0112, 1) >= 5:
            # Lying on a side.
            width_px, height_px = height_px, width_px
        frames = num_frames(image)
        return VideoFacts(
            container=f"picture {image.format}",
            codec=(image.format or "").lower(),
            width_px=width_px,
            height_px=height_px,
            rotation_deg=0,
            duration_s=0.0 if frames == 1 else None,
            fps=None,
            num_frames_header=frames,
        )


def num_frames(image: Image.Image) -> int:
    """Return the frames of an animation, 1 of any other picture."""
    return getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1


class PillowVideo:
    """`pipelines.video.listing.stretch.Video` of a picture.

    Raises:
        VideoError: as `probe`.
    """

    name = "pillow"
    version = PIL.__version__
    num_parts = 1
    missing_s: float | None = 0.0

    def __init__(
        self, source: Source, uri: str, picture: Picture, decode: Decode, box: Box | None = None
    ) -> None:
        self._source, self._uri, self._picture, self._box = source, uri, picture, box
        self._max_frame_px = decode.max_frame_px
        with _opened(source, uri, decode.max_frame_px) as image:
            count = num_frames(image)
            durations_s = np.zeros(count)
            for number in range(count if count > 1 else 0):
                watch.alive()
                _seek(image, number, uri)
                durations_s[number] = float(image.info.get("duration") or _STILL_MS) / 1000
        ends_s = np.cumsum(durations_s)
        self.timestamps_s = ends_s - durations_s
        self.end_s = float(ends_s[-1])
        self.is_key = np.ones(count, bool)

    def pictures(self, ordinals: list[int]) -> tuple[dict[int, np.ndarray], str]:
        """Return {ordinal: uint8 [*decoded_shape, 3]} of frames, and why others do not decode."""
        images, reason = {}, ""
        with _opened(self._source, self._uri, self._max_frame_px) as image:
            for ordinal in ordinals:
                watch.alive()
                try:
                    _seek(image, ordinal, self._uri)
                    images[ordinal] = framed(as_rgb(image), self._picture, self._box)
                except VideoError as error:
                    if error.error_type == "box_outside":
                        raise
                    reason = error.message
                except (OSError, ValueError, SyntaxError, EOFError) as error:
                    reason = str(error)
        return images, reason

    def close(self) -> None:
        """Close nothing: the file is open only while it is read."""


def as_rgb(image: Image.Image) -> Image.Image:
    """Return the present frame in RGB, as a viewer shows it."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray((levels.clip(0, 65_535) // 257).astype(np.uint8))
    if image.mode == "F":
        raise VideoError("unsupported", "a picture of fractions, whose white nobody says")
    turned = ImageOps.exif_transpose(image)
    if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
        shown = turned.convert("RGBA")
        white = Image.new("RGBA", shown.size, "white")
        turned = Image.alpha_composite(white, shown)
    return turned.convert("RGB")


def _seek(image: Image.Image, number: int, uri: str) -> None:
    if not number and num_frames(image) == 1:
        return
    try:
        image.seek(number)
        image.load()
    except (EOFError, OSError, ValueError, SyntaxError) as error:
        raise VideoError("damaged", f"{uri}: frame {number} does not decode: {error}") from error


@contextmanager
def _opened(source: Source, uri: str, max_frame_px: int) -> Iterator[Image.Image]:
    """Open a picture; nothing but its header is read."""
    with opened(source) as file:
        file.seek(0)
        try:
            image = Image.open(cast(BinaryIO, file), formats=_known_formats())
        except UnidentifiedImageError as error:
            file.seek(0)
            if not file.read(1):
                raise VideoError("empty_file", f"{uri}: 0 bytes") from error
            raise VideoError(
                "not_a_video",
                f"{uri}: expected a picture of {', '.join(_known_formats())}, as its name says, "
                "got something else, or a broken header",
            ) from error
        with image:
            width, height = image.size
            if width * height > max_frame_px:
                raise VideoError(
                    "frame_too_large",
                    f"{uri}: {width}x{height} = {width * height} pixels, at most {max_frame_px} "
                    "are decoded; raise decode.max_frame_px",
                )
            yield image


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Return those of _FORMATS that this Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
