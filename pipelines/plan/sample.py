"""The sample of a plan: a job of its own in a temporary folder, with some frames of some videos.

Its rows go through the stages of the run, in this process, into the run's tables.
"""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipelines.cluster import sink
from pipelines.describe.stage import CPU_FRAMES, DescribeFrames
from pipelines.errors import ConfigError
from pipelines.index import current_rows
from pipelines.run.job import Job
from pipelines.settings.sections import Sampling
from pipelines.storage.store import Store
from pipelines.storage.tables import DESCRIPTORS, SEGMENTS, VIDEOS
from pipelines.video.isolation import peak_bytes
from pipelines.video.sampling import SEGMENT_FRAMES
from pipelines.video.stages import DecodeSegments, plan_segments

MAX_VIDEOS = 8
"""Most videos that are described, fitted to and encoded."""

GOLDEN = (math.sqrt(5) - 1) / 2


def spread(number: int, seed: int, most: int) -> Iterator[int]:
    """Yield up to `most` of the indices below `number`, each once and evenly spread.

    Multiples of the golden ratio modulo 1, from a seeded start: three times `number` of them
    meet every place.
    """
    start = np.random.default_rng(seed).random()
    steps = min(3 * number, 3 * most)
    seen = set()
    for step in range(steps):
        index = int((start + step * GOLDEN) % 1 * number)
        if index not in seen and len(seen) < most:
            seen.add(index)
            yield index


def now_s() -> float:
    """Return the CPU seconds of this process, whatever else the machine does; wall-clock seconds
    for a GPU."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def indexed(job: Job, store: Store, videos: pa.Table) -> Job:
    """Return a job of these rows of VIDEOS alone, whose first step is done in `store`."""
    part = dataclasses.replace(job, store=store, manifest=videos.select(job.manifest.column_names))
    outputs = [
        sink.Output(SEGMENTS, part.segments, job.footer("index"), plan_segments),
        sink.Output(VIDEOS, part.videos, job.footer("index")),
    ]
    sink.publish(store, outputs, videos)
    return part


def decoder_of(job: Job) -> DecodeSegments:
    """Return the stage that decodes, with a child process of its own that has started."""
    config = job.config
    windows = config.describe.windows
    stage = DecodeSegments(config.sampling, config.picture, config.decode, windows=windows)
    stage.decoder.call(peak_bytes)
    return stage


def sample_job(
    job: Job,
    store: Store,
    videos: pa.Table,
    network: DescribeFrames,
    frames: float,
    seconds: float,
) -> tuple[Job, float]:
    """Return a job of some of the videos, of each as many frames as there is time to describe.

    Also returns the operations of a frame.

    Args:
        frames: most of them.

    Raises:
        ConfigError: no video can be decoded.
    """
    first = next(_decoded(_with_frames(job, store, videos, CPU_FRAMES)), None)
    if first is None:
        raise ConfigError(
            f"--plan: expected a video of which {CPU_FRAMES} frames can be decoded among "
            f"{videos.num_rows}, got none; try more of them by plan.probe_s or plan.sample"
        )
    # The first call allocates memory and selects kernels; a later one measures the rate.
    with FlopCounterMode(display=False) as counter:
        network(first)
    if job.config.describe.compile:
        # Kernels are not selected while operations are counted.
        network(first)
    began = time.perf_counter()
    network(first)
    number = len(first["frame_indices"][0])
    fitting = int(seconds / (time.perf_counter() - began) * number / MAX_VIDEOS)
    most = min(max(CPU_FRAMES, fitting), SEGMENT_FRAMES, max(1, round(frames)))
    return _with_frames(job, store, videos, most), counter.get_total_flops() / number


def _with_frames(job: Job, store: Store, videos: pa.Table, num_frames: int) -> Job:
    """Return some of the videos, each with so many frames: one segment each."""
    sampling = Sampling(policy="uniform", num_frames=num_frames)
    config = dataclasses.replace(job.config, sampling=sampling)
    rows = videos.take(list(spread(videos.num_rows, config.run.seed, 2 * MAX_VIDEOS)))
    column = rows.schema.get_field_index("num_segments")
    num_segments = pa.repeat(pa.scalar(1, rows.schema.types[column]), rows.num_rows)
    rows = rows.set_column(column, rows.schema.field(column), num_segments)
    return indexed(dataclasses.replace(job, config=config), store, rows)


def _decoded(part: Job) -> Iterator[pa.Table]:
    """Yield decoded segments that have frames, one after the other."""
    stage, rows = decoder_of(part), current_rows.segment_plan(part)
    with contextlib.closing(stage.decoder):
        for index in range(rows.num_rows):
            (segment,) = stage(rows.slice(index, 1))
            if len(segment["frame_indices"][0]):
                yield segment


def describe(part: Job, network: DescribeFrames, seconds: float) -> dict[str, Any]:
    """Describe the job's videos for about so many seconds, and return the cost of a frame.

    Raises:
        ConfigError: no video can be decoded.
    """
    at_once = part.config.describe.batch_segments if network.device == "cuda" else 1
    outputs = [sink.Output(DESCRIPTORS, part.descriptors, part.footer("describe"))]
    times: list[float] = []
    videos = frames = num_bytes = 0
    segments, began = itertools.islice(_decoded(part), MAX_VIDEOS), time.monotonic()
    while batch := list(itertools.islice(segments, at_once)):
        started = now_s()
        rows = network(pa.concat_tables(batch))
        (name,) = sink.publish(part.store, outputs, rows)
        number = pc.sum(rows["num_frames"]).as_py()
        times.append((now_s() - started) / number)
        videos, frames = videos + rows.num_rows, frames + number
        num_bytes += part.store.size_bytes(name)
        if time.monotonic() - began > seconds:
            break
    if not times:
        raise ConfigError(
            f"--plan: expected videos that can be decoded among {part.manifest.num_rows}, got none"
        )
    return {
        # All frames cost the same: time above the minimum comes from other work of the machine.
        "describe_s": min(times),
        "frame_bytes": num_bytes / frames,
    }
