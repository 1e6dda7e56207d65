"""The way from the user's flags to a Job.

All errors of flags and inputs show here, without a cluster.
"""

import dataclasses
import itertools
import logging
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from encoders import matmul
from encoders.descriptors.streams import Stream
from encoders.networks import base, body
from encoders.networks.settings import (
    OF_RGB,
    ActionFlowSettings,
    NetworkSettings,
    TdnSettings,
)
from encoders.registry import ENCODERS
from encoders.settings import EncoderSettings
from pipelines.describe import weights
from pipelines.describe.stage import described_streams
from pipelines.errors import ConfigError
from pipelines.index import external
from pipelines.index.boxes import with_margin
from pipelines.index.folds import assign_folds, unsplit
from pipelines.index.labels import Labels, match, read_labels
from pipelines.index.manifest import labels_file, list_videos
from pipelines.index.user_tables import using
from pipelines.ledger import marks
from pipelines.ledger.source import source_of
from pipelines.networks import flow_pairs
from pipelines.networks.maps import stream_of
from pipelines.networks.train import files_of
from pipelines.run.inputs import LEFT_OUT, RETRIES, Retries
from pipelines.run.job import Job
from pipelines.run.steps import STEPS
from pipelines.settings.config import Config
from pipelines.settings.recipes import RECIPES, sized
from pipelines.settings.sections import LEAST_FRAMES
from pipelines.storage.columns import names
from pipelines.storage.store import DONE, Store
from pipelines.storage.trial import try_out
from pipelines.storage.uris import absolute_uri
from pipelines.track import tracker
from pipelines.video import flow
from pipelines.video.stages import BOX, box_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The user's request: the flags, and the configuration that they give.

    Attributes:
        limit: use that many videos only; None for all.
        training_only: leave out the test videos of a split into two, and split the training videos
            again: for choosing settings. Folds that take turns stay as they are.
    """

    videos: str
    labels: str | None
    out: str
    config: Config
    steps: tuple[str, ...]
    limit: int | None = None
    training_only: bool = False


def prepare(inputs: Inputs, *, plan: bool = False) -> Job:
    """Return the job that these inputs describe.

    Args:
        plan: for `pipelines.plan.command` alone: files that a manifest names are not looked at,
            weights are not fetched, and earlier steps need not be complete. A run with such a job
            would not know its files again.

    Raises:
        ConfigError: any input or setting that cannot be right.
    """
    config, steps = inputs.config, inputs.steps
    try:
        matmul.wanted()
    except ValueError as error:
        # Workers would end in it, hours later.
        raise ConfigError(str(error)) from error
    resolved_weights = weights.resolve(config.describe)
    streams = described_streams(config)
    media, has_boxes = config.manifest.media, config.picture.box == "crop"
    listed = list_videos(
        inputs.videos, out=inputs.out, look=not plan, media=media, with_boxes=has_boxes
    )
    labels = None
    if (file := labels_file(inputs.videos, inputs.labels)) is not None:
        paths = listed["path"].to_pylist()
        stretches = config.manifest.stretches
        labels = read_labels(file, config.split.name, paths, stretches, with_boxes=has_boxes)
    table, split, num_folds = manifest_of(listed, labels, inputs)
    config = sized(config, table.num_rows)
    _say_what_was_chosen(inputs.config, config, table.num_rows, split, num_folds)
    store = open_store(inputs.out)
    retries, no_gram = (store.read_json(name) or {} for name in (RETRIES, LEFT_OUT))
    job = Job(
        store,
        config,
        table,
        split,
        num_folds,
        resolved_weights,
        streams,
        kept_retries(store, retries),
        no_gram,
        external.sources(config, table["video_id"].to_pylist()),
    )
    job = as_sampled_before(job)
    _check_pairs(job, steps)
    if plan:
        return job
    _check_steps(job, steps)
    tracker.check(config)
    if "fit" in steps and not job.is_complete("fit"):
        _check_workers(job)
    if "describe" in steps and not job.is_complete("describe"):
        if any(stream.flow for stream in job.described.values()):
            flow.require_opencv()
        if not job.store.exists(job.weights.file):
            job.weights.load()
    if "train" in steps and not job.is_complete("train"):
        _check_networks(job)
    return job


def as_sampled_before(job: Job) -> Job:
    """Return the job with the sample that its folder has of before fit.num_frames followed the
    corpus: what is complete stays complete.
    """
    if job.config.fit.num_frames or not job.store.exists("run.json"):
        return job
    fit = dataclasses.replace(job.config.fit, num_frames=LEAST_FRAMES)
    before = dataclasses.replace(job, config=dataclasses.replace(job.config, fit=fit))
    folders = [before.sample(book.stream) for book in before.learning]
    # Somebody may have removed the samples, which no later step reads.
    folders = list(dict.fromkeys([*folders, *(book.folder for book in before.learning)]))
    return before if any(marks.find(job.store, f"{f}/{DONE}") for f in folders) else job


def retry_failed(job: Job, steps: tuple[str, ...], decoder: str) -> Job:
    """Return the job with the segments of FAILURES to be tried again; unchanged where there are
    none.

    Headers of their videos are read again too. Later steps run again only if the outcome of a
    segment has changed.

    Args:
        decoder: of these segments alone; "" stands for that of the configuration.

    Raises:
        ConfigError: `steps` lack index or describe.
    """
    if not {"index", "describe"} <= set(steps):
        raise ConfigError(
            f"--retry-failed: expected steps index and describe, got {','.join(steps)}; add them"
        )
    if not job.is_sound("describe"):
        log.info("--retry-failed: describe is not finished yet, and goes on first")
        return job
    rows = job.store.read_table(job.failures, ["video_id"])
    clips = _failed_clips(job)
    if not rows.num_rows and not clips:
        log.info("--retry-failed: no segment has failed")
        return job
    videos = len(set(rows["video_id"].to_pylist()))
    log.info("--retry-failed: %d segments of %d videos again", rows.num_rows, videos)
    if clips:
        log.info("--retry-failed: pictures of %d videos for networks again", clips)
    retries = Retries(job.retries.passes + 1, decoder)
    job.store.publish_json(RETRIES, dataclasses.asdict(retries))
    return dataclasses.replace(job, retries=retries)


def _failed_clips(job: Job) -> int:
    """Return the number of videos without pictures for networks."""
    if not job.networks_see_pictures or not job.store.files(job.clips):
        return 0
    rows = job.store.read_table(job.clips, ["video_id", "status"])
    failed = rows.filter(pc.equal(rows["status"], "failed"))
    return len(names(failed) - names(rows.filter(pc.not_equal(rows["status"], "failed"))))


def _say_what_was_chosen(
    asked: Config, config: Config, num_videos: int, split: str, num_folds: int
) -> None:
    """Say in one line what the recipe `auto` came to, and how to choose otherwise."""
    if asked.encode.encoders == config.encode.encoders:
        return
    test = {"none": "no labels", "given": "the split of the labels", "random": "a random split"}
    log.info(
        "recipe %s: %d videos, %s, %d frames each, encoders %s, %s; choose otherwise with --recipe "
        "(%s) or --set (docs/settings.md)",
        config.recipe,
        num_videos,
        config.describe.backbone,
        config.sampling.num_frames,
        " and ".join(config.encode.encoders),
        test.get(split, f"{num_folds} folds of whole groups"),
        ", ".join(name for name in RECIPES if name != config.recipe),
    )


def kept_retries(store: Store, record: dict) -> Retries:
    """Return what RETRIES of a run's folder says.

    Raises:
        ConfigError: it says something else.
    """
    try:
        return Retries(int(record.get("passes", 0)), str(record.get("decoder", "")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{store.uri(RETRIES)}: expected the number of passes of --retry-failed, got {record}; "
            "give back the file that the job wrote"
        ) from error


def _check_pairs(job: Job, steps: tuple[str, ...]) -> None:
    kinds = {stream.kind for stream in job.described.values()}
    for variant in (job.variants[name] for name in job.config.encode.encoders):
        reads = ENCODERS[variant.base].reads
        if not reads & kinds:
            raise ConfigError(
                f"encode.encoders: {variant.name} reads streams of kind "
                f"{' or '.join(sorted(reads))}, but describe.nodes = "
                f"{','.join(job.config.describe.nodes)} with describe.streams = "
                f"{','.join(job.config.describe.streams)} give {' and '.join(sorted(kinds))}; "
                "add positions to describe.streams, or a node such as fc7 for a global one"
            )
    for name, stream in job.pairs():
        if stream not in job.described:
            continue
        _check_settings(name, job.variants[name].settings, job.described[stream])
    labelled = [name for name, variant in job.variants.items() if variant.uses_labels]
    if labelled and not job.num_folds and set(steps) - {"index", "describe"}:
        raise ConfigError(
            f"fv_vae.lambda3: {', '.join(labelled)} trains with a class loss and expects "
            "labels, got none; give --labels, or set fv_vae.lambda3=0"
        )
    weights, local = job.config.evaluate.stream_weights, job.local_streams
    if len(weights) not in (0, len(local)):
        raise ConfigError(
            f"evaluate.stream_weights: expected none, or one for each of {', '.join(local)}; "
            f"got {weights}"
        )


def _check_workers(job: Job) -> None:
    """Refuse a codebook that has fewer videos than workers that fit it."""
    workers, folds = job.config.fit.num_workers, {book.fold for book in job.learning}
    fewest = min((len(job.training_videos(fold)) for fold in folds), default=workers)
    if fewest < workers:
        raise ConfigError(
            f"fit.num_workers: expected at most the {fewest} training videos, got {workers}; "
            "each worker needs a video of its own"
        )


def _check_networks(job: Job) -> None:
    """Refuse networks that cannot be made of the backbone, and fetch its weights."""
    config = job.config
    workers = config.network.num_workers
    fewest = min((len(job.training_videos(fold)) for fold in job.folds), default=workers)
    if fewest < workers:
        raise ConfigError(
            f"network.num_workers: expected at most the {fewest} training videos, got {workers}; "
            "each worker needs a video of its own"
        )
    if "flow" in config.network.streams or config.learns_flow:
        flow.require_opencv()
    if "flow" in config.network.streams and config.run_frames > 1:
        raise ConfigError(
            "network.streams: expected rgb beside actionflownet, whose clips are runs of pictures, "
            f"got {','.join(config.network.streams)}; give networks of flow a run of their own"
        )
    for name in config.network.networks:
        settings = config.network_variant(name).settings
        if isinstance(settings, ActionFlowSettings) and settings.pairs:
            flow_pairs.found(settings.pairs)
        _check_start(job, name, settings)
        layers = settings.layers if isinstance(settings, TdnSettings) else ()
        where = (config.describe.backbone, layers, job.network_node, config.network.crop_px)
        try:
            body.layer_nodes(*where)
        except ValueError as error:
            raise ConfigError(f"network.networks: {name}: {error}") from error
    if any(network.reads_maps for network in job.networks):
        stream_of(job)
        if "flow" in config.network.streams:
            raise ConfigError(
                "network.input=maps: expected network.streams=rgb, got "
                f"{','.join(config.network.streams)}; set network.input=pixels for optical flow"
            )
    if not job.store.exists(job.weights.file):
        job.weights.load()


def _check_start(job: Job, name: str, settings: NetworkSettings) -> None:
    """Refuse a network to start from that is not there."""
    if settings.flow_start == OF_RGB and "rgb" not in job.config.network.streams:
        raise ConfigError(
            f"network.networks: {name}: flow_start={OF_RGB} expects network.streams=rgb,flow, got "
            f"{','.join(job.config.network.streams)}"
        )
    for start in {settings.start, settings.flow_start} - {"", OF_RGB}:
        if base.CLASSIFIERS not in files_of(start):
            raise ConfigError(
                f"network.networks: {name}: start: expected the folder of a trained network, such "
                f"as OUT/networks/tsn-rgb/DIGEST, got {start} without {base.CLASSIFIERS}"
            )


def _check_settings(name: str, settings: EncoderSettings, stream: Stream) -> None:
    """Refuse an encoder that cannot be fitted to the content of a stream."""
    components = settings.pca_components
    if components > stream.width:
        raise ConfigError(
            f"encode.encoders: {name} has pca_components = {components}, but descriptors of "
            f"{stream.name} have {stream.width} values; set at most that many, or give the "
            "stream a run of its own"
        )
    if settings.is_scaled:
        _check_scales(name, settings, stream)
    if stream.kind in ("positions", "dense") and settings.is_spatial:
        raise ConfigError(
            f"encode.encoders: {name} tells the cells of a spatial pyramid apart, and "
            f"{stream.name} has none; leave out levels, per_level and position_weight, or give "
            "the stream a run of its own"
        )


def _check_scales(name: str, settings: EncoderSettings, stream: Stream) -> None:
    """Refuse an encoder that tells sizes apart which a stream does not have."""
    sides = [scale.side_px for scale in stream.scales]
    if not set(settings.sides) <= set(sides):
        raise ConfigError(
            f"encode.encoders: {name}: sides: expected some of {sides} (picture.scales, or "
            f"picture.crop_px), got {list(settings.sides)}"
        )
    if settings.regions and not all(scale.height for scale in stream.scales):
        raise ConfigError(
            f"encode.encoders: {name}: regions: expected streams of positions, got "
            f"{stream.name}, cells of a pyramid; set describe.streams=dense, or leave regions out"
        )
    if settings.is_spatial:
        raise ConfigError(
            f"encode.encoders: {name}: scales, sides and regions: expected none of levels, "
            "per_level and position_weight beside them, got one; leave either out"
        )


def manifest_of(
    listed: pa.Table, labels: Labels | None, inputs: Inputs
) -> tuple[pa.Table, str, int]:
    """Return the videos of the job, the kind of split and the number of folds."""
    config, limit = inputs.config, inputs.limit
    need_labels = [name for name, step in STEPS.items() if step.needs_labels]
    if labels is None and any(step in need_labels for step in inputs.steps):
        raise ConfigError(
            f"--labels: steps {' and '.join(need_labels)} need labels (CSV: "
            "path,label[,group][,split]); without labels use --steps "
            f"{','.join(n for n in STEPS if n not in need_labels)}"
        )
    rows = with_margin(match(listed, labels, config.manifest), config.picture)
    if limit is not None and limit < rows.num_rows:
        # Spread over the sorted paths, so that a few videos still show several classes.
        rows = rows.take(pa.array([index * rows.num_rows // limit for index in range(limit)]))
    listed_rows = rows
    try:
        rows, split, num_folds = assign_folds(rows, config.split, config.run.seed)
    except ConfigError:
        # Folds are what the other steps train and test by.
        if set(inputs.steps) - {"index", "describe"}:
            raise
        rows, split, num_folds = unsplit(rows)
    if inputs.training_only and num_folds == 1:
        training = listed_rows.filter(pc.equal(rows["fold"], -1))
        has_groups = not any(group is None for group in training["group"].to_pylist())
        again = dataclasses.replace(config.split, kind="group_kfold" if has_groups else "random")
        rows, split, num_folds = assign_folds(training, again, config.run.seed)
    sources = [
        source_of(row["uri"], row["size_bytes"], row["modified"], box_of(row))
        for row in rows.select(
            [c for c in ("uri", "size_bytes", "modified", *BOX) if c in rows.column_names]
        ).to_pylist()
    ]
    rows = rows.drop_columns(["modified"]).append_column("source", pa.array(sources))
    return rows.rename_columns({"path": "video_id"}), split, num_folds


def open_store(out: str) -> Store:
    """Return the store of a run, after a trial of it."""
    store = Store(absolute_uri(out))
    with using("--out", out, "write there"):
        try_out(store)
    return store


def _check_steps(job: Job, steps: tuple[str, ...]) -> None:
    for earlier in itertools.takewhile(lambda name: name != steps[0], STEPS):
        if not job.is_sound(earlier):
            raise ConfigError(
                f"--steps {','.join(steps)}: step {earlier} is not complete in {job.store.root}, "
                "or files of it are gone or damaged, for these inputs and settings; run it first, "
                f"or use --steps {earlier},{','.join(steps)}"
            )
