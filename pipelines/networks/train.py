"""The Ray Train side of networks: CLIPS and labels to weights, with checkpoints.

Teams of workers train one network after another, each fold's on its own; what is finished is
published at once, and a network that was under way goes on from its last checkpoint.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import ray.train.torch
import torch

from encoders.networks.body import Source
from encoders.networks.fit import ClipSample, Pairs, fit_network
from encoders.networks.registry import network_class
from encoders.networks.settings import ActionFlowSettings
from pipelines.cluster import pools
from pipelines.cluster.broadcast import SharedFile
from pipelines.cluster.checkpoints import Checkpoints
from pipelines.cluster.teams import Dealer, Team
from pipelines.cluster.training import run_training
from pipelines.fit import codebooks
from pipelines.index.labels import target_matrix
from pipelines.ledger.accounts import Spent
from pipelines.ledger.marks import holds
from pipelines.networks import flow_pairs
from pipelines.networks.clips import clip_plan
from pipelines.networks.maps import StoredMaps
from pipelines.networks.streamed import Streamed, channels, column
from pipelines.run.codebook import FittedNetwork
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.settings.sections import Network
from pipelines.storage.pictures import mapped
from pipelines.storage.store import DONE, Store
from pipelines.storage.tables import NETWORKS
from pipelines.storage.uris import absolute_uri


@dataclass(frozen=True)
class Task:
    """A network to train.

    Attributes:
        sample: folder of CLIPS, or of DESCRIPTORS.
        labels: {training video: its labels}. ignored: classes that it does not count for.
        start: folder or URI of the network that it starts from; "": none.
    """

    network: FittedNetwork
    sample: str
    labels: dict[str, list[str]]
    footer: dict[str, str]
    start: str = ""
    ignored: dict[str, list[str]] = field(default_factory=dict)

    @property
    def videos(self) -> frozenset[str]:
        """Return the videos that it may see."""
        return frozenset(self.labels)


@dataclass(frozen=True)
class Training:
    """What the workers are given.

    Attributes:
        weights: what backbones start from.
        classes: of all videos, in the order of the scores.
        sources: {video: the file that counts}, as in VIDEOS.
        maps: those of a frozen backbone, where a network reads them.
        plan: of the videos, where they are decoded again and again (network.stream).
    """

    tasks: list[Task]
    store: Store
    config: Config
    weights: SharedFile
    node: str
    classes: list[str]
    sources: dict[str, str]
    maps: StoredMaps | None = None
    plan: pa.Table | None = None


def train_networks(job: Job, tasks: list[Task]) -> Spent:
    """Train and publish networks in one Ray Train run; return where the time went.

    Raises:
        RunError: a network that cannot be trained with these clips or settings.
    """
    teams = num_teams(job.config.network, len(tasks))
    dealer = None
    if teams > 1:
        on_this_node = Dealer.options(scheduling_strategy=pools.here())
        dealer = on_this_node.remote([task.sample for task in tasks])
    training = Training(
        tasks,
        job.store,
        job.config,
        SharedFile.of(job.store, job.weights.file),
        job.network_node,
        job.classes,
        job.sources,
        StoredMaps.of(job) if any(task.network.reads_maps for task in tasks) else None,
        clip_plan(job) if job.config.network.stream else None,
    )
    return run_training(
        _worker,
        {"training": training, "store": job.store, "config": job.config, "dealer": dealer},
        name=job.digest("train"),
        step="train",
        total=len(tasks),
        workers=teams * job.config.network.num_workers,
        threads=1 if teams > 1 else None,
    )


def num_teams(settings: Network, num_networks: int) -> int:
    """Return the number of networks that are trained at once on today's cluster."""
    if settings.stream and not settings.at_once:
        # Decoders need the other CPUs.
        return 1
    there = ray.cluster_resources()
    room = int(there.get("GPU", 0) or there.get("CPU", 1)) // settings.num_workers
    return min(num_networks, settings.at_once or max(1, room))


def _worker(setting: dict) -> None:
    """Train networks on a worker."""
    with codebooks.stopping_others(setting["dealer"]):
        _train_all(setting)


def _train_all(setting: dict) -> None:
    training: Training = setting["training"]
    store, config, meter = training.store, training.config, setting["meter"]
    team = Team.of(config.network.num_workers)
    kept = Checkpoints(store, config.fit.checkpoint_s, team)
    for task in codebooks.dealt(training.tasks, setting["dealer"], team):
        if team.agree(team.rank == 0 and holds(store, f"{task.network.folder}/{DONE}")):
            continue
        started = time.monotonic()
        state, rows = kept.of(task.network)
        curves = codebooks.Curves(task.network, team.rank, setting["counter"], rows=rows)
        with meter("read"):
            share = read_share(training, task, team)
        sample = ClipSample(
            frames=torch.from_numpy(share.frames),
            counts=share.counts,
            run_frames=1 if task.network.reads_maps else config.run_frames,
            flows=None if share.flows is None else torch.from_numpy(share.flows),
            stream=share.stream,
            flow_bound_px=config.network.flow_bound_px,
            pairs=read_pairs(training, task, team),
            targets=targets(training.classes, task, share.videos),
            multi_label=any(len(labels) > 1 for labels in task.labels.values()),
            seed=config.run.seed,
            rank=team.rank,
            world_size=team.size,
            all_reduce=team.all_reduce,
            log=curves.add,
            state=state,
            checkpoint=lambda state, task=task, curves=curves: kept.offer(
                task.network, state, curves.rows
            ),
        )
        with meter("fit"):
            files = _train(training, task, sample)
        if team.rank == 0:
            seconds = time.monotonic() - started
            folder = task.network.folder
            codebooks.publish(store, folder, task, files, curves.rows, seconds, NETWORKS)
            meter.done({"ok": 1})


def _train(training: Training, task: Task, sample: ClipSample) -> dict[str, bytes]:
    config, fitted = training.config, task.network
    source = source_of(config, training.node, training.weights(), fitted)
    kind = network_class(fitted.base)
    network = kind.build(source, fitted.settings, len(training.classes), config.run.seed)
    if task.start:
        network.start_from({name: read() for name, read in files_of(task.start).items()})
    device = str(ray.train.torch.get_device())
    return fit_network(network, sample, config.network.crop_px, device).files()


def files_of(start: str) -> dict[str, Callable[[], bytes]]:
    """Return {file: a function that reads it} of a trained network in a folder or at a URI."""
    root, _, folder = absolute_uri(start).rstrip("/").rpartition("/")
    store = Store(root)
    names = store.files(folder, ".safetensors")
    return {name.rpartition("/")[2]: functools.partial(store.read, name) for name in names}


def source_of(config: Config, node: str, weights: bytes, fitted: FittedNetwork) -> Source:
    """Return the backbone that a network starts from, or whose maps it reads."""
    if fitted.reads_maps:
        return Source(
            network=config.describe.backbone,
            node=node,
            weights=weights,
            crop_px=config.picture.crop_px,
            reads="maps",
        )
    return Source(
        network=config.describe.backbone,
        node=node,
        weights=weights,
        crop_px=config.network.crop_px,
        channels=channels(config.network, fitted.stream),
    )


@dataclass(frozen=True, eq=False)
class Share:
    """Frames uint8 [f, side, side, c] of whole videos, or their maps float16 [f, C, h, w]; how many
    each has; and for a network that learns flow that of each run, uint8 [runs, side, side, 2L]."""

    frames: np.ndarray
    videos: list[str]
    counts: list[int]
    flows: np.ndarray | None = None
    stream: Streamed | None = None


def read_share(training: Training, task: Task, team: Team) -> Share:
    """Return this worker's share of a network's training videos: whole videos, dealt in turn."""
    if training.maps and task.network.reads_maps:
        return Share(*training.maps.share(training.store, task.videos, team.rank, team.size))
    stream, sources = task.network.stream, training.sources
    names = ["clip_id", "video_id", "source", "frame_indices", "num_flows"]
    rows = []
    for row in training.store.read_table(task.sample, names).to_pylist():
        count = len(row["frame_indices"]) if stream == "rgb" else row["num_flows"]
        video = row["video_id"]
        if count and video in task.labels and sources[video] == row["source"]:
            rows.append((row["clip_id"], row["source"], video, count))
    own = sorted(rows)[team.rank :: team.size]
    counts = [count for *_, count in own]
    ends = np.cumsum(counts, dtype=np.int64).tolist()
    first = {tuple(row[:2]): end - row[3] for row, end in zip(own, ends, strict=True)}
    network = training.config.network
    shape = (sum(counts), network.side_px, network.side_px, channels(network, stream))
    key = ("clip_id", "source")
    if training.plan is not None:
        ids = pa.array([row[0] for row in own], pa.string())
        plan = training.plan.take(pc.index_in(ids, training.plan["clip_id"]))
        learns_flow = task.network.settings.learns_flow
        workers = ray.train.get_context().get_world_size()
        videos = Streamed(training.config, plan, counts, stream, learns_flow, workers)
        names, none = [row[2] for row in own], np.zeros((0, *shape[1:]), np.uint8)
        return Share(none, names, counts, stream=videos)
    frames = mapped(training.store, task.sample, column(stream), key, first, shape)
    flows, size = None, training.config.run_frames
    if task.network.settings.learns_flow:
        first = {key: place // size for key, place in first.items()}
        shape = (sum(counts) // size, *shape[1:3], 2 * (size - 1))
        flows = mapped(training.store, task.sample, "flow", key, first, shape)
    return Share(frames, [video for *_, video, _ in own], counts, flows)


def read_pairs(training: Training, task: Task, team: Team) -> Pairs | None:
    """Return this worker's share of the pairs with true flow that a network learns from, if any."""
    settings = task.network.settings
    if not isinstance(settings, ActionFlowSettings) or not settings.pairs:
        return None
    own = flow_pairs.found(settings.pairs)[team.rank :: team.size]
    return flow_pairs.read_all(own, training.config.network.side_px)


def targets(classes: list[str], task: Task, videos: list[str]) -> torch.Tensor:
    """Return [v, K] of 0 and 1, and -1 where a video does not count for a class."""
    ignored = [task.ignored.get(video, []) for video in videos]
    return torch.from_numpy(
        target_matrix([task.labels[video] for video in videos], classes, ignored)
    ).float()
