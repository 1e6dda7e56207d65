"""What a plan measures before it counts: some videos and encoders are tried, in this process alone.

The stages are those of the run, on sampled segments, from file to published rows in a temporary folder: so
rates, bytes and failures need no model. What is measured is time on one or some cores of this machine.
"""

import collections
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch.utils.flop_counter import FlopCounterMode

from encoders.backbones import load
from encoders.backbones.flow_input import COLOURS
from encoders.stream_specs import VIEWS, FlowWindow, Window
from pipelines.cluster.device import cuda_or_cpu
from pipelines.cluster.meter import SILENT
from pipelines.describe.stage import CPU_FRAMES, DescribeFrames, nodes_of
from pipelines.errors import ConfigError
from pipelines.plan.trials import (
    EncodeTrial,
    FitTrial,
    evaluate,
    fit_and_encode,
    product_flops,
    threads,
)
from pipelines.plan.video import KeyFrames, key_frames, peak_bytes
from pipelines.run.job import Job
from pipelines.storage.columns import file_name
from pipelines.storage.store import Store
from pipelines.storage.tables import DESCRIPTORS
from pipelines.video.header import VideoError, local_path, probe
from pipelines.video.isolation import IsolatedDecoder
from pipelines.video.sampling import num_segments
from pipelines.video.stages import DecodeSegments

LOOKS = 20_000
"""Names of a manifest that are looked for, where most are missing."""

MAX_SEGMENTS, KEPT_SEGMENTS = 32, 8
"""Segments decoded, and those of them that may be described."""

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the manifest says: videos, those with labels, those that train and are tested in a fold.

    `num_folds` 0: no labels.
    """

    videos: int
    labelled: int
    training: int
    tested: int
    classes: int
    num_folds: int


@dataclass(frozen=True, kw_only=True)
class Headers:
    """Videos that were looked at: `missing` are not there, `failed` hold no video; of the others, segments.

    relative_error: standard error of the mean number of segments, as a share of it; 0 where all were read.
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
class Segments:
    """Means over decoded segments, unless said otherwise.

    Attributes:
        failed: of `tried`.
        decode_s: on one core, failures included.
        frames: described, of one that did not fail; images: what the network is run on for them, each once:
            pictures, and pictures of optical flow.
        describe_s, describe_core_s: of an image's way through network and pyramid to a published row: wall
            time with the threads of a describer, and time of all its cores.
        flops: of the network, an image.
        activation_bytes: of the network's largest layer, an image; map_bytes: of all nodes' maps, which are held
            for all images of a segment (0 in records of earlier code).
        frame_bytes: of a described frame in DESCRIPTORS, all streams.
        decoder_bytes: peak of the process that decodes.
    """

    tried: int
    failed: int
    decode_s: float
    frames: float
    images: float
    frames_between_keys: float
    decoded_per_frame: float
    describe_s: float
    describe_core_s: float
    flops: float
    activation_bytes: float
    map_bytes: float = 0.0
    frame_bytes: float
    decoder_bytes: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that a plan is made from beside the manifest.

    Attributes:
        dims: {encoder and stream: length of its vectors}.
        product_flops, double_flops: operations a second of products of matrices, float32 and float64.
        num_threads: of the trials that use several. on_gpu: seconds of network, codebooks, encodings and SVMs
            are a GPU's, not a core's.
        seconds: that the trials took.
        core_flops: operations a second of one core, or the GPU, while it describes.
    """

    headers: Headers
    segments: Segments
    fits: tuple[FitTrial, ...]
    encodes: tuple[EncodeTrial, ...]
    dims: dict[str, int]
    product_flops: float
    double_flops: float
    evaluate_s: float
    evaluate_videos: int
    num_threads: int
    on_gpu: bool
    seconds: float

    @property
    def core_flops(self) -> float:
        return self.segments.flops / self.segments.describe_core_s


def measure(job: Job, num_threads: int, counts: Counts) -> Measured:
    """Tries sampled videos and encoders for about plan.probe_s seconds.

    Args:
        num_threads: of a describer.

    Raises:
        ConfigError: no video of the sample can be decoded.
    """
    began = time.monotonic()
    share = job.config.plan.probe_s
    with (
        tempfile.TemporaryDirectory() as folder,
        IsolatedDecoder(job.config.decode) as decoder,
    ):
        store = Store(folder)
        # The child starts with its first call, which must not count.
        decoder.call(peak_bytes)
        headers, found = look_at_videos(job, decoder, 0.2 * share)
        keys = _keys(job, decoder, [uri for uri, _ in found], 0.05 * share)
        decoded, decoding = _decode(job, found, 0.25 * share)
        with threads(num_threads):
            describing, rows = _describe(job, store, decoded, 0.25 * share)
        segments = Segments(
            frames_between_keys=_ratio(keys, "num_frames", "num_keys"),
            decoded_per_frame=_ratio(keys, "num_decoded", "num_sampled"),
            **decoding,
            **describing,
        )
        with threads(1):
            fits, encodes, dims = fit_and_encode(job, store, rows)
        with threads(num_threads):
            products = [product_flops(dtype) for dtype in (torch.float32, torch.float64)]
        evaluate_s, evaluate_videos = evaluate(job, counts.tested, counts.classes)
    return Measured(
        headers=headers,
        segments=segments,
        fits=fits,
        encodes=encodes,
        dims=dims,
        product_flops=products[0],
        double_flops=products[1],
        evaluate_s=evaluate_s,
        evaluate_videos=evaluate_videos,
        num_threads=num_threads,
        on_gpu=torch.cuda.is_available(),
        seconds=time.monotonic() - began,
    )


# --- videos ------------------------------------------------------------------------------------


def spread(number: int, seed: int, most: int) -> Iterator[int]:
    """Up to `most` of the places 0 .. number - 1, each once, any first part of them evenly spread.

    Multiples of the golden ratio modulo 1, from a seeded start: three times `number` of them meet every place.
    """
    start = np.random.default_rng(seed).random()
    steps = min(3 * number, 3 * most)
    seen = set()
    for step in range(steps):
        place = int((start + step * GOLDEN) % 1 * number)
        if place not in seen and len(seen) < most:
            seen.add(place)
            yield place


def look_at_videos(
    job: Job, decoder: IsolatedDecoder, seconds: float
) -> tuple[Headers, list[tuple[str, int]]]:
    """Headers of a sample, read in the child; and (uri, segments) of those that hold a video.

    Raises:
        ConfigError: there is none.
    """
    uris, sizes = job.manifest["uri"], job.manifest["size_bytes"]
    missing = looked = 0
    reasons: collections.Counter[str] = collections.Counter()
    # Segments, duration in s, bytes, and the seconds that the header took.
    found: list[tuple[str, tuple[int, float, int, float]]] = []
    began = time.monotonic()
    for place in spread(len(uris), job.config.run.seed, LOOKS):
        patience = 1 if found else 5
        if len(found) >= job.config.plan.sample or time.monotonic() - began > patience * seconds:
            break
        looked += 1
        uri, size = uris[place].as_py(), sizes[place].as_py()
        path = local_path(uri)
        if path is not None and not os.path.exists(path):
            missing += 1
            continue
        started = time.perf_counter()
        try:
            facts = decoder.call(probe, uri, job.config.decode.max_frame_px)
        except VideoError as error:
            reasons[error.error_type] += 1
            continue
        header_s = time.perf_counter() - started
        count = num_segments(facts, job.config.sampling)
        size = os.path.getsize(path) if path else size
        found.append((uri, (count, facts.duration_s or 0.0, size, header_s)))
    missing += reasons.pop("not_found", 0)
    if not found:
        raise ConfigError(
            f"--plan: expected a video that can be read among {looked:,} of {len(uris):,}, got {missing:,} that "
            f"do not exist and {reasons.total():,} that hold no video ({_words(reasons)}); are the paths right?"
        )
    counts, *_ = columns = np.array([numbers for _, numbers in found], float).T
    mean_segments, mean_duration_s, mean_bytes, header_s = columns.mean(1).tolist()
    # One video says nothing about others, and none are left where all were looked at.
    deviation = counts.std(ddof=1) if len(counts) > 1 else mean_segments
    left = 1 - looked / len(uris)
    headers = Headers(
        looked=looked,
        missing=missing,
        failed=reasons.total(),
        reasons=tuple(reasons.most_common()),
        header_s=header_s,
        mean_segments=mean_segments,
        relative_error=float(deviation / mean_segments * math.sqrt(left / len(counts))),
        mean_duration_s=mean_duration_s,
        mean_bytes=mean_bytes,
    )
    return headers, [(uri, int(numbers[0])) for uri, numbers in found]


def _words(reasons: collections.Counter) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in reasons.most_common()) or "none"


def _keys(job: Job, decoder: IsolatedDecoder, uris: list[str], seconds: float) -> list[KeyFrames]:
    began, found = time.monotonic(), []
    for place in spread(len(uris), job.config.run.seed, MAX_SEGMENTS):
        if found and time.monotonic() - began > seconds:
            break
        try:
            config = job.config
            settings = (config.sampling, config.decode.max_frame_px, config.describe.windows)
            found.append(decoder.call(key_frames, uris[place], *settings))
        except VideoError:
            continue
    return found


def _ratio(keys: list[KeyFrames], above: str, below: str) -> float:
    return sum(getattr(k, above) for k in keys) / max(1, sum(getattr(k, below) for k in keys))


def _decode(
    job: Job, videos: list[tuple[str, int]], seconds: float
) -> tuple[list[pa.Table], dict[str, float]]:
    """Decoded segments as the stage gives them, those that did not fail; and what they cost."""
    config = job.config
    windows = config.describe.windows
    stage = DecodeSegments(config.sampling, config.picture, config.decode, windows=windows)
    every = [(uri, k, count) for uri, count in videos for k in range(count)]
    kept: list[pa.Table] = []
    times: list[float] = []
    counts: list[tuple[int, bool]] = []
    error = "no frame lies where the header promised it"
    began = time.monotonic()
    try:
        stage.decoder.call(peak_bytes)
        for place in spread(len(every), config.run.seed, MAX_SEGMENTS):
            if counts and time.monotonic() - began > seconds:
                break
            uri, segment, count = every[place]
            row = {
                "segment_id": f"{place}",
                "video_id": uri,
                "uri": uri,
                "source": "",
                "status": "ok",
            }
            row |= {"segment": segment, "num_segments": count}
            started = time.perf_counter()
            (made,) = stage(pa.Table.from_pylist([row]))
            times.append(time.perf_counter() - started)
            if made["status"][0].as_py() == "failed":
                error = made["error"][0].as_py()
                continue
            counts.append((_num_images(made, job), len(made["frame_indices"][0])))
            # Few of them are described, and pictures are large.
            if counts[-1][0] and len(kept) < KEPT_SEGMENTS:
                kept.append(made)
        decoder_bytes = stage.decoder.call(peak_bytes)
    finally:
        stage.decoder.close()
    if not kept:
        raise ConfigError(
            f"--plan: expected a video that can be decoded among {len(times)}, got none; one says: {error}"
        )
    images, frames = np.array(counts, float).T
    return kept, {
        "tried": len(times),
        "failed": len(times) - len(counts),
        "decode_s": float(np.mean(times)),
        "images": float(images.mean()),
        "frames": float(frames.mean()),
        "decoder_bytes": decoder_bytes,
    }


# --- descriptors -------------------------------------------------------------------------------


class _Describer(DescribeFrames):
    """With random filters, which take as long and need not be fetched."""

    def __init__(self, job: Job) -> None:
        self.device = cuda_or_cpu()
        self.settings, self.meter = job.config.describe, SILENT
        self.picture, self.streams = job.config.picture, job.described
        name = self.settings.backbone
        self.use(lambda nodes, channels: _random_backbone(name, nodes, self.device, channels))

    def run_few(self) -> None:
        """A forward pass of each network."""
        size = self.picture.crop_px
        for flow in self.backbones:
            channels = flow.num_channels if flow else COLOURS
            self._run(torch.zeros(CPU_FRAMES, size, size, channels, dtype=torch.uint8), flow)


def _random_backbone(
    network: str, nodes: tuple[str, ...], device: str, num_channels: int
) -> load.Backbone:
    """The network up to its deepest node: what lies behind it, often the largest part, gets no memory."""
    part = load.cut(network, load.bare(network), nodes, "meta", num_channels)
    tables = [b for b in part.network.buffers() if not b.is_floating_point() and b.ndim]
    if tables:
        # Such as the relative positions of a Swin transformer: random ones are no places.
        model = load.load_model(network, load.random_filters(network, 0))
        return load.cut(network, model, nodes, device, num_channels)
    module = part.network.to_empty(device=device).to(memory_format=torch.channels_last)
    for value in (*module.parameters(), *module.buffers()):
        if value.ndim > 1:
            torch.nn.init.kaiming_uniform_(value)
        else:
            value.data.fill_(1)
    return dataclasses.replace(part, network=module)


def _describe(
    job: Job, store: Store, decoded: list[pa.Table], seconds: float
) -> tuple[dict[str, float], list[tuple[str, int]]]:
    """What describing costs; and the places (file and row) of the rows published."""
    describer = _Describer(job)
    # The first pass finds memory and the fastest kernels; the second one says how many there is time for.
    describer.run_few()
    started = time.perf_counter()
    describer.run_few()
    pass_s = (time.perf_counter() - started) * VIEWS[job.config.picture.views]
    budget = max(CPU_FRAMES, int(seconds * CPU_FRAMES / pass_s))
    at_once = job.config.describe.batch_segments if describer.device == "cuda" else 1
    windows = job.config.describe.windows
    parts = [_first_images(part, budget, windows) for part in decoded]
    places, images, num_bytes, frames = [], 0, 0, 0
    walls, cores = [], []
    for start in range(0, len(parts), at_once):
        if images >= budget:
            break
        batch = parts[start : start + at_once]
        number = sum(_num_images(part, job) for part in batch)
        began, began_core = time.perf_counter(), time.process_time()
        rows = describer(pa.concat_tables(batch))
        name = f"descriptors/{file_name(rows, DESCRIPTORS.key)}"
        store.publish_table(name, rows, job.footer("describe"))
        walls.append((time.perf_counter() - began) / number)
        cores.append((time.process_time() - began_core) / number)
        places += [(name, row) for row in range(rows.num_rows)]
        images += number
        frames += sum(rows["num_frames"].to_pylist())
        num_bytes += store.size_bytes(name)
    # All images cost the same: what is above the least is what else the machine did meanwhile.
    wall, core = min(walls), min(cores)
    flops, activation_bytes, map_bytes = _network_cost(job)
    return {
        "describe_s": wall,
        "describe_core_s": wall if describer.device == "cuda" else core,
        "flops": flops,
        "activation_bytes": activation_bytes,
        "map_bytes": map_bytes,
        "frame_bytes": num_bytes / max(1, frames),
    }, places


def _num_images(decoded: pa.Table, job: Job) -> int:
    """What the network is run on for a decoded segment."""
    side, windows = job.config.picture.decoded_px, job.config.describe.windows
    flows = [window for window in windows if isinstance(window, FlowWindow)]
    levels = zip(decoded["flows"][0].as_py(), flows, strict=True)
    stacks = sum(len(value) // (side**2 * flow.num_channels) for value, flow in levels)
    return stacks + (decoded["num_images"][0].as_py() if None in nodes_of(job.described) else 0)


def _first_images(part: pa.Table, most: int, windows: tuple[Window, ...]) -> pa.Table:
    """A decoded segment with at most so many of its images, and the frames that need no other."""
    row = part.to_pylist()[0]
    if row["num_images"] <= most:
        return part
    frames = len(row["frame_indices"])
    places = [
        np.array(flat, int).reshape(-1, window.num_read)
        for flat, window in zip(row["places"], windows, strict=True)
    ]
    # The windows of the first frames read the first images.
    own = min(
        frames - len(read) + int((read < most).all(1).sum())
        for read, window in zip(places, windows, strict=True)
        if not isinstance(window, FlowWindow)
    )
    places = [read[: max(0, own - frames + len(read))] for read in places]
    row |= {
        "images": row["images"][: len(row["images"]) // row["num_images"] * most],
        "num_images": most,
        "frame_indices": row["frame_indices"][:own],
        "timestamps_s": row["timestamps_s"][:own],
        "places": [read.ravel().tolist() for read in places],
        "flows": [value[: len(value) // frames * own] for value in row["flows"]],
    }
    return pa.Table.from_pylist([row], schema=part.schema)


def _network_cost(job: Job) -> tuple[float, float, float]:
    """Of an image's way to the deepest node, all its views: operations (a multiplication and an addition are two), and bytes
    of the largest layer's input and output, and of the maps of one view."""
    describe, size = job.config.describe, job.config.picture.crop_px
    # Of pictures and flow alike, which all count as images.
    nodes = tuple(dict.fromkeys(stream.node for stream in job.described.values()))
    network = load.cut(describe.backbone, load.bare(describe.backbone), nodes, "meta").network
    sizes = [0]

    def note(_: torch.nn.Module, given: tuple, made: object) -> None:
        tensors = [t for t in (*given, made) if isinstance(t, torch.Tensor)]
        sizes.append(sum(t.numel() * t.element_size() for t in tensors))

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(note)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, size, size, device="meta"))
    views = VIEWS[job.config.picture.views]
    shapes = load.node_shapes(describe.backbone, nodes, size)
    map_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    return float(views * counter.get_total_flops()), float(max(sizes)), float(map_bytes)
