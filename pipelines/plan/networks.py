"""Trials of the networks of network.networks: a step of each phase of their training, and the test
of a clip, with random filters and on noise; and decoding for CLIPS, on videos of the sample.
"""

import time
from dataclasses import dataclass

import pyarrow as pa
import torch

from encoders.backbones.load import random_filters
from encoders.networks import training
from encoders.networks.base import Network
from encoders.networks.fit import ClipSample, fit_network
from encoders.networks.registry import network_class
from encoders.networks.scoring import clip_scores, drawn_clips
from encoders.networks.settings import NetworkSettings
from pipelines.networks.clips import clip_plan, decoder
from pipelines.networks.maps import stream_of
from pipelines.networks.streamed import channels
from pipelines.networks.train import source_of
from pipelines.plan.probe import indexed
from pipelines.plan.sample import now_s
from pipelines.run.codebook import FittedNetwork
from pipelines.run.job import Job
from pipelines.storage.store import Store

CLIPS, STEPS = 2, 2
"""Clips of a step, and steps of each phase, of a trial."""

VIDEOS, FRAMES = 3, 60
"""Videos that are decoded, and frames of a video's maps, of a trial."""


@dataclass(frozen=True, kw_only=True)
class NetworkTrial:
    """A network on a stream, and seconds of one core (or the GPU).

    Attributes:
        copies: of it that a run trains, one for each fold.
        train_s: of its whole training.
        clip_s: of a clip of a tested video, all its crops.
        num_bytes: of its weights.
    """

    name: str
    stream: str
    copies: int
    train_s: float
    clip_s: float
    num_bytes: int


@dataclass(frozen=True)
class Networks:
    """All trials of networks.

    Attributes:
        decode_s, clip_bytes: of a video in CLIPS; 0 where networks read maps.
        again: clips whose videos training decodes once more, of all networks (network.stream).
    """

    trials: tuple[NetworkTrial, ...] = ()
    decode_s: float = 0.0
    clip_bytes: float = 0.0
    again: int = 0


NO_NETWORKS = Networks()


def try_networks(job: Job, store: Store, videos: pa.Table, num_classes: int) -> Networks:
    """Try each network on each of its streams, and decoding for them.

    Args:
        store: of the sample. videos: VIDEOS rows of it.
    """
    first: dict[tuple[str, str], FittedNetwork] = {}
    for network in job.networks:
        first.setdefault((network.encoder, network.stream), network)
    folders = {(n.encoder, n.stream, n.folder) for n in job.networks}
    trials = tuple(
        _try(job, network, max(2, num_classes), sum(key[:2] == pair for key in folders))
        for pair, network in first.items()
    )
    if not (trials and job.networks_see_pictures):
        return Networks(trials)
    settings = job.config.network
    run = job.config.run_frames
    size = 3 * run + (2 * settings.flow_stack if "flow" in settings.streams else 0)
    size += 2 * (run - 1) if job.config.learns_flow else 0
    decode_s = _decode_s(job, store, videos)
    if settings.stream:
        every = {n.folder: n.settings for n in job.networks if not n.reads_maps}.values()
        again = sum(sum(own.steps) * own.batch_clips for own in every)
        return Networks(trials, decode_s, again=again)
    return Networks(trials, decode_s, float(settings.frames * settings.side_px**2 * size))


def _try(job: Job, fitted: FittedNetwork, num_classes: int, copies: int) -> NetworkTrial:
    config, settings = job.config, fitted.settings
    weights = random_filters(config.describe.backbone, 0)
    source = source_of(config, job.network_node, weights, fitted)
    few = settings.tried(STEPS, CLIPS)
    network = network_class(fitted.base).build(source, few, num_classes)
    frames = _frames(job, fitted)
    ends: list[float] = []
    sample = ClipSample(
        frames=torch.cat([frames] * CLIPS),
        counts=[len(frames)] * CLIPS,
        targets=torch.eye(num_classes)[:CLIPS],
        run_frames=_run_frames(job, fitted),
        flows=_flows(job) if settings.learns_flow else None,
        flow_bound_px=config.network.flow_bound_px,
        checkpoint=lambda _: ends.append(now_s()),
    )
    fit_network(network, sample, config.network.crop_px)
    # The last step of a phase: the first one has new optimisers.
    step_s = [
        ends[phase * STEPS + STEPS - 1] - ends[phase * STEPS + STEPS - 2]
        for phase in range(len(few.steps))
    ]
    return NetworkTrial(
        name=fitted.encoder,
        stream=fitted.stream,
        copies=copies,
        train_s=_whole(settings, step_s),
        clip_s=_clip_s(job, network, frames, sample.run_frames),
        num_bytes=sum(map(len, network.files().values())),
    )


def _whole(settings: NetworkSettings, step_s: list[float]) -> float:
    """Return the seconds of the whole training, from those of a step of each phase in a trial."""
    clips = settings.batch_clips / CLIPS
    return clips * sum(n * s for n, s in zip(settings.steps, step_s, strict=True))


def _clip_s(job: Job, network: Network, frames: torch.Tensor, run_frames: int) -> float:
    """Return the seconds of one clip of a test, with its crops; the better of two."""
    settings, draw = job.config.network, training.generator("cpu", 0)
    places = drawn_clips(len(frames), run_frames, network, 1, draw)
    times = []
    for _ in range(2):
        started = now_s()
        clip_scores(network, frames, places, settings.test_views, settings.crop_px)
        times.append(now_s() - started)
    return min(times)


def _frames(job: Job, fitted: FittedNetwork) -> torch.Tensor:
    """Return frames of a video as CLIPS have them, or maps as DESCRIPTORS have: noise."""
    settings, draw = job.config.network, training.generator("cpu", 0)
    if fitted.reads_maps:
        _, shape = stream_of(job)
        return torch.rand((FRAMES, *shape), generator=draw).half()
    side, depth = settings.side_px, channels(settings, fitted.stream)
    shape = (settings.frames * job.config.run_frames, side, side, depth)
    return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)


def _run_frames(job: Job, fitted: FittedNetwork) -> int:
    return 1 if fitted.reads_maps else job.config.run_frames


def _flows(job: Job) -> torch.Tensor:
    """Return the flow of each run of frames, as CLIPS have it: noise."""
    settings, draw = job.config.network, training.generator("cpu", 0)
    depth = 2 * (job.config.run_frames - 1)
    shape = (CLIPS * settings.frames, settings.side_px, settings.side_px, depth)
    return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)


def _decode_s(job: Job, store: Store, videos: pa.Table) -> float:
    """Return the seconds of a video for CLIPS."""
    rows = clip_plan(indexed(job, store, videos)).slice(0, VIDEOS)
    stage = decoder(job.config)
    started = time.perf_counter()
    list(stage(rows))
    seconds = time.perf_counter() - started
    stage.decoder.close()
    return seconds / max(1, rows.num_rows)
