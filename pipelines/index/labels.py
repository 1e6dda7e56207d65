"""The labels of videos: read from the user's file, and matched with the videos that were listed."""

import bisect
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa

from pipelines.errors import ConfigError
from pipelines.index import boxes
from pipelines.index import stretches as cut_out
from pipelines.index.boxes import Box
from pipelines.index.readers.registry import is_untrimmed, read_annotations
from pipelines.index.user_tables import read_user_table, some, texts
from pipelines.settings.sections import Manifest

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Labels:
    """The content of a labels file, each a dictionary by path; `group`, `split`, `box` and
    `ignored` are None without such columns.
    """

    labels: dict[str, list[str]]
    group: dict[str, str] | None
    split: dict[str, str] | None
    box: dict[str, Box] | None = None
    ignored: dict[str, list[str]] | None = None


def read_labels(
    labels: str,
    split: str = "",
    videos: Sequence[str] = (),
    stretches: Literal["auto", "use", "ignore"] = "auto",
    *,
    with_boxes: bool = False,
) -> Labels:
    """Read a CSV or Parquet file with columns path, label[, group][, split][, start_s, end_s][,
    ignore], or annotations of a data set (`pipelines.index.readers.registry`).

    A video with several labels has several rows. Blanks at the ends of a cell are no part of it,
    but for paths; classes that differ by case or blanks alone are warned of.

    Args:
        split: name of the column with the split, which must then exist; empty: the column `split`,
            if there is one.
        videos: paths of the listed videos, which annotations of data sets name in ways of their
            own.
        stretches: see `manifest.stretches`.
        with_boxes: read the columns of `pipelines.index.boxes` too.

    Raises:
        ConfigError: no such file, a missing column, an empty cell, rows of one path with different
            groups, splits or boxes, or cells that are no box.
    """
    table = _table(labels, videos, stretches)
    paths = texts("--labels", labels, table, "path").to_pylist()
    names = _shared(texts("--labels", labels, table, "label"))
    if all(paths):
        paths = cut_out.ids("--labels", labels, table, paths)
    labels_of: dict[str, list[str]] = {}
    for row, (path, name) in enumerate(zip(paths, names, strict=True), start=2):
        if not path or not name:
            raise ConfigError(f"--labels {labels}: row {row} has no {'label' if path else 'path'}")
        classes = labels_of.setdefault(path, [name])
        if name not in classes:
            bisect.insort(classes, name)
    _report_alike(labels, {name for classes in labels_of.values() for name in classes})
    if split and split not in table.column_names:
        raise ConfigError(
            f"split.name={split}: expected a column {split!r} in --labels {labels}, got "
            f"{','.join(table.column_names)}"
        )
    column = split or "split"
    splits = _one_per_path(labels, table, column, paths)
    for path, value in (splits or {}).items():
        if value not in ("train", "test", "unused"):
            raise ConfigError(
                f"--labels {labels}: expected {column} train, test or unused, got {value!r} for "
                f"{path}"
            )
    return Labels(
        labels=labels_of,
        group=_one_per_path(labels, table, "group", paths),
        split=splits,
        ignored=_ignored(labels, table, paths, labels_of),
        box=boxes.read_boxes("--labels", labels, table, paths) if with_boxes else None,
    )


def _table(labels: str, videos: Sequence[str], stretches: str) -> pa.Table:
    """Return a table with columns path and label; with start_s and end_s where they count."""
    annotated = read_annotations(labels, videos)
    table = read_user_table("--labels", labels) if annotated is None else annotated
    if stretches == "ignore" or (stretches == "auto" and is_untrimmed(annotated)):
        table = table.select([n for n in table.column_names if n not in cut_out.COLUMNS])
    for column in ("path", "label"):
        if column not in table.column_names:
            raise ConfigError(
                f"--labels {labels}: expected columns path,label[,group][,split], got "
                f"{','.join(table.column_names)}"
            )
    return table


def _report_alike(labels: str, classes: set[str]) -> None:
    """Warn of classes that differ by case or blanks alone: they may be one class."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        alike[" ".join(name.casefold().split())].append(name)
    several = [names for names in alike.values() if len(names) > 1]
    if several:
        log.warning(
            "--labels %s: %d classes differ by case or blanks alone, and count as several: %s",
            labels,
            sum(map(len, several)),
            "; ".join(" and ".join(map(repr, names)) for names in several[:5]),
        )


def _shared(column: pa.ChunkedArray) -> list[str | None]:
    """Return the texts of a column without blanks at their ends, None for empty ones.

    Equal ones are one object: a million rows have few labels.
    """
    encoded = column.combine_chunks().dictionary_encode()
    stripped = {t: t.strip() or None for t in encoded.dictionary.to_pylist()}
    once = {t: t for t in stripped.values()}
    texts = [*(once[t] for t in stripped.values()), None]
    return [texts[index] for index in encoded.indices.fill_null(len(texts) - 1).to_numpy()]


def _one_per_path(
    labels: str, table: pa.Table, column: str, paths: list[str]
) -> dict[str, str] | None:
    if column not in table.column_names:
        return None
    cells = texts("--labels", labels, table, column)
    values: dict[str, str] = {}
    for path, value in zip(paths, _shared(cells), strict=True):
        if value is None:
            raise ConfigError(f"--labels {labels}: {path} has no {column}")
        if values.setdefault(path, value) != value:
            raise ConfigError(
                f"--labels {labels}: {path} has two values of {column}: {values[path]}, {value}"
            )
    return values


def _ignored(
    labels: str, table: pa.Table, paths: list[str], labels_of: dict[str, list[str]]
) -> dict[str, list[str]] | None:
    """Return {path: classes that it neither trains nor tests}, of those that have some; None
    without any.

    Raises:
        ConfigError: a class that no row has, or that its own row has as a label.
    """
    if "ignore" not in table.column_names:
        return None
    known = {name for classes in labels_of.values() for name in classes}
    found: dict[str, set[str]] = defaultdict(set)
    cells = texts("--labels", labels, table, "ignore").to_pylist()
    for row, (path, cell) in enumerate(zip(paths, cells, strict=True), start=2):
        names = {name.strip() for name in (cell or "").split(";")} - {""}
        if wrong := sorted(names - known) or sorted(names & {*labels_of[path]}):
            raise ConfigError(
                f"--labels {labels}: row {row}, {path}: ignore: expected classes that other rows "
                f"have, and not this video, joined by ;, got {some(wrong)}"
            )
        found[path] |= names
    return {path: sorted(names) for path, names in found.items() if names} or None


def match(videos: pa.Table, labels: Labels | None, settings: Manifest) -> pa.Table:
    """Return `videos` with three more columns: labels (empty where there are none), group and split
    (null where there are none).

    Raises:
        ConfigError: videos without labels or labels without videos, unless the settings allow them.
    """
    paths = videos["path"].to_pylist()
    if labels is None:
        labels_of, group, split, ignored = {}, None, None, None
    else:
        labels = _respelled(videos, labels)
        videos = cut_out.cut(videos, labels.labels)
        ignored = labels.ignored
        if labels.box is not None:
            videos = boxes.with_boxes(videos, labels.box)
        paths = videos["path"].to_pylist()
        labels_of, group, split = labels.labels, labels.group, labels.split
        _match_errors(set(paths), set(labels_of), settings)
        if settings.unlabelled == "skip":
            videos = videos.filter(pa.array([path in labels_of for path in paths]))
            paths = videos["path"].to_pylist()
    if not paths:
        raise ConfigError("--labels: no video has a label; are the paths relative to --videos?")
    for name, column in (
        ("labels", pa.array([labels_of.get(p, []) for p in paths], pa.list_(pa.string()))),
        ("group", pa.array([(group or {}).get(p) for p in paths], pa.string())),
        ("split", pa.array([(split or {}).get(p) for p in paths], pa.string())),
    ):
        videos = videos.append_column(name, column)
    if ignored is not None:
        names = pa.array([ignored.get(path, []) for path in paths], pa.list_(pa.string()))
        videos = videos.append_column("ignored", names)
    return videos


def _respelled(videos: pa.Table, labels: Labels) -> Labels:
    """Return the labels by the paths of the videos, where they spell the same file in another way,
    such as `./a.mp4` or the absolute path of `a.mp4`.

    Raises:
        ConfigError: two spellings of a file have different groups or splits.
    """
    paths = set(videos["path"].to_pylist())
    others = [name for name in labels.labels if name not in paths]
    if not others:
        return labels
    file_of = {path: cut_out.split(path)[0] for path in sorted(paths, reverse=True)}
    path_of = {_plain(file): file for file in file_of.values()}
    path_of |= dict(
        zip(videos["uri"].to_pylist(), map(file_of.get, videos["path"].to_pylist()), strict=True)
    )
    path_of = {name: new for name in others if (new := _in_list(name, path_of)) is not None}
    labels_of: dict[str, list[str]] = {}
    for name, classes in labels.labels.items():
        path = path_of.get(name, name)
        labels_of[path] = sorted({*labels_of.get(path, []), *classes})
    return Labels(
        labels_of,
        _by_path(labels.group, path_of),
        _by_path(labels.split, path_of),
        _by_path(labels.box, path_of),
        _by_path(labels.ignored, path_of),
    )


def _in_list(name: str, path_of: dict[str, str]) -> str | None:
    """Return the id of a video, spelled as the list does; None where it is not there."""
    file, _ = cut_out.split(name)
    path = path_of.get(_plain(file))
    return None if path is None else f"{path}{name.removeprefix(file)}"


def _plain(name: str) -> str:
    return name if "://" in name else os.path.normpath(name)


def _by_path(values: dict[str, T] | None, path_of: dict[str, str]) -> dict[str, T] | None:
    if values is None:
        return None
    merged: dict[str, T] = {}
    for name, value in values.items():
        path = path_of.get(name, name)
        if merged.setdefault(path, value) != value:
            raise ConfigError(
                f"--labels: {name} and {path} are the same file, and have {value} and "
                f"{merged[path]}; give it one row"
            )
    return merged


def _match_errors(videos: set[str], labelled: set[str], settings: Manifest) -> None:
    missing, unlabelled = sorted(labelled - videos), sorted(videos - labelled)
    if missing and settings.missing == "error":
        raise ConfigError(
            f"--labels: {len(missing)} of {len(labelled)} labelled videos do not exist, such as "
            f"{some(missing)}; paths are relative to --videos. To leave them out: "
            f"--set manifest.missing=skip{_spelling(missing, unlabelled)}"
        )
    if unlabelled and settings.unlabelled == "error":
        raise ConfigError(
            f"--labels: {len(unlabelled)} of {len(videos)} videos have no label, such as "
            f"{some(unlabelled)}. To leave them out: --set manifest.unlabelled=skip; to encode "
            "them without label: --set manifest.unlabelled=encode"
        )


def _spelling(missing: list[str], unlabelled: list[str]) -> str:
    """Return a hint where names look the same, but one has its accents in one character and the
    other in two; else empty.
    """
    normalised = {unicodedata.normalize("NFC", name) for name in unlabelled}
    same = [name for name in missing if unicodedata.normalize("NFC", name) in normalised]
    if not same:
        return ""
    return (
        f". {len(same)} of them, such as {same[0][:200]!a}, are there in another Unicode form "
        "(NFC, NFD): write the labels as the files are named"
    )


def target_matrix(
    labels: list[list[str]], classes: list[str], ignored: Sequence[list[str]] = ()
) -> np.ndarray:
    """Return the targets [N, K]: 1 where a video has a class, -1 where it does not count for it,
    else 0.
    """
    index_of_class = {name: k for k, name in enumerate(classes)}
    targets = np.zeros((len(labels), len(classes)), np.int8)
    for row, names in enumerate(ignored):
        targets[row, [index_of_class[name] for name in names if name in index_of_class]] = -1
    for row, names in enumerate(labels):
        targets[row, [index_of_class[name] for name in names]] = 1
    return targets
