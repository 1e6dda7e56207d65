"""DESCRIPTORS read back: the segments of a video, in their order."""

from collections.abc import Iterable
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.descriptors.streams import Stream
from pipelines.storage.columns import descriptors_from_arrow
from pipelines.storage.store import Store

NO_SPAN_S = (0.0, 0.0)


def span_s(segments: Iterable[pa.Table]) -> tuple[float, float]:
    """Return the times of the first and the last frame in a video's rows of DESCRIPTORS: the span
    that is cut in time.
    """
    times_s = [value for segment in segments for value in segment["timestamps_s"][0].as_py() or []]
    return (min(times_s), max(times_s)) if times_s else NO_SPAN_S


def _times_s(segment: pa.Table, num_frames: int) -> np.ndarray:
    """Return the times [f] of the frames of a stream in one row of DESCRIPTORS; zeros where the
    column was not read.

    A difference belongs to the later of its two frames: the first frame may have none.
    """
    if "timestamps_s" not in segment.column_names:
        return np.zeros(num_frames)
    times_s = segment["timestamps_s"][0].as_py() or []
    return np.array(times_s[len(times_s) - num_frames :], np.float64)


def stored_frames(segment: pa.Table, stream: Stream) -> np.ndarray:
    """Return [f, V T, C] of one row of DESCRIPTORS, V views one after the other, in half precision
    as stored; f = 0 where the stream is null.
    """
    descriptors = descriptors_from_arrow(segment[stream.name][0])
    if descriptors is None:
        descriptors = np.zeros((0, stream.width), np.float16)
    return descriptors.reshape(-1, stream.num_descriptors, stream.width)


class SegmentReader:
    """A reader of single rows of DESCRIPTORS files; it keeps the last file and the columns of its
    last row group.
    """

    def __init__(self, store: Store, columns: list[str]) -> None:
        self.store, self.columns = store, tuple(columns)
        self.name, self.file, self.group = "", None, -1
        self.tables: dict[tuple[str, ...], pa.Table] = {}

    def read(self, name: str, row: int, columns: tuple[str, ...] = ()) -> pa.Table:
        """Return row `row` of file `name`, as a table of one row.

        Args:
            columns: to read instead of the reader's own.
        """
        columns = columns or self.columns
        if name != self.name:
            self.file, self.name, self.group = self.store.open_parquet(name), name, -1
            sizes = [
                self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)
            ]
            self.ends = np.cumsum(sizes)
        group = int(np.searchsorted(self.ends, row, side="right"))
        if group != self.group:
            self.tables, self.group = {}, group
        if columns not in self.tables:
            self.tables[columns] = cast(pq.ParquetFile, self.file).read_row_group(
                group, columns=list(columns)
            )
        first = self.ends[group - 1] if group else 0
        return self.tables[columns].slice(row - first, 1)
