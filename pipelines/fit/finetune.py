"""Training of the backbone with the FV-VAE (METHODS 3.1, end to end), before a run of the main job:

    SEGMENTS of the training videos   -> FRAMES (pictures)
    FRAMES, labels, weights           -> finetuned/<digest>/: weights, codebook, curves

The main job then uses the new weights as it would any others.
"""

import dataclasses
import functools
import hashlib
import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.descriptors.streams import Stream
from encoders.fv_vae.end_to_end import trainable
from encoders.stream_specs import FRAME, INPUT, STAGES
from pipelines.cluster import datasets, pools, sink
from pipelines.cluster.broadcast import SharedFile
from pipelines.errors import ConfigError, RunError
from pipelines.fit import codebooks, finetune_worker
from pipelines.fit.finetune_worker import Training
from pipelines.index import current_rows
from pipelines.ledger import marks
from pipelines.run.codebook import Codebook
from pipelines.run.job import Job
from pipelines.run.versions import FORMAT_VERSION
from pipelines.settings.config import Config, digest
from pipelines.storage.store import DONE
from pipelines.storage.tables import FRAMES
from pipelines.video import stages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneJob:
    """A job of training, and the folders it writes.

    Attributes:
        stream: the appearance stream that the FV-VAE is trained on.
        labels: {training video: its labels}.
    """

    job: Job
    stream: Stream
    labels: dict[str, list[str]]

    @functools.cached_property
    def frames(self) -> str:
        """Return the folder of FRAMES."""
        job = self.job
        pairs = zip(
            job.manifest["video_id"].to_pylist(), job.manifest["source"].to_pylist(), strict=True
        )
        videos = sorted(pair for pair in pairs if pair[0] in self.labels)
        how = (job.config.sampling, job.config.picture, job.config.decode.decoder)
        drawn = (job.config.finetune.num_frames, job.config.run.seed)
        return f"frames/{digest(FORMAT_VERSION, videos, how, drawn)}"

    @functools.cached_property
    def folder(self) -> str:
        """Return the folder of the new weights, the codebook and the curves."""
        config = self.job.config
        describe = (config.describe.backbone, config.describe.scaling, config.describe.spp_levels)
        made_by = (self.job.weights.identity, config.fv_vae, config.finetune)
        ignored = self.job.ignored(0)
        return "finetuned/" + digest(
            self.frames,
            describe,
            self.stream.node,
            made_by,
            sorted(self.labels.items()),
            *([sorted(ignored.items())] if ignored else []),
            (config.fit.num_workers, config.run.seed),
        )

    @property
    def weights(self) -> str:
        return f"{self.folder}/{finetune_worker.WEIGHTS}"

    @property
    def is_done(self) -> bool:
        return marks.holds(self.job.store, f"{self.folder}/{DONE}")


def check(config: Config) -> None:
    """Refuse settings that cannot be trained end to end.

    Raises:
        ConfigError: no class loss, or not one node with an appearance stream.
    """
    if config.fv_vae.lambda3 == 0:
        raise ConfigError(
            "fv_vae.lambda3: expected more than 0, got 0; without the class loss the backbone "
            "learns to give all frames the descriptors that are easiest to reconstruct"
        )
    if config.fv_vae.pca_components:
        raise ConfigError(
            f"fv_vae.pca_components: expected 0, got {config.fv_vae.pca_components}; a PCA is "
            "fitted on descriptors that stay as they are"
        )
    if config.fv_vae.is_spatial:
        raise ConfigError(
            "fv_vae.position_weight, fv_vae.levels, fv_vae.per_level: expected none, because one "
            "network is trained on the descriptors as they are, got "
            f"{config.fv_vae.position_weight:g}, {config.fv_vae.levels} and "
            f"{config.fv_vae.per_level}"
        )
    nodes = config.describe.used_nodes
    if (
        len(nodes) != 1
        or nodes[0] in (INPUT, STAGES)
        or "appearance" not in config.describe.streams
    ):
        raise ConfigError(
            f"describe.nodes = {','.join(nodes)} and describe.streams = "
            f"{','.join(config.describe.streams)}: expected one node of the network, and "
            "appearance among the streams; one FV-VAE is trained, on the descriptors of one node"
        )


def plan(job: Job) -> FinetuneJob:
    """Return the training of this job.

    Raises:
        ConfigError: no labels, several folds, a node without extent or with nothing to train, or
            too few videos.
    """
    if not job.num_folds:
        raise ConfigError("--labels: training of the network expects labels, got none")
    if job.num_folds != 1:
        split = f"{job.num_folds} folds ({job.split})"
        raise ConfigError(
            f"split.kind: expected one split into training and test videos, got {split}; each fold "
            "would need a network of its own, and with it descriptors of its own: set "
            "split.kind=given or split.kind=random, and give --labels"
        )
    streams = [s for s in job.described.values() if s.name.endswith("_appearance")]
    if not streams:
        raise ConfigError(
            "describe.nodes: expected a node with maps, got "
            f"{','.join(job.config.describe.nodes)}, which gives one vector a frame; name an "
            "earlier node"
        )
    labels = dict(
        zip(job.manifest["video_id"].to_pylist(), job.manifest["labels"].to_pylist(), strict=True)
    )
    training = {video: labels[video] for video in sorted(job.training_videos(0))}
    workers = job.config.fit.num_workers
    if len(training) < workers:
        raise ConfigError(
            f"fit.num_workers: expected at most the {len(training)} training videos, got "
            f"{workers}; each worker needs a video of its own"
        )
    node, trained_from = streams[0].node, job.config.finetune.trainable_from
    try:
        trainable(job.config.describe.backbone, node, trained_from, job.config.picture.crop_px)
    except ValueError as error:
        raise ConfigError(f"finetune.trainable_from={trained_from}: {error}") from error
    return FinetuneJob(job, streams[0], training)


def train(todo: FinetuneJob) -> None:
    """Publish FRAMES, then train in one Ray Train run; finished parts are kept.

    The cluster must be connected.

    Raises:
        RunError: no pictures, or a training that cannot go on.
    """
    job = todo.job
    job.weights.keep(job.store)
    _decode(todo)
    _check_pictures(todo)
    _train(todo)


def failed_fraction(todo: FinetuneJob) -> float:
    """Return the share of the training videos' segments that gave no picture."""
    status = todo.job.store.read_table(todo.frames, ["status"])["status"]
    return (pc.sum(pc.equal(status, "failed")).as_py() or 0) / max(1, len(status))


class KeepFrames:
    """A mapper of decoded segments to FRAMES rows with at most `most` frames each, drawn with the
    seed.
    """

    def __init__(self, crop_px: int, most: int, seed: int) -> None:
        self.crop_px, self.most, self.seed = crop_px, most, seed

    def __call__(self, segments: pa.Table) -> pa.Table:
        return FRAMES.build([self._row(row) for row in segments.to_pylist()])

    def _row(self, row: dict) -> dict:
        indices = row["frame_indices"]
        pictures = np.frombuffer(row["images"], np.uint8).reshape(-1, self.crop_px**2 * 3)
        drawn = sorted(range(len(indices)), key=lambda place: self._draw(row, indices[place]))
        kept = sorted(drawn[: self.most])
        return {
            **{name: row[name] for name in ("segment_id", "video_id", "source", "status", "error")},
            "frame_indices": [indices[place] for place in kept],
            "pictures": pictures[kept].tobytes(),
        }

    def _draw(self, row: dict, index: int) -> bytes:
        return hashlib.sha256(f"{self.seed}\n{row['video_id']}\n{index}".encode()).digest()


def _decode(todo: FinetuneJob) -> None:
    """Publish FRAMES: about finetune.num_frames pictures of the training videos."""
    job, config = todo.job, todo.job.config
    if marks.holds(job.store, f"{todo.frames}/{DONE}"):
        return
    segments = current_rows.segment_plan(job)
    segments = segments.filter(pc.is_in(segments["video_id"], pa.array(list(todo.labels))))
    rows = sink.pending(segments, job.store, todo.frames, ("segment_id", "source"))
    log.info("frames: %d segments, %d of them to decode", segments.num_rows, rows.num_rows)
    most = max(1, round(config.finetune.num_frames / segments.num_rows))
    pool = pools.pools(config.cluster).decode.fitting(rows.num_rows)
    line = datasets.progress_line(job, "frames", rows.num_rows, {("read", "decode"): pool})
    centre = dataclasses.replace(config.picture, views="centre", scales=())
    decoding = (config.sampling, centre, config.decode, line.meter, (FRAME,), True)
    keeping = (config.picture.crop_px, most, config.run.seed)
    data = datasets.dataset(rows, 4).map_batches(
        datasets.Chain,
        fn_constructor_args=((stages.DecodeSegments, decoding), (KeepFrames, keeping)),
        **pool.options(batch_size=4),
    )
    outputs = [sink.Output(FRAMES, todo.frames, job.footer("finetune"))]
    datasets.write_tables(job, line, data, outputs, rows_per_file=64)
    job.store.publish_json(marks.place(f"{todo.frames}/{DONE}"), {"frames_per_segment": most})


def _check_pictures(todo: FinetuneJob) -> None:
    rows = todo.job.store.read_table(todo.frames, ["video_id", "frame_indices", "error"])
    bad = pc.equal(pc.list_value_length(rows["frame_indices"]), 0)
    found = len(set(rows.filter(pc.invert(bad))["video_id"].to_pylist()))
    workers = todo.job.config.fit.num_workers
    if found < workers:
        reasons = sorted({error or "no frames" for error in rows.filter(bad)["error"].to_pylist()})
        raise RunError(
            f"finetune: expected pictures of at least {workers} training videos, one for each "
            f"worker, got {found} of {len(todo.labels)}; the others failed: "
            f"{'; '.join(reasons[:3])}"
        )


def _train(todo: FinetuneJob) -> None:
    config = todo.job.config
    name = todo.folder.rpartition("/")[2]
    book = Codebook.of(config.variant("fv_vae"), todo.stream.name, fold=-1, digest=name)
    task = codebooks.Task(
        codebook=book,
        sample=todo.frames,
        videos=frozenset(todo.labels),
        labels=todo.labels,
        ignored=todo.job.ignored(0),
        footer=todo.job.footer("finetune"),
    )
    num_steps = config.fv_vae.steps_for(config.finetune.num_frames)
    log.info("finetune: %d steps or fewer, %d worker(s)", num_steps, config.fit.num_workers)
    weights = SharedFile.of(todo.job.store, todo.job.weights.file)
    finetune_worker.start(Training(task, todo.job.store, config, todo.stream, weights, todo.folder))
