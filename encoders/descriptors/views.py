"""The views of a frame: crops that are described one by one (DQ Table 4, VU 5.4.2)."""

import itertools
from collections.abc import Callable, Iterator

from torch import Tensor

_MIDDLE = 12
"""The centre's place in a 5 x 5 grid, row by row."""


def mirrored_picture(frames: Tensor) -> Tensor:
    """Return frames [f, h, w, c] with left and right exchanged."""
    return frames.flip(2)


def mirrored_flow(levels: Tensor) -> Tensor:
    """Return the flow of the mirrored video, whose u has the opposite sign.

    u becomes 255 - u, as in TSN; so the level 128 becomes 127. No motion is between the two.

    Args:
        levels: uint8 [f, h, w, 2L], u and v in turn.
    """
    flipped = levels.flip(2)
    flipped[..., ::2] = 255 - flipped[..., ::2]
    return flipped


def views_of(
    frames: Tensor, kind: str, crop_px: int, mirrored: Callable[[Tensor], Tensor] = mirrored_picture
) -> Iterator[Tensor]:
    """Yield the crops [f, crop_px, crop_px, c] of frames [f, side, side, c], by `VIEWS[kind]`.

    The first is the centre, the second its mirror image. Ten views have the corners too (top left,
    top right, bottom left, bottom right), fifty the 24 other places of a 5 x 5 grid, row by row;
    each before its mirror image, which `mirrored` makes.
    """
    margin = frames.shape[1] - crop_px
    steps = {"ten": 1, "fifty": 4}.get(kind)
    grid = [margin * place // steps for place in range(steps + 1)] if steps else []
    centre = (margin // 2, margin // 2)
    others = [place for n, place in enumerate(itertools.product(grid, grid)) if n != _MIDDLE]
    for top, left in [centre, *others]:
        crop = frames[:, top : top + crop_px, left : left + crop_px]
        yield crop
        if kind != "centre":
            yield mirrored(crop)
