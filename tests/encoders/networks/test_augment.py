"""Crops, mirror images and colours of training clips."""

import pytest
import torch

from encoders.networks import training
from encoders.networks.augment import PLACES, SCALES, augmented, crop_box
from encoders.networks.base import snippet_places
from encoders.networks.settings import TsnSettings

DRAWS = [training.generator("cpu", seed) for seed in range(400)]


def settings(**changed: object) -> TsnSettings:
    return TsnSettings(**({"crops": "corners", "mirror": True, "colour_jitter": 0.4} | changed))


def test_corner_crops_are_tsns() -> None:
    boxes = {crop_box((256, 340), "corners", 224, draw) for draw in DRAWS}
    sides = [int(256 * scale) for scale in SCALES]
    assert sides == [256, 224, 192, 168]
    for top, left, height, width in boxes:
        assert abs(sides.index(height) - sides.index(width)) <= 1
        row, column = (256 - height), (340 - width)
        assert (top, left) in {(row * i // 4, column * j // 4) for i, j in PLACES}
        assert top + height <= 256
        assert left + width <= 340
    assert len(PLACES) == len(set(PLACES)) == 13
    assert {(height, width) for *_, height, width in boxes} == {
        (a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1
    }


def test_random_and_centre_crops() -> None:
    boxes = {crop_box((12, 12), "random", 10, draw) for draw in DRAWS}
    assert boxes == {(top, left, 10, 10) for top in range(3) for left in range(3)}
    assert crop_box((12, 14), "centre", 10, DRAWS[0]) == (1, 2, 10, 10)


def test_one_draw_is_for_all_frames_of_a_clip() -> None:
    frame = torch.randint(256, (1, 20, 24, 3), dtype=torch.uint8)
    seen = set()
    for seed in range(20):
        clip, _ = augmented(
            frame.expand(4, -1, -1, -1), settings(), 16, training.generator("cpu", seed)
        )
        assert clip.shape == (4, 16, 16, 3)
        assert clip.dtype == torch.uint8
        assert all(torch.equal(other, clip[0]) for other in clip)
        seen.add(clip.numpy().tobytes())
    assert len(seen) == 20


def test_flow_is_mirrored_with_its_sign_and_keeps_its_levels() -> None:
    flow = torch.randint(256, (2, 8, 8, 10), dtype=torch.uint8)
    kinds = set()
    for seed in range(20):
        record = settings(crops="centre")
        clip, _ = augmented(flow, record, 8, training.generator("cpu", seed))
        mirrored = flow.flip(2)
        mirrored[..., ::2] = 255 - mirrored[..., ::2]
        assert torch.equal(clip, flow) != torch.equal(clip, mirrored)
        kinds.add(torch.equal(clip, flow))
    assert kinds == {True, False}


def test_colours_change_by_at_most_the_share() -> None:
    grey = torch.full((1, 8, 8, 3), 100, dtype=torch.uint8)
    record = settings(crops="centre", mirror=False, colour_jitter=0.2)
    levels = {augmented(grey, record, 8, draw)[0][0, 0, 0, 0].item() for draw in DRAWS[:50]}
    assert len(levels) > 10
    assert 79 <= min(levels) <= max(levels) <= 120


@pytest.mark.parametrize("count", [1, 2, 3, 32])
def test_a_clip_has_a_frame_of_each_part(count: int) -> None:
    for draw in DRAWS[:50]:
        places = snippet_places(count, 1, 3, 1, draw)
        assert len(places) == 3
        for part, place in enumerate(places):
            assert int(part * count / 3) <= place <= (part + 1) * count / 3


def test_snippets_are_consecutive_frames_of_a_run() -> None:
    seen = set()
    for draw in DRAWS:
        first, second = (snippet_places(4, 6, 2, 5, draw)[i : i + 5] for i in (0, 5))
        assert first == list(range(first[0], first[0] + 5))
        assert first[0] % 6 in (0, 1)
        assert first[0] // 6 in (0, 1)
        assert second[0] // 6 in (2, 3)
        seen.add((first[0], second[0]))
    assert len(seen) == 16
