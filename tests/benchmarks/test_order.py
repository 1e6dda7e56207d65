"""The corpus of order: a clip and itself backwards show the same pictures."""

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from benchmarks import order
from pipelines.demo.motions import CANVAS_SIDE, Motion, Shot, draw_frames, make_motion
from pipelines.demo.scenes import scene_canvas, scene_objects

PARKED = np.array([[-0.27, 0], [0.27, 0]])


def motion(name: str, seed: int) -> Motion:
    return make_motion(name, Shot(np.linspace(0, 2, 4), 1.0), PARKED, default_rng(seed))


def test_backwards_are_the_same_frames_from_the_end() -> None:
    canvas, one = scene_canvas(0, 0, round(CANVAS_SIDE * 16)), motion("zoom_in", 0)
    objects = scene_objects(0, 0, 6)
    there, back = (
        [np.asarray(frame) for frame in draw_frames(canvas, objects, m, 16, 16)]
        for m in (one, one.backwards())
    )
    np.testing.assert_array_equal(np.stack(there), np.stack(back[::-1]))
    assert not np.array_equal(there[0], back[0])


@pytest.mark.parametrize("name", order.MOTIONS)
def test_each_motion_has_one_direction(name: str) -> None:
    motions = [motion(name, seed) for seed in range(12)]
    found = [order.goes_back(one) for one in motions]
    assert [order.goes_back(one.backwards()) for one in motions] == [not back for back in found]
    # The direction of a pan and of a rotation is drawn, that of a zoom is not.
    assert len(set(found)) == (1 if name == "zoom_in" else 2)


def test_what_does_not_see_order_has_exactly_half() -> None:
    draw = torch.Generator().manual_seed(0)
    clips = []
    for label in (0, 2):
        maps = torch.rand(order.FRAMES, 512, 6, 6, generator=draw).half()
        clips += [(label, maps), (label + 1, maps.flip(0))]
    row = order.measure("conv_pooling", clips, clips, order.Size(num_steps=2))
    assert row["direction"] == 0.5
