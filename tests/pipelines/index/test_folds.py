"""Folds: no group on both sides, each class on both, and splits that cannot work are refused."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.index.folds import assign_folds
from pipelines.settings.sections import Split


def corpus(
    classes: list[int], groups: list[int | None], splits: list[str] | None = None
) -> pa.Table:
    size = len(classes)
    return pa.table(
        {
            "path": [f"v{i:04d}" for i in range(size)],
            "labels": pa.array([[f"c{k}"] for k in classes], pa.list_(pa.string())),
            "group": pa.array([None if g is None else f"g{g}" for g in groups], pa.string()),
            "split": pa.array(splits or [None] * size, pa.string()),
        }
    )


@given(
    num_groups=st.integers(3, 8),
    seed=st.integers(0, 5),
    kind=st.sampled_from(["random", "group_kfold", "leave_one_group_out"]),
)
def test_a_group_is_never_on_both_sides(num_groups: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    groups = [i % num_groups for i in range(40)]
    table = corpus(rng.integers(0, 3, 40).tolist(), groups)
    folds, used, num_folds = assign_folds(table, Split(kind=kind, num_folds=3), seed)
    assert used == kind
    fold = np.array(folds["fold"])
    for group in range(num_groups):
        assert len(set(fold[np.array(groups) == group])) == 1
    assert set(fold) == (set(range(num_folds)) if kind != "random" else {-1, 0})


def test_auto_takes_what_the_labels_offer() -> None:
    groups = [0, 0, 1, 1, 2, 2, 3, 3]
    classes = [0, 1] * 4
    split = ["train", "train", "test", "test"] * 2
    assert assign_folds(corpus(classes, groups, split), Split(), 0)[1:] == ("given", 1)
    assert assign_folds(corpus(classes, groups), Split(), 0)[1:] == ("group_kfold", 4)
    assert assign_folds(corpus(classes, [None] * 8), Split(), 0)[1:] == ("random", 1)


def test_videos_that_a_split_does_not_use_neither_train_nor_test() -> None:
    splits = ["train", "test", "unused"] * 4
    table, kind, _ = assign_folds(corpus([0, 0, 0, 1, 1, 1] * 2, [None] * 12, splits), Split(), 0)
    assert kind == "given"
    assert table["fold"].to_pylist() == [-1, 0, -1] * 4
    assert table["labels"].to_pylist() == [["c0"], ["c0"], [], ["c1"], ["c1"], []] * 2


def test_random_keeps_each_class_on_both_sides() -> None:
    table, _, _ = assign_folds(corpus([0] * 10 + [1] * 4, [None] * 14), Split(test_fraction=0.5), 3)
    fold = np.array(table["fold"])
    assert (fold[:10] == 0).sum() == 5
    assert (fold[10:] == 0).sum() == 2


def test_splits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected a column 'split'"):
        assign_folds(corpus([0, 1], [None, None]), Split(kind="given"), 0)
    with pytest.raises(ConfigError, match="at most the 2 groups"):
        assign_folds(corpus([0, 1, 0, 1], [0, 0, 1, 1]), Split(kind="group_kfold", num_folds=3), 0)
    with pytest.raises(ConfigError, match="has 1 classes to train on"):
        assign_folds(corpus([0, 1], [0, 1]), Split(kind="leave_one_group_out"), 0)


def test_a_fold_is_named_where_too_little_is_left_to_train_on() -> None:
    """c1 is in the videos of one group alone, c2 in those of two."""
    three = corpus([0, 1, 0, 2, 2], [0, 1, 1, 2, 3])
    assert assign_folds(three, Split(kind="leave_one_group_out"), 0)[2] == 4
    with pytest.raises(ConfigError, match=r"fold 1 of 3 has 1 classes to train on and 2 videos"):
        assign_folds(corpus([0, 1, 0, 0], [0, 1, 1, 2]), Split(kind="leave_one_group_out"), 0)


@pytest.mark.timeout(60)
def test_a_group_for_each_of_many_videos() -> None:
    size = 50_000
    table = corpus([n % 200 for n in range(size)], list(range(size)))
    assert assign_folds(table, Split(kind="leave_one_group_out"), 0)[2] == size
