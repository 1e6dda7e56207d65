"""The views of a frame: crops that are described one by one (DQ Table 4, VU 5.4.2)."""

from collections.abc import Iterator

from torch import Tensor


def views_of(frames: Tensor, kind: str, crop_px: int) -> Iterator[Tensor]:
    """Each of `stream_specs.VIEWS[kind]` crops [f, crop_px, crop_px, 3] of frames [f, side, side, 3].

    The first is the centre, the second its mirror image; of ten there follow the corners (top left, top right,
    bottom left, bottom right), each before its mirror image.
    """
    margin = frames.shape[1] - crop_px
    corners = [(0, 0), (0, margin), (margin, 0), (margin, margin)] if kind == "ten" else []
    for top, left in [(margin // 2, margin // 2), *corners]:
        crop = frames[:, top : top + crop_px, left : left + crop_px]
        yield crop
        if kind != "centre":
            yield crop.flip(2)
