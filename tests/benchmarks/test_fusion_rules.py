"""Rules that were compared: greedy selection and weights of the other folds, against loops over all
choices."""

from math import comb

import numpy as np
import pytest
import sklearn.metrics

from benchmarks.fusion_rules import (
    MAX_CHOICES,
    choose_weights,
    qualities,
    select_parts,
    weight_grid,
)
from encoders.scores import metrics
from encoders.scores.fusion import fuse
from tests.encoders.in_memory import mean_average_precision

RGB = np.array([[1.0, -3.0], [2.0, 2.0]])
FLOW = np.array([[0.5, 1.5], [-1.0, 3.0]])


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


def test_quality_is_of_videos_or_with_several_labels_of_classes() -> None:
    scores = np.array([[3.0, 1, 0], [0, 1, 2], [0, 2, 1], [1, 0, 0]])
    targets = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(qualities(scores, targets), [1, 0, 1])
    targets[0] = [1, 1, 0]
    expected = [
        sklearn.metrics.average_precision_score(targets[:, k], scores[:, k]) for k in (0, 1)
    ]
    np.testing.assert_allclose(qualities(scores, targets), expected)


def hits(rate: float, num: int = 200) -> np.ndarray:
    return (np.arange(num) < round(rate * num)).astype(float)


def test_selection_takes_what_is_clearly_better_than_all_together() -> None:
    rates = {(1,): 0.8, (0, 1): 0.7, (1, 2): 0.95}
    chosen = select_parts(lambda parts: hits(rates.get(parts, 0.6)), 4)
    assert chosen == (1, 2)


def test_selection_leaves_all_together_where_the_gain_may_be_chance() -> None:
    rates = {(0, 1, 2): 0.8, (1,): 0.805}
    assert select_parts(lambda parts: hits(rates.get(parts, 0.5)), 3) == (0, 1, 2)
    assert select_parts(lambda parts: hits(0.8), 3) == (0, 1, 2), "equal: all of them"
    # Each set is as good as another, and differs from it by noise.
    draws = np.random.default_rng(0)
    kept = 0
    for _ in range(100):
        kept += len(select_parts(lambda parts: (draws.random(60) < 0.7).astype(float), 2)) == 2
    assert kept > 60
