"""HMDB51's split files: brush_hair_test_split1.txt and so on, one for each class and split.

A line is `April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1`: 1 train, 2 test, 0 neither. The folder
gives the columns split1, split2 and split3, and split, which is the first.
"""

import re

import pyarrow as pa

from pipelines.index.readers.names import Names
from pipelines.index.readers.source import Source

_LIST = re.compile(r"(.+)_test_split(\d+)\.txt$")
_HALVES = {"0": "unused", "1": "train", "2": "test"}


def recognises(source: Source) -> bool:
    """Return whether these are HMDB51's lists."""
    return any(map(_LIST.match, source.names))


def read(source: Source, videos: Names) -> pa.Table:
    """Return path, label, and a column for each split.

    Raises:
        ConfigError: a line says neither 0, 1 nor 2.
    """
    splits: dict[str, dict[str, str]] = {}
    labels: dict[str, str] = {}
    for name in source.names:
        if not (found := _LIST.match(name)):
            continue
        label, number = found.groups()
        column = splits.setdefault(f"split{number}", {})
        for line, words in enumerate(source.lines(name), start=1):
            if len(words) != 2 or words[1] not in _HALVES:
                raise source.wrong(name, line, "VIDEO.avi and 0, 1 or 2", " ".join(words))
            # The class is a folder, where several classes have a video of one name.
            path = videos.path(f"{label}/{words[0]}", words[0])
            labels[path], column[path] = label, _HALVES[words[1]]
    table: dict[str, list[str]] = {"path": list(labels), "label": list(labels.values())}
    ordered = dict(sorted(splits.items()))
    table |= {name: [column.get(p, "unused") for p in labels] for name, column in ordered.items()}
    return pa.table(table | {"split": table[next(iter(ordered))]})
