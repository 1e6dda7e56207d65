"""The Ray callables that read stored descriptors: to samples for codebooks, to encodings of videos.

Arrow table in, Arrow table out, one object per actor; ordinary classes that work without Ray.
"""

import hashlib
import logging
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from encoders.base import CODEBOOK, Encoder, State
from encoders.descriptors import Stream
from encoders.registry import encoder_from_bytes
from pipelines import logs
from pipelines.codebook import Codebook
from pipelines.device import device
from pipelines.meter import SILENT, Meter, Sums
from pipelines.storage import Store
from pipelines.tables import (
    SAMPLES,
    descriptors_from_arrow,
    descriptors_to_arrow,
    encoding_type,
    numbers_to_arrow,
)

log = logging.getLogger(__name__)


class SampleFrames:
    """Places of segments (file and row of DESCRIPTORS) to video_id, frame and a column of descriptors per stream.

    A frame is kept where a number drawn for (seed, video, frame) is below `rate`, so the sample does not
    depend on files, order or workers. A stream that has nothing of a frame, as a difference of the first, is null there.
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
        self.reader = SegmentReader(store, ["frame_indices", *streams])
        self.streams, self.rate, self.seed = streams, rate, seed

    def __call__(self, places: pa.Table) -> pa.Table:
        with self.meter("read"):
            return self._rows(places)

    def _rows(self, places: pa.Table) -> pa.Table:
        rows: list[dict] = []
        kept: dict[str, list[np.ndarray | None]] = {name: [] for name in self.streams}
        for place in places.to_pylist():
            row = self.reader.read(place["file"], place["row"])
            indices = row["frame_indices"][0].as_py()
            drawn = [
                k
                for k, index in enumerate(indices)
                if _uniform(self.seed, place["video_id"], index) < self.rate
            ]
            rows += [{"video_id": place["video_id"], "frame": indices[k]} for k in drawn]
            for name, stream in self.streams.items():
                frames = stored_frames(row, stream)
                # A stream has the last frames of a segment: the first of a video may lie in no window of it.
                late = len(indices) - len(frames)
                kept[name] += [frames[k - late] if k >= late else None for k in drawn]
        table = pa.Table.from_pylist(rows, schema=SAMPLES.schema())
        for name, stream in self.streams.items():
            table = table.append_column(name, descriptors_to_arrow(kept[name], stream.width))
        return table


def _uniform(seed: int, video_id: str, frame: int) -> float:
    sha = hashlib.sha256(f"{seed}\n{video_id}\n{frame}".encode())
    return int.from_bytes(sha.digest()[:8], "little") / 2**64


def load_encoder(book: Codebook, store: Store, on: str) -> Encoder:
    """The encoder, from the files of the codebook's folder."""
    names = store.files(book.folder, ".safetensors")
    files = {name.rsplit("/", 1)[-1]: store.read(name) for name in names}
    encoder = encoder_from_bytes(files[CODEBOOK])
    return encoder.with_files(files, book.settings).to(on)


class EncodeVideos:
    """Videos, with the places of their segments, to one vector per codebook; a segment is read once for all streams.

    Returns video_id, source and, named by `Codebook.column`, a vector column for each codebook; of each stream S
    S/num_descriptors. For codebooks in `attentive` also the attention of each frame's cells, and for their streams
    the frames' places in the video as S/frame_indices and S/timestamps_s.
    """

    def __init__(
        self,
        store: Store,
        codebooks: list[Codebook],
        attentive: list[Codebook],
        described: dict[str, Stream],
        dtype: str,
        meter: Meter = SILENT,
        allow_missing_gpu: bool = False,
    ) -> None:
        logs.configure()
        meter.joined("encode")
        self.device = device(meter, allow_missing_gpu)
        self.dtype, self.meter = dtype, meter
        self.streams = [
            _StreamEncoders(
                described[stream],
                {
                    book.column: load_encoder(book, store, self.device)
                    for book in codebooks
                    if book.stream == stream
                },
                [book.column for book in attentive if book.stream == stream],
            )
            for stream in dict.fromkeys(book.stream for book in codebooks)
        ]
        columns = ["frame_indices", "timestamps_s"] if attentive else []
        self.reader = SegmentReader(store, [*columns, *(s.stream.name for s in self.streams)])

    @torch.inference_mode()
    def __call__(self, videos: pa.Table) -> pa.Table:
        spent = Sums(self.meter)
        with logs.naming(log, "encode", videos):
            made = [self._video(row["files"], row["rows"], spent) for row in videos.to_pylist()]
            with spent("encode"):
                table = videos.select(["video_id", "source"])
                for place, stream in enumerate(self.streams):
                    own = [video[place] for video in made]
                    for name, column in stream.columns(own, self.dtype).items():
                        table = table.append_column(name, column)
        spent.tell()
        return table

    def _video(self, files: list[str], rows: list[int], spent: Sums) -> list["_Video"]:
        """The sums over the segments, of each stream. Each segment is encoded alone: what stands beside it in a
        batch, and so how work was dealt out or went on after a crash, must not change its last bits."""
        made = [_Video() for _ in self.streams]
        for place in zip(files, rows, strict=True):
            with spent("read"):
                segment = self.reader.read(*place)
            with spent("encode"):
                for stream, video in zip(self.streams, made, strict=True):
                    stream.add(segment, video, self.device)
        return made


@dataclass
class _Video:
    """What the segments of a video have added up to in one stream."""

    num_frames: int = 0
    states: dict[str, State] = field(default_factory=dict)
    attention: dict[str, list[np.ndarray]] = field(default_factory=dict)
    frame_indices: list[int] = field(default_factory=list)
    timestamps_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _StreamEncoders:
    """The encoders of one stream, by column; of those in `attentive` attention is wanted."""

    stream: Stream
    encoders: dict[str, Encoder]
    attentive: list[str]

    def add(self, segment: pa.Table, video: _Video, on: str) -> None:
        """Adds one row of DESCRIPTORS to what there is of its video."""
        frames = torch.from_numpy(stored_frames(segment, self.stream).copy()).to(on)
        for name, encoder in self.encoders.items():
            state = encoder.accumulate(frames.reshape(-1, encoder.descriptor_dim))
            video.states[name] = video.states[name] + state if name in video.states else state
        for name in self.attentive:
            # Of the first view, the centre: that is the picture that a reader sees, and views overlap.
            centre = frames[:, : self.stream.cells]
            cells = self.encoders[name].attention(centre).float().cpu().numpy()
            video.attention.setdefault(name, []).append(cells.reshape(-1))
        if self.attentive and len(frames):
            # A stream has the last frames of a segment: the first of a video may lie in no window of it.
            video.frame_indices += segment["frame_indices"][0].as_py()[-len(frames) :]
            video.timestamps_s += segment["timestamps_s"][0].as_py()[-len(frames) :]
        video.num_frames += len(frames)

    def columns(self, videos: list[_Video], dtype: str) -> dict[str, pa.Array]:
        """What `EncodeVideos` returns of this stream."""
        name = self.stream.name
        lengths = [video.num_frames * self.stream.num_descriptors for video in videos]
        columns = {f"{name}/num_descriptors": pa.array(lengths, pa.int64())}
        for column, encoder in self.encoders.items():
            vectors = torch.stack([encoder.finalise(video.states[column]) for video in videos])
            flat = numbers_to_arrow(vectors.cpu().numpy().astype(dtype))
            kind = encoding_type(encoder.output_dim, dtype)
            columns[column] = pa.FixedSizeListArray.from_arrays(flat, type=kind)
        if self.attentive:
            indices, times = [v.frame_indices for v in videos], [v.timestamps_s for v in videos]
            columns[f"{name}/frame_indices"] = pa.array(indices, pa.list_(pa.int64()))
            columns[f"{name}/timestamps_s"] = pa.array(times, pa.list_(pa.float64()))
        for column in self.attentive:
            cells = [np.concatenate(video.attention[column]) for video in videos]
            columns[f"attention/{column}"] = pa.array(cells, pa.list_(pa.float32()))
        return columns


def stored_frames(segment: pa.Table, stream: Stream) -> np.ndarray:
    """[f, V T, C] of one row of DESCRIPTORS, V views one after the other, in half precision as stored; f = 0 where
    the stream is null."""
    descriptors = descriptors_from_arrow(segment[stream.name][0])
    if descriptors is None:
        descriptors = np.zeros((0, stream.width), np.float16)
    return descriptors.reshape(-1, stream.num_descriptors, stream.width)


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
