"""What the parts of a run cost: from the committed results, from short measurements of this
machine, counted, or assumed. Each number comes with where it is from.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.harness import progress
from benchmarks.pipeline_decode import GOP_FRAMES, best_seconds, data_folder, encode
from pipelines.describe.segments import SegmentReader, stored_frames
from pipelines.describe.stage import described_streams
from pipelines.plan import trials as plan_trials
from pipelines.plan.probe import Decoded, Headers
from pipelines.plan.trials import FitTrial, Rates, Trials
from pipelines.prepare import Inputs, prepare
from pipelines.settings.recipes import recipe
from pipelines.storage.columns import descriptors_to_arrow
from pipelines.storage.store import Store

RESULTS = Path(__file__).parents[1] / "results"
INTERVAL_S = 3.0
FRAMES_PER_S = 25
SIZES = {"360p": (640, 360), "1080p": (1920, 1080)}
SEGMENTS_PER_TASK = 16
"""Of a large corpus; a file of rows has as many."""

STEPS = ("index", "describe", "fit", "encode", "classify", "evaluate")
TESTED, CLASSES = 256, 239
"""Of the trial of the metrics."""


@dataclass(frozen=True)
class Cost:
    """A number, in the unit that its name says, and where it is from."""

    value: float
    source: str


Costs = dict[str, Cost]

ASSUMED: dict[str, tuple[float, str]] = {
    "GPU node, start_s": (180, "boot, driver, an image with torch from a near registry"),
    "CPU node, start_s": (120, "as a GPU node, less the driver"),
    "a node's network, bytes_per_s": (5e9 / 8, "what such machines sustain; their peak is higher"),
    "object store, bytes_per_s of one connection": (50e6, "usual of one request after the other"),
    "object store, request_s": (0.03, "usual latency of a small request"),
    "GPU node, memory_bytes": (64 * 2**30, "g6.4xlarge"),
    "CPU node, memory_bytes": (32 * 2**30, "c7i.4xlarge"),
    "share of the memory for frames on their way": (0.15, "Ray: 30 % is object store, half of it"),
    "360p, bytes of a second of video": (1e6 / 8, "usual web video"),
    "1080p, bytes of a second of video": (5e6 / 8, "usual web video"),
}


def committed() -> Costs:
    """From benchmarks/results."""
    run = _rows("pipeline-run-2core-cpu.json")
    step = run["describe, 200 real videos, squeezenet1_0 features.12"]["detail"]
    stages = {stage["name"]: stage for stage in step["step"]["stages"]}
    name = "scheduling of 20,000 segments without work, decoders and describers"
    separate, together = (
        run[f"{name} {side}: milliseconds a segment"]["ratio"] for side in ("separate", "together")
    )
    resume = run["resume check, 200,000 finished segments: seconds"]
    source = "pipeline-run-2core-cpu.json"
    frames = step["alone"]["frames"]
    return _decoding() | {
        "driver, s of a task with two pools": Cost(
            separate / 1000 * SEGMENTS_PER_TASK, f"{source}, tasks of 16 segments, on 2 cores"
        ),
        "driver, s of a task with one pool": Cost(
            together / 1000 * SEGMENTS_PER_TASK, f"{source}, tasks of 16 segments, on 2 cores"
        ),
        "write, core_s of a frame": Cost(stages["write"]["busy_s"] / frames, source),
        "look into a file of rows, s": Cost(
            resume["ratio"] / resume["detail"]["files"], f"{source}, on a local disk"
        ),
    }


def assumed() -> Costs:
    """What nobody has measured here."""
    return {name: Cost(value, f"assumed: {why}") for name, (value, why) in ASSUMED.items()}


def _rows(name: str) -> dict[str, dict]:
    rows = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    # The first of rows with the same words has the step's own parts.
    return {row["measure"]: row for row in reversed(rows)}


def _decoding() -> Costs:
    """25 frames, or all key frames, of 30 s of H.264: what lies between must be decoded, however
    many are kept."""
    rows = _rows("pipeline-decode-2core-cpu.json")
    costs: Costs = {}
    for size, (width, height) in SIZES.items():
        row = rows[
            f"{width}x{height}, {3 * GOP_FRAMES} frames, a key frame every {GOP_FRAMES}: policy"
            " keyframes"
        ]
        seconds = row["detail"]["seconds"]
        for name, policy in (("every 3 s", "uniform"), ("key frames", "keyframes")):
            costs[f"{size}, {name}: decode, core_s of a second of video"] = Cost(
                seconds[policy] * FRAMES_PER_S / (3 * GOP_FRAMES),
                "pipeline-decode-2core-cpu.json",
            )
    return costs


def reading() -> Costs:
    """Descriptors of a finished file to frames in memory, both streams, in processor time of one
    core."""
    segments, frames = SEGMENTS_PER_TASK, 16
    streams = described_streams(recipe("fcvid"))
    draw = np.random.default_rng(0)
    columns = {
        "segment_id": [f"{place}" for place in range(segments)],
        "frame_indices": [list(range(frames))] * segments,
    }
    for name, stream in streams.items():
        shape = (frames * stream.num_descriptors, stream.width)
        # As after ReLU, half of the values are zero.
        rows = [draw.standard_normal(shape).clip(0) for _ in range(segments)]
        columns[name] = descriptors_to_arrow(rows, stream.width)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.publish_table("rows", pa.table(columns), {})

        def read() -> None:
            for name, stream in streams.items():
                reader = SegmentReader(store, ["frame_indices", name])
                for row in range(segments):
                    stored_frames(reader.read("rows", row), stream)

        seconds = best_seconds(read, 3) / (segments * frames)
    source = f"measured here: a file of {segments} segments, random numbers"
    return {"read, core_s of a frame": Cost(seconds, source)}


def every(trials: Trials) -> Costs:
    """All of them."""
    return committed() | reading() | of_trial(trials) | assumed()


def saved(corpus: str, rows: list[dict]) -> tuple[Costs, Trials]:
    """Costs and trials of an earlier run of this benchmark, to simulate with again."""
    details = [row["detail"] for row in rows if row["detail"].get("corpus") == corpus]
    detail = next(detail for detail in details if "trials" in detail)
    costs = {name: Cost(**cost) for name, cost in detail["costs"].items()}
    trials = detail["trials"]
    parts = {
        "headers": Headers(**trials["headers"]),
        "segments": Decoded(**trials["segments"]),
        "rates": Rates(**trials["rates"]),
        "fits": tuple(FitTrial(**trial) for trial in trials["fits"]),
    }
    return costs, Trials(**(trials | parts))


def of_trial(trials: Trials) -> Costs:
    """What the steps take from the trials, beside the times of codebooks, encodings and SVMs."""
    here, rates = "measured here: --plan's trials", trials.rates
    return {
        "network, GFLOP of an image": Cost(rates.flops / 1e9, "counted"),
        "a core in codebooks and encodings, GFLOP/s": Cost(
            rates.flops / rates.describe_s / 1e9, f"{here}, of the network"
        ),
        "header, s": Cost(trials.headers.header_s, here),
        "DESCRIPTORS, bytes of a frame": Cost(rates.frame_bytes, f"{here}, random filters"),
        "vectors of a video, bytes": Cost(rates.vector_bytes, here),
    }


def trial(settings: tuple[str, ...]) -> Trials:
    """`--plan`'s own trials of the recipe fcvid, on videos made for it."""
    progress("  trials of network, codebooks and encodings")
    source = data_folder() / "clips" / "bikes.mp4"
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder) / "videos"
        videos.mkdir()
        # Segments of four frames, the fewest that a trial describes.
        num_frames = round(3.5 * INTERVAL_S * FRAMES_PER_S)
        for place in range(3):
            path = str(videos / f"{place}.mp4")
            encode(source, path, gop_frames=GOP_FRAMES, size=SIZES["360p"], num_frames=num_frames)
        labels = Path(folder) / "labels.csv"
        labels.write_text("path,label,split\n0.mp4,a,train\n1.mp4,b,train\n2.mp4,a,test\n")
        inputs = Inputs(
            videos=str(videos),
            labels=str(labels),
            out=f"{folder}/out",
            config=recipe("fcvid").with_settings(["describe.weights=random:0", *settings]),
            steps=STEPS,
        )
        job = prepare(inputs, plan=True)
        return plan_trials.run(job, torch.get_num_threads(), TESTED, CLASSES)
