"""From the user's flags to a Job: everything that can be wrong is found here, without a cluster."""

import hashlib

import pyarrow as pa

from encoders import backbones
from encoders.registry import ENCODERS
from pipelines import manifest, weights
from pipelines.config import Config, ConfigError
from pipelines.corpus import is_complete
from pipelines.descriptor_stages import stream_widths
from pipelines.layout import NEED_LABELS, STEPS, Job
from pipelines.storage import Store, absolute_uri


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
) -> Job:
    """The job that these inputs and settings describe.

    Raises:
        ConfigError: any input or setting that cannot be right.
    """
    _check_encoders(config)
    found = weights.resolve(config.describe)
    widths = _widths(config)
    table, split, num_folds = _manifest(videos, labels, config, limit, steps)
    job = Job(_store(out), config, table, split, num_folds, found, widths)
    _check_steps(job, steps)
    described = "describe" not in steps or is_complete(job, "describe")
    if not described and not job.store.exists(found.file):
        found.load()
    return job


def _check_encoders(config: Config) -> None:
    unknown = [name for name in config.encode.encoders if name not in ENCODERS]
    if unknown:
        raise ConfigError(f"encode.encoders: expected some of {sorted(ENCODERS)}, got {unknown}")


def _widths(config: Config) -> dict[str, int]:
    describe = config.describe
    try:
        channels = backbones.num_channels(describe.backbone, describe.nodes, config.picture.crop_px)
    except backbones.WeightsError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        raise ConfigError(
            f"picture.crop_px: {describe.backbone} does not take {config.picture.crop_px} px: {error}"
        ) from error
    return stream_widths(describe, channels)


def _manifest(
    videos: str, labels: str | None, config: Config, limit: int | None, steps: tuple[str, ...]
) -> tuple[pa.Table, str, int]:
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit: expected at least 1, got {limit}")
    listed = manifest.list_videos(videos)
    named = manifest.read_labels(labels) if labels else None
    if named is None and any(step in NEED_LABELS for step in steps):
        raise ConfigError(
            f"--labels: steps {' and '.join(NEED_LABELS)} need labels (CSV: path,label[,group][,split]); "
            "without labels use --steps index,describe,fit,encode"
        )
    rows = manifest.match(listed, named, config.manifest)
    if limit is not None and limit < rows.num_rows:
        # Spread over the sorted paths, so that a few videos still show several classes.
        rows = rows.take(pa.array([place * rows.num_rows // limit for place in range(limit)]))
    rows, split, num_folds = manifest.assign_folds(rows, config.split, config.run.seed)
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
