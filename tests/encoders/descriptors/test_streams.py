"""Spatial pyramid, differences and scalings against plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.descriptors.pyramid import LEVELS, num_cells, pyramid_pool
from encoders.descriptors.streams import Stream, appearance, scale, streams_of
from encoders.stream_specs import StreamSpec


def random_maps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def windows_of_the_paper(maps: np.ndarray) -> np.ndarray:
    """DQ Table 7 on a 7 x 7 map: max pooling with size/stride 2/1, 3/2, 4/3, 7/1."""
    cells = []
    for size, stride in ((2, 1), (3, 2), (4, 3), (7, 1)):
        for top in range(0, 7 - size + 1, stride):
            for left in range(0, 7 - size + 1, stride):
                window = maps[:, :, top : top + size, left : left + size]
                cells.append(window.max((2, 3)))
    return np.stack(cells, axis=1)


def test_pyramid_uses_exactly_the_windows_of_the_paper() -> None:
    maps = random_maps(3, 5, 7, 7)
    pooled = pyramid_pool(maps)
    assert pooled.shape == (3, 50, 5) == (3, num_cells(), 5)
    np.testing.assert_array_equal(pooled.numpy(), windows_of_the_paper(maps.numpy()))


@pytest.mark.parametrize("side", [1, 2, 5, 13, 28])
def test_pyramid_of_any_map_size_keeps_the_maximum(side: int) -> None:
    maps = random_maps(2, 3, side, side + 1)
    pooled = pyramid_pool(maps)
    assert pooled.shape == (2, 50, 3)
    torch.testing.assert_close(pooled[:, -1], maps.amax((2, 3)))
    assert torch.equal(pooled.amax(1), maps.amax((2, 3)))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_pooling_with_gradients_pools_the_same(height: int, width: int, seed: int) -> None:
    maps = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(pyramid_pool(maps.requires_grad_()), pyramid_pool(maps.detach()))


def test_gradients_go_where_the_largest_value_was() -> None:
    """As torch's own adaptive pooling, where no two values are equal; equal ones share."""
    maps = random_maps(2, 3, 7, 8).requires_grad_()
    weight = torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((pyramid_pool(maps) * weight).sum(), maps)
    pooled = [torch.nn.functional.adaptive_max_pool2d(maps, side).flatten(2) for side in LEVELS]
    (expected,) = torch.autograd.grad((torch.cat(pooled, 2) * weight.mT).sum(), maps)
    torch.testing.assert_close(gradient, expected)
    flat = torch.ones(1, 1, 4, 4).requires_grad_()
    (shared,) = torch.autograd.grad(pyramid_pool(flat, (1,)).sum(), flat)
    assert torch.equal(shared, torch.full((1, 1, 4, 4), 1 / 16))


def test_each_position_is_normalised_before_the_pyramid() -> None:
    maps = random_maps(2, 4, 7, 7)
    maps[0, :, 0, 0] = 0
    scaled = scale(maps, "per_position")
    lengths = scaled.norm(dim=1)
    assert lengths[0, 0, 0] == 0
    assert torch.allclose(lengths.flatten()[1:], torch.ones(97))
    torch.testing.assert_close(appearance(maps, "per_position"), pyramid_pool(scaled))


def test_whole_map_scaling_is_the_released_networks() -> None:
    maps = random_maps(2, 4, 7, 7)
    expected = torch.stack([158 * m / np.sqrt((m.numpy() ** 2).sum()) for m in maps])
    torch.testing.assert_close(scale(maps, "whole_map"), expected)
    assert torch.equal(scale(torch.zeros(1, 4, 7, 7), "whole_map"), torch.zeros(1, 4, 7, 7))


def test_a_map_of_one_frame_is_relative_to_itself() -> None:
    maps = random_maps(2, 4, 7, 7)
    assert torch.equal(scale(maps, "relative"), scale(maps, "whole_map"))


@pytest.mark.parametrize("scaling", ["per_position", "whole_map", "relative"])
@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (1,), (4, 3)])
@pytest.mark.parametrize("size", [(13, 9), (4, 5)])
def test_a_difference_is_scaled_parted_and_pooled(
    scaling: str, levels: tuple[int, ...], size: tuple[int, int]
) -> None:
    """In this order, by plain loops in float64."""
    maps, places = random_maps(4, 3, *size), torch.tensor([[0, 1], [1, 3], [2, 2]])
    stream = Stream(
        "x", "n", "difference", num_cells(levels), 6, scaling=scaling, spp_levels=levels
    )
    found = stream.describe(maps, places)
    x, (height, width) = maps.double().numpy(), size
    for frame, (first, last) in enumerate(places.tolist()):
        signed = x[last] - x[first]
        lengths = {
            "per_position": np.sqrt((signed**2).sum(0, keepdims=True)),
            "whole_map": np.sqrt((signed**2).sum()) / 158,
            "relative": (np.sqrt((x[first] ** 2).sum()) + np.sqrt((x[last] ** 2).sum())) / 2 / 158,
        }
        scaled = signed / np.maximum(lengths[scaling], 1e-12)
        parted = np.concatenate([np.maximum(scaled, 0), np.maximum(-scaled, 0)])
        cells = [
            parted[
                :,
                i * height // side : -(-(i + 1) * height // side),
                j * width // side : -(-(j + 1) * width // side),
            ].max((1, 2))
            for side in levels
            for i in range(side)
            for j in range(side)
        ]
        np.testing.assert_allclose(found[frame], np.array(cells), atol=1e-5, rtol=1e-5)
    assert not found[2].any(), "no change"


def test_dense_has_a_row_for_each_position() -> None:
    maps = torch.rand(2, 5, 3, 4)
    [dense] = streams_of(
        {"n": (5, 3, 4)}, [("dense", StreamSpec(), ("n",))], "none", LEVELS
    ).values()
    rows = dense.describe(maps, torch.arange(2)[:, None])
    assert (dense.name, dense.cells) == ("n_dense", 12)
    for frame in range(2):
        for row in range(3):
            for column in range(4):
                assert torch.equal(rows[frame, 4 * row + column], maps[frame, :, row, column])


def test_without_scaling_activations_stay() -> None:
    maps = torch.randn(2, 3, 8, 8)
    assert torch.equal(scale(maps, "none"), maps)
    assert torch.equal(appearance(maps, "none", (1,))[:, 0], maps.amax((2, 3)))


def test_unknown_scaling_lists_the_known() -> None:
    with pytest.raises(ValueError, match="per_position"):
        scale(random_maps(1, 1, 1, 1), "l1")


def test_pyramid_levels_are_a_setting() -> None:
    assert appearance(random_maps(2, 3, 8, 8), "per_position", (2, 1)).shape == (2, 5, 3)
    assert num_cells((2, 1)) == 5
    assert LEVELS == (6, 3, 2, 1)
