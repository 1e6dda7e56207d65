"""Assignment of videos to folds, by the split of the labels file, by groups or at random.

Needs no cluster.
"""

import collections

import numpy as np
import pyarrow as pa

from pipelines.errors import ConfigError
from pipelines.settings.sections import Split


def assign_folds(videos: pa.Table, settings: Split, seed: int) -> tuple[pa.Table, str, int]:
    """Return `videos` with a column fold (the fold that tests it, -1: always training), kind and
    number.

    Fold k trains on every labelled video whose fold is not k. Videos without label are never
    trained or tested on, and those that a given split does not use are left without label.

    Raises:
        ConfigError: the kind needs a column that the labels lack, or a fold could not train or
            test.
    """
    labels = videos["labels"].to_pylist()
    groups, splits = videos["group"].to_pylist(), videos["split"].to_pylist()
    kind = settings.kind
    if kind == "auto":
        kind = "given" if any(splits) else "group_kfold" if any(groups) else "random"
    if kind == "given" and "unused" in splits:
        labels = [n if s != "unused" else [] for n, s in zip(labels, splits, strict=True)]
        index = videos.column_names.index("labels")
        videos = videos.set_column(index, "labels", pa.array(labels, pa.list_(pa.string())))
    use = np.array([bool(names) for names in labels])
    fold = np.full(len(labels), -1, np.int32)
    if not use.any():
        return unsplit(videos)
    chosen = np.flatnonzero(use)
    first = np.array([labels[i][0] for i in chosen])
    if kind == "given":
        _need(splits, chosen, "split", kind)
        fold[[i for i in chosen if splits[i] == "test"]] = 0
        num_folds = 1
    elif kind == "random":
        units = np.array([groups[i] if groups[i] is not None else str(i) for i in chosen])
        fold[chosen] = _random_test(units, first, settings.test_fraction, seed)
        num_folds = 1
    else:
        _need(groups, chosen, "group", kind)
        units = np.array([groups[i] for i in chosen])
        if kind == "leave_one_group_out":
            fold[chosen] = np.unique(units, return_inverse=True)[1]
        else:
            fold[chosen] = group_folds(units, settings.num_folds, seed)
        num_folds = int(fold.max()) + 1
    _check_folds(fold, num_folds, labels, chosen, kind)
    return videos.drop_columns(["split"]).append_column("fold", pa.array(fold)), kind, num_folds


def unsplit(videos: pa.Table) -> tuple[pa.Table, str, int]:
    """Return `assign_folds` of videos that no fold tests."""
    fold = pa.array(np.full(videos.num_rows, -1, np.int32))
    return videos.drop_columns(["split"]).append_column("fold", fold), "none", 0


def _need(values: list, chosen: np.ndarray, column: str, kind: str) -> None:
    if any(values[i] is None for i in chosen):
        raise ConfigError(
            f"split.kind={kind}: expected a column {column!r} in the labels, got none; add it, or "
            "--set split.kind=random"
        )


def _random_test(units: np.ndarray, first: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return 0 for test, -1 for training; whole units; class by class, so that each class is on
    both sides.
    """
    rng = np.random.default_rng(seed)
    test: dict[str, bool] = {}
    for name in np.unique(first):
        fresh = [unit for unit in dict.fromkeys(units[first == name]) if unit not in test]
        rng.shuffle(fresh)
        for index, unit in enumerate(fresh):
            test[unit] = index < round(len(fresh) * fraction)
    return np.array([0 if test[unit] else -1 for unit in units], np.int32)


def group_folds(units: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Return the fold of each video, [N], from its group, [N]: whole groups, in folds of similar
    size.
    """
    # sklearn takes a second to import, and only this kind of split needs it.
    from sklearn.model_selection import GroupKFold

    num_groups = len(np.unique(units))
    if num_groups < num_folds:
        raise ConfigError(
            f"split.num_folds: expected at most the {num_groups} groups, got {num_folds}"
        )
    folds = GroupKFold(num_folds, shuffle=True, random_state=seed)
    fold = np.zeros(len(units), np.int32)
    for number, (_, test) in enumerate(folds.split(units, groups=units)):
        fold[test] = number
    return fold


def _check_folds(
    fold: np.ndarray, num_folds: int, labels: list[list[str]], chosen: np.ndarray, kind: str
) -> None:
    tested_in: dict[str, set[int]] = collections.defaultdict(set)
    for i in chosen:
        for name in labels[i]:
            tested_in[name].add(int(fold[i]))
    # A class is trained on in every fold but the one that tests all its videos.
    lost = collections.Counter(next(iter(folds)) for folds in tested_in.values() if len(folds) == 1)
    tests = collections.Counter(fold[chosen].tolist())
    for number in range(num_folds):
        num_classes = len(tested_in) - lost[number]
        if num_classes < 2 or not tests[number]:
            raise ConfigError(
                f"split.kind={kind}: fold {number} of {num_folds} has {num_classes} classes to "
                f"train on and {tests[number]} videos to test; at least 2 and 1 are needed"
            )
