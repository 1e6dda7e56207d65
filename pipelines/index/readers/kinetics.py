"""Kinetics' CSV files: label,youtube_id,time_start,time_end,split, one file or a folder of them.

A video is `YOUTUBEID_000010_000020.mp4`, the ten seconds alone, or `YOUTUBEID.mp4`, the whole
video, of which the row is then the stretch. The test list, whose labels are published for some
editions, counts as test only where there is no validation list.
"""

import csv
import io

import pyarrow as pa

from pipelines.index.readers.names import Names
from pipelines.index.readers.source import Source

_COLUMNS = {"label", "youtube_id", "time_start", "time_end"}


def recognises(source: Source) -> bool:
    """Return whether a CSV file has Kinetics' columns."""
    tables = source.named(".csv")
    return bool(tables) and set(source.head(tables[0]).strip().split(",")) >= _COLUMNS


def read(source: Source, videos: Names) -> pa.Table:
    """Return path, label, start_s and end_s (null where the file is the stretch), and split where
    both halves are there.

    Raises:
        ConfigError: a time is no number.
    """
    rows: list[dict] = []
    for name in source.named(".csv"):
        for line, row in enumerate(_rows(source, name), start=2):
            try:
                start, end = float(row["time_start"]), float(row["time_end"])
            except (TypeError, ValueError):
                raise source.wrong(name, line, "times in seconds", row) from None
            cut = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
            path = videos.path(cut, row["youtube_id"])
            is_whole = path.rpartition("/")[2].partition(".")[0] == row["youtube_id"]
            rows.append(
                {
                    "path": path,
                    "label": row["label"],
                    "start_s": start if is_whole else None,
                    "end_s": end if is_whole else None,
                    "split": (row.get("split") or name.rpartition(".")[0]).lower(),
                }
            )
    return _with_split([row for row in rows if row["label"]])


def _with_split(rows: list[dict]) -> pa.Table:
    has_validation = any(row["split"].startswith("val") for row in rows)
    for row in rows:
        is_train = row["split"].startswith("train")
        is_tested = row["split"].startswith("val" if has_validation else "test")
        row["split"] = "train" if is_train else "test" if is_tested else "unused"
    texts, times = ("path", "label", "split"), ("start_s", "end_s")
    types = dict.fromkeys(texts, pa.string()) | dict.fromkeys(times, pa.float64())
    schema = pa.schema(list(types.items()))
    table = pa.Table.from_pylist(rows, schema=schema)
    if {"train", "test"} - set(table["split"].to_pylist()):
        table = table.drop_columns(["split"])
    if not any(table["start_s"].to_pylist()) and table["end_s"].null_count == table.num_rows:
        table = table.drop_columns(["start_s", "end_s"])
    return table


def _rows(source: Source, name: str) -> csv.DictReader:
    return csv.DictReader(io.StringIO(source.text(name)))
