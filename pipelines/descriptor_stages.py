"""The Ray callables that touch descriptors: frames to descriptors, to samples, to encodings.

Arrow table in, Arrow table out, one object per actor; ordinary classes that work without Ray.
"""

import functools
import hashlib
from dataclasses import dataclass
from operator import add

import numpy as np
import pyarrow as pa
import torch

from encoders import backbones
from encoders.base import State
from encoders.descriptors import appearance, difference, stream_width
from encoders.registry import encoder_from_bytes
from encoders.spp import num_cells
from pipelines.config import Config, Describe
from pipelines.storage import Store
from pipelines.tables import (
    DESCRIPTORS,
    ENCODINGS,
    SAMPLES,
    descriptor_type,
    descriptors_from_arrow,
    descriptors_to_arrow,
    encoding_type,
)


class DescribeFrames:
    """Frames of several segments to DESCRIPTORS rows: one forward pass serves all nodes and streams."""

    def __init__(self, store: Store, weights: str, config: Config, num_threads: int) -> None:
        self.settings, self.crop_px = config.describe, config.picture.crop_px
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(num_threads)
        self.backbone = backbones.build(
            self.settings.backbone, self.settings.nodes, store.read(weights), self.device
        )
        channels = backbones.num_channels(self.settings.backbone, self.settings.nodes, self.crop_px)
        self.widths = stream_widths(self.settings, channels)

    def __call__(self, batch: pa.Table) -> pa.Table:
        counts = batch["num_images"].to_pylist()
        images = np.concatenate([self._images(value) for value in batch["images"]])
        maps = self._maps(torch.from_numpy(images))
        starts = np.cumsum([0, *counts])
        streams: dict[str, list[np.ndarray | None]] = {name: [] for name in self.widths}
        failed = [status == "failed" for status in batch["status"].to_pylist()]
        halo = batch["has_predecessor"].to_pylist()
        for place, (start, count) in enumerate(zip(starts, counts, strict=False)):
            for name, (node, stream) in self.settings.stream_columns.items():
                own = None if failed[place] else maps[node][start : start + count]
                streams[name].append(self._describe(own, stream, halo[place]))
        table = batch.drop_columns(["images", "num_images", "has_predecessor"])
        frames = [count - has for count, has in zip(counts, halo, strict=True)]
        table = table.append_column("num_frames", pa.array(frames, pa.int32()))
        for name, rows in streams.items():
            table = table.append_column(name, descriptors_to_arrow(rows, self.widths[name]))
        kinds = {name: descriptor_type(width) for name, width in self.widths.items()}
        schema = DESCRIPTORS.schema(**kinds)
        return table.select(schema.names).cast(schema)

    def _images(self, value: pa.LargeBinaryScalar) -> np.ndarray:
        buffer = value.as_buffer()
        return np.frombuffer(buffer, np.uint8).reshape(-1, self.crop_px, self.crop_px, 3).copy()

    def _maps(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = [self.backbone.maps(part) for part in images.split(self.settings.batch_frames)]
        return {node: torch.cat([part[node] for part in parts]) for node in parts[0]}

    def _describe(
        self, maps: torch.Tensor | None, stream: str, has_predecessor: bool
    ) -> np.ndarray | None:
        if maps is None:
            return None
        settings = self.settings
        if stream == "difference":
            rows = difference(maps, settings.scaling, settings.spp_levels)
        else:
            rows = appearance(maps[int(has_predecessor) :], settings.scaling, settings.spp_levels)
        return rows.flatten(0, 1).half().cpu().numpy()


def stream_widths(settings: Describe, channels: dict[str, int]) -> dict[str, int]:
    """{column of DESCRIPTORS: width of its descriptors}."""
    return {
        name: stream_width(stream, channels[node])
        for name, (node, stream) in settings.stream_columns.items()
    }


class SampleFrames:
    """Places of segments (file and row of DESCRIPTORS) to SAMPLES rows of one stream.

    A frame is kept where a number drawn for (seed, video, frame) is below `rate`, so the sample does not
    depend on files, order or workers.
    """

    def __init__(
        self, store: Store, stream: str, settings: Describe, width: int, rate: float, seed: int
    ) -> None:
        self.reader = SegmentReader(store, ["frame_indices", stream])
        self.stream, self.width, self.rate, self.seed = stream, width, rate, seed
        self.cells = num_cells(settings.spp_levels)

    def __call__(self, places: pa.Table) -> pa.Table:
        rows, kept = [], []
        for place in places.to_pylist():
            row = self.reader.read(place["file"], place["row"])
            descriptors = descriptors_from_arrow(row[self.stream][0])
            if descriptors is None or not len(descriptors):
                continue
            frames = descriptors.reshape(-1, self.cells, self.width)
            # A difference belongs to the later of its two frames: the first frame may have none.
            indices = row["frame_indices"][0].as_py()[-len(frames) :]
            for index, frame in zip(indices, frames, strict=True):
                if _uniform(self.seed, place["video_id"], index) < self.rate:
                    rows.append({"video_id": place["video_id"], "frame": index})
                    kept.append(frame)
        table = pa.Table.from_pylist(rows, schema=SAMPLES.schema())
        return table.append_column("descriptors", descriptors_to_arrow(kept, self.width))


def _uniform(seed: int, video_id: str, frame: int) -> float:
    sha = hashlib.sha256(f"{seed}\n{video_id}\n{frame}".encode())
    return int.from_bytes(sha.digest()[:8], "little") / 2**64


@dataclass(frozen=True)
class Codebook:
    """A fitted encoder: where it is, and what names its encodings."""

    encoder: str
    stream: str
    fold: int
    digest: str

    @property
    def folder(self) -> str:
        return f"codebooks/{self.name}/{self.digest}"

    @property
    def name(self) -> str:
        return f"{self.encoder}-{self.stream}"


class EncodeVideos:
    """Videos, with the places of their segments, to one vector per codebook of one stream.

    Returns video_id, source, num_descriptors and a vector column for each codebook, named by its digest.
    """

    def __init__(self, store: Store, codebooks: list[Codebook], dtype: str) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.encoders = {
            book.digest: encoder_from_bytes(store.read(f"{book.folder}/codebook.safetensors")).to(
                self.device
            )
            for book in codebooks
        }
        self.stream, self.dtype = codebooks[0].stream, dtype
        self.reader = SegmentReader(store, [self.stream])

    @torch.inference_mode()
    def __call__(self, videos: pa.Table) -> pa.Table:
        counts: list[int] = []
        vectors: dict[str, list[np.ndarray]] = {digest: [] for digest in self.encoders}
        for video in videos.to_pylist():
            places = zip(video["files"], video["rows"], strict=True)
            states = self._states([self._descriptors(file, row) for file, row in places])
            for digest, state in states.items():
                vector = self.encoders[digest].finalise(state).cpu().numpy()
                vectors[digest].append(vector.astype(self.dtype))
            counts.append(next(iter(states.values())).count)
        table = videos.select(["video_id", "source"])
        table = table.append_column("num_descriptors", pa.array(counts, pa.int64()))
        for digest, rows in vectors.items():
            kind = encoding_type(rows[0].size, self.dtype)
            column = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(rows)), type=kind)
            table = table.append_column(digest, column)
        return table

    def _states(self, segments: list[torch.Tensor]) -> dict[str, State]:
        """One state per codebook: the states of the segments add up to the video's."""
        return {
            digest: functools.reduce(add, [encoder.accumulate(part) for part in segments])
            for digest, encoder in self.encoders.items()
        }

    def _descriptors(self, file: str, row: int) -> torch.Tensor:
        rows = descriptors_from_arrow(self.reader.read(file, row)[self.stream][0])
        if rows is None:
            width = next(iter(self.encoders.values())).descriptor_dim
            return torch.zeros(0, width, device=self.device)
        return torch.from_numpy(rows.copy()).to(self.device).float()


def encodings_of(rows: pa.Table, book: Codebook) -> pa.Table:
    """The ENCODINGS rows of one codebook, out of what `EncodeVideos` returns."""
    kind = rows.schema.field(book.digest).type
    constant = {
        "encoder": pa.array([book.encoder] * rows.num_rows),
        "stream": pa.array([book.stream] * rows.num_rows),
        "fold": pa.array([book.fold] * rows.num_rows, pa.int32()),
        "vector": rows[book.digest],
    }
    schema = ENCODINGS.schema(vector=kind)
    columns = [
        constant.get(name, rows[name] if name in rows.column_names else None)
        for name in schema.names
    ]
    return pa.Table.from_arrays(columns, schema=schema)


class SegmentReader:
    """Single rows of DESCRIPTORS files; keeps the file and row group it read last."""

    def __init__(self, store: Store, columns: list[str]) -> None:
        self.store, self.columns = store, columns
        self.name, self.file, self.group, self.table = "", None, -1, None

    def read(self, name: str, row: int) -> pa.Table:
        """Row `row` of file `name`, as a table of one row."""
        if name != self.name:
            self.file, self.name, self.group = self.store.open_parquet(name), name, -1
            sizes = [
                self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)
            ]
            self.ends = np.cumsum(sizes)
        group = int(np.searchsorted(self.ends, row, side="right"))
        if group != self.group:
            self.table, self.group = self.file.read_row_group(group, columns=self.columns), group
        first = self.ends[group - 1] if group else 0
        return self.table.slice(row - first, 1)
