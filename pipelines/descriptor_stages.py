"""The Ray callables that touch descriptors: frames to descriptors, to samples, to encodings.

Arrow table in, Arrow table out, one object per actor; ordinary classes that work without Ray.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from encoders import backbones
from encoders.base import CODEBOOK, Encoder, State
from encoders.descriptors import Stream, streams_of
from encoders.registry import encoder_from_bytes
from pipelines.config import Config, ConfigError
from pipelines.storage import Store
from pipelines.tables import (
    ATTENTION,
    DESCRIPTORS,
    ENCODINGS,
    SAMPLES,
    attention_type,
    descriptor_type,
    descriptors_from_arrow,
    descriptors_to_arrow,
    encoding_type,
)


def described_streams(config: Config) -> dict[str, Stream]:
    """{column of DESCRIPTORS: what it holds}.

    Raises:
        ConfigError: the network has no such node, or does not take such pictures.
    """
    describe = config.describe
    try:
        shapes = backbones.node_shapes(describe.backbone, describe.nodes, config.picture.crop_px)
        return streams_of(shapes, describe.streams, describe.spp_levels)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        raise ConfigError(
            f"picture.crop_px: {describe.backbone} does not take {config.picture.crop_px} px: {error}"
        ) from error


class DescribeFrames:
    """Frames of several segments to DESCRIPTORS rows: one forward pass serves all nodes and streams."""

    def __init__(
        self,
        store: Store,
        weights: str,
        config: Config,
        streams: dict[str, Stream],
        num_threads: int,
    ) -> None:
        self.settings, self.crop_px = config.describe, config.picture.crop_px
        self.streams = streams
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(num_threads)
        self.backbone = backbones.build(
            self.settings.backbone, self.settings.nodes, store.read(weights), self.device
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        counts = batch["num_images"].to_pylist()
        images = np.concatenate([self._images(value) for value in batch["images"]])
        maps = self._maps(torch.from_numpy(images))
        starts = np.cumsum([0, *counts])
        columns: dict[str, list[np.ndarray | None]] = {name: [] for name in self.streams}
        failed = [status == "failed" for status in batch["status"].to_pylist()]
        halo = batch["has_predecessor"].to_pylist()
        for place, (start, count) in enumerate(zip(starts, counts, strict=False)):
            for name, stream in self.streams.items():
                own = None if failed[place] else maps[stream.node][start : start + count]
                columns[name].append(self._describe(own, stream, halo[place]))
        table = batch.drop_columns(["images", "num_images", "has_predecessor"])
        frames = [count - has for count, has in zip(counts, halo, strict=True)]
        table = table.append_column("num_frames", pa.array(frames, pa.int32()))
        for name, rows in columns.items():
            table = table.append_column(name, descriptors_to_arrow(rows, self.streams[name].width))
        kinds = {name: descriptor_type(stream.width) for name, stream in self.streams.items()}
        schema = DESCRIPTORS.schema(**kinds)
        return table.select(schema.names).cast(schema)

    def _images(self, value: pa.LargeBinaryScalar) -> np.ndarray:
        buffer = value.as_buffer()
        return np.frombuffer(buffer, np.uint8).reshape(-1, self.crop_px, self.crop_px, 3).copy()

    def _maps(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = [self.backbone.maps(part) for part in images.split(self.settings.batch_frames)]
        return {node: torch.cat([part[node] for part in parts]) for node in parts[0]}

    def _describe(
        self, maps: torch.Tensor | None, stream: Stream, has_predecessor: bool
    ) -> np.ndarray | None:
        if maps is None:
            return None
        if stream.kind != "difference":
            maps = maps[int(has_predecessor) :]
        rows = stream.describe(maps, self.settings.scaling, self.settings.spp_levels)
        return rows.flatten(0, 1).half().cpu().numpy()


class SampleFrames:
    """Places of segments (file and row of DESCRIPTORS) to SAMPLES rows of one stream.

    A frame is kept where a number drawn for (seed, video, frame) is below `rate`, so the sample does not
    depend on files, order or workers.
    """

    def __init__(self, store: Store, stream: Stream, rate: float, seed: int) -> None:
        self.reader = SegmentReader(store, ["frame_indices", stream.name])
        self.stream, self.rate, self.seed = stream, rate, seed

    def __call__(self, places: pa.Table) -> pa.Table:
        rows, kept = [], []
        for place in places.to_pylist():
            row = self.reader.read(place["file"], place["row"])
            descriptors = descriptors_from_arrow(row[self.stream.name][0])
            if descriptors is None or not len(descriptors):
                continue
            frames = descriptors.reshape(-1, self.stream.cells, self.stream.width)
            # A difference belongs to the later of its two frames: the first frame may have none.
            indices = row["frame_indices"][0].as_py()[-len(frames) :]
            for index, frame in zip(indices, frames, strict=True):
                if _uniform(self.seed, place["video_id"], index) < self.rate:
                    rows.append({"video_id": place["video_id"], "frame": index})
                    kept.append(frame)
        table = pa.Table.from_pylist(rows, schema=SAMPLES.schema())
        return table.append_column("descriptors", descriptors_to_arrow(kept, self.stream.width))


def _uniform(seed: int, video_id: str, frame: int) -> float:
    sha = hashlib.sha256(f"{seed}\n{video_id}\n{frame}".encode())
    return int.from_bytes(sha.digest()[:8], "little") / 2**64


@dataclass(frozen=True)
class Codebook:
    """A fitted encoder: what names its encodings, where it is, and the settings it is used with.

    `encoder` is the name in encode.encoders, without what only concerns the classifier; `base` is the
    registry key. Codebooks that differ in what `fit` does not depend on are one, in one folder.
    """

    encoder: str
    base: str
    stream: str
    fold: int
    settings: object
    digest: str

    @property
    def folder(self) -> str:
        return f"codebooks/{self.base}-{self.stream}/{self.digest}"

    @property
    def name(self) -> str:
        return f"{self.base}-{self.stream}"

    @property
    def column(self) -> str:
        """Its column in what `EncodeVideos` returns."""
        return f"{self.encoder}/{self.digest}"

    def load(self, store: Store, device: str) -> Encoder:
        """The encoder, from the files of the folder."""
        names = store.files(self.folder, ".safetensors")
        files = {name.rsplit("/", 1)[-1]: store.read(name) for name in names}
        encoder = encoder_from_bytes(files[CODEBOOK])
        return encoder.with_files(files, self.settings).to(device)


class EncodeVideos:
    """Videos, with the places of their segments, to one vector per codebook of one stream.

    Returns video_id, source, num_descriptors and, named by `Codebook.column`, a vector column for each
    codebook; for those in `attentive` also the attention of each frame's cells, and then the frames'
    places in the video as frame_indices and timestamps_s.
    """

    def __init__(
        self,
        store: Store,
        codebooks: list[Codebook],
        attentive: list[Codebook],
        stream: Stream,
        dtype: str,
    ) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.encoders = {book.column: book.load(store, self.device) for book in codebooks}
        self.attentive = [book.column for book in attentive]
        self.stream, self.dtype = stream, dtype
        columns = ["frame_indices", "timestamps_s"] if attentive else []
        self.reader = SegmentReader(store, [*columns, stream.name])

    @torch.inference_mode()
    def __call__(self, videos: pa.Table) -> pa.Table:
        made = [self._video(row["files"], row["rows"]) for row in videos.to_pylist()]
        return self._table(videos, made)

    def _video(self, files: list[str], rows: list[int]) -> "_Video":
        """The sum over the segments. Each is encoded alone: what stands beside it in a batch, and so how
        work was dealt out or went on after a crash, must not change its last bits."""
        made = _Video()
        for place in zip(files, rows, strict=True):
            segment = self.reader.read(*place)
            frames = stored_frames(segment, self.stream, self.device)
            for name, encoder in self.encoders.items():
                state = encoder.accumulate(frames.reshape(-1, encoder.descriptor_dim))
                made.states[name] = made.states[name] + state if name in made.states else state
            for name in self.attentive:
                cells = self.encoders[name].attention(frames).float().cpu().numpy()
                made.attention.setdefault(name, []).append(cells.reshape(-1))
            if self.attentive and len(frames):
                # A difference belongs to the later of its two frames: the first frame may have none.
                made.frame_indices += segment["frame_indices"][0].as_py()[-len(frames) :]
                made.timestamps_s += segment["timestamps_s"][0].as_py()[-len(frames) :]
            made.num_frames += len(frames)
        return made

    def _table(self, videos: pa.Table, made: list["_Video"]) -> pa.Table:
        table = videos.select(["video_id", "source"])
        lengths = pa.array([video.num_frames * self.stream.cells for video in made], pa.int64())
        table = table.append_column("num_descriptors", lengths)
        for name, encoder in self.encoders.items():
            vectors = torch.stack([encoder.finalise(video.states[name]) for video in made])
            flat = vectors.cpu().numpy().astype(self.dtype).reshape(-1)
            kind = encoding_type(encoder.output_dim, self.dtype)
            column = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)
            table = table.append_column(name, column)
        if self.attentive:
            indices, times = [v.frame_indices for v in made], [v.timestamps_s for v in made]
            table = table.append_column("frame_indices", pa.array(indices, pa.list_(pa.int64())))
            table = table.append_column("timestamps_s", pa.array(times, pa.list_(pa.float64())))
        for name in self.attentive:
            cells = [np.concatenate(video.attention[name]) for video in made]
            column = pa.array(cells, pa.list_(pa.float32()))
            table = table.append_column(f"attention/{name}", column)
        return table


def stored_frames(segment: pa.Table, stream: Stream, device: str) -> torch.Tensor:
    """[f, T, C] of one row of DESCRIPTORS, in half precision as stored."""
    descriptors = descriptors_from_arrow(segment[stream.name][0])
    shape = (-1, stream.cells, stream.width)
    if descriptors is None or not len(descriptors):
        return torch.zeros(0, *shape[1:], device=device)
    return torch.from_numpy(descriptors.reshape(shape).copy()).to(device)


@dataclass
class _Video:
    """What the segments of a video have added up to."""

    num_frames: int = 0
    states: dict[str, State] = field(default_factory=dict)
    attention: dict[str, list[np.ndarray]] = field(default_factory=dict)
    frame_indices: list[int] = field(default_factory=list)
    timestamps_s: list[float] = field(default_factory=list)


def encodings_of(rows: pa.Table, book: Codebook) -> pa.Table:
    """The ENCODINGS rows of one codebook, out of what `EncodeVideos` returns."""
    kind = rows.schema.field(book.column).type
    columns = _named(rows, book) | {"vector": rows[book.column]}
    schema = ENCODINGS.schema(vector=kind)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def attention_of(rows: pa.Table, book: Codebook, stream: Stream) -> pa.Table:
    """The ATTENTION rows of one codebook, one per frame, out of what `EncodeVideos` returns."""
    lengths = [len(values) for values in rows["frame_indices"]]
    video = pa.array(np.repeat(np.arange(rows.num_rows), lengths))
    cells = pc.list_flatten(rows[f"attention/{book.column}"]).to_numpy().astype(np.float32)
    cells = cells.reshape(-1, stream.cells)
    columns = _named(rows.take(video), book) | {
        "frame_index": pc.list_flatten(rows["frame_indices"]).cast(pa.int64()),
        "timestamp_s": pc.list_flatten(rows["timestamps_s"]).cast(pa.float64()),
        "value": pa.array(cells.sum(1, dtype=np.float64).astype(np.float32)),
        "cells": pa.FixedSizeListArray.from_arrays(
            pa.array(cells.reshape(-1)), type=attention_type(stream.cells)
        ),
    }
    schema = ATTENTION.schema(cells=attention_type(stream.cells))
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _named(rows: pa.Table, book: Codebook) -> dict[str, pa.ChunkedArray | pa.Array]:
    """The columns that both tables share."""
    count = rows.num_rows
    return {name: rows[name] for name in ("video_id", "source", "num_descriptors")} | {
        "encoder": pa.repeat(book.encoder, count),
        "stream": pa.repeat(book.stream, count),
        "fold": pa.repeat(pa.scalar(book.fold, pa.int32()), count),
    }


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
