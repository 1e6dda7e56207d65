import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders.codebooks.gmm import Gmm
from encoders.encodings.base import Encoder
from encoders.encodings.gmm_fisher import GmmFisher
from encoders.encodings.multi_scale import MultiScale
from encoders.encodings.pooling import Average
from tests.encoders import oracles
from tests.encoders.encodings.test_contract import REGISTERED
from tests.encoders.encodings.test_contract import C as WIDTH

C = 3
POOLINGS = ("nfk", "csf", "mpp")


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mixture() -> Gmm:
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return Gmm(weights, random(2, C, seed=1), 0.4 + random(2, C, seed=2).square())


def maps(sides: tuple[tuple[int, int], ...] = ((3, 2), (4, 5), (7, 6))) -> list[Tensor]:
    """[h, w, C] of each scale; the scales differ in how long their encodings are."""
    return [(1 + 3 * s) * random(*side, C, seed=s) for s, side in enumerate(sides)]


def fisher_vector(rows: list[np.ndarray]) -> np.ndarray:
    return oracles.fisher_vector(*(t.numpy() for t in vars(mixture()).values()), np.array(rows))


def finish(vector: np.ndarray) -> np.ndarray:
    """Power and L2 normalisation."""
    vector = np.sign(vector) * np.sqrt(np.abs(vector))
    return vector / math.sqrt((vector**2).sum())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_equals_the_equations(pooling: str) -> None:
    scales = [position_map.flatten(0, 1) for position_map in maps()]
    vector = MultiScale(GmmFisher(mixture()), pooling).encode(scales)
    expected = oracles.multi_scale(fisher_vector, [x.numpy() for x in scales], pooling)
    np.testing.assert_allclose(vector, finish(expected), atol=1e-6)


def region_rows(position_map: np.ndarray, region: int) -> list[np.ndarray]:
    """The descriptors whose centre is in the region: 0 whole, 1 top third, 2 middle, 3 bottom."""
    height, width, _ = position_map.shape
    return [
        position_map[r, c]
        for r in range(height)
        for c in range(width)
        if region == 0 or (region - 1) / 3 <= (r + 0.5) / height < region / 3
    ]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_regions_equal_the_equations(pooling: str) -> None:
    scales = maps()
    vector = MultiScale(GmmFisher(mixture()), pooling).encode_regions(scales)
    parts = []
    for region in range(4):
        rows = [region_rows(position_map.numpy(), region) for position_map in scales]
        parts.append(finish(oracles.multi_scale(fisher_vector, rows, pooling)))
    np.testing.assert_allclose(vector, np.concatenate(parts) / 2, atol=1e-6)


@pytest.mark.parametrize("height", range(1, 12))
def test_every_row_is_in_the_third_of_its_centre(height: int) -> None:
    """One-hot rows, averaged: what is not zero shows who is in a region."""
    position_map = torch.eye(height).unsqueeze(1)
    encoder = MultiScale(Average(height, "none"))
    members = encoder.encode_regions([position_map]).view(4, height) > 0
    for row in range(height):
        third = next(i for i in (1, 2, 3) if 3 * (2 * row + 1) < 2 * height * i)
        assert members[:, row].tolist() == [True, third == 1, third == 2, third == 3]


def test_each_scale_counts_alike_by_mpp_and_by_its_descriptors_in_nfk() -> None:
    few, many = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]]).repeat(3, 1)
    average = Average(2, "none")
    assert MultiScale(average, "mpp").encode([few, many]).tolist() == [0.5, 0.5]
    assert MultiScale(average, "nfk").encode([few, many]).tolist() == [0.25, 3.75]
    assert MultiScale(average, "csf").encode([few, many]).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("make", REGISTERED.values(), ids=REGISTERED)
def test_one_scale_is_the_plain_encoding(make: Callable[[], Encoder]) -> None:
    encoder, x = make(), random(20, WIDTH).abs()
    for pooling in POOLINGS:
        vector = MultiScale(encoder, pooling).encode([x])
        torch.testing.assert_close(vector, encoder.encode(x), rtol=0, atol=1e-5)


def test_a_map_of_one_row_is_middle_alone_and_an_empty_scale_is_zero() -> None:
    encoder = MultiScale(GmmFisher(mixture()))
    regions = encoder.encode_regions(maps(((1, 4),))).view(4, -1)
    assert regions.any(1).tolist() == [True, False, True, False]
    assert torch.equal(regions[0], regions[2])
    scale = random(5, C)
    with_empty = encoder.encode([scale, scale[:0]])
    torch.testing.assert_close(with_empty, encoder.encode([scale]))


def test_other_poolings_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multi_scale: expected pooling .*, got 'max'"):
        MultiScale(Average(C), "max")
    with pytest.raises(ValueError, match=r"expected a map of shape \[h, w, C\] .* got \[6, 3\]"):
        MultiScale(Average(C)).encode_regions([random(6, C)])
    for encode in (MultiScale(Average(C)).encode, MultiScale(Average(C)).encode_regions):
        with pytest.raises(ValueError, match="expected at least one scale"):
            encode([])
