"""The stage that draws the frames which codebooks are fitted on."""

import hashlib
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.descriptors.streams import Stream
from pipelines.cluster.meter import SILENT, Meter
from pipelines.describe.segments import SegmentReader, stored_frames
from pipelines.storage.columns import descriptors_to_arrow
from pipelines.storage.store import Store
from pipelines.storage.tables import SAMPLES


class Draw(NamedTuple):
    """The frames of a stream that are kept: those whose number, drawn for (seed, video, frame), is
    below `rate`, and of the first `videos` videos of `ranked` at least one.
    """

    rate: float
    videos: int = 0

    @classmethod
    def of_each_video(cls, frames: int, num_frames: int, num_videos: int) -> Self:
        """Return the draw of at most about `frames` out of so many, one of each video first."""
        others = num_frames - num_videos
        return cls(max(0, frames - num_videos) / others if others else 0.0, min(frames, num_videos))


def ranked(places: pa.Table, seed: int) -> pa.Table:
    """Return the segments with a column `rank`: the place of their video in a random order, at one
    random segment of each video; at the others one that is behind all.

    Args:
        places: video_id, segment, and others; segments without frames are left out.
    """
    places = places.sort_by([("video_id", "ascending"), ("segment", "ascending")])
    counts = pc.value_counts(places["video_id"]).field("counts").to_numpy()
    draw = np.random.default_rng(seed)
    chosen = counts.cumsum() - counts + (draw.random(len(counts)) * counts).astype(np.int64)
    rank = np.full(places.num_rows, len(counts))
    rank[chosen] = draw.permutation(len(counts))
    return places.append_column("rank", pa.array(rank))


class SampleFrames:
    """A mapper of segments (file and row of DESCRIPTORS) to video_id, frame and a column of
    descriptors per stream.

    A frame is kept where the stream's `Draw` says so, so the sample does not depend on files, order
    or workers. A stream that has nothing of a frame, as a difference of the first, or did not draw
    it, is null there. Descriptors are read of row groups in which a frame is drawn: of a large
    corpus a small part.
    """

    def __init__(
        self,
        store: Store,
        streams: dict[str, Stream],
        draws: dict[str, Draw],
        seed: int,
        meter: Meter = SILENT,
    ) -> None:
        self.meter = meter
        meter.joined("read")
        self.reader = SegmentReader(store, list(streams))
        self.streams, self.draws, self.seed = streams, draws, seed
        self.rate = max(draw.rate for draw in draws.values())
        self.videos = max(draw.videos for draw in draws.values())

    def __call__(self, places: pa.Table) -> pa.Table:
        with self.meter("read"):
            return self._rows(places)

    def _rows(self, places: pa.Table) -> pa.Table:
        rows: list[dict] = []
        kept: dict[str, list[np.ndarray | None]] = {name: [] for name in self.streams}
        for place in places.to_pylist():
            where = place["file"], place["row"]
            indices = self.reader.read(*where, ("frame_indices",))["frame_indices"][0].as_py()
            numbers = np.array([_uniform(self.seed, place["video_id"], i) for i in indices])
            if not (place["rank"] < self.videos or (numbers < self.rate).any()):
                continue
            row = self.reader.read(*where)
            own = {name: self._drawn(row, name, numbers, place["rank"]) for name in self.streams}
            drawn = sorted(set().union(*own.values()))
            rows += [{"video_id": place["video_id"], "frame": indices[k]} for k in drawn]
            for name, frames in own.items():
                kept[name] += [frames.get(k) for k in drawn]
        table = pa.Table.from_pylist(rows, schema=SAMPLES.schema())
        for name, stream in self.streams.items():
            table = table.append_column(name, descriptors_to_arrow(kept[name], stream.width))
        return table

    def _drawn(
        self, row: pa.Table, name: str, numbers: np.ndarray, rank: int
    ) -> dict[int, np.ndarray]:
        """Return the kept frames of a segment in one stream, by their places."""
        draw, frames = self.draws[name], stored_frames(row, self.streams[name])
        # A stream has the last frames of a segment: the first of a video may lie in no window of
        # it.
        late = len(numbers) - len(frames)
        chosen = set((np.flatnonzero(numbers[late:] < draw.rate) + late).tolist())
        if rank < draw.videos and len(frames):
            chosen.add(int(numbers[late:].argmin()) + late)
        return {place: frames[place - late] for place in sorted(chosen)}


def _uniform(seed: int, video_id: str, frame: int) -> float:
    sha = hashlib.sha256(f"{seed}\n{video_id}\n{frame}".encode())
    return int.from_bytes(sha.digest()[:8], "little") / 2**64
