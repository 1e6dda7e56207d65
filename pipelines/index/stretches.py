"""Stretches of files as videos: rows with start_s and end_s.

Such a video has the path of its file and the times as its id, in the manner of media fragments:
`game.mp4#t=10,20`.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import pyarrow as pa

from pipelines.errors import ConfigError

COLUMNS = ("start_s", "end_s")
_MARK = "#t="


def ids(flag: str, name: str, table: pa.Table, paths: list[str]) -> list[str]:
    """Return the id of each row: its path, with the times where it has some.

    Raises:
        ConfigError: only one of the columns is there, or the times of a row are no stretch.
    """
    there = [column for column in COLUMNS if column in table.column_names]
    if not there:
        return paths
    if len(there) == 1:
        raise ConfigError(f"{flag} {name}: expected start_s and end_s together, got {there[0]}")
    times = zip(*(table[column].to_pylist() for column in COLUMNS), strict=True)
    return [
        _id(flag, name, row, path, start, end)
        for row, (path, (start, end)) in enumerate(zip(paths, times, strict=True), start=2)
    ]


def _id(flag: str, name: str, row: int, path: str, start: object, end: object) -> str:
    if start in (None, "") and end in (None, ""):
        return path
    try:
        start_s, end_s = float(str(start)), float(str(end))
    except ValueError:
        start_s = end_s = math.nan
    if not 0 <= start_s < end_s < math.inf:
        raise ConfigError(
            f"{flag} {name}: row {row}, {path}: expected 0 <= start_s < end_s in seconds, got "
            f"{start!r} and {end!r}"
        )
    return f"{path}{_MARK}{start_s:.10g},{end_s:.10g}"


def split(video_id: str) -> tuple[str, tuple[float, float] | None]:
    """Return the path of a video's file, and its stretch in seconds; None of a whole file."""
    path, mark, times = video_id.rpartition(_MARK)
    if mark:
        try:
            start_s, end_s = map(float, times.split(","))
            return path, (start_s, end_s)
        except ValueError:
            pass
    return video_id, None


def cut(videos: pa.Table, labelled: Iterable[str]) -> pa.Table:
    """Return the videos with a row for each stretch that has a label, in place of the whole file
    where that has none.

    Args:
        videos: columns path, start_s, end_s and others.
        labelled: ids that labels name.
    """
    labelled = set(labelled)
    stretches: dict[str, list[str]] = defaultdict(list)
    for name in sorted(labelled):
        path, times = split(name)
        if times:
            stretches[path].append(name)
    if not stretches:
        return videos
    paths = videos["path"].to_pylist()
    known, rows, names = set(paths), [], []
    for row, path in enumerate(paths):
        parts = [name for name in stretches.get(path, ()) if name not in known]
        for name in parts if parts and path not in labelled else [path, *parts]:
            rows.append(row)
            names.append(name)
    taken = videos.take(pa.array(rows, pa.int64()))
    return with_times(taken.set_column(taken.column_names.index("path"), "path", pa.array(names)))


def with_times(videos: pa.Table) -> pa.Table:
    """Return the videos with start_s and end_s by their path, sorted by path."""
    times = [split(name)[1] or (None, None) for name in videos["path"].to_pylist()]
    for index, column in enumerate(COLUMNS):
        values = pa.array([pair[index] for pair in times], pa.float64())
        if column in videos.column_names:
            videos = videos.drop_columns([column])
        videos = videos.append_column(column, values)
    return videos.sort_by("path")
