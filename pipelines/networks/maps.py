"""Maps of a frozen backbone, read back whole out of DESCRIPTORS: the column `positions` of a node.

Letters: n frames of a video, C channels, h and w sides of maps.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.descriptors.streams import Stream
from encoders.networks.body import Source
from pipelines.describe.segments import SegmentReader, stored_frames
from pipelines.errors import ConfigError
from pipelines.index import current_rows
from pipelines.run.job import Job
from pipelines.storage.pictures import scratch
from pipelines.storage.store import Store

MAPS = ("positions", "global")
"""Kinds of stream that hold whole maps."""


@dataclass(frozen=True, eq=False)
class StoredMaps:
    """Where the maps of each video are.

    Attributes:
        shape: C, h and w.
        videos: video_id, source, files and rows (of its segments, in order of time), num_frames.
    """

    stream: Stream
    shape: tuple[int, int, int]
    videos: pa.Table

    @classmethod
    def of(cls, job: Job) -> "StoredMaps":
        """Return the maps of the videos that are described."""
        stream, shape = stream_of(job)
        grouped = current_rows.places(job).group_by(["video_id", "source"], use_threads=False)
        found = grouped.aggregate([("file", "list"), ("row", "list"), ("num_frames", "sum")])
        videos = found.rename_columns(["video_id", "source", "files", "rows", "num_frames"])
        return cls(stream, shape, videos.filter(pc.greater(videos["num_frames"], 0)))

    def without_videos(self) -> "StoredMaps":
        """Return what a reader needs that is told the files and rows."""
        return replace(self, videos=self.videos.slice(0, 0))

    def reader(self, store: Store) -> SegmentReader:
        """Return a reader of DESCRIPTORS."""
        return SegmentReader(store, [self.stream.name, "frame_indices", "timestamps_s"])

    def read(
        self, reader: SegmentReader, files: list[str], rows: list[int]
    ) -> tuple[np.ndarray, list[int], list[float]]:
        """Return a video's maps, float16 [n, C, h, w], and the places and times of their frames."""
        parts, indices, times_s = [], [], []
        for file, row in zip(files, rows, strict=True):
            segment = reader.read(file, row)
            # The first view is the whole crop, not mirrored.
            parts.append(stored_frames(segment, self.stream)[:, : self.stream.cells])
            indices += segment["frame_indices"][0].as_py()
            times_s += segment["timestamps_s"][0].as_py()
        maps = np.concatenate(parts).transpose(0, 2, 1).reshape(-1, *self.shape)
        return maps, indices, times_s

    def share(
        self, store: Store, wanted: frozenset[str], rank: int, size: int
    ) -> tuple[np.ndarray, list[str], list[int]]:
        """Return one worker's maps of whole videos, dealt in turn, in a file that is mapped into
        memory; the videos, and the frames of each."""
        rows = [row for row in self.videos.to_pylist() if row["video_id"] in wanted]
        own = sorted(rows, key=lambda row: row["video_id"])[rank::size]
        counts = [row["num_frames"] for row in own]
        starts = np.cumsum([0, *counts])
        maps, reader = scratch((int(starts[-1]), *self.shape), np.float16), self.reader(store)
        for start, row in sorted(zip(starts, own, strict=False), key=lambda pair: pair[1]["files"]):
            maps[start : start + row["num_frames"]] = self.read(reader, row["files"], row["rows"])[
                0
            ]
        return maps, [row["video_id"] for row in own], counts


def stream_of(job: Job) -> tuple[Stream, tuple[int, int, int]]:
    """Return the stream of whole maps of the networks' node, and their shape.

    Raises:
        ConfigError: the run does not store them.
    """
    node = job.network_node
    for stream in job.described.values():
        if stream.node == node and stream.kind in MAPS:
            config = job.config
            if stream.raw_width:
                raise ConfigError(
                    "network.input=maps: expected whole maps, got describe.pca_components = "
                    f"{stream.width}; set it to 0, or network.input=pixels"
                )
            if config.picture.scales:
                raise ConfigError(
                    "network.input=maps: expected pictures of one size, got picture.scales = "
                    f"{config.picture.scales}; set network.input=pixels, or leave it out"
                )
            source = Source(
                network=config.describe.backbone,
                node=node,
                weights=b"",
                crop_px=config.picture.crop_px,
            )
            return stream, source.map_shape()
    raise ConfigError(
        f"network.input=maps: expected describe.streams to store whole maps of {node}, got "
        f"{','.join(job.config.describe.streams)}; add "
        "--set describe.streams=appearance,positions@scaling=whole_map, or set "
        "network.input=pixels"
    )
