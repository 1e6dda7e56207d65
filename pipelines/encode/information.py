"""Fisher information of FV-VAEs on all frames of their training videos (DQ Eq. 12), before the
vectors that it whitens: fv_vae.information_frames=all.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import torch

from encoders.descriptors.streams import Stream
from encoders.encodings.base import Encoder
from encoders.fv_vae.encoder import FvVae
from encoders.fv_vae.information import INFORMATION, Sums, estimated
from encoders.settings import FvVaeSettings
from encoders.tensor_files import save_tensors
from pipelines.cluster import pools
from pipelines.cluster.datasets import dataset, progress_line, running
from pipelines.cluster.device import device
from pipelines.cluster.meter import SILENT, Meter
from pipelines.describe.segments import SegmentReader, stored_frames
from pipelines.encode.stage import GPU_READERS, load_encoder
from pipelines.errors import RunError
from pipelines.ledger.accounts import Spent, merged
from pipelines.run.codebook import Codebook
from pipelines.run.job import Job
from pipelines.storage.columns import numbers_to_arrow
from pipelines.storage.read_ahead import ReadAhead
from pipelines.storage.store import Store

BATCHES_PER_ACTOR = 4
"""An actor gives its sums so often: each is megabytes, and what a lost actor had summed is lost."""

MOST_VIDEOS = 256


def publish_information(job: Job, books: list[Codebook], videos: pa.Table) -> Spent:
    """Publish the files `Codebook.information` that are not there yet.

    Args:
        videos: video_id, files and rows of all described ones.
    """
    missing = {b.information: b for b in books if b.information}
    own = [book for name, book in missing.items() if not job.store.exists(name)]
    by_fold = {fold: [b for b in own if b.fold == fold] for fold in {b.fold for b in own}}
    return merged([Spent(0.0, ()), *(_publish(job, by_fold[f], videos) for f in sorted(by_fold))])


def _publish(job: Job, books: list[Codebook], videos: pa.Table) -> Spent:
    """Publish the information of codebooks with the same training videos."""
    allowed = pa.array(sorted(job.training_videos(books[0].fold)), pa.string())
    rows = videos.filter(pc.is_in(videos["video_id"], allowed))
    pool = pools.pools(job.config.cluster).encode.fitting(rows.num_rows)
    line = progress_line(job, "information", rows.num_rows, {("read", "encode"): pool})
    size = min(MOST_VIDEOS, max(1, rows.num_rows // (BATCHES_PER_ACTOR * pool.size)))
    arguments = (job.store, books, job.described, line.meter, job.config.cluster.allow_missing_gpu)
    data = dataset(rows, size).map_batches(
        SumInformation, fn_constructor_args=arguments, **pool.options(size)
    )
    sums: dict[str, torch.Tensor] = {}
    with running(job, line):
        batches = data.iter_batches(batch_size=None, batch_format="pyarrow")
        for batch in cast(Iterable[pa.Table], batches):
            for name, cell in zip(batch.column_names, batch.columns, strict=True):
                part = torch.from_numpy(pc.list_flatten(cell).to_numpy().copy())
                sums[name] = sums[name] + part if name in sums else part
    for book in books:
        if f"diagonal/{book.column}" not in sums:
            raise RunError(
                f"encode {book.name}: expected descriptors of training videos for the Fisher "
                "information, found none; describe the videos again"
            )
        totals = {kind: sums[f"{kind}/{book.column}"] for kind in INFORMATION}
        width = _network(book, job.store, "cpu")[1].width
        try:
            tensors = estimated(totals, width)
        except ValueError as error:
            raise RunError(f"encode {book.name}: {error}") from error
        job.store.publish(book.information, save_tensors(tensors, "information", {}))
    return line.spent


class SumInformation:
    """A mapper of videos, with the rows of their segments, to one row of sums: of each codebook the
    totals of `encoders.fv_vae.information.Sums`, in a column named by the form and the codebook.
    """

    def __init__(
        self,
        store: Store,
        codebooks: list[Codebook],
        described: dict[str, Stream],
        meter: Meter = SILENT,
        allow_missing_gpu: bool = False,
    ) -> None:
        meter.joined("encode")
        self.meter, self.device = meter, device(meter, allow_missing_gpu)
        self.networks = {book: _network(book, store, self.device) for book in codebooks}
        self.streams = {s: described[s] for s in dict.fromkeys(b.stream for b in codebooks)}
        reader = functools.partial(SegmentReader, store, [*self.streams])
        self.ahead = ReadAhead(reader, 1 if self.device == "cpu" else GPU_READERS)

    @torch.inference_mode()
    def __call__(self, videos: pa.Table) -> pa.Table:
        places = (
            place
            for row in videos.to_pylist()
            for place in zip(row["files"], row["rows"], strict=True)
        )
        segments = self.ahead(places)
        sums = {book: Sums(network) for book, (_, network) in self.networks.items()}
        with self.meter("encode"):
            for rows in videos["rows"]:
                for _ in range(len(rows)):
                    self._add(next(segments), sums)
                for own in sums.values():
                    own.end_video()
        self.meter.done({"ok": videos.num_rows})
        return pa.table(dict(_columns(sums)))

    def _add(self, segment: pa.Table, sums: dict[Codebook, Sums]) -> None:
        for name, stream in self.streams.items():
            frames = torch.from_numpy(stored_frames(segment, stream).copy()).to(self.device)
            # A view of a frame counts as a frame.
            frames = frames.view(-1, stream.cells, stream.width)
            for book, own in sums.items():
                if book.stream == name and len(frames):
                    own.add(self.networks[book][0].learned_rows(frames))


def _columns(sums: dict[Codebook, Sums]) -> Iterator[tuple[str, pa.Array]]:
    for book, own in sums.items():
        for kind, total in own.totals.items():
            values = numbers_to_arrow(total.cpu().numpy())
            yield f"{kind}/{book.column}", pa.FixedSizeListArray.from_arrays(values, len(total))


def _network(book: Codebook, store: Store, on: str) -> tuple[Encoder, FvVae]:
    """Load the encoder of a codebook without information, and the FV-VAE in it."""
    assert isinstance(book.settings, FvVaeSettings)
    settings = replace(book.settings, information="none", information_frames="sample")
    encoder = load_encoder(replace(book, settings=settings), store, on)
    assert isinstance(encoder.core, FvVae)
    return encoder, encoder.core
