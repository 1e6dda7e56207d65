import numpy as np

from encoders.descriptors.windows import mean_of_windows, windows
from encoders.stream_specs import Scale


def test_positions_of_the_fcn_see_fk_s_windows() -> None:
    found = windows("alexnet_fcn", Scale(322, 9, 3, 3))
    centres, sides = (found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]
    expected = [
        [(32 * r + 113.5) / 322, (32 * c + 113.5) / 322] for r in range(3) for c in range(3)
    ]
    np.testing.assert_allclose(centres, expected)
    np.testing.assert_allclose(sides, 227 / 322)
    assert windows("alexnet_fcn", Scale(227, 1, 1, 1)).tolist() == [[0, 0, 1, 1]]


def test_positions_of_other_networks_are_cells_of_the_map() -> None:
    found = windows("squeezenet1_0", Scale(64, 6, 2, 3))
    assert found[4].tolist() == [0.5, 1 / 3, 1, 2 / 3]
    areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    assert np.isclose(areas.sum(), 1)


def test_a_cell_has_the_mean_of_the_windows_that_hold_its_centre() -> None:
    draw = np.random.default_rng(0)
    corners = np.sort(draw.random((40, 2, 2)), 1).reshape(40, 4)
    scores, side = draw.standard_normal(40), 16
    found = mean_of_windows(corners, scores, side)
    for row in range(side):
        for column in range(side):
            y, x = (row + 0.5) / side, (column + 0.5) / side
            holds = (
                (corners[:, 0] <= y)
                & (y < corners[:, 2])
                & (corners[:, 1] <= x)
                & (x < corners[:, 3])
            )
            if holds.any():
                assert np.isclose(found[row, column], scores[holds].mean())
            else:
                assert np.isnan(found[row, column])
