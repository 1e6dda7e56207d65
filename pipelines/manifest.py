"""Videos and labels in, one manifest row per video out: everything that can be wrong is found here.

No cluster is needed: files are listed, labels are read and matched, folds are assigned.
"""

import collections
import io
import logging
import os
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.config import ConfigError, Manifest, Split

log = logging.getLogger(__name__)

NOT_VIDEOS = frozenset(
    [
        ".csv",
        ".tsv",
        ".txt",
        ".md",
        ".json",
        ".jsonl",
        ".yaml",
        ".yml",
        ".xml",
        ".html",
        ".parquet",
        ".npy",
        ".npz",
        ".pt",
        ".pth",
        ".safetensors",
        ".jpg",
        ".jpeg",
        ".png",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".pdf",
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
        ".bz2",
        ".xz",
        ".zst",
        ".7z",
        ".rar",
        ".py",
        ".sh",
        ".ipynb",
        ".srt",
        ".vtt",
        ".part",
        ".tmp",
    ]
)
"""Suffixes that a folder may hold beside videos. Any other file is tried, and its row says what it was."""


@dataclass(frozen=True)
class Labels:
    """The labels file: per path its labels, and group and split where the file has such columns."""

    labels: dict[str, list[str]]
    group: dict[str, str] | None
    split: dict[str, str] | None


def list_videos(videos: str) -> pa.Table:
    """path, uri, size_bytes, modified (and labels' columns of a manifest) of all videos, by path.

    `videos` is a folder, a glob, one file, or a Parquet or CSV manifest with a column `path`, whose
    relative paths start at the manifest's folder.

    Raises:
        ConfigError: nothing is there, or the manifest has no column `path`.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(videos)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"--videos {videos}: {error}") from error
    if videos.lower().endswith((".csv", ".parquet")):
        return _from_manifest(videos, filesystem, root)
    if any(mark in root for mark in "*?["):
        base = root[: min(root.find(m) for m in "*?[" if m in root)].rpartition("/")[0]
        found = filesystem.glob(root, detail=True)
    elif filesystem.isdir(root):
        base, found = root.rstrip("/"), filesystem.find(root, detail=True)
    elif filesystem.exists(root):
        base, found = root.rpartition("/")[0], {root: filesystem.info(root)}
    else:
        raise ConfigError(
            f"--videos {videos}: expected a folder, glob, file or manifest; nothing is there"
        )
    rows = _rows_of_files(videos, filesystem, base, found)
    if not rows:
        raise ConfigError(f"--videos {videos}: expected videos, found none")
    return pa.Table.from_pylist(rows, schema=_LISTED)


def _rows_of_files(
    videos: str, filesystem: fsspec.AbstractFileSystem, base: str, found: dict[str, dict]
) -> list[dict]:
    rows, skipped = [], collections.Counter()
    for path, info in sorted(found.items()):
        relative = path[len(base) :].lstrip("/")
        suffix = os.path.splitext(path)[1].lower()
        if info["type"] != "file" or info.get("islink") or suffix in NOT_VIDEOS:
            skipped["link" if info.get("islink") else suffix or info["type"]] += 1
        elif not relative.rpartition("/")[2].startswith("."):
            rows.append(_row(relative, filesystem.unstrip_protocol(path), info))
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        log.info("%s: passed over %d files that are no videos (%s)", videos, skipped.total(), kinds)
    return rows


_LISTED = pa.schema(
    [
        ("path", pa.string()),
        ("uri", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified", pa.string()),
    ]
)


def _row(relative: str, uri: str, info: dict) -> dict:
    changed = info.get("ETag") or info.get("mtime") or info.get("LastModified")
    return {
        "path": relative,
        "uri": uri.removeprefix("file://"),
        "size_bytes": info["size"],
        "modified": None if changed is None else str(changed),
    }


def _from_manifest(videos: str, filesystem: fsspec.AbstractFileSystem, path: str) -> pa.Table:
    table = _read_small_table(videos, filesystem, path, "--videos")
    if "path" not in table.column_names:
        raise ConfigError(f"--videos {videos}: expected a column 'path', got {table.column_names}")
    base = path.rpartition("/")[0]
    rows, missing = {}, []
    for name in table["path"].to_pylist():
        if not name:
            raise ConfigError(f"--videos {videos}: a row has no path")
        outside = "://" in name or name.startswith("/")
        fs, full = fsspec.core.url_to_fs(name) if outside else (filesystem, f"{base}/{name}")
        try:
            rows[name] = _row(name, fs.unstrip_protocol(full), fs.info(full))
        except FileNotFoundError:
            missing.append(name)
    if missing:
        raise ConfigError(
            f"--videos {videos}: {len(missing)} files do not exist, such as {missing[:3]}; paths are "
            f"relative to {base}"
        )
    if not rows:
        raise ConfigError(f"--videos {videos}: expected videos, found none")
    return pa.Table.from_pylist([rows[name] for name in sorted(rows)], schema=_LISTED)


def _read_small_table(
    name: str, filesystem: fsspec.AbstractFileSystem, path: str, flag: str
) -> pa.Table:
    try:
        data = filesystem.cat_file(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"{flag} {name}: no such file") from error
    try:
        if name.lower().endswith(".parquet"):
            return pq.read_table(io.BytesIO(data))
        header = data.partition(b"\n")[0].decode("utf-8-sig").strip().split(",")
        text = dict.fromkeys([column.strip('"') for column in header], pa.string())
        options = pyarrow.csv.ConvertOptions(column_types=text, strings_can_be_null=True)
        return pyarrow.csv.read_csv(io.BytesIO(data), convert_options=options)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {name}: not a readable table: {error}") from error


def read_labels(labels: str) -> Labels:
    """A CSV or Parquet file with columns path, label[, group][, split]; several rows per path are several labels.

    Raises:
        ConfigError: no such file, a missing column, an empty cell, or rows of a path that disagree.
    """
    table = _read_small_table(labels, *fsspec.core.url_to_fs(labels), "--labels")
    for column in ("path", "label"):
        if column not in table.column_names:
            raise ConfigError(
                f"--labels {labels}: expected columns path,label[,group][,split], got "
                f"{','.join(table.column_names)}"
            )
    paths, names = table["path"].to_pylist(), table["label"].cast(pa.string()).to_pylist()
    for row, (path, name) in enumerate(zip(paths, names, strict=True), start=2):
        if not path or not name:
            raise ConfigError(f"--labels {labels}: row {row} has no {'label' if path else 'path'}")
    found = collections.defaultdict(set)
    for path, name in zip(paths, names, strict=True):
        found[path].add(name)
    split = _one_per_path(labels, table, "split")
    for path, value in (split or {}).items():
        if value not in ("train", "test"):
            raise ConfigError(
                f"--labels {labels}: expected split train or test, got {value!r} for {path}"
            )
    return Labels(
        labels={path: sorted(values) for path, values in found.items()},
        group=_one_per_path(labels, table, "group"),
        split=split,
    )


def _one_per_path(labels: str, table: pa.Table, column: str) -> dict[str, str] | None:
    if column not in table.column_names:
        return None
    values: dict[str, str] = {}
    cells = table[column].cast(pa.string()).to_pylist()
    for path, value in zip(table["path"].to_pylist(), cells, strict=True):
        if value is None:
            raise ConfigError(f"--labels {labels}: {path} has no {column}")
        if values.setdefault(path, value) != value:
            raise ConfigError(
                f"--labels {labels}: {path} has two values of {column}: {values[path]}, {value}"
            )
    return values


def match(videos: pa.Table, labels: Labels | None, settings: Manifest) -> pa.Table:
    """`videos` with columns labels, group and split; empty or null where there are none.

    Raises:
        ConfigError: videos without labels or labels without videos, unless the settings allow them.
    """
    paths = videos["path"].to_pylist()
    if labels is None:
        known, group, split = {}, None, None
    else:
        known, group, split = labels.labels, labels.group, labels.split
        _match_errors(set(paths), set(known), settings)
        if settings.unlabelled == "skip":
            videos = videos.filter(pa.array([path in known for path in paths]))
            paths = videos["path"].to_pylist()
    if not paths:
        raise ConfigError("--labels: no video has a label; are the paths relative to --videos?")
    for name, column in (
        ("labels", pa.array([known.get(p, []) for p in paths], pa.list_(pa.string()))),
        ("group", pa.array([(group or {}).get(p) for p in paths], pa.string())),
        ("split", pa.array([(split or {}).get(p) for p in paths], pa.string())),
    ):
        videos = videos.append_column(name, column)
    return videos


def _match_errors(videos: set[str], labelled: set[str], settings: Manifest) -> None:
    missing, unlabelled = sorted(labelled - videos), sorted(videos - labelled)
    if missing and settings.missing == "error":
        raise ConfigError(
            f"--labels: {len(missing)} of {len(labelled)} labelled videos do not exist, such as "
            f"{missing[:3]}; paths are relative to --videos. To leave them out: "
            "--set manifest.missing=skip"
        )
    if unlabelled and settings.unlabelled == "error":
        raise ConfigError(
            f"--labels: {len(unlabelled)} of {len(videos)} videos have no label, such as "
            f"{unlabelled[:3]}. To leave them out: --set manifest.unlabelled=skip; to encode them "
            "without label: --set manifest.unlabelled=encode"
        )


def assign_folds(videos: pa.Table, settings: Split, seed: int) -> tuple[pa.Table, str, int]:
    """`videos` with a column fold (the fold that tests it, -1: always training), the kind and the number.

    Fold k trains on every labelled video whose fold is not k. Videos without label are never trained
    or tested on.

    Raises:
        ConfigError: the kind needs a column that the labels lack, or a fold could not train or test.
    """
    labels = videos["labels"].to_pylist()
    groups, splits = videos["group"].to_pylist(), videos["split"].to_pylist()
    use = np.array([bool(names) for names in labels])
    fold = np.full(len(labels), -1, np.int32)
    kind = settings.kind
    if not use.any():
        return videos.drop_columns(["split"]).append_column("fold", pa.array(fold)), "none", 0
    if kind == "auto":
        kind = "given" if any(splits) else "group_kfold" if any(groups) else "random"
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
            fold[chosen] = _group_folds(units, settings.num_folds, seed)
        num_folds = int(fold.max()) + 1
    _check_folds(fold, num_folds, labels, chosen, kind)
    return videos.drop_columns(["split"]).append_column("fold", pa.array(fold)), kind, num_folds


def _need(values: list, chosen: np.ndarray, column: str, kind: str) -> None:
    if any(values[i] is None for i in chosen):
        raise ConfigError(
            f"split.kind={kind}: expected a column {column!r} in the labels, got none; add it, or "
            "--set split.kind=random"
        )


def _random_test(units: np.ndarray, first: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """0 for test, -1 for training; whole units; class by class, so that each class is on both sides."""
    rng = np.random.default_rng(seed)
    test: dict[str, bool] = {}
    for name in np.unique(first):
        fresh = [unit for unit in dict.fromkeys(units[first == name]) if unit not in test]
        rng.shuffle(fresh)
        for place, unit in enumerate(fresh):
            test[unit] = place < round(len(fresh) * fraction)
    return np.array([0 if test[unit] else -1 for unit in units], np.int32)


def _group_folds(units: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
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
    for number in range(num_folds):
        train = {name for i in chosen if fold[i] != number for name in labels[i]}
        if len(train) < 2 or not (fold[chosen] == number).any():
            raise ConfigError(
                f"split.kind={kind}: fold {number} of {num_folds} has {len(train)} classes to train "
                f"on and {int((fold[chosen] == number).sum())} videos to test; at least 2 and 1 are needed"
            )
