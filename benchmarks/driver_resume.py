"""The part of `python -m benchmarks.driver` about going on: what a run reads that was killed in
describe.

All segments but one file's are described, in the files of 16 that describe writes before it puts
them together. The run has to find out which segments are left.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from benchmarks.driver_run import FACTS, in_a_process
from benchmarks.harness import Disagreement, Options, Row, at_most, progress
from pipelines.index import current_rows
from pipelines.run.inputs import Retries
from pipelines.storage.columns import descriptor_type, descriptors_to_arrow, file_name
from pipelines.storage.parquet import write_parquet
from pipelines.storage.store import Store
from pipelines.storage.tables import DESCRIPTORS, ROWS_PER_FILE, SEGMENTS, VIDEOS
from pipelines.video import stages

MOST_BYTES, MOST_S = 1e9, 120.0
NUM_STREAMS, WIDTH, NUM_FRAMES = 4, 16, 64
FOOTER = {f"video_fisher.{name}": "a value as long as a digest of them" for name in "abcdefghij"}


def resume(count: int) -> Callable[[Options], list[Row]]:
    """The case of so many segments."""

    def case(options: Options) -> list[Row]:
        """What a run reads that goes on in describe, and how long that takes"""
        with tempfile.TemporaryDirectory() as folder:
            per_file = ROWS_PER_FILE["descriptors"]
            files = range(0, count, per_file)
            progress(f"  {len(files):,} files for {count:,} segments")
            with ProcessPoolExecutor(2) as pool:
                starts = range(0, count, ROWS_PER_FILE["videos"])
                list(pool.map(_plan, [(folder, start, count) for start in starts]))
                list(pool.map(_describe, [(folder, start) for start in files[:-1]], chunksize=64))
            found = in_a_process(_go_on, folder)
        if found["left"] != count - files[-1]:
            raise Disagreement(f"expected {count - files[-1]} segments left, got {found['left']}")
        what = f"{count:,} segments, {len(files):,} files"
        return [
            at_most("bytes read by a run that goes on", what, found["bytes"], MOST_BYTES, **found),
            at_most("seconds until it knows what is left", what, found["s"], MOST_S, **found),
        ]

    return case


def _ids(start: int, number: int) -> list[str]:
    return [
        f"class {i % 50:02d}/a video with a name {i:07d}.mp4" for i in range(start, start + number)
    ]


def _plan(arguments: tuple[str, int, int]) -> None:
    folder, start, count = arguments
    rows = [
        stages.videos_row(
            {
                "video_id": video,
                "uri": f"/videos/{video}",
                "labels": ["x"],
                "group": None,
                "fold": 0,
                "size_bytes": 1,
                "source": f"{i:016x}",
            },
            FACTS,
            1,
        )
        for i, video in enumerate(
            _ids(start, min(ROWS_PER_FILE["videos"], count - start)), start=start
        )
    ]
    videos = VIDEOS.build(rows)
    _write(folder, "videos", videos, VIDEOS.key)
    _write(folder, "segments", stages.plan_segments(videos), SEGMENTS.key)


def _describe(arguments: tuple[str, int]) -> None:
    folder, start = arguments
    number = ROWS_PER_FILE["descriptors"]
    ids = _ids(start, number)
    random = np.random.default_rng(start)
    vectors = [random.random((NUM_FRAMES, WIDTH)).astype(np.float16)] * number
    columns: dict[str, list] = {
        "segment_id": [f"{video}#00000" for video in ids],
        "video_id": ids,
        "segment": [0] * number,
        "source": [f"{i:016x}" for i in range(start, start + number)],
        "num_frames": [NUM_FRAMES] * number,
        "num_missing": [0] * number,
        "frame_indices": [list(range(NUM_FRAMES))] * number,
        "timestamps_s": [[i / 2.5 for i in range(NUM_FRAMES)]] * number,
        "status": ["ok"] * number,
        "attempts": [1] * number,
        "decode_s": list(random.random(number)),
        "decoder": ["pyav 18.1.0 (FFmpeg 8.1.2)"] * number,
    }
    kinds = {f"stream_{i}": descriptor_type(WIDTH) for i in range(NUM_STREAMS)}
    streams = dict.fromkeys(kinds, descriptors_to_arrow(vectors, WIDTH))
    arrays = [
        streams[field.name]
        if field.name in streams
        else pa.array(columns.get(field.name, [None] * number), field.type)
        for field in DESCRIPTORS.schema(**kinds)
    ]
    table = pa.Table.from_arrays(arrays, schema=DESCRIPTORS.schema(**kinds))
    _write(folder, "descriptors", table, DESCRIPTORS.key)


def _write(folder: str, table: str, rows: pa.Table, key: tuple[str, ...]) -> None:
    """As `Store.publish_table`, but for waiting until the disk has it."""
    place = Path(folder) / table / "d"
    place.mkdir(parents=True, exist_ok=True)
    (place / file_name(rows, key)).write_bytes(write_parquet(rows, FOOTER))


def _go_on(folder: str) -> dict[str, float]:
    job = SimpleNamespace(
        store=Store(folder),
        videos="videos/d",
        segments="segments/d",
        descriptors="descriptors/d",
        retries=Retries(),
    )
    before, began, worked = _bytes_read(), time.perf_counter(), time.process_time()
    plan = current_rows.segment_plan(job)
    left = current_rows.to_describe(job, plan).num_rows
    return {
        "left": left,
        "s": time.perf_counter() - began,
        "cpu_s": time.process_time() - worked,
        "bytes": _bytes_read() - before,
    }


def _bytes_read() -> int:
    """Bytes that this process has asked the system for."""
    with open("/proc/self/io") as counts:
        return int(counts.readline().split()[1])
