"""FCVID's text files, in one folder: names with their split, and a matrix of labels.

`FCVID_VideoName_TrainTestSplit.txt` has a line `VIDEO train` or `VIDEO test` for each video,
`FCVID_Label.txt` a line of 0 and 1 for each, a column for each class. A third file whose name
holds `class` gives the names of the classes, one a line, after a number or not; without it they
are class_001 and so on.
"""

import re

import pyarrow as pa

from pipelines.errors import ConfigError
from pipelines.index.readers.names import Names
from pipelines.index.readers.source import Source

_SPLIT, _LABELS = "FCVID_VideoName_TrainTestSplit.txt", "FCVID_Label.txt"


def recognises(source: Source) -> bool:
    """Return whether both files are in the folder."""
    return {_SPLIT, _LABELS} <= set(source.names)


def read(source: Source, videos: Names) -> pa.Table:
    """Return path, label and split; a video of several classes has several rows.

    Raises:
        ConfigError: the files do not fit each other.
    """
    named, marked = source.lines(_SPLIT), source.lines(_LABELS)
    if len(named) != len(marked):
        raise ConfigError(
            f"--labels {source.uri}: expected as many lines in {_LABELS} as in {_SPLIT}, which has "
            f"{len(named)}, got {len(marked)}"
        )
    classes = _classes(source, len(marked[0]) if marked else 0)
    rows: dict[str, list[str]] = {"path": [], "label": [], "split": []}
    for line, (words, marks) in enumerate(zip(named, marked, strict=True), start=1):
        if len(words) != 2 or words[1].lower() not in ("train", "test"):
            raise source.wrong(_SPLIT, line, "VIDEO and train or test", " ".join(words))
        if len(marks) != len(classes):
            raise source.wrong(_LABELS, line, f"{len(classes)} numbers", f"{len(marks)} of them")
        path = videos.path(words[0].replace("\\", "/"))
        for label, mark in zip(classes, marks, strict=True):
            if float(mark):
                rows["path"].append(path)
                rows["label"].append(label)
                rows["split"].append(words[1].lower())
    return pa.table(rows)


def _classes(source: Source, count: int) -> list[str]:
    for name in source.named(".txt"):
        if "class" in name.lower():
            lines = source.text(name).splitlines()
            classes = [re.sub(r"^\d+[\s,;:]+", "", line).strip() for line in lines if line.strip()]
            if len(classes) == count:
                return classes
            raise ConfigError(
                f"--labels {source.uri}: expected {count} classes in {name}, as {_LABELS} has "
                f"columns, got {len(classes)}"
            )
    return [f"class_{number:03d}" for number in range(1, count + 1)]
