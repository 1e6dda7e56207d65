"""Temporal pyramids, against a plain loop over parts and frames."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from encoders.encodings.pooling import Average
from encoders.encodings.time_pyramid import TemporalPyramid
from encoders.encodings.vlad import Vlad

C = 3


def vlad() -> Vlad:
    return Vlad(torch.randn(4, C, generator=torch.Generator().manual_seed(0)))


def frames(num_frames: int, cells: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_frames, cells, C, generator=generator, dtype=torch.float64)


def expected(encoder, x: torch.Tensor, place: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    vectors = []
    for parts in levels:
        for part in range(parts):
            own = [f for f in range(len(x)) if min(int(parts * place[f]), parts - 1) == part]
            vectors.append(encoder.encode(x[own].reshape(-1, C)).double().numpy())
    vector = np.concatenate(vectors)
    length = math.sqrt((vector**2).sum())
    return vector / length if length else vector


@trials(deadline=None, max_examples=40)
@given(
    levels=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3, unique=True),
    place=st.lists(st.integers(0, 16).map(lambda k: k / 16), max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=3),
)
def test_each_part_is_encoded_by_itself_however_the_video_is_split(
    levels: list[int], place: list[float], cuts: list[int]
) -> None:
    encoder, pyramid = vlad(), TemporalPyramid(tuple(levels))
    place = np.sort(np.array(place))
    x = frames(len(place))
    ends = sorted(min(cut, len(place)) for cut in cuts)
    total = None
    for part, own in zip(x.tensor_split(ends), np.split(place, ends), strict=True):
        states = pyramid.accumulate(encoder, part, own)
        total = [a + b for a, b in zip(total, states, strict=True)] if total else states
    found = pyramid.finalise(encoder, total)
    assert (found.shape, found.dtype) == ((encoder.output_dim * sum(levels),), torch.float32)
    np.testing.assert_allclose(found, expected(encoder, x, place, tuple(levels)), atol=1e-6)


def test_three_parts_beside_halves() -> None:
    """Their cuts do not fall on one another."""
    place = np.linspace(0, 1, 13)
    found = TemporalPyramid((2, 3)).accumulate(vlad(), frames(13), place)
    assert [state.count // 2 for state in found] == [4, 2, 2, 5]
    vector = TemporalPyramid((2, 3)).finalise(vlad(), found)
    np.testing.assert_allclose(vector, expected(vlad(), frames(13), place, (2, 3)), atol=1e-6)


def test_an_empty_part_is_zeros() -> None:
    pyramid = TemporalPyramid((1, 2))
    states = pyramid.accumulate(vlad(), frames(3), np.array([0.0, 0.1, 0.2]))
    whole, first, last = pyramid.finalise(vlad(), states).chunk(3)
    assert torch.equal(whole, first)
    assert not last.any()
    assert whole.norm() == pytest.approx(math.sqrt(0.5))


def test_the_whole_video_alone_is_the_encoders_own_vector() -> None:
    states = TemporalPyramid((1,)).accumulate(vlad(), frames(3), np.zeros(3))
    own = vlad().encode(frames(3).flatten(0, 1))
    assert torch.equal(TemporalPyramid((1,)).finalise(vlad(), states), own)


def test_a_normalisation_that_keeps_lengths_keeps_them() -> None:
    encoder, pyramid = Average(C, "signed_sqrt"), TemporalPyramid((1, 2))
    x = frames(4)
    states = pyramid.accumulate(encoder, x, np.array([0, 0.2, 0.6, 1.0]))
    means = torch.cat([x.mean((0, 1)), x[:2].mean((0, 1)), x[2:].mean((0, 1))])
    expected = means.sign() * means.abs().sqrt()
    torch.testing.assert_close(pyramid.finalise(encoder, states), expected.float())


def test_means_that_are_not_normalised_stay_means() -> None:
    encoder, pyramid = Average(C, "none"), TemporalPyramid((1, 2))
    states = pyramid.accumulate(encoder, frames(4), np.array([0, 0.2, 0.6, 1.0]))
    x = frames(4)
    means = [x.mean((0, 1)), x[:2].mean((0, 1)), x[2:].mean((0, 1))]
    torch.testing.assert_close(pyramid.finalise(encoder, states), torch.cat(means).float())
