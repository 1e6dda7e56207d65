"""A picture as the network gets it: its box cut out, resized, and the centre of that."""

import numpy as np
from PIL import Image

from pipelines.settings.sections import Picture
from pipelines.video.header import VideoError

Box = tuple[float, float, float, float]
"""x and y of the upper left corner, width and height, in px of the picture as it is shown."""


def covers(box: Box | None, width: int, height: int) -> bool:
    """Return whether a picture of this size is all inside the box, or there is none."""
    if box is None:
        return True
    x, y, box_width, box_height = box
    return x < 1 and y < 1 and x + box_width > width - 1 and y + box_height > height - 1


def framed(image: Image.Image, picture: Picture, box: Box | None = None) -> np.ndarray:
    """Return uint8 [*decoded_shape, 3] of a picture in RGB, as it is shown.

    Raises:
        VideoError: box_outside.
    """
    part = image if box is None or covers(box, *image.size) else _cut(image, box)
    if not picture.scales:
        return _fitted(part, picture, picture.resize_px, picture.decoded_px)
    sizes = [_fitted(part, picture, side, side).reshape(-1, 3) for side in picture.scales]
    return np.concatenate(sizes)[None]


def resized_px(picture: Picture, width: int, height: int, side_px: int) -> tuple[int, int]:
    """Return width and height of a picture of this size after resizing it to `side_px`."""
    if picture.resize == "stretch":
        return side_px, side_px
    shorter = min(width, height)
    # Never below the side: the centre is cut out of it.
    resized = (max(side_px, round(side_px * size / shorter)) for size in (width, height))
    return next(resized), next(resized)


def centre(pixels: np.ndarray, side_px: int) -> np.ndarray:
    """Return the centre [side_px, side_px, ...] of a picture [h, w, ...]."""
    top, left = ((size - side_px) // 2 for size in pixels.shape[:2])
    return pixels[top : top + side_px, left : left + side_px]


def _cut(image: Image.Image, box: Box) -> Image.Image:
    """Return what of the box is in the picture, in whole pixels: one that it covers in part
    counts.
    """
    x, y, width, height = box
    left, top = max(0, int(np.floor(x))), max(0, int(np.floor(y)))
    right = min(image.width, int(np.ceil(x + width)))
    bottom = min(image.height, int(np.ceil(y + height)))
    if left >= right or top >= bottom:
        raise VideoError(
            "box_outside",
            f"expected a box inside the picture of {image.width} x {image.height} px, got x {x:g}, "
            f"y {y:g}, width {width:g}, height {height:g}; correct its row, or empty its cells for "
            "the whole picture",
        )
    return image.crop((left, top, right, bottom))


def _fitted(image: Image.Image, picture: Picture, side_px: int, kept_px: int) -> np.ndarray:
    size = resized_px(picture, *image.size, side_px)
    # Antialiased, as frames of videos are.
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    return np.ascontiguousarray(centre(pixels, kept_px))
