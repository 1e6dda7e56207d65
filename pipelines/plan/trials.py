"""The trials of a plan that need descriptors, not videos: codebooks, encodings, products, metrics."""

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from encoders.codebooks.sample import FitSample
from encoders.encodings.base import Encoder
from encoders.encodings.time_pyramid import TemporalPyramid
from encoders.registry import ENCODERS, fit_encoder
from encoders.settings import FvVaeSettings
from pipelines.cluster.device import cuda_or_cpu
from pipelines.describe import segments
from pipelines.encode import stage as encode_stage
from pipelines.errors import ConfigError
from pipelines.evaluate import results
from pipelines.evaluate.results import ScoreMatrix
from pipelines.fit import sample as fit_sample
from pipelines.run.codebook import Codebook, attention_of, encodings_of, sample_of
from pipelines.run.job import Job
from pipelines.storage.store import Store

FIT_FRAMES, FIT_VALUES = 160, 2_500_000
"""Codebooks are tried on so many frames at most, and on so many values."""

TRIAL_STEPS, TRIAL_BATCH = 4, 32
"""Training steps, or iterations of EM, of a trial; frames of a training step."""


@dataclass(frozen=True, kw_only=True)
class FitTrial:
    """A codebook of `num_bytes` bytes, fitted on `frames` frames of `cells` descriptors: seconds of one core.

    once_s: beside training steps or iterations of EM, which take `step_s` each.
    learns: from a sample; else it costs as good as nothing.
    """

    name: str
    stream: str
    frames: int
    cells: int
    num_bytes: int
    once_s: float
    step_s: float = 0.0
    learns: bool = True


@dataclass(frozen=True, kw_only=True)
class EncodeTrial:
    """Encodings of a stream, all its codebooks: seconds of one core, and bytes, of a segment or a video."""

    stream: str
    segment_s: float
    video_s: float
    video_bytes: float
    attention_bytes: float
    sample_frame_s: float
    sample_frame_bytes: float


@contextmanager
def threads(number: int) -> Iterator[None]:
    """All libraries with that many threads, as Ray starts the workers."""
    before = torch.get_num_threads()
    with threadpool_limits(number):
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)


# --- codebooks and encodings -------------------------------------------------------------------


def fit_and_encode(
    job: Job, store: Store, rows: list[tuple[str, int]]
) -> tuple[tuple[FitTrial, ...], tuple[EncodeTrial, ...], dict[str, int]]:
    """Every codebook on the described segments, and every encoding of them; and the length of the vectors that
    each result, encoder and stream, is classified by.

    Args:
        rows: file and row of each segment in DESCRIPTORS of `store`.

    Raises:
        ConfigError: a stream has no descriptor in the sample, or a codebook cannot be fitted on it.
    """
    fits, encodes, lengths = [], [], {}
    books = _codebooks_of(job)
    for stream in job.streams:
        places = [
            {"video_id": f"{n}", "file": file, "row": row} for n, (file, row) in enumerate(rows)
        ]
        described = {stream: job.described[stream]}
        sampler = fit_sample.SampleFrames(store, described, 2.0, 0)
        started = time.perf_counter()
        sample = sample_of(sampler(pa.Table.from_pylist(places)), stream)
        store.publish_table("sample", sample, job.footer("fit"))
        num_frames = max(1, sample.num_rows)
        sample_s = (time.perf_counter() - started) / num_frames
        sample_bytes = store.size_bytes("sample") / num_frames
        frames = _fit_frames(_frames(store, places, job, stream), stream)
        fitted = []
        for book in (b for b in books if b.stream == stream):
            trial, encoder = _fit(book, frames, job)
            fits.append(trial)
            store_book = dataclasses.replace(book, digest=f"{len(fits)}")
            for name, content in encoder.files().items():
                store.publish(f"{store_book.folder}/{name}", content)
            num_parts = TemporalPyramid(book.temporal_pyramid).num_parts
            lengths[book.encoder, stream] = encoder.output_dim * num_parts
            fitted.append(store_book)
        encodes.append(_encode(job, store, fitted, places, (sample_s, sample_bytes)))
    dims = {}
    for name, stream in job.pairs():
        variant = job.variants[name]
        is_shorter = variant.compress.kind != "none"
        length = lengths[variant.codebook, stream]
        dims[f"{name} {stream}"] = variant.compress.num_features if is_shorter else length
    return tuple(fits), tuple(encodes), dims


def _codebooks_of(job: Job) -> list[Codebook]:
    """One for each encoder and stream, without the digests, which need every video's name."""
    found = {}
    for name, stream in job.pairs():
        variant = job.variants[name]
        found[variant.codebook, stream] = Codebook.of(variant, stream, fold=-1, digest="")
    return list(found.values())


def _frames(store: Store, places: list[dict], job: Job, stream: str) -> torch.Tensor:
    reader = segments.SegmentReader(store, ["frame_indices", stream])
    parts = [
        segments.stored_frames(reader.read(p["file"], p["row"]), job.described[stream])
        for p in places
    ]
    described = job.described[stream]
    return torch.from_numpy(np.concatenate(parts)).view(-1, described.cells, described.width)


def _fit_frames(frames: torch.Tensor, stream: str) -> torch.Tensor:
    """Some of the frames [f, T, C]; where they are few, the same again with noise."""
    if not len(frames):
        raise ConfigError(
            f"--plan: expected descriptors of {stream} in the sample, got none: videos of one frame have no "
            "differences"
        )
    number = max(8, min(FIT_FRAMES, FIT_VALUES // frames[0].numel()))
    draw = torch.Generator().manual_seed(0)
    chosen = frames[(torch.arange(number) * len(frames) / number).long()].float()
    if len(frames) < number:
        chosen += 0.3 * chosen.std() * torch.randn(chosen.shape, generator=draw)
    return chosen.half().to(cuda_or_cpu())


def _fit(book: Codebook, frames: torch.Tensor, job: Job) -> tuple[FitTrial, Encoder]:
    """The codebook of a small sample, by few steps, whose times the training curves' callback tells."""
    ends: dict[int, float] = {}
    sample = FitSample(
        frames=frames,
        video=torch.arange(len(frames)),
        targets=_targets(book, len(frames)),
        levels=job.config.describe.spp_levels,
        seed=job.config.run.seed,
        log=lambda _, step, __: ends.setdefault(step, time.perf_counter()),
    )
    few = {n: TRIAL_STEPS for n in ("num_steps", "max_iterations") if hasattr(book.settings, n)}
    own = book.settings
    batch = own.batch_frames if isinstance(own, FvVaeSettings) else TRIAL_BATCH
    if batch > TRIAL_BATCH:
        few["batch_frames"] = TRIAL_BATCH
    settings = dataclasses.replace(book.settings, **few) if few else book.settings
    started = time.perf_counter()
    try:
        encoder = fit_encoder(book.base, sample, settings, book.normalisation)
    except ValueError as error:
        raise ConfigError(
            f"--plan: {book.name} cannot be tried on the {len(frames)} frames of the sample: {error}"
        ) from error
    seconds = time.perf_counter() - started
    # As in describing, the least is what is not the machine's other work.
    step_s = float(np.diff(list(ends.values())).min()) if len(ends) > 1 else 0.0
    trial = FitTrial(
        name=book.encoder,
        stream=book.stream,
        frames=len(frames),
        cells=frames.shape[1],
        num_bytes=sum(map(len, encoder.files().values())),
        once_s=max(0.0, seconds - len(ends) * step_s),
        # As good as all of a step's time is spent on its frames.
        step_s=step_s * max(1.0, batch / TRIAL_BATCH),
        learns=ENCODERS[book.base].learns,
    )
    return trial, encoder


def _targets(book: Codebook, num_videos: int) -> torch.Tensor | None:
    if not book.settings.uses_labels:
        return None
    targets = torch.zeros(num_videos, 2)
    targets[torch.arange(num_videos), torch.arange(num_videos) % 2] = 1
    return targets


def _encode(
    job: Job,
    store: Store,
    books: list[Codebook],
    places: list[dict],
    sampled: tuple[float, float],
) -> EncodeTrial:
    """All encodings of a stream, of videos of one segment each."""
    stream = job.described[books[0].stream]
    attentive = [book for book in books if job.writes_attention(book)]
    given = (store, books, attentive, job.described, job.config.encode)
    stage = encode_stage.EncodeVideos(*given)
    videos = pa.table(
        {
            "video_id": [p["video_id"] for p in places],
            "source": [""] * len(places),
            "files": [[p["file"]] for p in places],
            "rows": [[p["row"]] for p in places],
        }
    )
    list(stage(videos.slice(0, 1)))
    started = time.perf_counter()
    made = pa.concat_tables(stage(videos))
    encoded_s = time.perf_counter() - started
    started = time.perf_counter()
    video_bytes = attention_bytes = 0
    for book in books:
        store.publish_table("rows", encodings_of(made, book), job.footer("encode"))
        video_bytes += store.size_bytes("rows")
    for book in attentive:
        store.publish_table("rows", attention_of(made, book, stream.cells), job.footer("encode"))
        attention_bytes += store.size_bytes("rows")
    publish_s = (time.perf_counter() - started) / len(places)
    return EncodeTrial(
        stream=stream.name,
        segment_s=encoded_s / len(places),
        video_s=publish_s,
        video_bytes=video_bytes / len(places),
        attention_bytes=attention_bytes / len(places),
        sample_frame_s=sampled[0],
        sample_frame_bytes=sampled[1],
    )


# --- classifiers and metrics -------------------------------------------------------------------

TRIAL_VIDEOS = 256
PRODUCT_SIZE = 1024


def product_flops(dtype: torch.dtype) -> float:
    """Operations a second of a product as those that SVMs are solved with: the best of some."""
    device = cuda_or_cpu()
    x = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype, device=device)
    best = math.inf
    for _ in range(4):
        started = time.perf_counter()
        float((x @ x)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2 * PRODUCT_SIZE**3 / best


def evaluate(job: Job, num_tested: int, num_classes: int) -> tuple[float, int]:
    """Seconds of all metrics on synthetic scores, and of how many videos."""
    if not num_tested:
        return 0.0, 0
    number = min(num_tested, TRIAL_VIDEOS)
    classes = [f"{place}" for place in range(num_classes)]
    draw = np.random.default_rng(0)
    targets = np.zeros((number, len(classes)), np.float32)
    targets[np.arange(number), np.arange(number) % len(classes)] = 1
    folds = np.arange(number) % max(1, job.num_folds)

    def read(encoder: str, stream: str) -> ScoreMatrix:
        return ScoreMatrix(
            encoder=encoder,
            stream=stream,
            video_ids=[f"{n}" for n in range(number)],
            folds=folds,
            classes=classes,
            scores=draw.standard_normal(targets.shape) + targets,
            targets=targets,
        )

    settings = job.config.evaluate
    began = time.perf_counter()
    for matrix, best_part in results.results(job.pairs(), settings, read, job.combinations):
        rows = results.metric_rows(matrix, settings, job.protocol)
        results.gain_rows(matrix, rows, best_part, settings)
    return time.perf_counter() - began, number
