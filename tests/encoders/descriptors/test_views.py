"""The crops of a frame against plain loops over pixels."""

import numpy as np
import pytest
import torch

from encoders.descriptors.views import views_of
from encoders.stream_specs import VIEWS


def crop_loop(frame: np.ndarray, top: int, left: int, size: int, is_mirrored: bool) -> np.ndarray:
    crop = np.zeros((size, size, 3), np.uint8)
    for y in range(size):
        for x in range(size):
            column = size - 1 - x if is_mirrored else x
            crop[y, x] = frame[top + y, left + column]
    return crop


@pytest.mark.parametrize(("side", "size"), [(9, 6), (8, 5), (6, 6)])
def test_ten_views_are_centre_and_corners_each_before_its_mirror_image(
    side: int, size: int
) -> None:
    frames = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    far = side - size
    corners = [(0, 0), (0, far), (far, 0), (far, far)]
    expected = [
        np.stack([crop_loop(frame, *corner, size, is_mirrored) for frame in frames.numpy()])
        for corner in [(far // 2, far // 2), *corners]
        for is_mirrored in (False, True)
    ]
    views = list(views_of(frames, "ten", size))
    assert len(views) == VIEWS["ten"]
    for view, crops in zip(views, expected, strict=True):
        assert np.array_equal(view.numpy(), crops)


def test_the_first_views_are_the_same_whatever_their_number() -> None:
    frames = torch.randint(0, 256, (2, 9, 9, 3), dtype=torch.uint8)
    ten, centre = list(views_of(frames, "ten", 6)), frames[:, 1:7, 1:7]
    mirror = list(views_of(centre, "mirror", 6))
    (alone,) = views_of(centre, "centre", 6)
    assert len(mirror) == VIEWS["mirror"] == 2
    assert torch.equal(alone, centre)
    assert all(torch.equal(a, b) for a, b in zip(ten[:2], mirror, strict=True))
    assert torch.equal(mirror[0], alone)


def test_fifty_views_are_a_grid_and_its_mirror_images() -> None:
    frames = torch.arange(2 * 14 * 14 * 3, dtype=torch.int32).view(2, 14, 14, 3)
    fifty = list(views_of(frames, "fifty", 6))
    assert len(fifty) == VIEWS["fifty"] == 50
    ten = list(views_of(frames, "ten", 6))
    assert torch.equal(fifty[0], ten[0])
    places = {int(crop[0, 0, 0, 0]) // 3 for crop in fifty[::2]}
    assert places == {14 * top + left for top in range(0, 9, 2) for left in range(0, 9, 2)}
    for crop, mirrored in zip(fifty[::2], fifty[1::2], strict=True):
        assert torch.equal(crop.flip(2), mirrored)
    # All of the ten are among the fifty.
    assert all(any(torch.equal(crop, other) for other in fifty) for crop in ten)
