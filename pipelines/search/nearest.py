"""A search for similar videos: the videos of a run nearest to one of them, or to a new video file.

No cluster: an index is read in pieces, and a new file is described and encoded by the callables
that Ray runs.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from encoders.encodings.time_pyramid import TemporalPyramid
from encoders.stream_specs import FRAME
from pipelines.cluster.device import cuda_or_cpu
from pipelines.describe.segments import span_s
from pipelines.describe.stage import DescribeFrames, described_streams
from pipelines.encode.stage import StreamEncoders, VideoSums, load_encoder
from pipelines.errors import ConfigError, RunError
from pipelines.run.folders import folder_name
from pipelines.run.saved import Encodings, SavedRun
from pipelines.search.encodings import told
from pipelines.search.index import Index, open_index
from pipelines.search.page import Answer, Shown, render
from pipelines.search.video_ids import near_id
from pipelines.settings.config import digest
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.storage.pictures import image_file
from pipelines.storage.store import Store
from pipelines.storage.uris import refuse_credentials
from pipelines.video.decode import decode_segment
from pipelines.video.header import VideoError
from pipelines.video.isolation import IsolatedDecoder
from pipelines.video.stages import DecodeSegments, ProbeVideos, plan_segments, stretch_of

log = logging.getLogger(__name__)

MOST = 100
"""Results of a search; each has pictures on the page."""

_FACTS = ("video_id", "uri", "labels", "width_px", "height_px", "start_s", "end_s")
_THUMBNAILS = Sampling(policy="uniform", num_frames=3)
_THUMBNAIL_PX = 160
_THUMBNAIL_S, _ALL_THUMBNAILS_S = 20.0, 120.0
"""Most seconds for the pictures of one video, and of all; videos that take longer are shown
without."""


@dataclass(frozen=True)
class _Query:
    """A query: its compressed vector [P], its entry on the page, and the videos to leave out of the
    answer."""

    vector: np.ndarray
    facts: dict
    leave_out: frozenset[str]


def search(
    out: str,
    query: str,
    *,
    encoder: str | None = None,
    stream: str | None = None,
    num: int = 10,
    page: str | None = None,
) -> Answer:
    """Find the `num` videos of the run at `out` nearest to `query`, and publish the page.

    Args:
        query: a video_id of the run, or path or URI of a video file.
        encoder, stream: of the encodings to compare; of those left open the one with the best mAP
            in METRICS.
        page: file or URI of the page; None: in the run's folder search/.

    Raises:
        ConfigError: there is no such run, video, encoder or stream, or the file cannot be decoded.
        RunError: the run's tables do not allow a search.
    """
    if not 1 <= num <= MOST:
        raise ConfigError(f"--num: expected 1 to {MOST}, got {num}")
    for flag, uri in (("--query", query), ("--page", page or "")):
        refuse_credentials(flag, uri)
    run = SavedRun.open(out)
    pair = _pair(run, encoder, stream)
    encodings = run.encodings[pair]
    if not run.is_encoded(encodings):
        raise ConfigError(
            f"--out {out}: expected complete encodings of {pair[0]} on {pair[1]}, found some "
            "missing; run the job again, at least with --steps index,describe,fit,encode"
        )
    with told(run.store):
        return _answer(run, pair, query, num, page)


def _answer(run: SavedRun, pair: tuple[str, str], query: str, num: int, page: str | None) -> Answer:
    encodings = run.encodings[pair]
    index = open_index(run.store, encodings, run.videos)
    asked = _query(run, pair, index, query)
    matches = index.nearest(asked.vector, num, asked.leave_out)
    facts = _facts(run, [name for name, _ in matches])
    jpegs = _thumbnails([asked.facts, *facts], run.config.decode)
    results = enumerate(zip(facts, jpegs[1:], matches, strict=True), start=1)
    answer = Answer(
        encoder=pair[0],
        stream=pair[1],
        fold=encodings.fold,
        index=index.facts,
        query=_shown(asked.facts, jpegs[0]),
        results=tuple(
            _shown(row, shots, rank=rank, similarity=similarity)
            for rank, (row, shots, (_, similarity)) in results
        ),
    )
    return dataclasses.replace(answer, page=_publish(run, encodings, query, answer, page))


def _pair(run: SavedRun, encoder: str | None, stream: str | None) -> tuple[str, str]:
    """Return the (encoder, stream) that the flags name; of several the one with the best mAP."""
    if not run.encodings:
        raise ConfigError(
            f"--out {run.store.root}: expected a run with encodings, found none; run the job "
            "with step encode"
        )
    pairs = [
        pair
        for pair in run.best_first()
        if encoder in (None, pair[0]) and stream in (None, pair[1])
    ]
    if not pairs:
        known = ", ".join(f"--encoder {name} --stream {of}" for name, of in run.encodings)
        flags = f"{f'--encoder {encoder}' * bool(encoder)} {f'--stream {stream}' * bool(stream)}"
        raise ConfigError(
            f"{flags.strip()}: expected encodings that the run has, which are {known}"
        )
    return pairs[0]


# --- the query --------------------------------------------------------------------------------


def _query(run: SavedRun, pair: tuple[str, str], index: Index, query: str) -> _Query:
    """Return the query: a video of the run if it has that id, else a file."""
    vector = index.vector(query)
    if vector is not None:
        return _Query(vector, _facts(run, [query])[0], frozenset([query]))
    columns = ["video_id", "status", "error_type", "error"]
    for row in run.store.read_rows(run.videos, columns, "video_id", [query]).to_pylist():
        raise ConfigError(
            f"--query {query}: expected a video with an encoding; this one has none by "
            f"{pair[0]} on {pair[1]} ({_reason(run, row)})"
        )
    is_uri = "://" in query
    # Normalised like the ids of VIDEOS, so that a file of the run does not find itself.
    uri = query if is_uri else os.path.abspath(os.path.expanduser(query))
    if not is_uri and not os.path.isfile(uri):
        raise ConfigError(
            f"--query {query}: expected a video_id of the run, or a video file; found neither"
            f"{near_id(query, index.video_ids())}"
        )
    videos = _probe(run, uri)
    vector = index.compress(_encode(run, pair, videos))
    same = run.store.read_rows(run.videos, ["video_id"], "uri", [uri.removeprefix("file://")])
    return _Query(vector, videos.to_pylist()[0], frozenset(same["video_id"].to_pylist()))


def _reason(run: SavedRun, row: dict) -> str:
    columns = ["segment_id", "error_type", "error"]
    rows = [row] if row["status"] == "failed" else []
    if not rows and run.store.files(run.tables["failures"]):
        failed = run.store.read_rows(run.tables["failures"], columns, "video_id", [row["video_id"]])
        rows = failed.sort_by("segment_id").to_pylist()
    if not rows:
        return "no descriptor, such as a video of one frame on a difference stream"
    return _said(rows[0])


def _probe(run: SavedRun, uri: str) -> pa.Table:
    """Return a row of VIDEOS for the file."""
    listed = {"video_id": uri, "uri": uri, "labels": [], "group": None, "fold": -1}
    stage = ProbeVideos(run.config.sampling, run.config.decode)
    with contextlib.closing(stage.decoder):
        videos = stage(pa.Table.from_pylist([listed | {"size_bytes": 0, "source": ""}]))
    row = videos.to_pylist()[0]
    if row["status"] == "failed":
        raise ConfigError(f"--query {uri}: cannot be decoded ({_said(row, uri)})")
    return videos


def _encode(run: SavedRun, pair: tuple[str, str], videos: pa.Table) -> np.ndarray:
    """Return the encoding [D] of a file, by the run's own settings, weights and codebook, as step
    encode computes it.

    As there, segments that cannot be decoded are left out, unless it is all of them.
    """
    uri = videos["uri"][0].as_py()
    stream = described_streams(run.config)[pair[1]]
    device = cuda_or_cpu()
    describe = DescribeFrames(
        functools.partial(run.store.read, run.weights),
        run.config,
        {stream.name: stream},
        torch.get_num_threads(),
    )
    book = run.codebook(pair)
    encoder = load_encoder(book, run.store, device)
    pyramid = TemporalPyramid(book.temporal_pyramid)
    encoders = StreamEncoders(stream, {book.column: encoder}, {book.column: pyramid})
    with torch.inference_mode():
        segments, video = _described(run, describe, videos), VideoSums()
        if pyramid.num_parts > 1:
            segments = list(segments)  # where to cut is known when the last frame is
            video = VideoSums(span_s=span_s(segments))
        for segment in segments:
            encoders.add(segment, video, device)
        if not video.num_frames:
            raise ConfigError(
                f"--query {uri}: expected descriptors of stream {stream.name}, got none; a "
                "video of one frame has no differences, so give --stream"
            )
        vector = pyramid.finalise(encoder, video.states[book.column])
    return vector.cpu().numpy().astype(run.config.encode.dtype)


def _described(run: SavedRun, describe: DescribeFrames, videos: pa.Table) -> Iterator[pa.Table]:
    """Yield rows of DESCRIPTORS of a file's segments, except those that cannot be decoded.

    Raises:
        ConfigError: none can be decoded.
    """
    uri = videos["uri"][0].as_py()
    config = run.config
    stage = DecodeSegments(
        config.sampling, config.picture, config.decode, windows=config.describe.windows
    )
    columns = ["video_id", "uri", "width_px", "height_px", "status", "stage", "error_type", "error"]
    plan = plan_segments(videos).join(videos.select(columns), "video_id").sort_by("segment")
    any_described, failed = False, ""
    with contextlib.closing(stage.decoder):
        for frames in stage(plan):
            row = frames.drop_columns(["images"]).to_pylist()[0]
            if row["status"] != "ok":
                log.warning("--query %s: segment %d: %s", uri, row["segment"], _said(row, uri))
            if row["status"] == "failed":
                failed = failed or _said(row, uri)
                continue
            any_described = True
            yield describe(frames)
    if not any_described:
        raise ConfigError(f"--query {uri}: cannot be decoded ({failed})")


def _said(row: dict, uri: str = "") -> str:
    """Return the reason of a failure, in one line and without the file's name."""
    return " ".join(f"{row['error_type']}: {row['error'].removeprefix(f'{uri}: ')}".split())


# --- results ----------------------------------------------------------------------------------


def _facts(run: SavedRun, video_ids: list[str]) -> list[dict]:
    """Return VIDEOS rows, in the order of the ids."""
    rows = run.store.read_rows(run.videos, list(_FACTS), "video_id", video_ids).to_pylist()
    by_id = {row["video_id"]: row for row in rows}
    return [by_id[name] for name in video_ids]


def _shown(
    facts: dict,
    jpegs: tuple[bytes, ...],
    *,
    rank: int | None = None,
    similarity: float | None = None,
) -> Shown:
    return Shown(
        video_id=facts["video_id"],
        labels=tuple(facts["labels"]),
        rank=rank,
        similarity=similarity,
        jpegs=jpegs,
    )


def _thumbnails(videos: list[dict], decode: Decode) -> list[tuple[bytes, ...]]:
    """Return some small JPEG files of each video; none for a video that cannot be decoded, or not
    in time."""
    settings = dataclasses.replace(decode, timeout_s=min(decode.timeout_s, _THUMBNAIL_S))
    square = Picture(resize_px=_THUMBNAIL_PX, crop_px=_THUMBNAIL_PX)
    end = time.monotonic() + _ALL_THUMBNAILS_S
    thumbnails: list[tuple[bytes, ...]] = []
    with IsolatedDecoder(settings) as decoder:
        for video in videos:
            images = np.empty((0, 0, 0, 3), np.uint8)
            if time.monotonic() < end:
                with contextlib.suppress(VideoError):
                    segment = (video["uri"], 0, 1, _THUMBNAILS, square, settings)
                    segment += ((FRAME,), stretch_of(video))
                    images = decoder.call(decode_segment, *segment).images
            thumbnails.append(tuple(_jpeg(image, video) for image in images))
    return thumbnails


def _jpeg(image: np.ndarray, video: dict) -> bytes:
    """Return the square image as a JPEG file of the video's own proportions, within 1:3 and 3:1."""
    width, height = video["width_px"] or 1, video["height_px"] or 1
    share = min(max(width / height, 1 / 3), 3.0)
    size = (_THUMBNAIL_PX, round(_THUMBNAIL_PX / share))
    if share < 1:
        size = (round(_THUMBNAIL_PX * share), _THUMBNAIL_PX)
    return image_file(image, quality=80, size_px=size)


def _publish(
    run: SavedRun, encodings: Encodings, query: str, answer: Answer, page: str | None
) -> str:
    """Publish the page and return its URI."""
    content = render(answer).encode("utf-8", "backslashreplace")
    if page is None:
        name = digest(query, encodings, run.videos, len(answer.results))
        file = f"search/{folder_name(answer.encoder, answer.stream)}-{name}.html"
        run.store.publish(file, content)
        return run.store.uri(file)
    uri = page if "://" in page else os.path.abspath(os.path.expanduser(page))
    folder, _, name = uri.rpartition("/")
    try:
        Store(folder).publish(name, content)
    except RunError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"--page {page}: cannot write it ({error})") from error
    return uri
