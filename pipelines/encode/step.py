"""Encode: DESCRIPTORS and codebooks to ENCODINGS and ATTENTION."""

import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipelines.cluster import pools, sink
from pipelines.cluster.broadcast import task_errors
from pipelines.cluster.datasets import (
    batches_at_a_time,
    compact,
    dataset,
    progress_line,
    write_tables,
)
from pipelines.encode import stage
from pipelines.encode.information import publish_information
from pipelines.index import current_rows, external
from pipelines.ledger.accounts import Account, Spent, merged, settle
from pipelines.run import codebook
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.storage.columns import encoding_type, names, numbers_to_arrow, places_of
from pipelines.storage.store import Store
from pipelines.storage.tables import ATTENTION, ENCODINGS, ROWS_PER_FILE

_OF_FILE = ("video_id", "source")


def encode(job: Job) -> tuple[Account, Spent]:
    """Publish ENCODINGS and ATTENTION: one pass over DESCRIPTORS for all streams and codebooks."""
    videos = current_rows.places_by_video(job)
    described = names(videos)

    def visible(book: codebook.Codebook) -> frozenset[str]:
        there = sink.visible_videos(videos, job.store, job.encodings(book))
        return there - _without_attention(job, book, videos) if there else there

    books = [book for book in job.codebooks if not job.store.exists(job.encodings_mark(book))]
    spent = publish_information(job, books, videos)
    # Other labels leave the encodings of most codebooks as they are, and only their marks are new.
    done = {book: visible(book) for book in books}
    if missing := {book: there for book, there in done.items() if there != described}:
        for book in filter(lambda book: book.is_external, missing):
            _copy(job, book, videos)
        if made := {b: there for b, there in missing.items() if not b.is_external}:
            spent = merged([spent, _encode(job, made, videos)])
        done |= {book: visible(book) for book in missing}
    for book in books:
        settle(f"encode {book.name}", "videos", described, done[book])
        _compact(job, book)
    planned = job.manifest.num_rows
    number = len(job.codebooks)
    done = videos.num_rows * number
    return Account("encodings", planned * number, done, planned * number - done), spent


def _copy(job: Job, book: codebook.Codebook, videos: pa.Table) -> None:
    """Publish vectors that were given (encode.external) as the encodings of described videos."""
    folder = job.encodings(book)
    left = sink.pending(videos, job.store, folder, _OF_FILE).select(_OF_FILE)
    job.unmark(folder)
    footer = job.footer("encode") | {"video_fisher.codebook": book.digest}
    output = sink.Output(ENCODINGS, folder, footer)
    with task_errors("encode"):
        ray.get(_copied.remote(job.store, job.config, book, left, output))


@ray.remote(max_retries=3)
def _copied(
    store: Store, config: Config, book: codebook.Codebook, videos: pa.Table, output: sink.Output
) -> None:
    """Publish the vectors of some videos: they may be many times what the driver has to hold."""
    source = dict(zip(*(videos[column].to_pylist() for column in _OF_FILE), strict=True))
    for paths, vectors in external.vectors(config, book.encoder, frozenset(source)):
        kind = encoding_type(vectors.shape[1], config.encode.dtype)
        columns = {
            "video_id": pa.array(paths),
            "source": pa.array([source[path] for path in paths]),
            "num_descriptors": pa.repeat(pa.scalar(1, pa.int64()), len(paths)),
            "encoder": pa.repeat(book.encoder, len(paths)),
            "stream": pa.repeat(book.stream, len(paths)),
            "fold": pa.repeat(pa.scalar(book.fold, pa.int32()), len(paths)),
            "vector": pa.FixedSizeListArray.from_arrays(
                numbers_to_arrow(np.ascontiguousarray(vectors).reshape(-1)), type=kind
            ),
        }
        sink.publish(store, [output], ENCODINGS.from_columns(columns, vector=kind))


def _without_attention(job: Job, book: codebook.Codebook, videos: pa.Table) -> frozenset[str]:
    """Return the encoded videos whose rows of ATTENTION are gone, though they have descriptors."""
    if not job.writes_attention(book):
        return frozenset()
    rows = job.store.read_table(job.encodings(book), ["video_id", "source", "num_descriptors"])
    rows = rows.filter(pc.greater(rows["num_descriptors"], 0))
    lost = sink.pending(rows, job.store, job.attention(book), _OF_FILE)
    return names(lost.filter(pc.is_valid(places_of(lost, videos, _OF_FILE))))


def _compact(job: Job, book: codebook.Codebook) -> None:
    """Put the encodings of a codebook into large files. ATTENTION, with a row for each frame, stays
    as it is: the plan would have more rows than a driver should hold.
    """
    folder = job.encodings(book)
    names = job.store.files(folder)
    if not names:
        return
    with job.store.open_parquet(names[0]) as file:
        vector = file.schema_arrow.field("vector").type
    vector_bytes = vector.list_size * vector.value_type.bit_width / 8
    compact(job, ENCODINGS, folder, ("", vector_bytes))


def _encode(job: Job, visible: dict[codebook.Codebook, frozenset[str]], videos: pa.Table) -> Spent:
    """Publish the encodings of some codebooks that are not visible yet.

    Args:
        visible: the codebooks to encode by, each with the videos whose encodings are visible.
    """
    books = list(visible)
    done = frozenset.intersection(*visible.values())
    rows = videos.filter(
        pc.invert(pc.is_in(videos["video_id"], pa.array(sorted(done), pa.string())))
    )
    for book in books:
        job.unmark(job.encodings(book))
    attentive = [book for book in books if job.writes_attention(book)]
    settings = job.config.cluster
    pool = pools.pools(settings).encode.fitting(rows.num_rows)
    line = progress_line(job, "encode", rows.num_rows, {("read", "encode"): pool})
    batch = job.config.encode.batch_videos
    how = (job.config.encode, line.meter, settings.allow_missing_gpu)
    size = batch * batches_at_a_time(rows.num_rows // batch, pool.size)
    data = dataset(rows, size).map_batches(
        stage.EncodeVideos,
        fn_constructor_args=(job.store, books, attentive, job.described, *how),
        **pool.options(size),
    )
    outputs = [
        sink.Output(
            ATTENTION,
            job.attention(book),
            job.footer("encode") | {"video_fisher.codebook": book.digest},
            functools.partial(
                codebook.attention_of, book=book, num_cells=job.described[book.stream].cells
            ),
            sink.visible_videos(rows, job.store, job.attention(book)),
        )
        for book in attentive
    ] + [
        sink.Output(
            ENCODINGS,
            job.encodings(book),
            job.footer("encode") | {"video_fisher.codebook": book.digest},
            functools.partial(codebook.encodings_of, book=book),
            sink.visible_videos(rows, job.store, job.encodings(book)),
        )
        for book in books
    ]
    return write_tables(job, line, data, outputs, rows_per_file=ROWS_PER_FILE["encodings"])
