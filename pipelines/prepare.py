"""From the user's flags to a Job: everything that can be wrong is found here, without a cluster."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from encoders.registry import ENCODERS
from pipelines import flow, manifest, weights
from pipelines.config import Config
from pipelines.corpus import is_complete
from pipelines.descriptor_stages import described_streams
from pipelines.errors import ConfigError
from pipelines.folds import assign_folds
from pipelines.layout import LEFT_OUT, NEED_LABELS, RETRIES, STEPS, Job, Retries
from pipelines.storage import Store, absolute_uri

log = logging.getLogger(__name__)


def parse_steps(text: str) -> tuple[str, ...]:
    """`all`, or step names joined by commas, in the order of the data flow.

    Raises:
        ConfigError: an unknown step.
    """
    names = STEPS if text == "all" else tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        raise ConfigError(
            f"--steps {text}: expected all, or some of {','.join(STEPS)}; got {unknown}"
        )
    return tuple(name for name in STEPS if name in names)


def prepare(
    *,
    videos: str,
    labels: str | None,
    out: str,
    config: Config,
    steps: tuple[str, ...],
    limit: int | None,
    training_only: bool = False,
) -> Job:
    """The job that these inputs and settings describe.

    Args:
        training_only: leave out the test videos of a split into two, and split the training videos again:
            for choosing settings. Folds that take turns stay as they are.

    Raises:
        ConfigError: any input or setting that cannot be right.
    """
    listing = functools.partial(manifest.list_videos, videos)
    job = _job(listing, labels, out, config, steps, limit, training_only)
    _check_steps(job, steps)
    described = "describe" not in steps or is_complete(job, "describe")
    if not described:
        if any(stream.flow for stream in job.described.values()):
            flow.require_opencv()
        if not job.store.exists(job.weights.file):
            job.weights.load()
    return job


def prepare_plan(
    *,
    videos: str,
    labels: str | None,
    out: str,
    config: Config,
    steps: tuple[str, ...],
    limit: int | None,
    training_only: bool = False,
) -> Job:
    """As `prepare`, for `pipelines.planning` alone: of the files that a manifest names none is looked at, weights
    are not fetched, and steps need not be complete. A run with this job would not know its files again."""
    listing = functools.partial(manifest.list_videos, videos, look=False)
    return _job(listing, labels, out, config, steps, limit, training_only)


def _job(
    list_videos: Callable[[], pa.Table],
    labels: str | None,
    out: str,
    config: Config,
    steps: tuple[str, ...],
    limit: int | None,
    training_only: bool,
) -> Job:
    _check_encoders(config)
    found = weights.resolve(config.describe)
    streams = described_streams(config)
    listed = list_videos()
    named = manifest.read_labels(labels, config.split.name) if labels else None
    table, split, num_folds = _manifest(listed, named, config, limit, steps, training_only)
    store = _store(out)
    retries, no_gram = (store.read_json(name) or {} for name in (RETRIES, LEFT_OUT))
    job = Job(store, config, table, split, num_folds, found, streams, Retries(**retries), no_gram)
    _check_pairs(job)
    return job


def retry_failed(job: Job, steps: tuple[str, ...], decoder: str) -> Job:
    """The job with the segments of FAILURES to be tried again; as it is where there are none.

    Their videos are probed again too. Steps after that run again only if a segment came out otherwise.

    Args:
        decoder: for these segments alone; "" is the run's own.

    Raises:
        ConfigError: `steps` lack those that try again.
    """
    if not {"index", "describe"} <= set(steps):
        raise ConfigError(
            f"--retry-failed: expected steps index and describe, got {','.join(steps)}; add them"
        )
    if not is_complete(job, "describe"):
        log.info("--retry-failed: describe is not finished yet, and goes on first")
        return job
    rows = job.store.read_table(job.failures, ["video_id"])
    if not rows.num_rows:
        log.info("--retry-failed: no segment has failed")
        return job
    videos = len(set(rows["video_id"].to_pylist()))
    log.info("--retry-failed: %d segments of %d videos again", rows.num_rows, videos)
    retries = Retries(job.retries.passes + 1, decoder)
    job.store.publish_json(RETRIES, dataclasses.asdict(retries))
    return dataclasses.replace(job, retries=retries)


def _check_encoders(config: Config) -> None:
    bases = {name: config.variant(name).base for name in config.encode.encoders}
    unknown = [name for name, base in bases.items() if base not in ENCODERS]
    if unknown:
        raise ConfigError(f"encode.encoders: expected some of {sorted(ENCODERS)}, got {unknown}")


def _check_pairs(job: Job) -> None:
    kinds = {stream.kind for stream in job.described.values()}
    for variant in job.variants.values():
        reads = ENCODERS[variant.base].reads
        if not reads & kinds:
            raise ConfigError(
                f"encode.encoders: {variant.name} reads streams of kind {' or '.join(sorted(reads))}, but "
                f"describe.nodes = {','.join(job.config.describe.nodes)} with describe.streams = "
                f"{','.join(job.config.describe.streams)} give {' and '.join(sorted(kinds))}; add positions "
                "to describe.streams, or a node such as fc7 for a global one"
            )
    labelled = [name for name, variant in job.variants.items() if variant.uses_labels]
    if labelled and not job.num_folds:
        raise ConfigError(
            f"fv_vae.lambda3: {', '.join(labelled)} trains with a class loss and expects labels, got none; give "
            "--labels, or set fv_vae.lambda3=0"
        )
    weights, local = job.config.evaluate.stream_weights, job.local_streams
    if len(weights) not in (0, len(local)):
        raise ConfigError(
            f"evaluate.stream_weights: expected none, or one for each of {', '.join(local)}; got {weights}"
        )


def _manifest(
    listed: pa.Table,
    named: manifest.Labels | None,
    config: Config,
    limit: int | None,
    steps: tuple[str, ...],
    training_only: bool,
) -> tuple[pa.Table, str, int]:
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit: expected at least 1, got {limit}")
    if named is None and any(step in NEED_LABELS for step in steps):
        raise ConfigError(
            f"--labels: steps {' and '.join(NEED_LABELS)} need labels (CSV: path,label[,group][,split]); "
            "without labels use --steps index,describe,fit,encode"
        )
    rows = manifest.match(listed, named, config.manifest)
    if limit is not None and limit < rows.num_rows:
        # Spread over the sorted paths, so that a few videos still show several classes.
        rows = rows.take(pa.array([place * rows.num_rows // limit for place in range(limit)]))
    listed_rows = rows
    rows, split, num_folds = assign_folds(rows, config.split, config.run.seed)
    if training_only and num_folds == 1:
        training = listed_rows.filter(pc.equal(rows["fold"], -1))
        has_groups = not any(group is None for group in training["group"].to_pylist())
        again = dataclasses.replace(config.split, kind="group_kfold" if has_groups else "random")
        rows, split, num_folds = assign_folds(training, again, config.run.seed)
    sources = [
        hashlib.sha256(repr(row).encode()).hexdigest()[:16]
        for row in zip(
            *(rows[c].to_pylist() for c in ("uri", "size_bytes", "modified")), strict=True
        )
    ]
    rows = rows.drop_columns(["modified"]).append_column("source", pa.array(sources))
    return rows.rename_columns({"path": "video_id"}), split, num_folds


def _store(out: str) -> Store:
    store = Store(absolute_uri(out))
    try:
        store.fs.makedirs(store.path(""), exist_ok=True)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"--out {out}: cannot write there ({type(error).__name__}: {error})"
        ) from error
    return store


def _check_steps(job: Job, steps: tuple[str, ...]) -> None:
    first = STEPS.index(steps[0])
    for earlier in STEPS[:first]:
        if not is_complete(job, earlier):
            raise ConfigError(
                f"--steps {','.join(steps)}: step {earlier} is not complete in {job.store.root} for these "
                f"inputs and settings; run it first, or use --steps {earlier},{','.join(steps)}"
            )
