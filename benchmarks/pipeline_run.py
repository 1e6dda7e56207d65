"""Parts of `python -m benchmarks.pipeline`: the describe step against its own parts and against Ray
Data's video reader, one worker against two, what scheduling costs, and how long it takes to see
that all is done.

Each side runs in a process of its own with a Ray cluster of its own.
"""

import dataclasses
import itertools
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from benchmarks.harness import Disagreement, Options, Row, at_least, at_most, progress
from encoders.backbones import load
from pipelines.cluster import doors
from pipelines.describe.stage import CPU_FRAMES, described_streams
from pipelines.settings.config import Config

DATA = Path(os.environ.get("VIDEO_FISHER_DATA", "../shared/data"))
SETS = ("weizmann", "ut_interaction", "surveillance_fight")
SETTINGS = (
    "describe.backbone=squeezenet1_0",
    "describe.nodes=features.12",
    f"describe.weights={DATA / 'weights' / 'squeezenet1_0.safetensors'}",
    "sampling.policy=uniform",
    "sampling.num_frames=25",
    "encode.encoders=ave,vlad",
    "fit.num_frames=2000",
)


def describe_step(options: Options) -> list[Row]:
    """The describe step, its parts alone, and Ray Data's own reader"""
    paths = _videos(6 if options.quick else 200)
    alone = in_a_process(_alone, paths)
    step = in_a_process(run_job, paths, ("describe",), _cores())["describe"]
    together = None
    if not options.quick:
        together = in_a_process(run_job, paths, ("describe",), _cores(), "together")["describe"]
    reader = in_a_process(_read_videos, paths)
    bound_s = (alone["decode_s"] + alone["forward_s"]) / 2
    what = f"describe, {len(paths)} real videos, squeezenet1_0 features.12"
    if abs(reader["frames"] - alone["frames"]) > len(paths):
        raise Disagreement(
            f"{what}: expected the same frames, got {reader['frames']} and {alone['frames']}"
        )
    return [
        at_least(
            what,
            "decode + forward core-seconds, each alone, / 2 cores",
            bound_s / step["seconds"],
            0.85,
            seconds={"step": step["seconds"], "lower bound": bound_s},
            alone=alone,
            step=step["words"],
            together=together,
            step_includes="the start of its actors, imports, the network's weights, writing",
        ),
        at_least(
            what,
            "ray.data.read_videos + map_batches",
            reader["seconds"] / step["seconds"],
            2.0,
            seconds={"step": step["seconds"], "read_videos": reader["seconds"]},
            read_videos=(
                "every frame decoded at its own size, 25 of each kept, one actor with the network,"
                " nothing written"
            ),
        ),
    ]


def describers(options: Options) -> list[Row]:
    """The network on all cores: processes, threads and frames of a forward pass"""
    num_frames = 32 if options.quick else 128
    first, second = _cores()
    sides = {}
    for size in (CPU_FRAMES,) if options.quick else (1, 2, CPU_FRAMES, 8, 32):
        sides[f"1 process, 1 thread, {size} frames"] = [((first,), 1, size)]
        sides[f"2 processes, 1 thread each, {size} frames"] = [
            ((first,), 1, size),
            ((second,), 1, size),
        ]
        sides[f"1 process, 2 threads, {size} frames"] = [((first, second), 2, size)]
    found = {name: _at_once(_forward, side, num_frames) for name, side in sides.items()}
    rates = {name: sum(rates) for name, rates in found.items()}
    chosen = f"2 processes, 1 thread each, {CPU_FRAMES} frames"
    alone = f"1 process, 1 thread, {CPU_FRAMES} frames"
    return [
        at_least(
            f"squeezenet1_0 features.12, frames/s: {chosen}",
            "the best of other numbers of processes, threads and frames",
            rates[chosen] / max(rate for name, rate in rates.items() if name != chosen),
            0.95,
            frames_per_s=rates,
        ),
        at_least(
            f"squeezenet1_0 features.12, frames/s: {chosen}",
            f"twice {alone}: what the second core is worth",
            rates[chosen] / (2 * rates[alone]),
            0.9,
            frames_per_s=rates,
        ),
    ]


def workers(options: Options) -> list[Row]:
    """Describe and encode, one core and two"""
    paths = _videos(6 if options.quick else 100)
    cores = _cores()
    steps = ("describe", "encode")
    one = in_a_process(run_job, paths, ("describe", "fit", "encode"), cores[:1])
    two = in_a_process(run_job, paths, ("describe", "fit", "encode"), cores)
    seconds = [sum(side[step]["seconds"] for step in steps) for side in (one, two)]
    return [
        at_least(
            f"describe + encode, {len(paths)} real videos: one worker on one core to two on two",
            "one worker",
            seconds[0] / seconds[1],
            1.8,
            seconds={"one": seconds[0], "two": seconds[1]},
            steps={step: [side[step]["seconds"] for side in (one, two)] for step in steps},
        )
    ]


def scheduling(options: Options) -> list[Row]:
    """What Ray costs for a segment that takes no work"""
    few, many = 5000, 1000 if options.quick else 20_000
    sides = {"separate": in_a_process(_scheduled, many, False)}
    if not options.quick:
        sides["together"] = in_a_process(_scheduled, many, True)
    rows = [
        at_most(
            f"scheduling of {many:,} segments without work, decoders and describers {name}:"
            " milliseconds a segment",
            "-",
            1000 * side["seconds"] / many,
            5.0,
            seconds=side["seconds"],
            files=side["files"],
        )
        for name, side in sides.items()
    ]
    if options.quick:
        return rows
    small = in_a_process(_scheduled, few, False)
    peaks = small["peak_bytes"], sides["separate"]["peak_bytes"]
    return [
        *rows,
        at_most(
            f"memory of all processes at {many:,} segments",
            f"at {few:,}",
            peaks[1] / peaks[0],
            1.1,
            bytes={str(few): peaks[0], str(many): peaks[1]},
        ),
    ]


def resume(options: Options) -> list[Row]:
    """How long it takes to see which of many segments are finished"""
    count = 20_000 if options.quick else 200_000
    found = in_a_process(_resumed, count)
    return [
        at_most(
            f"resume check, {count:,} finished segments: seconds",
            "-",
            found["seconds"],
            10.0,
            files=found["files"],
            peak_bytes=found["peak_bytes"],
        )
    ]


def in_a_process(side: Callable, *arguments: object) -> dict:
    progress(f"  {side.__name__}")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(side, *arguments).result()


def _at_once(side: Callable, arguments: list[tuple], *common: object) -> list[float]:
    """What the same measurement gives in several processes at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Manager().Barrier(len(arguments))
    with ProcessPoolExecutor(len(arguments), mp_context=context) as pool:
        calls = [pool.submit(side, barrier, *own, *common) for own in arguments]
        return [call.result() for call in calls]


def _cores() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))[:2]


def _videos(count: int) -> list[str]:
    """Real ones, of all sets in turn."""
    sets = [sorted(map(str, (DATA / "labelled" / name).rglob("*.[am][vp][i4]"))) for name in SETS]
    rows = itertools.zip_longest(*sets)
    return [path for row in rows for path in row if path][:count]


def _alone(paths: list[str]) -> dict[str, float]:
    """Decoding, and the network, on one core each, with nothing between them."""
    import torch

    from pipelines.video.decode import decode_segment

    torch.set_num_threads(1)
    config = Config().with_settings(list(SETTINGS))
    streams = described_streams(config)
    network = _network()
    times = {"decode_s": 0.0, "forward_s": 0.0}
    settings = (config.sampling, config.picture, config.decode, config.describe.windows)
    frames = 0
    for path in [paths[0], *paths]:
        began = time.process_time()
        decoded_frames = decode_segment(path, 0, 1, *settings)
        images = decoded_frames.images
        decoded = time.process_time()
        parts = [network.maps(part) for part in torch.from_numpy(images).split(CPU_FRAMES)]
        maps = {node: torch.cat([part[node] for part in parts]) for node in parts[0]}
        for stream in streams.values():
            places = torch.from_numpy(decoded_frames.places[stream.window])
            rows = stream.describe(maps[stream.node], places)
            rows.half().numpy()
        if frames or path != paths[0]:
            times["forward_s"] += time.process_time() - decoded
            times["decode_s"] += decoded - began
        frames += len(images)
    return times | {"frames": frames - len(images)}


def _forward(
    barrier: threading.Barrier,
    cores: tuple[int, ...],
    num_threads: int,
    size: int,
    num_frames: int,
) -> float:
    """Frames a second of the network."""
    os.sched_setaffinity(0, cores)
    import torch

    torch.set_num_threads(num_threads)
    network = _network()
    images = torch.randint(0, 256, (num_frames, 224, 224, 3), dtype=torch.uint8)
    network.maps(images[:size])
    barrier.wait()
    began = time.perf_counter()
    for part in images.split(size):
        network.maps(part)
    return num_frames / (time.perf_counter() - began)


def _network() -> load.Backbone:
    describe = Config().with_settings(list(SETTINGS)).describe
    weights = load.load_file(Path(describe.weights).read_bytes(), ".safetensors")
    return load.build(describe.backbone, describe.nodes, weights)


def run_job(
    paths: list[str],
    steps: tuple[str, ...],
    cores: tuple[int, ...],
    placement: str = "separate",
    settings: tuple[str, ...] = (),
) -> dict[str, dict]:
    """{step: seconds and words} of the pipeline itself, on some cores; the index is there
    already."""
    os.sched_setaffinity(0, cores)
    doors.close()
    import ray

    from pipelines import corpus, prepare

    ray.init(address="local", num_cpus=len(cores), include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.csv"
        manifest.write_text("path\n" + "".join(f"{Path(p).resolve()}\n" for p in paths))
        inputs = prepare.Inputs(
            videos=str(manifest),
            labels=None,
            out=f"{folder}/out",
            config=Config().with_settings([*SETTINGS, f"cluster.placement={placement}", *settings]),
            steps=("index", "describe", "fit", "encode"),
        )
        job = prepare.prepare(inputs)
        corpus.run(job, ("index", *steps), None)
        record = job.store.read_json("run.json")["steps"]
        found = {
            step: {
                "seconds": record[step]["seconds"],
                "words": {k: record[step].get(k) for k in ("bound_by", "start_s", "stages")},
            }
            for step in steps
        }
    ray.shutdown()
    return found


def _read_videos(paths: list[str]) -> dict[str, float]:
    """What a user of Ray Data would write: all frames come out of the reader, 25 of each video are
    kept."""
    doors.close()
    import decord
    import ray
    import torch
    from ray.data import ActorPoolStrategy, DataContext

    config = Config().with_settings(list(SETTINGS))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    DataContext.get_current().enable_progress_bars = False
    counts = {str(Path(path).resolve()): len(decord.VideoReader(path)) for path in paths}

    class Describe:
        def __init__(self) -> None:
            torch.set_num_threads(2)
            self.network = _network()
            self.streams = described_streams(config)

        def __call__(self, batch: dict) -> dict:
            images = torch.from_numpy(np.stack(batch["frame"]))
            maps = self.network.maps(images)
            for stream in self.streams.values():
                length = stream.window.num_frames
                last = torch.arange(length - 1, len(images))[:, None]
                stream.describe(maps[stream.node], last + torch.arange(1 - length, 1))
            return {"frame_index": batch["frame_index"]}

    def kept(row: dict) -> bool:
        length = counts[row["path"]]
        return row["frame_index"] in {int((k + 0.5) * length / 25) for k in range(25)}

    def scaled(row: dict) -> dict:
        image = torch.from_numpy(np.array(row["frame"])).permute(2, 0, 1)[None].float()
        size = (config.picture.resize_px,) * 2
        image = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
        margin, crop = (size[0] - config.picture.crop_px) // 2, config.picture.crop_px
        image = image[0, :, margin : margin + crop, margin : margin + crop]
        return {"frame": image.permute(1, 2, 0).byte().numpy(), "frame_index": row["frame_index"]}

    began = time.perf_counter()
    data = ray.data.read_videos([str(Path(p).resolve()) for p in paths], include_paths=True)
    data = data.filter(kept).map(scaled)
    data = data.map_batches(
        Describe, compute=ActorPoolStrategy(size=1), batch_size=32, num_cpus=0.5
    )
    frames = data.count()
    seconds = time.perf_counter() - began
    ray.shutdown()
    return {"seconds": seconds, "frames": frames}


class _NoNetwork:
    """A network that takes no time: rows of DESCRIPTORS without descriptors."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        from pipelines.storage.tables import DESCRIPTORS

        table = batch.drop_columns(["images", "num_images", "places", "flows"])
        table = table.append_column("num_frames", pa.array([0] * len(table), pa.int32()))
        return table.select(DESCRIPTORS.schema().names).cast(DESCRIPTORS.schema())


def _scheduled(count: int, together: bool) -> dict[str, float]:
    """The describe step where decoder and network have nothing to do."""
    doors.close()
    import ray

    from pipelines.cluster import connect, datasets, sink
    from pipelines.cluster import pools as cluster_pools
    from pipelines.cluster.progress import ProgressLine
    from pipelines.storage.store import Store
    from pipelines.storage.tables import DESCRIPTORS
    from pipelines.video import stages

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    config = Config()
    connect.connect(None, config.cluster)
    rows = _segments(count)
    with tempfile.TemporaryDirectory() as folder, _Peak() as peak:
        job = SimpleNamespace(store=Store(folder), config=config)
        pools, line = cluster_pools.pools(config.cluster), ProgressLine("describe", count)
        began = time.perf_counter()
        # Of a video whose header could not be read this stage only passes on the row.
        settings = (config.sampling, config.picture, config.decode, line.meter)
        decoder = (stages.DecodeSegments, settings)
        pools = dataclasses.replace(pools, together=together)
        data = datasets.describing(rows, config, pools, decoder, (_NoNetwork, ()))
        outputs = [sink.Output(DESCRIPTORS, "descriptors", {})]
        datasets.write_tables(job, line, data, outputs, rows_per_file=datasets.SEGMENTS_PER_FILE)
        seconds = time.perf_counter() - began
        files = len(job.store.files("descriptors"))
        written = job.store.read_table("descriptors", ["segment_id"]).num_rows
    ray.shutdown()
    if written != count:
        raise Disagreement(f"scheduling: expected {count} rows, got {written}")
    return {"seconds": seconds, "files": files, "peak_bytes": peak.found}


def _segments(count: int) -> pa.Table:
    """SEGMENTS with what decoding needs of VIDEOS."""
    names = [f"v{i:07d}" for i in range(count)]
    constant = {
        "segment": pa.array(np.zeros(count, np.int32)),
        "num_segments": pa.array(np.ones(count, np.int32)),
        "attempts": pa.array(np.ones(count, np.int32)),
        "status": pa.repeat("failed", count),
        "stage": pa.repeat("index", count),
        "error_type": pa.repeat("empty_file", count),
        "error": pa.repeat("0 bytes", count),
    }
    return pa.table(
        {
            "segment_id": [f"{name}#00000" for name in names],
            "video_id": names,
            "source": names,
            "uri": [f"/videos/{name}.mp4" for name in names],
            **constant,
        }
    )


def _resumed(count: int) -> dict[str, float]:
    """Finished files of as many segments as the describe step puts into one; the check reads them
    all."""
    from pipelines.cluster import datasets
    from pipelines.index import current_rows
    from pipelines.run.inputs import Retries
    from pipelines.storage.columns import descriptor_type
    from pipelines.storage.store import Store
    from pipelines.storage.tables import DESCRIPTORS, SEGMENTS, VIDEOS

    plan = _segments(count)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        ids = plan["video_id"].to_pylist()
        store.publish_table("segments/a.parquet", plan.select(SEGMENTS.schema().names), {})
        videos = [
            dict.fromkeys(VIDEOS.schema().names)
            | {
                "video_id": name,
                "uri": f"/videos/{name}",
                "labels": [],
                "fold": 0,
                "size_bytes": 1,
                "source": name,
                "num_segments": 1,
                "status": "ok",
            }
            for name in ids
        ]
        store.publish_table("videos/a.parquet", VIDEOS.build(videos), {})
        kind = descriptor_type(8)
        size = datasets.SEGMENTS_PER_FILE
        for first in range(0, count, size):
            rows = [
                dict.fromkeys(DESCRIPTORS.schema().names)
                | {name: row[name] for name in ("segment_id", "video_id", "source", "segment")}
                | {
                    "num_frames": 1,
                    "num_missing": 0,
                    "frame_indices": [0],
                    "timestamps_s": [0.0],
                    "status": "ok",
                    "attempts": 1,
                    "decode_s": 0.1,
                    "decoder": "none",
                    "pool5_appearance": np.zeros((50, 8), np.float16).tolist(),
                }
                for row in plan.slice(first, size).to_pylist()
            ]
            table = DESCRIPTORS.build(rows, pool5_appearance=kind)
            store.publish_table(f"descriptors/{first:08d}.parquet", table, {})
        job = SimpleNamespace(
            store=store,
            segments="segments",
            videos="videos",
            descriptors="descriptors",
            retries=Retries(),
        )
        began = time.perf_counter()
        left = current_rows.to_describe(job, current_rows.segment_plan(job))
        seconds = time.perf_counter() - began
        files = len(store.files("descriptors"))
    if left.num_rows:
        raise Disagreement(f"resume: expected nothing left, got {left.num_rows}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "files": files, "peak_bytes": peak}


class _Peak(threading.Thread):
    """The largest sum of private memory of this process and all below it, sampled; a context
    manager."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found, self.stopped = 0, threading.Event()

    def __enter__(self) -> "_Peak":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join()

    def run(self) -> None:
        import psutil

        while not self.stopped.wait(0.5):
            total = 0
            for process in [
                psutil.Process(),
                *psutil.Process().children(recursive=True),
            ]:
                try:
                    memory = process.memory_info()
                    total += memory.rss - memory.shared
                except psutil.Error:
                    continue
            self.found = max(self.found, total)


CASES = (describers, describe_step, workers, scheduling, resume)
