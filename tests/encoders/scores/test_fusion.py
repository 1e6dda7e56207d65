from math import comb

import numpy as np
import pytest

from encoders.scores import metrics
from encoders.scores.fusion import MAX_CHOICES, TWO_STREAM, choose_weights, fuse, weight_grid
from tests.encoders.in_memory import mean_average_precision

RGB = np.array([[1.0, -3.0], [2.0, 2.0]])
FLOW = np.array([[0.5, 1.5], [-1.0, 3.0]])


def test_plain_mean() -> None:
    np.testing.assert_allclose(fuse([RGB, FLOW]), [[0.75, -0.75], [0.5, 2.5]])
    np.testing.assert_allclose(fuse([RGB]), RGB)


def test_only_the_ratio_of_weights_counts() -> None:
    expected = [[0.7, -0.3], [0.2, 2.6]]  # (RGB + 1.5 FLOW) / 2.5
    np.testing.assert_allclose(fuse([RGB, FLOW], [1, 1.5]), expected)
    np.testing.assert_allclose(fuse([RGB, FLOW], [2, 3]), expected)
    np.testing.assert_allclose(fuse([RGB, FLOW], [0, 4]), FLOW)


def test_l1_normalised_scores_do_not_depend_on_a_streams_scale() -> None:
    expected = [[0.25, 0.15], [0.05, 0.65]]  # (RGB / [4, 4] + 1.5 FLOW / [2, 4]) / 2.5
    np.testing.assert_allclose(fuse([RGB, FLOW], [1, 1.5], l1_normalise=True), expected)
    np.testing.assert_allclose(fuse([900 * RGB, FLOW], [1, 1.5], l1_normalise=True), expected)


def test_l1_normalised_zero_stays_zero_and_inputs_stay_as_they_are() -> None:
    zero, rgb = np.zeros((2, 2), np.float32), RGB.astype(np.float32)
    fused = fuse([zero, rgb], l1_normalise=True)
    np.testing.assert_allclose(fused, RGB / 8)
    assert fused.dtype == np.float64
    np.testing.assert_array_equal(rgb, RGB)


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match=r"score arrays of one shape \[N, K\], got \[\]"):
        fuse([])
    with pytest.raises(ValueError, match=r"one shape \[N, K\], got \[\(1, 2\), \(2, 2\)\]"):
        fuse([RGB, FLOW[:1]])
    with pytest.raises(ValueError, match=r"one shape \[N, K\], got \[\(2,\)\]"):
        fuse([RGB[0], FLOW[0]])
    for weights in ([1], [1, -1], [0, 0], [1, np.nan], [1, np.inf]):
        with pytest.raises(ValueError, match="2 weights >= 0 that are not all zero"):
            fuse([RGB, FLOW], weights)


def test_rgb_and_flow_as_in_the_paper_by_hand() -> None:
    # RGB / 4 + 1.5 FLOW / [2, 4] over 2.5, as in VU 5.3.3.
    fused = fuse([RGB, FLOW], TWO_STREAM, l1_normalise=True)
    np.testing.assert_allclose(fused, [[0.25, 0.15], [0.05, 0.65]])


@pytest.mark.parametrize("num_parts", range(1, 9))
def test_the_grid_covers_the_simplex_and_starts_even(num_parts: int) -> None:
    grid = weight_grid(num_parts)
    np.testing.assert_allclose(grid.sum(1), 1)
    assert (grid >= 0).all()
    assert len(np.unique(grid, axis=0)) == len(grid) <= MAX_CHOICES
    steps = round(1 / grid[grid > 0].min())
    assert len(grid) == comb(steps + num_parts - 1, num_parts - 1)
    assert np.ptp(grid[0]) <= np.ptp(grid, axis=1).min() + 1e-12
    # Each part alone is a choice.
    assert {tuple(row) for row in np.eye(num_parts)} <= {tuple(row) for row in grid}


def by_loop(parts: list, targets: np.ndarray, folds: np.ndarray, measure) -> dict:
    """Each fold's best weights by the plain function on the videos of the other folds."""
    chosen = {}
    for fold in np.unique(folds):
        rows = folds != fold
        best = (-1.0, None)
        for weights in weight_grid(len(parts)):
            value = measure(fuse([p[rows] for p in parts], weights), targets[rows])
            if round(value, 9) > best[0]:
                best = (round(value, 9), tuple(weights.tolist()))
        chosen[int(fold)] = best[1]
    return chosen


@pytest.mark.parametrize("several", [False, True])
def test_weights_are_the_best_ones_on_the_other_folds(several: bool) -> None:
    rng = np.random.default_rng(2)
    targets = np.eye(3)[rng.integers(3, size=30)]
    if several:
        targets = np.maximum(targets, rng.random(targets.shape) < 0.2)
    folds = np.array([0, 1, 4] * 10)
    parts = [scale * targets + rng.normal(size=targets.shape) for scale in (0.4, 0.6, 0.1)]
    measure = mean_average_precision if several else metrics.accuracy
    chosen = choose_weights(parts, targets, folds)
    assert chosen == by_loop(parts, targets, folds, measure)
    assert len(set(chosen.values())) > 1


def test_a_folds_own_videos_have_no_say_in_its_weights() -> None:
    rng = np.random.default_rng(5)
    targets, folds = np.eye(3)[rng.integers(3, size=24)], np.arange(24) % 3
    parts = [targets + rng.normal(size=targets.shape) for _ in range(2)]
    before = choose_weights(parts, targets, folds)
    for fold in range(3):
        changed = [np.where((folds == fold)[:, None], rng.normal(size=p.shape), p) for p in parts]
        assert choose_weights(changed, targets, folds)[fold] == before[fold]


def test_weights_need_a_fold_to_be_chosen_on() -> None:
    with pytest.raises(ValueError, match="two folds or more to choose weights on, got 1"):
        choose_weights([RGB, FLOW], np.eye(2), np.zeros(2))
