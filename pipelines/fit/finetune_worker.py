"""The Ray Train side of the end-to-end training: pictures and labels to new weights, with
checkpoints.
"""

import functools
import time
from dataclasses import dataclass

import pyarrow.compute as pc
import ray.train.torch
import torch

from encoders.descriptors.streams import Stream, appearance
from encoders.fv_vae.end_to_end import Network, fine_tune
from encoders.settings import CODEBOOK
from pipelines.cluster import training as cluster_training
from pipelines.cluster.broadcast import SharedFile
from pipelines.cluster.checkpoints import Checkpoints
from pipelines.cluster.teams import Team
from pipelines.fit import codebooks
from pipelines.settings.config import Config
from pipelines.storage.pictures import mapped
from pipelines.storage.store import Store

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Training:
    """The task and inputs of the training workers.

    Attributes:
        task: the FV-VAE, the folder of FRAMES, and the labels of the videos in it.
        stream: the FV-VAE's.
        weights: what the backbone starts from.
        folder: where the new weights, the codebook and the curves go.
    """

    task: codebooks.Task
    store: Store
    config: Config
    stream: Stream
    weights: SharedFile
    folder: str


def start(training: Training) -> None:
    """Do one Ray Train run, which goes on from its last checkpoint where a worker is lost.

    Raises:
        RunError: the network cannot be trained with these pictures or settings.
    """
    cluster_training.run_training(
        _fit,
        {"training": training, "store": training.store, "config": training.config},
        name=training.task.codebook.digest,
        step="finetune",
        total=1,
        workers=training.config.fit.num_workers,
    )


def _fit(setting: dict) -> None:
    training = setting["training"]
    task, store, config = training.task, training.store, training.config
    team = Team.of(config.fit.num_workers)
    kept = Checkpoints(store, config.fit.checkpoint_s, team)
    started = time.monotonic()
    state, rows = kept.of(task.codebook)
    curves = codebooks.Curves(task.codebook, team.rank, setting["counter"], rows=rows)
    share = read_share(store, task.sample, config.picture.crop_px, team)
    describe = config.describe
    network = Network(
        name=describe.backbone,
        node=training.stream.node,
        weights=training.weights(),
        describe=functools.partial(
            appearance, scaling=training.stream.scaling, levels=training.stream.spp_levels
        ),
    )
    tuned = fine_tune(
        network,
        codebooks.fit_sample(task, share, config, team, curves, kept, state),
        config.fv_vae,
        config.finetune,
        str(ray.train.torch.get_device()),
    )
    if team.rank == 0:
        files = {WEIGHTS: tuned.weights, CODEBOOK: tuned.codebook.to_bytes()}
        seconds = time.monotonic() - started
        codebooks.publish(store, training.folder, task, files, curves.rows, seconds)
        setting["meter"].done({"ok": 1})


def read_share(
    store: Store, frames: str, crop_px: int, team: Team
) -> tuple[torch.Tensor, list[str]]:
    """Return this worker's pictures uint8 [f, crop_px, crop_px, 3] and the video of each; whole
    videos, in turn.

    The pictures are a file that is mapped into memory, and has no name any more when this returns.
    """
    keys = store.read_table(frames, ["segment_id", "video_id", "frame_indices"])
    segments = keys.filter(pc.greater(pc.list_value_length(keys["frame_indices"]), 0))
    segments = segments.sort_by([("video_id", "ascending"), ("segment_id", "ascending")])
    videos = sorted(set(segments["video_id"].to_pylist()))
    own = set(videos[team.rank :: team.size])
    first: dict[tuple[str, ...], int] = {}
    names = []
    for row in segments.to_pylist():
        if row["video_id"] in own:
            first[(row["segment_id"],)] = len(names)
            names += [row["video_id"]] * len(row["frame_indices"])
    shape = (len(names), crop_px, crop_px, 3)
    pictures = mapped(store, frames, "pictures", ("segment_id",), first, shape)
    return torch.from_numpy(pictures), names
