"""UCF101's split files: trainlist01.txt, testlist01.txt and so on, as they are published.

A line is `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`; in test lists without the number. A
folder of them gives the columns split1, split2 and split3, and split, which is the first; one file
is read together with its other half. The group is what the video was cut from (g08 of its class).
"""

import re

import pyarrow as pa

from pipelines.index.readers.names import Names
from pipelines.index.readers.source import Source

_LIST = re.compile(r"(train|test)list(\d+)\.txt$")
_GROUP = re.compile(r"v_(.+_g\d+)_c\d+")


def recognises(source: Source) -> bool:
    """Return whether these are UCF101's lists."""
    return any(map(_LIST.match, source.names))


def read(source: Source, videos: Names) -> pa.Table:
    """Return path, label, group, and a column for each split.

    Raises:
        ConfigError: a line names no class folder, or a half of a split is missing.
    """
    numbers = sorted({found[2] for found in map(_LIST.match, source.names) if found})
    splits: dict[str, dict[str, str]] = {}
    names: dict[str, list[str]] = {}
    for number in numbers:
        column = splits.setdefault(f"split{int(number)}", {})
        for half in ("train", "test"):
            for line, words in enumerate(source.lines(f"{half}list{number}.txt"), start=1):
                label, _, file = words[0].rpartition("/")
                if not label:
                    expected = "CLASS/VIDEO.avi"
                    raise source.wrong(f"{half}list{number}.txt", line, expected, words[0])
                path = videos.path(words[0])
                group = _GROUP.match(file)
                names.setdefault(path, [label.rpartition("/")[2], group[1] if group else path])
                column[path] = half
    table = {
        "path": list(names),
        "label": [label for label, _ in names.values()],
        "group": [group for _, group in names.values()],
    }
    table |= {name: [column.get(p, "unused") for p in names] for name, column in splits.items()}
    return pa.table(table | {"split": table[next(iter(splits))]})
