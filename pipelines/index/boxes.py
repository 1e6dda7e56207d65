"""Boxes: rows of labels or of a manifest say which part of a picture is the video."""

import logging
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipelines.errors import ConfigError
from pipelines.settings.sections import Picture

log = logging.getLogger(__name__)

Box = tuple[float, float, float, float]

COLUMNS = ("box_x", "box_y", "box_width", "box_height")


def read_boxes(flag: str, name: str, table: pa.Table, ids: Sequence[str]) -> dict[str, Box] | None:
    """Return {video: its box}, of those that have one; None without such columns.

    Args:
        ids: the video of each row.

    Raises:
        ConfigError: some of the columns are missing, cells are no box, or two rows of a video have
            different ones.
    """
    there = [column for column in COLUMNS if column in table.column_names]
    if not there:
        return None
    if len(there) < len(COLUMNS):
        raise ConfigError(
            f"{flag} {name}: expected {', '.join(COLUMNS)} together, got {', '.join(there)}"
        )
    boxes: dict[str, Box] = {}
    without = set()
    cells = zip(*(table[column].to_pylist() for column in COLUMNS), strict=True)
    for row, (video, values) in enumerate(zip(ids, cells, strict=True), start=2):
        if all(value in (None, "") for value in values):
            without.add(video)
            continue
        box = _box(f"{flag} {name}: row {row}, {video}", values)
        if boxes.setdefault(video, box) != box:
            raise ConfigError(
                f"{flag} {name}: row {row}, {video}: expected one box a video, got {boxes[video]} "
                f"and {box}; give each object of a picture a copy of the file"
            )
    if both := sorted(without & boxes.keys()):
        raise ConfigError(f"{flag} {name}: {both[0]} has rows with a box, and rows without")
    return boxes


def _box(where: str, values: tuple[object, ...]) -> Box:
    try:
        x, y, width, height = (float(str(value)) for value in values)
    except ValueError:
        x = y = width = height = math.nan
    if not (all(map(math.isfinite, (x, y, width, height))) and width > 0 and height > 0):
        raise ConfigError(
            f"{where}: expected a box in px, of a width and height above 0, got "
            f"{', '.join(f'{c} {v!r}' for c, v in zip(COLUMNS, values, strict=True))}; correct the "
            "row, or empty its four cells for the whole picture"
        )
    return x, y, width, height


def with_boxes(videos: pa.Table, boxes: dict[str, Box]) -> pa.Table:
    """Return the videos with the columns of their boxes, null where they have none."""
    rows = [boxes.get(path) for path in videos["path"].to_pylist()]
    for place, column in enumerate(COLUMNS):
        values = pa.array([box and box[place] for box in rows], pa.float64())
        if column in videos.column_names:
            videos = videos.drop_columns([column])
        videos = videos.append_column(column, values)
    return videos


def with_margin(videos: pa.Table, picture: Picture) -> pa.Table:
    """Return the videos with boxes that are larger by picture.box_margin, as they are cut out.

    Raises:
        ConfigError: picture.box=crop, and no video has a box.
    """
    if picture.box == "ignore":
        return videos
    number = len(videos["box_x"].drop_null()) if "box_x" in videos.column_names else 0
    if not number:
        raise ConfigError(
            f"picture.box=crop: expected columns {', '.join(COLUMNS)} in --labels or in the "
            "manifest of --videos, got none with a value; give them, or set picture.box=ignore"
        )
    if without := videos.num_rows - number:
        log.warning("%d of %d videos have no box, and are whole pictures", without, videos.num_rows)
    # NaN stands for null.
    x, y, width, height = (videos[column].to_numpy() for column in COLUMNS)
    margin = picture.box_margin
    larger = (
        x - margin * width,
        y - margin * height,
        (1 + 2 * margin) * width,
        (1 + 2 * margin) * height,
    )
    for column, values in zip(COLUMNS, larger, strict=True):
        cells = pa.array(np.asarray(values, np.float64), from_pandas=True)
        videos = videos.set_column(videos.column_names.index(column), column, cells)
    return videos
