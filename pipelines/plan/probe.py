"""Facts of the videos for a plan, from headers and some segments, read as a run reads them.

The stages are the run's own, in this process, on a sample that is spread over the corpus.
"""

import collections
import math
import os
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import ConfigError
from pipelines.index import current_rows
from pipelines.plan.sample import decoder_of, indexed, spread
from pipelines.run.job import Job
from pipelines.storage.store import Store
from pipelines.video.header import local_path
from pipelines.video.isolation import peak_bytes
from pipelines.video.stages import ProbeVideos

LOOKS = 20_000
"""Most names of a manifest that are looked for, where most files are missing."""

MAX_SEGMENTS = 32
"""Most segments that are decoded."""


@dataclass(frozen=True, kw_only=True)
class Headers:
    """Headers of the videos that were looked at.

    `missing` do not exist, `failed` hold no video; the rest are means of the others.

    relative_error: standard error of the mean number of segments, as a share of it; 0 where all
    were read.
    """

    looked: int
    missing: int
    failed: int
    reasons: tuple[tuple[str, int], ...]
    header_s: float
    mean_segments: float
    relative_error: float
    mean_duration_s: float
    mean_bytes: float


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Decoded segments, `failed` of `tried`.

    Attributes:
        decode_s: of a segment on one core, failures included.
        frames: of a segment that did not fail.
        decoder_bytes: peak of the process that decodes.
        requests, read_bytes: for a segment, of a video on object storage; 0 of a local one.
    """

    tried: int
    failed: int
    decode_s: float
    frames: float
    decoder_bytes: int
    requests: float = 0.0
    read_bytes: float = 0.0


def look_at_videos(job: Job, seconds: float) -> tuple[Headers, pa.Table]:
    """Read headers of a sample for about so many seconds; return them, and the rows of VIDEOS that
    are not failed.

    Raises:
        ConfigError: no video can be read.
    """
    total = job.manifest.num_rows
    missing = looked = 0
    reasons: collections.Counter[str] = collections.Counter()
    tables: list[pa.Table] = []
    # Bytes, and seconds to read the header.
    numbers: list[tuple[int, float]] = []
    stage = ProbeVideos(job.config.sampling, job.config.decode)
    # The child starts with its first call, which must not count.
    stage.decoder.call(peak_bytes)
    began = time.monotonic()
    for index in spread(total, job.config.run.seed, LOOKS):
        patience = 1 if tables else 5
        is_late = time.monotonic() - began > patience * seconds
        if len(tables) >= job.config.plan.sample or is_late:
            break
        looked += 1
        row = job.manifest.slice(index, 1)
        path = local_path(row["uri"][0].as_py())
        if path is not None and not os.path.exists(path):
            missing += 1
            continue
        started = time.perf_counter()
        probed = stage(row)
        header_s = time.perf_counter() - started
        if error := probed["error_type"][0].as_py():
            reasons[error] += 1
            continue
        size = os.path.getsize(path) if path else row["size_bytes"][0].as_py()
        tables.append(probed)
        numbers.append((size, header_s))
    stage.decoder.close()
    missing += reasons.pop("not_found", 0)
    if not tables:
        words = ", ".join(f"{count} x {kind}" for kind, count in reasons.most_common()) or "none"
        raise ConfigError(
            f"--plan: expected a video that can be read among {looked:,} of {total:,}, got "
            f"{missing:,} that "
            f"do not exist and {reasons.total():,} that hold no video ({words}); are the paths "
            "right?"
        )
    videos = pa.concat_tables(tables).combine_chunks()
    counts = videos["num_segments"].to_numpy()
    mean_bytes, header_s = np.mean(numbers, axis=0).tolist()
    # One video tells nothing about others, and after a look at all videos none are left.
    deviation = counts.std(ddof=1) if len(counts) > 1 else counts.mean()
    left = 1 - looked / total
    headers = Headers(
        looked=looked,
        missing=missing,
        failed=reasons.total(),
        reasons=tuple(reasons.most_common()),
        header_s=header_s,
        mean_segments=float(counts.mean()),
        relative_error=float(deviation / counts.mean() * math.sqrt(left / len(counts))),
        mean_duration_s=pc.mean(pc.fill_null(videos["duration_s"], 0.0)).as_py(),
        mean_bytes=mean_bytes,
    )
    return headers, videos


def decode_segments(job: Job, store: Store, videos: pa.Table, seconds: float) -> Decoded:
    """Decode some segments of these videos, one after the other, for about so many seconds.

    Raises:
        ConfigError: none can be decoded.
    """
    seed = job.config.run.seed
    rows = current_rows.segment_plan(indexed(job, store, videos))
    stage = decoder_of(job)
    times: list[float] = []
    frames: list[int] = []
    failed, error = 0, "no frame lies where the header promised it"
    began = time.monotonic()
    for index in spread(rows.num_rows, seed, MAX_SEGMENTS):
        if any(frames) and time.monotonic() - began > seconds:
            break
        started = time.perf_counter()
        (decoded_row,) = stage(rows.slice(index, 1))
        times.append(time.perf_counter() - started)
        if decoded_row["status"][0].as_py() == "failed":
            failed, error = failed + 1, decoded_row["error"][0].as_py()
        else:
            frames.append(len(decoded_row["frame_indices"][0]))
    decoder_bytes = stage.decoder.call(peak_bytes)
    stage.decoder.close()
    if not any(frames):
        raise ConfigError(
            f"--plan: expected a video that can be decoded among {len(times)}, got none; one "
            f"says: {error}"
        )
    return Decoded(
        tried=len(times),
        failed=failed,
        decode_s=float(np.mean(times)),
        frames=float(np.mean(frames)),
        decoder_bytes=decoder_bytes,
        requests=stage.traffic.requests / len(times),
        read_bytes=stage.traffic.num_bytes / len(times),
    )
