"""The labels of videos: read from the user's file, and matched with the videos that were listed."""

import bisect
import unicodedata
from dataclasses import dataclass

import pyarrow as pa

from pipelines.errors import ConfigError
from pipelines.index.user_tables import read_user_table, some, texts
from pipelines.settings.sections import Manifest


@dataclass(frozen=True)
class Labels:
    """The content of a labels file, each a dictionary by path; `group` and `split` are None without
    such a column.
    """

    labels: dict[str, list[str]]
    group: dict[str, str] | None
    split: dict[str, str] | None


def read_labels(labels: str, split: str = "") -> Labels:
    """Read a CSV or Parquet file with columns path, label[, group][, split].

    A video with several labels has several rows.

    Args:
        split: name of the column with the split, which must then exist; empty: the column `split`,
            if there is one.

    Raises:
        ConfigError: no such file, a missing column, an empty cell, or rows of one path with
            different groups or splits.
    """
    table = read_user_table("--labels", labels)
    for column in ("path", "label"):
        if column not in table.column_names:
            raise ConfigError(
                f"--labels {labels}: expected columns path,label[,group][,split], got "
                f"{','.join(table.column_names)}"
            )
    paths = texts("--labels", labels, table, "path").to_pylist()
    names = _shared(texts("--labels", labels, table, "label"))
    labels_of: dict[str, list[str]] = {}
    for row, (path, name) in enumerate(zip(paths, names, strict=True), start=2):
        if not path or not name:
            raise ConfigError(f"--labels {labels}: row {row} has no {'label' if path else 'path'}")
        classes = labels_of.setdefault(path, [name])
        if name not in classes:
            bisect.insort(classes, name)
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
    )


def _shared(column: pa.ChunkedArray) -> list[str | None]:
    """Return the texts of a column, equal ones as one object: a million rows have few labels."""
    encoded = column.combine_chunks().dictionary_encode()
    texts = [*encoded.dictionary.to_pylist(), None]
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


def match(videos: pa.Table, labels: Labels | None, settings: Manifest) -> pa.Table:
    """Return `videos` with three more columns: labels (empty where there are none), group and split
    (null where there are none).

    Raises:
        ConfigError: videos without labels or labels without videos, unless the settings allow them.
    """
    paths = videos["path"].to_pylist()
    if labels is None:
        labels_of, group, split = {}, None, None
    else:
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
    return videos


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
