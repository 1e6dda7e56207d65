"""The videos of a report: frames of some, the attention of an encoder in them, and their nearest
videos.

What is read is bounded: a few dozen videos are decoded again, each in the decoder's child process
and all in limited time, and vectors are read one row group at a time, up to a number of bytes.
"""

import dataclasses
import heapq
import math
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from encoders.stream_specs import FRAME, kind_of
from pipelines.evaluate.best import Best
from pipelines.report.records import (
    AttentionStrip,
    Near,
    Neighbours,
    NeighbourSearch,
    Result,
    Sample,
)
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.settings.sections import Sampling
from pipelines.storage.columns import places_of, vectors_from_arrow
from pipelines.storage.pictures import image_file
from pipelines.storage.store import Store
from pipelines.video.decode import decode_segment
from pipelines.video.header import VideoError
from pipelines.video.images.frame import Box
from pipelines.video.isolation import IsolatedDecoder
from pipelines.video.stages import BOX, box_of, stretch_of

FRAMES_PER_SAMPLE = 3
NUM_NEAREST = 5
THUMBNAIL_PX = 112

DECODE_S = 300.0
"""For all pictures of a report together; videos whose turn comes later are shown without."""

VIDEO_S = 30.0
"""For one video."""

SEARCH_BYTES = 2 * 2**30
"""Bytes of vectors that are read for nearest neighbours; of a larger table some files, evenly
spread."""

ONE_FRAME = Sampling(policy="uniform", num_frames=1)


@dataclass(frozen=True)
class FrameRequest:
    """A request for some frames of a video's first segment."""

    uri: str
    num_segments: int
    sampling: Sampling
    num_frames: int
    stretch: tuple[float, float] | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Frames:
    """Frames [f, h, w, 3] and their indices in the video; without images, `missing` says why."""

    indices: tuple[int, ...] = ()
    images: np.ndarray | None = None
    missing: str = ""


def samples(job: Job, best: Best, results: list[Result]) -> tuple[Sample, ...]:
    """Return the picked videos of the best result with their frames."""
    rows = videos_of(job, [pick.video_id for pick in best.picks])
    sampling = job.config.sampling
    frames = _read(
        job,
        [
            FrameRequest(
                row["uri"],
                row["num_segments"],
                sampling,
                FRAMES_PER_SAMPLE,
                stretch_of(row),
                box_of(row),
            )
            for row in rows
        ],
    )
    attention = _attention(job, best, results)
    return tuple(
        Sample(
            video_id=row["video_id"],
            labels=tuple(row["labels"]),
            predicted=pick.predicted,
            score=pick.score,
            jpegs=() if sampled.images is None else tuple(_jpeg(image) for image in sampled.images),
            missing=sampled.missing,
            attention=_strip(
                attention.get(row["video_id"]), sampled, job.config.describe.spp_levels
            ),
            uri=row["uri"],
        )
        for pick, row, sampled in zip(best.picks, rows, frames, strict=True)
    )


def _attention(job: Job, best: Best, results: list[Result]) -> dict[str, pa.Table]:
    """Return {picked video: its ATTENTION rows, in order of time} of the best encoder that has
    attention.

    The codebook is the one that did not see the labels of the fold that tests the video.
    """
    known = [
        pair for pair in job.pairs() if job.writes_attention(job.codebook(*pair, job.folds[0]))
    ]
    if not known:
        return {}
    rank = {(r.encoder, r.stream): r.accuracy.value or 0.0 for r in results if not r.fusion}
    pair = max(known, key=lambda pair: rank[pair])
    by_folder: dict[str, list[str]] = {}
    for pick in best.picks:
        folder = job.attention(job.codebook(*pair, pick.fold))
        by_folder.setdefault(folder, []).append(pick.video_id)
    rows_of_video = {}
    for folder, names in by_folder.items():
        rows = job.store.read_rows(folder, None, "video_id", names)
        rows = _current(rows, job.manifest).sort_by("frame_index")
        for name in names:
            rows_of_video[name] = rows.filter(pc.equal(rows["video_id"], name))
    return rows_of_video


def _strip(rows: pa.Table | None, frames: Frames, levels: tuple[int, ...]) -> AttentionStrip | None:
    """Return the attention of an encoder in those frames; None where none of them has any."""
    if rows is None:
        return None
    cells = np.stack(rows["cells"].to_numpy())
    if kind_of(rows["stream"][0].as_py()) == "dense":
        # One level, the map itself.
        levels = (math.isqrt(cells.shape[1]),)
    rows_of_frame = {index: i for i, index in enumerate(rows["frame_index"].to_pylist())}
    kept = [i for i, index in enumerate(frames.indices) if index in rows_of_frame]
    images = frames.images
    if not kept or images is None:
        return None
    return AttentionStrip(
        video_id=rows["video_id"][0].as_py(),
        encoder=rows["encoder"][0].as_py(),
        stream=rows["stream"][0].as_py(),
        times_s=tuple(rows["timestamp_s"].to_pylist()),
        values=rows["value"].to_numpy(),
        frames=tuple(images[i] for i in kept),
        shown=tuple(rows_of_frame[frames.indices[i]] for i in kept),
        cells=cells,
        levels=levels,
    )


# --- nearest neighbours ---------------------------------------------------------------------------


def neighbours(job: Job, best: Best, results: list[Result]) -> NeighbourSearch | None:
    """Return, for some tested videos, the videos with the highest cosine by the vectors of the best
    single result that has some: networks have none.

    Where codebooks are fitted per fold, vectors are those of the first fold, and so are the videos
    asked for; None where it has none.
    """
    encoded = set(job.pairs())
    single = [r for r in results if not r.fusion and (r.encoder, r.stream) in encoded]
    if not single:
        return None
    first = max(single, key=lambda result: result.headline(best.multi_label).value or 0.0)
    book = job.codebook(first.encoder, first.stream, job.folds[0])
    queries = list(best.queries if book.fold < 0 else best.first_queries)
    if not queries:
        return None
    known = job.manifest.select(["video_id", "source"])
    search = _nearest.options(num_cpus=1).remote(job.store, job.encodings(book), known, queries)
    rankings, num_searched = ray.get(search)
    video_ids = list(dict.fromkeys([*queries, *(name for rows in rankings for name, _ in rows)]))
    rows = {row["video_id"]: row for row in videos_of(job, video_ids)}
    requests = [
        FrameRequest(rows[name]["uri"], 1, ONE_FRAME, 1, stretch_of(rows[name]), box_of(rows[name]))
        for name in video_ids
    ]
    pictures = dict(zip(video_ids, _read(job, requests), strict=True))

    def near(name: str, similarity: float) -> Near:
        image = pictures[name].images
        jpeg = None if image is None else _jpeg(image[0])
        return Near(name, tuple(rows[name]["labels"]), similarity, jpeg, rows[name]["uri"])

    return NeighbourSearch(
        encoder=first.encoder,
        stream=first.stream,
        num_searched=num_searched,
        num_videos=job.manifest.num_rows,
        found=tuple(
            Neighbours(near(query, 1.0), tuple(near(*pair) for pair in pairs))
            for query, pairs in zip(queries, rankings, strict=True)
        ),
    )


@ray.remote
def _nearest(
    store: Store, folder: str, known: pa.Table, queries: list[str]
) -> tuple[list[list[tuple[str, float]]], int]:
    return nearest(store, folder, known, queries)


def nearest(
    store: Store, folder: str, known: pa.Table, queries: list[str], num: int = NUM_NEAREST
) -> tuple[list[list[tuple[str, float]]], int]:
    """Return for each query its `num` nearest videos with their cosines, nearest first; and the
    number of videos compared.

    Args:
        known: video_id and source of today's videos: vectors of files that have changed are left
            out.
    """
    columns = ["video_id", "source", "vector"]
    table = _current(store.read_rows(folder, columns, "video_id", queries), known)
    unit = dict(zip(table["video_id"].to_pylist(), _unit(table["vector"]), strict=True))
    width = next(iter(unit.values())).shape if unit else (1,)
    query_vectors = np.stack([unit.get(query, np.zeros(width, np.float32)) for query in queries])
    best: list[list[tuple[float, str]]] = [[] for _ in queries]
    count = 0
    for name in _spread(store, folder):
        with store.open_parquet(name) as file:
            for group in range(file.num_row_groups):
                part = _current(file.read_row_group(group, columns), known)
                names, vectors = part["video_id"].to_pylist(), _unit(part["vector"])
                count += len(names)
                cosines = query_vectors @ vectors.T
                for ranking, query, row in zip(best, queries, cosines.tolist(), strict=True):
                    ranking += [
                        (c, n) for c, n in zip(row, names, strict=True) if n != query and c != 0
                    ]
                    # Videos with equal cosines by name, so that the order of files does not matter.
                    ranking[:] = heapq.nsmallest(num, ranking, key=lambda pair: (-pair[0], pair[1]))
    return [[(name, cosine) for cosine, name in ranking] for ranking in best], count


def _spread(store: Store, folder: str) -> list[str]:
    """Return files of a folder that hold about SEARCH_BYTES, evenly spread; all files of a smaller
    folder."""
    names = store.files(folder)
    # Files have about the same size; asking for every size takes long on object storage.
    total = len(names) * store.size_bytes(names[0])
    count = max(1, int(len(names) * min(1, SEARCH_BYTES / max(1, total))))
    return [names[index * len(names) // count] for index in range(count)]


def _current(rows: pa.Table, known: pa.Table) -> pa.Table:
    """Return the rows of known videos whose file has not changed since, by its `source`."""
    # A row group has few of the videos: only these are hashed.
    known = known.filter(pc.is_in(known["video_id"], rows["video_id"]))
    return rows.filter(pc.is_valid(places_of(rows, known, ("video_id", "source"))))


def _unit(column: pa.ChunkedArray) -> np.ndarray:
    """Return vectors [n, D] scaled to length 1; zeros stay zeros."""
    vectors = vectors_from_arrow(column).astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# --- pictures -------------------------------------------------------------------------------------


def videos_of(job: Job, video_ids: list[str]) -> list[dict]:
    """Return uri, labels, num_segments, stretch and box of videos."""
    columns = ["video_id", "uri", "labels", "num_segments", "start_s", "end_s", *BOX]
    unordered = job.store.read_rows(job.videos, columns, "video_id", video_ids).to_pylist()
    rows = {row["video_id"]: row for row in unordered}
    return [rows[name] for name in video_ids]


def read_frames(job: Job, requests: list[FrameRequest]) -> list[bytes | None]:
    """Return the first frame of each request as a JPEG file; None where it cannot be read."""
    found = _read(job, requests) if requests else []
    return [None if one.images is None else _jpeg(one.images[0]) for one in found]


def _read(job: Job, requests: list[FrameRequest]) -> list[Frames]:
    return ray.get(_decode.remote(requests, job.config))


@ray.remote
def _decode(requests: list[FrameRequest], config: Config) -> list[Frames]:
    return decode(requests, config)


def decode(requests: list[FrameRequest], config: Config) -> list[Frames]:
    """Decode some frames of each video, evenly spread over its first segment, in limited time."""
    limits = config.decode
    limits = dataclasses.replace(limits, timeout_s=min(VIDEO_S, limits.timeout_s))
    # Attention is of the centre crop.
    picture = dataclasses.replace(config.picture, views="centre", scales=())
    decoded, end = [], time.monotonic() + DECODE_S
    with IsolatedDecoder(limits) as decoder:
        for request in requests:
            if time.monotonic() > end:
                decoded.append(Frames(missing=f"not read within {DECODE_S:.0f} s for all videos"))
                continue
            try:
                frames = decoder.call(
                    decode_segment,
                    request.uri,
                    0,
                    request.num_segments,
                    request.sampling,
                    picture,
                    limits,
                    (FRAME,),
                    request.stretch,
                    request.box,
                )
            except VideoError as error:
                decoded.append(Frames(missing=f"cannot be read any more ({error.error_type})"))
                continue
            count = min(request.num_frames, len(frames.images))
            positions = np.linspace(0, len(frames.images) - 1, count).astype(int)
            indices = tuple(frames.frame_indices[positions].tolist())
            decoded.append(Frames(indices, frames.images[positions]))
    return decoded


def _jpeg(image: np.ndarray) -> bytes:
    return image_file(image, quality=75, size_px=(THUMBNAIL_PX, THUMBNAIL_PX))
