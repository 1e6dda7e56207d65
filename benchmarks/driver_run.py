"""The part of `python -m benchmarks.driver`: the whole pipeline with stages that neither read
videos nor compute.

Descriptors are random and small; all else is as ever. Vectors, scores and targets are still several
times the bytes
a segment that the driver may hold: it would show if it held those of one result alone.
"""

import ctypes
import gc
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.harness import Disagreement, Options, Row, at_most, progress
from encoders.descriptors.streams import Stream
from encoders.stream_specs import Window
from pipelines.cluster import doors
from pipelines.cluster.meter import Meter
from pipelines.describe import stage
from pipelines.run.steps import STEPS
from pipelines.settings.config import Config
from pipelines.settings.sections import Decode, Picture, Sampling
from pipelines.storage.columns import descriptor_type, descriptors_to_arrow
from pipelines.storage.tables import DESCRIPTORS
from pipelines.video import stages
from pipelines.video.header import VideoFacts

SETTINGS = (
    "describe.backbone=shufflenet_v2_x0_5",
    "describe.nodes=maxpool",
    "describe.weights=random:0",
    "describe.spp_levels=1",
    "encode.encoders=ave,vlad",
    "vlad.num_centroids=16",
    "fit.num_frames=1000",
    # Of random vectors no classes can be told apart, and a large C takes long.
    "classify.c=0.01",
    "evaluate.bootstrap=20",
)
NUM_CLASSES = 50
NUM_FRAMES = 2

FACTS = VideoFacts("mp4", "h264", 320, 240, 0, 4.0, 25.0, 100)

MOST_BYTES = 1000.0
"""A segment: its id, its video's id and uri, and where its rows are, several times over."""


def driver(few: int, many: int) -> Callable[[Options], list[Row]]:
    """The case of two numbers of segments."""

    def case(options: Options) -> list[Row]:
        """The driver's memory at two numbers of segments, step by step"""
        return _rows(few, many)

    return case


def _rows(few: int, many: int) -> list[Row]:
    sides = {count: in_a_process(_run, count) for count in (few, many)}
    return [
        at_most(
            f"private memory of the driver, {what}: growth in bytes a segment",
            f"{few:,} to {many:,} segments",
            (sides[many][kind][step] - sides[few][kind][step]) / (many - few),
            MOST_BYTES,
            num_bytes={str(count): side[kind][step] for count, side in sides.items()},
            seconds={str(count): side["seconds"] for count, side in sides.items()},
            table_bytes={str(count): side["table_bytes"] for count, side in sides.items()},
        )
        for kind, word in (("held", "held after"), ("peak", "peak of"))
        for step in sides[many]["held"]
        for what in [f"{word} {step}"]
    ]


def in_a_process(side: Callable, *arguments: object) -> dict:
    # What is freed goes back to the system, and each thread takes no heap of its own: the process
    # then has what it holds.
    os.environ |= {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(side, *arguments).result()


class _Probe(stages.ProbeVideos):
    """All videos have the same header."""

    def __init__(self, sampling: Sampling, decode: Decode, meter: Meter) -> None:
        self.meter = meter

    def _row(self, row: dict) -> dict:
        return stages.videos_row(row, FACTS, 1)


class _Decode(stages.DecodeSegments):
    """No pictures."""

    def __init__(
        self,
        sampling: Sampling,
        picture: Picture,
        decode: Decode,
        meter: Meter,
        windows: tuple[Window, ...],
    ) -> None:
        self.meter = meter

    def _row(self, row: dict) -> tuple[dict, float]:
        keys = ("segment_id", "video_id", "segment", "source", "attempts")
        nothing = dict.fromkeys(("stage", "error_type", "error", "decoder"))
        found = {name: row[name] for name in keys} | nothing
        times = {"frame_indices": [0, 50], "timestamps_s": [0.0, 2.0], "decode_s": 0.0}
        pictures = {"images": b"", "num_images": NUM_FRAMES, "places": [], "flows": []}
        return found | times | pictures | {"status": "ok", "num_missing": 0}, 0.0


class _Describe(stage.DescribeFrames):
    """Random descriptors."""

    def __init__(
        self,
        weights: Callable[[], bytes],
        config: Config,
        streams: dict[str, Stream],
        num_threads: int,
        meter: Meter,
    ) -> None:
        self.size, self.streams, self.meter = len(weights()), streams, meter

    def __call__(self, batch: pa.Table) -> pa.Table:
        table = batch.drop_columns(["images", "num_images", "places", "flows"])
        frames = pa.array([NUM_FRAMES] * len(table), pa.int32())
        table = table.append_column("num_frames", frames)
        for name, stream in self.streams.items():
            rows = [
                np.random.default_rng(list(segment.encode()))
                .random((NUM_FRAMES - (stream.kind == "difference"), stream.width))
                .astype(np.float16)
                for segment in batch["segment_id"].to_pylist()
            ]
            table = table.append_column(name, descriptors_to_arrow(rows, stream.width))
        kinds = {name: descriptor_type(stream.width) for name, stream in self.streams.items()}
        schema = DESCRIPTORS.schema(**kinds)
        return table.select(schema.names).cast(schema)


def _run(count: int) -> dict[str, object]:
    """All steps in this process as the driver."""
    doors.close()
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    import ray

    from pipelines import corpus, prepare

    stages.ProbeVideos = _Probe
    stages.DecodeSegments = _Decode
    stage.DescribeFrames = _Describe
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    progress(f"  {count:,} segments")
    with tempfile.TemporaryDirectory() as folder, _Peak() as peak:
        labels = _corpus(Path(folder), count)
        began = time.perf_counter()
        inputs = prepare.Inputs(
            videos=f"{folder}/videos",
            labels=str(labels),
            out=f"{folder}/out",
            config=Config().with_settings(list(SETTINGS)),
            steps=tuple(STEPS),
        )
        job = prepare.prepare(inputs)
        steps = iter(STEPS)
        outcome = corpus.run(job, tuple(STEPS), None, lambda: peak.enter(next(steps)))
        seconds = time.perf_counter() - began
        peak.enter("end")
        files = list(Path(f"{folder}/out").rglob("*.parquet"))
        table_bytes = sum(path.stat().st_size for path in files)
    ray.shutdown()
    if outcome.ok != count:
        raise Disagreement(f"driver: expected {count} segments that are ok, got {outcome}")
    return {"peak": peak.found, "held": peak.held, "seconds": seconds, "table_bytes": table_bytes}


def _corpus(folder: Path, count: int) -> Path:
    """Empty files, and labels of which a tenth trains."""
    lines = ["path,label,split"]
    for place in range(count):
        # Of each class some train, and some are tested.
        label, split = f"class {place // 10 % NUM_CLASSES:02d}", "test" if place % 10 else "train"
        file = folder / "videos" / label / f"a video with a name {place:07d}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        lines.append(f"{label}/{file.name},{label},{split}")
    labels = folder / "labels.csv"
    labels.write_text("\n".join(lines))
    return labels


class _Peak(threading.Thread):
    """The largest private memory of this process in each step, sampled, and what it holds after it;
    a context manager.

    What the object store shares with it is left out: that has a size of its own. Memory that was
    freed in pieces stays with the process until it is asked for; so it is given back before what is
    held is read, and before the next step begins.
    """

    INTERVAL_S = 0.01

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.step, self.found, self.held = "prepare", {}, {}
        self.stopped = threading.Event()

    def __enter__(self) -> "_Peak":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join()

    def enter(self, step: str) -> None:
        peak, gone = self.found.get(self.step, 0), self.step
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.held[gone] = _private_bytes()
        progress(f"  {gone}: at most {peak / 2**20:.0f} MiB, then {self.held[gone] / 2**20:.0f}")
        self.step = step

    def run(self) -> None:
        while not self.stopped.wait(self.INTERVAL_S):
            step = self.step
            self.found[step] = max(self.found.get(step, 0), _private_bytes())


def _private_bytes() -> int:
    with open("/proc/self/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
    return int(sizes["RssAnon"].split()[0]) * 1024
