"""Trials of the steps after decoding: stages, codebooks and tables of the run, on a sample, in this
process.

The sample is a job of its own in a temporary folder: some videos, of each some frames. Its rows go
through the stages of the run into its tables. What is measured is time of one core (or of this
machine's GPU), and bytes.
"""

import contextlib
import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from threadpoolctl import threadpool_limits

from encoders.codebooks.sample import FitSample
from encoders.registry import ENCODERS, fit_encoder
from encoders.settings import INFORMATION_FILE
from pipelines.cluster import sink
from pipelines.cluster.device import cuda_or_cpu
from pipelines.describe.projection import trial_projections
from pipelines.describe.stage import DescribeFrames
from pipelines.encode import stage as encode_stage
from pipelines.errors import ConfigError
from pipelines.evaluate import results
from pipelines.evaluate.results import ScoreMatrix
from pipelines.fit import sample as fit_sample
from pipelines.index import current_rows, external
from pipelines.plan.networks import NO_NETWORKS, Networks, try_networks
from pipelines.plan.probe import Decoded, Headers, decode_segments, look_at_videos
from pipelines.plan.sample import describe, now_s, sample_job
from pipelines.run.codebook import Codebook, attention_of, encodings_of, sample_of
from pipelines.run.job import Job
from pipelines.storage.columns import descriptors_from_arrow
from pipelines.storage.store import Store
from pipelines.storage.tables import ATTENTION, ENCODINGS, SAMPLES
from pipelines.video.isolation import peak_bytes, status_bytes

FIT_FRAMES, FIT_VALUES = 160, 2_500_000
"""Codebooks are tried on so many frames at most, and on so many values."""

FIT_STEPS = 4
"""Training steps, or iterations of EM, of a trial."""

PRODUCT_SIZE, SCORED_VIDEOS = 1024, 256
"""Rows of the matrices that are multiplied, and most videos of the result that is evaluated."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates: seconds of one core (or the GPU), and bytes, for a row.

    Attributes:
        describe_s: of a frame's way through the network to a published row; flops: its operations.
        frame_bytes: of a frame in DESCRIPTORS.
        sample_s: of a frame that is looked at for SAMPLES. sample_bytes: {stream: of a frame
        there}.
        encode_s: of a frame, all codebooks. attention_bytes: of a frame in ATTENTION.
        publish_s, vector_bytes: of a video in ENCODINGS.
        product_s, double_s: of an operation of a product of matrices, in float32 and float64.
        evaluate_s: of a video of one result.
    """

    describe_s: float
    flops: float
    frame_bytes: float
    sample_s: float
    sample_bytes: dict[str, float]
    encode_s: float
    attention_bytes: float
    publish_s: float
    vector_bytes: float
    product_s: float
    double_s: float
    evaluate_s: float


@dataclass(frozen=True, kw_only=True)
class FitTrial:
    """A codebook of `num_bytes` bytes, fitted on `frames` frames of `cells` descriptors: seconds of
    one core.

    name: of the encoder. copies: of it that a run fits, such as one for each fold.
    once_s: beside the steps of `Encoder.fit_work`, which take `step_s` each.
    learns: from a sample; else it costs as good as nothing.
    """

    name: str
    stream: str
    copies: int
    frames: int
    cells: int
    num_bytes: int
    once_s: float
    step_s: float = 0.0
    learns: bool = True


@dataclass(frozen=True, kw_only=True)
class Trials:
    """All measurements that a plan is made from, beside the manifest.

    Attributes:
        codebooks: that a run encodes each video with.
        dims: {encoder and stream: length of its vectors}.
        held_bytes: {step: memory that it took at its peak, beside what a worker loads}.
        seconds: that the trials took.
    """

    headers: Headers
    segments: Decoded
    rates: Rates
    fits: tuple[FitTrial, ...]
    codebooks: int
    dims: dict[str, int]
    held_bytes: dict[str, int]
    seconds: float
    networks: Networks = NO_NETWORKS


def run(job: Job, num_threads: int, num_tested: int, num_classes: int) -> Trials:
    """Try all steps on a sample of the videos, for about plan.probe_s seconds.

    Args:
        num_threads: of a describer.

    Raises:
        ConfigError: no video of the sample can be decoded, or a codebook cannot be fitted on it.
    """
    began, share = time.monotonic(), job.config.plan.probe_s
    rises: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        headers, videos = look_at_videos(job, 0.2 * share)
        segments = decode_segments(job, store, videos, 0.25 * share)
        with _threads(num_threads), _holding(rises, "describe"):
            network = DescribeFrames(
                job.weights.load if job.weights.is_at_hand else None,
                job.config,
                job.described,
                num_threads,
                projection=lambda: trial_projections(job.described),
            )
            part, flops = sample_job(job, store, videos, network, segments.frames, 0.25 * share)
            described: dict[str, Any] = {"flops": flops, **describe(part, network, 0.25 * share)}
            del network
        with _threads(1):
            sampled, frames = _sample(part)
            fits = _fit(part, frames, num_classes)
            with _holding(rises, "encode"):
                encoded, dims = _encode(part)
            evaluated: dict[str, Any] = {
                "evaluate_s": _evaluate(part, min(num_tested, SCORED_VIDEOS), num_classes)
            }
            networks = NO_NETWORKS
            if job.networks:
                networks = try_networks(job, store, videos, num_classes)
    products: dict[str, Any] = {
        "product_s": _product_s(torch.float32),
        "double_s": _product_s(torch.float64),
    }
    return Trials(
        headers=headers,
        segments=segments,
        rates=Rates(**described, **sampled, **encoded, **products, **evaluated),
        fits=fits,
        codebooks=len(part.fitted),
        dims=dims,
        networks=networks,
        held_bytes=rises,
        seconds=time.monotonic() - began,
    )


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Run the body with that many threads in all libraries, as Ray starts the workers."""
    before = torch.get_num_threads()
    with threadpool_limits(number):
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextlib.contextmanager
def _holding(rises: dict[str, int], step: str) -> Iterator[None]:
    """Record how far this process's memory rises inside; 0 where the system does not say."""
    before = 0
    with contextlib.suppress(OSError):
        # Reset the peak of earlier work.
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = status_bytes("VmRSS")
    yield
    rises[step] = max(0, peak_bytes() - before) if before else 0


# --- codebooks and encodings -------------------------------------------------------------------


def _sample(part: Job) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the cost of SAMPLES of all frames, and frames [f, T, C] of each stream to fit
    codebooks on.

    Raises:
        ConfigError: a stream has no descriptor in the sample.
    """
    described = {stream: part.described[stream] for stream in part.streams}
    every = {stream: fit_sample.Draw(2.0) for stream in described}
    stage = fit_sample.SampleFrames(part.store, described, every, 0)
    places = fit_sample.ranked(current_rows.places(part), 0)
    started, names = now_s(), {}
    rows = stage(places.select(["video_id", "file", "row", "rank"]))
    for stream in described:
        select = functools.partial(sample_of, stream=stream)
        output = sink.Output(SAMPLES, part.sample(stream), part.footer("fit"), select)
        names[stream] = sink.publish(part.store, [output], rows)
        if not names[stream]:
            raise ConfigError(
                f"--plan: expected descriptors of {stream} in the sample, got none: videos of one "
                "frame have no "
                "differences"
            )
    seconds = now_s() - started
    sizes, frames = {}, {}
    for stream, (name,) in names.items():
        column = part.store.read_table(part.sample(stream))["descriptors"]
        rows_of_frames = [np.asarray(descriptors_from_arrow(row)) for row in column]
        values = torch.from_numpy(np.stack(rows_of_frames))
        cells, width = described[stream].cells, described[stream].width
        frames[stream] = _fit_frames(values.view(-1, cells, width))
        sizes[stream] = part.store.size_bytes(name) / len(values)
    return {"sample_s": seconds / rows.num_rows, "sample_bytes": sizes}, frames


def _fit_frames(frames: torch.Tensor) -> torch.Tensor:
    """Return some of the frames [f, T, C]; where they are few, the same again with noise."""
    number = max(8, min(FIT_FRAMES, FIT_VALUES // frames[0].numel()))
    draw = torch.Generator().manual_seed(0)
    chosen = frames[(torch.arange(number) * len(frames) / number).long()].float()
    if len(frames) < number:
        chosen += 0.3 * chosen.std() * torch.randn(chosen.shape, generator=draw)
    return chosen.half().to(cuda_or_cpu())


def _books(part: Job) -> list[Codebook]:
    """Return one codebook of each encoder and stream: those of other folds cost the same."""
    books: dict[tuple[str, str], Codebook] = {}
    for book in part.fitted:
        books.setdefault((book.encoder, book.stream), book)
    return list(books.values())


def _fit(part: Job, frames: dict[str, torch.Tensor], num_classes: int) -> tuple[FitTrial, ...]:
    """Try every codebook; a codebook that several variants share is fitted once, as in a run."""
    trials: dict[str, FitTrial] = {}
    for book in _books(part):
        if book.folder not in trials:
            pair = book.encoder, book.stream
            copies = {b.folder for b in part.fitted if (b.encoder, b.stream) == pair}
            trial = _fit_one(part, book, frames[book.stream], num_classes)
            trials[book.folder] = dataclasses.replace(trial, copies=len(copies))
    return tuple(trials.values())


def _fit_one(part: Job, book: Codebook, frames: torch.Tensor, num_classes: int) -> FitTrial:
    """Fit the codebook of a small sample by few steps, and time the work between two checkpoints.

    Raises:
        ConfigError: it cannot be fitted.
    """
    ends: list[float] = []
    kind, number, cells = ENCODERS[book.base], len(frames), frames.shape[1]
    short = kind.short_fit(book.settings, FIT_STEPS)
    targets = torch.eye(max(2, num_classes))[torch.arange(number) % max(2, num_classes)]
    sample = FitSample(
        frames=frames,
        video=torch.arange(number),
        targets=targets if part.config.variant(book.encoder).uses_labels else None,
        levels=part.config.describe.spp_levels,
        scales=part.described[book.stream].scales,
        seed=part.config.run.seed,
        checkpoint=lambda _: ends.append(now_s()),
    )
    started = now_s()
    try:
        files = fit_encoder(book.base, sample, short, book.normalisation).files()
    except ValueError as error:
        raise ConfigError(
            f"--plan: {book.name} cannot be tried on the {number} frames of the sample: {error}"
        ) from error
    seconds = now_s() - started
    for name, content in files.items():
        part.store.publish(f"{book.folder}/{name}", content)
    # The minimum is free of the machine's other work, as in describing.
    step_s = float(np.diff(ends).min()) if len(ends) > 1 else 0.0
    whole, tried = (kind.fit_work(settings, number, cells) for settings in (book.settings, short))
    # If each level of a pyramid has a codebook of its own, each has steps.
    levels = max(1.0, len(ends) / max(1, tried.steps))
    return FitTrial(
        name=book.encoder,
        stream=book.stream,
        copies=1,
        frames=number,
        cells=cells,
        num_bytes=sum(map(len, files.values())),
        once_s=max(0.0, seconds - len(ends) * step_s),
        step_s=step_s * levels * (whole.step / tried.step if tried.step else 1.0),
        learns=kind.learns,
    )


def _encode(part: Job) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the cost of all encodings, and the vector length of each result."""
    books = _books(part)
    attentive = [book for book in books if part.writes_attention(book)]
    for book in books:
        if book.information:
            content = part.store.read(f"{book.folder}/{INFORMATION_FILE}")
            part.store.publish(book.information, content)
    settings = (part.store, books, attentive, part.described, part.config.encode)
    stage = encode_stage.EncodeVideos(*settings)
    videos, footer = current_rows.places_by_video(part), part.footer("encode")
    list(stage(videos.slice(0, 1)))
    started = now_s()
    encodings = pa.concat_tables(stage(videos))
    encoded_s = now_s() - started
    vectors, attention = [], []
    for book in books:
        select = functools.partial(encodings_of, book=book)
        vectors.append(sink.Output(ENCODINGS, part.encodings(book), footer, select))
    for book in attentive:
        cells = part.described[book.stream].cells
        select = functools.partial(attention_of, book=book, num_cells=cells)
        attention.append(sink.Output(ATTENTION, part.attention(book), footer, select))
    started, store = now_s(), part.store
    sizes = [
        sum(map(store.size_bytes, sink.publish(store, o, encodings))) for o in (vectors, attention)
    ]
    published_s = now_s() - started
    copies = len(part.fitted) / len(books)
    frames = pc.sum(current_rows.places(part)["num_frames"]).as_py()
    kinds = {(b.encoder, b.stream): encodings.schema.field(b.column).type for b in books}
    dims = {}
    for name, stream in part.pairs():
        variant = part.variants[name]
        is_shorter = variant.compress.kind != "none"
        if stream in part.described:
            length = kinds[variant.codebook, stream].list_size
        else:
            length = external.width(part.config, name)
        dims[f"{name} {stream}"] = variant.compress.num_features if is_shorter else length
    return {
        "encode_s": copies * encoded_s / frames,
        "publish_s": copies * published_s / encodings.num_rows,
        "vector_bytes": copies * sizes[0] / encodings.num_rows,
        "attention_bytes": copies * sizes[1] / frames,
    }, dims


# --- classifiers and metrics -------------------------------------------------------------------


def _product_s(dtype: torch.dtype) -> float:
    """Return the best time of an operation, in products like those that train classifiers."""
    x = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype, device=cuda_or_cpu())
    best = math.inf
    for _ in range(4):
        started = now_s()
        float((x @ x)[0, 0])
        best = min(best, now_s() - started)
    return best / (2 * PRODUCT_SIZE**3)


def _evaluate(part: Job, number: int, num_classes: int) -> float:
    """Return the seconds of a video for a result's metrics, on synthetic scores; its gain over
    another result is among them."""
    if not number:
        return 0.0
    draw, settings = np.random.default_rng(0), part.config.evaluate
    targets = np.eye(num_classes, dtype=np.float32)[np.arange(number) % num_classes]
    matrix = ScoreMatrix(
        encoder="",
        stream="",
        video_ids=[f"{n}" for n in range(number)],
        folds=np.arange(number) % max(1, part.num_folds),
        classes=[f"{n}" for n in range(num_classes)],
        scores=draw.standard_normal(targets.shape) + targets,
        targets=targets,
    )
    began = now_s()
    rows = results.metric_rows(matrix, settings, part.protocol)
    results.gain_rows(matrix, rows, matrix, settings)
    return (now_s() - began) / number
