"""The stage that draws the frames which codebooks are fitted on."""

import hashlib

import numpy as np
import pyarrow as pa

from encoders.descriptors.streams import Stream
from pipelines.cluster.meter import SILENT, Meter
from pipelines.describe.segments import SegmentReader, stored_frames
from pipelines.storage.columns import descriptors_to_arrow
from pipelines.storage.store import Store
from pipelines.storage.tables import SAMPLES


class SampleFrames:
    """A mapper of segments (file and row of DESCRIPTORS) to video_id, frame and a column of
    descriptors per stream.

    A frame is kept where a number drawn for (seed, video, frame) is below `rate`, so the sample
    does not depend on files, order or workers. A stream that has nothing of a frame, as a
    difference of the first, is null there. Descriptors are read of row groups in which a frame is
    drawn: of a large corpus a small part.
    """

    def __init__(
        self,
        store: Store,
        streams: dict[str, Stream],
        rate: float,
        seed: int,
        meter: Meter = SILENT,
    ) -> None:
        self.meter = meter
        meter.joined("read")
        self.reader = SegmentReader(store, list(streams))
        self.streams, self.rate, self.seed = streams, rate, seed

    def __call__(self, places: pa.Table) -> pa.Table:
        with self.meter("read"):
            return self._rows(places)

    def _rows(self, places: pa.Table) -> pa.Table:
        rows: list[dict] = []
        kept: dict[str, list[np.ndarray | None]] = {name: [] for name in self.streams}
        for place in places.to_pylist():
            where = place["file"], place["row"]
            indices = self.reader.read(*where, ("frame_indices",))["frame_indices"][0].as_py()
            drawn = [
                k
                for k, index in enumerate(indices)
                if _uniform(self.seed, place["video_id"], index) < self.rate
            ]
            if not drawn:
                continue
            rows += [{"video_id": place["video_id"], "frame": indices[k]} for k in drawn]
            row = self.reader.read(*where)
            for name, stream in self.streams.items():
                frames = stored_frames(row, stream)
                # A stream has the last frames of a segment: the first of a video may lie in no
                # window of it.
                late = len(indices) - len(frames)
                kept[name] += [frames[k - late] if k >= late else None for k in drawn]
        table = pa.Table.from_pylist(rows, schema=SAMPLES.schema())
        for name, stream in self.streams.items():
            table = table.append_column(name, descriptors_to_arrow(kept[name], stream.width))
        return table


def _uniform(seed: int, video_id: str, frame: int) -> float:
    sha = hashlib.sha256(f"{seed}\n{video_id}\n{frame}".encode())
    return int.from_bytes(sha.digest()[:8], "little") / 2**64
