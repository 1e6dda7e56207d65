"""The Ray callables that read stored descriptors: to samples for codebooks, to encodings of videos.

Arrow table in, Arrow table out, one object per actor; ordinary classes that work without Ray.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from encoders.base import CODEBOOK, Encoder, State
from encoders.descriptors import Stream
from encoders.registry import encoder_from_bytes
from pipelines.codebook import Codebook
from pipelines.device import device
from pipelines.meter import SILENT, Meter, Sums
from pipelines.storage import Store
from pipelines.tables import SAMPLES, descriptors_from_arrow, descriptors_to_arrow, encoding_type


class SampleFrames:
    """Places of segments (file and row of DESCRIPTORS) to SAMPLES rows of one stream.

    A frame is kept where a number drawn for (seed, video, frame) is below `rate`, so the sample does not
    depend on files, order or workers.
    """

    def __init__(
        self, store: Store, stream: Stream, rate: float, seed: int, meter: Meter = SILENT
    ) -> None:
        self.meter = meter
        meter.joined("read")
        self.reader = SegmentReader(store, ["frame_indices", stream.name])
        self.stream, self.rate, self.seed = stream, rate, seed

    def __call__(self, places: pa.Table) -> pa.Table:
        with self.meter("read"):
            return self._rows(places)

    def _rows(self, places: pa.Table) -> pa.Table:
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


def load_encoder(book: Codebook, store: Store, on: str) -> Encoder:
    """The encoder, from the files of the codebook's folder."""
    names = store.files(book.folder, ".safetensors")
    files = {name.rsplit("/", 1)[-1]: store.read(name) for name in names}
    encoder = encoder_from_bytes(files[CODEBOOK])
    return encoder.with_files(files, book.settings).to(on)


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
        meter: Meter = SILENT,
        allow_missing_gpu: bool = False,
    ) -> None:
        meter.joined("encode")
        self.device = device(meter, allow_missing_gpu)
        self.encoders = {book.column: load_encoder(book, store, self.device) for book in codebooks}
        self.attentive = [book.column for book in attentive]
        self.stream, self.dtype, self.meter = stream, dtype, meter
        columns = ["frame_indices", "timestamps_s"] if attentive else []
        self.reader = SegmentReader(store, [*columns, stream.name])

    @torch.inference_mode()
    def __call__(self, videos: pa.Table) -> pa.Table:
        spent = Sums(self.meter)
        made = [self._video(row["files"], row["rows"], spent) for row in videos.to_pylist()]
        with spent("encode"):
            table = self._table(videos, made)
        spent.tell()
        return table

    def _video(self, files: list[str], rows: list[int], spent: Sums) -> "_Video":
        """The sum over the segments. Each is encoded alone: what stands beside it in a batch, and so how
        work was dealt out or went on after a crash, must not change its last bits."""
        made = _Video()
        for place in zip(files, rows, strict=True):
            with spent("read"):
                segment = self.reader.read(*place)
                frames = stored_frames(segment, self.stream, self.device)
            with spent("encode"):
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


def stored_frames(segment: pa.Table, stream: Stream, on: str) -> torch.Tensor:
    """[f, T, C] of one row of DESCRIPTORS, in half precision as stored."""
    descriptors = descriptors_from_arrow(segment[stream.name][0])
    shape = (-1, stream.cells, stream.width)
    if descriptors is None or not len(descriptors):
        return torch.zeros(0, *shape[1:], device=on)
    return torch.from_numpy(descriptors.reshape(shape).copy()).to(on)


@dataclass
class _Video:
    """What the segments of a video have added up to."""

    num_frames: int = 0
    states: dict[str, State] = field(default_factory=dict)
    attention: dict[str, list[np.ndarray]] = field(default_factory=dict)
    frame_indices: list[int] = field(default_factory=list)
    timestamps_s: list[float] = field(default_factory=list)


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
