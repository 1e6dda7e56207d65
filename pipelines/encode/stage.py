"""The Ray callable that turns stored descriptors into encodings of videos.

Arrow table in, Arrow table out, one object per actor; ordinary classes that work without Ray.
"""

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from encoders.descriptors.streams import Stream
from encoders.encodings.base import Encoder, State
from encoders.encodings.time_pyramid import TemporalPyramid
from encoders.registry import encoder_from_bytes
from encoders.settings import CODEBOOK, INFORMATION_FILE
from pipelines import logs
from pipelines.cluster.device import device
from pipelines.cluster.meter import SILENT, Meter, Sums
from pipelines.describe.segments import NO_SPAN_S, SegmentReader, _times_s, span_s, stored_frames
from pipelines.run.codebook import Codebook
from pipelines.settings.sections import Encode
from pipelines.storage.columns import encoding_type, numbers_to_arrow
from pipelines.storage.read_ahead import ReadAhead
from pipelines.storage.store import Store

log = logging.getLogger(__name__)


def load_encoder(book: Codebook, store: Store, on: str) -> Encoder:
    """Load the encoder from the files of the codebook's folder."""
    names = store.files(book.folder, ".safetensors")
    files = {name.rsplit("/", 1)[-1]: store.read(name) for name in names}
    if book.information:
        files[INFORMATION_FILE] = store.read(book.information)
    encoder = encoder_from_bytes(files[CODEBOOK])
    return encoder.with_files(files, book.settings).to(on)


GPU_READERS = 8
"""Threads that read for a GPU: what it encodes in a moment takes one thread several times as long
to fetch and unpack (docs/scale.md). A CPU has one, which waits for the storage while the actor
computes.
"""


class EncodeVideos:
    """A mapper of videos, with the rows of their segments, to one vector per codebook; a segment is
    read once for all streams, while those before it are encoded.

    Yields batch_videos rows at a time: video_id, source and, named by `Codebook.column`, a vector
    column for each codebook; of each stream S S/num_descriptors. For codebooks in `attentive` also
    the attention of each frame's cells, and for their streams the frames' places in the video as
    S/frame_indices and S/timestamps_s.
    """

    def __init__(
        self,
        store: Store,
        codebooks: list[Codebook],
        attentive: list[Codebook],
        described: dict[str, Stream],
        settings: Encode,
        meter: Meter = SILENT,
        allow_missing_gpu: bool = False,
    ) -> None:
        logs.configure()
        meter.joined("encode")
        self.device = device(meter, allow_missing_gpu)
        self.settings, self.meter = settings, meter
        self.streams = [
            StreamEncoders(
                described[stream],
                {
                    book.column: load_encoder(book, store, self.device)
                    for book in codebooks
                    if book.stream == stream
                },
                {book.column: TemporalPyramid(book.temporal_pyramid) for book in codebooks},
                [book.column for book in attentive if book.stream == stream],
            )
            for stream in dict.fromkeys(book.stream for book in codebooks)
        ]
        is_cut = any(book.temporal_pyramid != (1,) for book in codebooks)
        self.times = SegmentReader(store, ["timestamps_s"]) if is_cut else None
        columns = ["frame_indices"] if attentive else []
        columns += ["timestamps_s"] if attentive or is_cut else []
        columns += [s.stream.name for s in self.streams]
        reader = functools.partial(SegmentReader, store, columns)
        self.ahead = ReadAhead(reader, 1 if self.device == "cpu" else GPU_READERS)

    def __call__(self, videos: pa.Table) -> Iterator[pa.Table]:
        places = (
            place
            for row in videos.to_pylist()
            for place in zip(row["files"], row["rows"], strict=True)
        )
        segments, size = self.ahead(places), self.settings.batch_videos
        for start in range(0, len(videos), size):
            yield self._rows(videos.slice(start, size), segments)

    @torch.inference_mode()
    def _rows(self, videos: pa.Table, segments: Iterator[pa.Table]) -> pa.Table:
        """Return the rows of some videos, whose segments come next."""
        spent = Sums(self.meter)
        with logs.naming(log, "encode", videos):
            made = [self._video(row, segments, spent) for row in videos.to_pylist()]
            with spent("encode"):
                table = videos.select(["video_id", "source"])
                for place, stream in enumerate(self.streams):
                    own = [video[place] for video in made]
                    for name, column in stream.columns(own, self.settings.dtype).items():
                        table = table.append_column(name, column)
        spent.tell()
        return table

    def _video(self, row: dict, segments: Iterator[pa.Table], spent: Sums) -> list["VideoSums"]:
        """Return the sums over the segments, of each stream.

        Each segment is encoded alone: what stands beside it in a batch, and so how work was dealt
        out or went on after a crash, must not change its last bits.
        """
        with spent("read"):
            span_s = self._span_s(row["files"], row["rows"])
        made = [VideoSums(span_s=span_s) for _ in self.streams]
        for _ in row["rows"]:
            # Only waiting counts: what was read ahead costs the actor nothing.
            with spent("read"):
                segment = next(segments)
            with spent("encode"):
                for stream, video in zip(self.streams, made, strict=True):
                    stream.add(segment, video, self.device)
        return made

    def _span_s(self, files: list[str], rows: list[int]) -> tuple[float, float]:
        """Return `span_s` of a video; times are not read where no video is cut in time."""
        if self.times is None:
            return NO_SPAN_S
        return span_s(self.times.read(*place) for place in zip(files, rows, strict=True))


@dataclass
class VideoSums:
    """The sums of a video's segments in one stream.

    span_s: the times of its first and last frame. states: by column, the state of each interval of
    `TemporalPyramid`.
    """

    span_s: tuple[float, float] = NO_SPAN_S
    num_frames: int = 0
    states: dict[str, list[State]] = field(default_factory=dict)
    attention: dict[str, list[np.ndarray]] = field(default_factory=dict)
    frame_indices: list[int] = field(default_factory=list)
    timestamps_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class StreamEncoders:
    """The encoders of one stream, by column, and the temporal cuts of each; those in `attentive`
    give the attention too.
    """

    stream: Stream
    encoders: dict[str, Encoder]
    pyramids: dict[str, TemporalPyramid]
    attentive: list[str] = field(default_factory=list)

    def add(self, segment: pa.Table, video: VideoSums, on: str) -> None:
        """Add one row of DESCRIPTORS to the sums of its video."""
        frames = torch.from_numpy(stored_frames(segment, self.stream).copy()).to(on)
        times_s = _times_s(segment, len(frames))
        first_s, last_s = video.span_s
        place = (times_s - first_s) / (last_s - first_s) if last_s > first_s else 0 * times_s
        for name, encoder in self.encoders.items():
            states = self.pyramids[name].accumulate(encoder, frames, place)
            known = video.states.get(name)
            video.states[name] = (
                [a + b for a, b in zip(known, states, strict=True)] if known else states
            )
        for name in self.attentive:
            # Of the first view, the centre: that is the picture that a reader sees, and views
            # overlap.
            centre = frames[:, : self.stream.cells]
            cells = self.encoders[name].attention(centre).float().cpu().numpy()
            video.attention.setdefault(name, []).append(cells.reshape(-1))
        if self.attentive and len(frames):
            # A stream has the last frames of a segment: the first of a video may lie in no window
            # of it.
            video.frame_indices += segment["frame_indices"][0].as_py()[-len(frames) :]
            video.timestamps_s += times_s.tolist()
        video.num_frames += len(frames)

    def columns(self, videos: list[VideoSums], dtype: str) -> dict[str, pa.Array]:
        """Return the columns of this stream in a table of `EncodeVideos`."""
        name = self.stream.name
        lengths = [video.num_frames * self.stream.num_descriptors for video in videos]
        columns = {f"{name}/num_descriptors": pa.array(lengths, pa.int64())}
        for column, encoder in self.encoders.items():
            vectors = torch.stack(
                [self.pyramids[column].finalise(encoder, video.states[column]) for video in videos]
            )
            flat = numbers_to_arrow(vectors.cpu().numpy().astype(dtype))
            kind = encoding_type(vectors.shape[1], dtype)
            columns[column] = pa.FixedSizeListArray.from_arrays(flat, type=kind)
        if self.attentive:
            indices, times = [v.frame_indices for v in videos], [v.timestamps_s for v in videos]
            columns[f"{name}/frame_indices"] = pa.array(indices, pa.list_(pa.int64()))
            columns[f"{name}/timestamps_s"] = pa.array(times, pa.list_(pa.float64()))
        for column in self.attentive:
            cells = [np.concatenate(video.attention[column]) for video in videos]
            columns[f"attention/{column}"] = pa.array(cells, pa.list_(pa.float32()))
        return columns
