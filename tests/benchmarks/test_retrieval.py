"""The benchmark of retrieval: its crops, and how it counts."""

import numpy as np
import pytest
import torch

from benchmarks import retrieval


def test_crops_of_a_clip_stand_together() -> None:
    crops = retrieval.crops(retrieval.CLIPS[4:5])
    assert len(crops) == retrieval.FRAMES
    assert {crop.size for crop in crops} == {(446, 446)}
    again = retrieval.crops(retrieval.CLIPS[4:5])
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(crops, again, strict=True))
    assert len(set(retrieval.CLIPS)) == 25


def test_pictures_of_a_clip_are_right_and_the_query_is_left_out() -> None:
    middles = torch.eye(3).repeat_interleave(retrieval.FRAMES, 0)
    assert retrieval.mean_precision(middles) == 1
    # A query that is like another clip finds its five pictures first, and is found first there.
    middles[0] = torch.eye(3)[1]
    after_five, after_one = (
        np.mean([((i - 1) / (wrong + i - 1) + i / (wrong + i)) / 2 for i in range(1, 5)])
        for wrong in (5, 1)
    )
    expected = (after_five + after_one + 1) / 3
    assert retrieval.mean_precision(middles) == pytest.approx(expected)
