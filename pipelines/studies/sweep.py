"""Sweeps (DQ 5.4, Figure 4): the variants to run, and their METRICS as curves.

Letters: C channels of a descriptor, D length of a vector.
"""

from typing import cast

from pipelines.describe.stage import described_streams
from pipelines.errors import ConfigError
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.studies.sweep_page import Sweep, SweepPoint, render_sweep, text_table

DIMENSIONS = tuple(2**power for power in range(12, 18))
LAMBDA3 = (0.0, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
COMPRESSED = tuple(2**power for power in range(5, 17))
"""Lengths below that of the whole vector; the paper prints none of its own."""

KINDS = {"dimension": "D", "lambda3": "lambda3", "compression": "P"}
"""{what is varied: the parameter of its curves, as `SweepPoint` has it}."""

_METHODS = {"pca": "PCA of", "random_maclaurin": "random Maclaurin of", "none": "fewer latents of"}


def variants(
    config: Config, kind: str, values: tuple[float, ...] | None, num_training: int = 0
) -> tuple[str, ...]:
    """Return the entries of encode.encoders that a sweep needs.

    Args:
        kind: key of KINDS.
        num_training: least training videos of a fold; `compression` needs it: a PCA has no more
            components than they vary in.

    Raises:
        ConfigError: the streams differ in width, or a dimension that no codebook has.
    """
    if kind == "lambda3":
        return tuple(f"fv_vae@lambda3={value:g}" for value in values or LAMBDA3)
    width = _width(config)
    if kind == "compression":
        return _compressed(config, width, values, num_training)
    names = []
    for dimension in values or DIMENSIONS:
        if dimension % (2 * width) or dimension < 2 * width:
            raise ConfigError(
                f"--values: expected multiples of {2 * width} (twice the {width} channels), got "
                f"{dimension:g}"
            )
        rows = int(dimension) // width
        names += [
            f"fv_vae@num_latents={rows - 1}",
            f"vlad@num_centroids={rows}",
            f"gmm_fv@num_components={rows // 2}",
        ]
    return tuple(names)


def _compressed(
    config: Config, width: int, values: tuple[float, ...] | None, num_training: int
) -> tuple[str, ...]:
    """Return the whole FV-VAE, and its vectors shortened to each length in the three ways of DQ
    Figure 4(c), where the way has that length: few latents give multiples of the channels alone."""
    whole = (config.fv_vae.num_latents + 1) * width
    lengths = values or tuple(value for value in COMPRESSED if value < whole)
    if odd := [value for value in lengths if not 1 <= value < whole or value % 1]:
        raise ConfigError(
            f"--values: expected whole numbers below {whole:,}, the length of the vector with "
            f"fv_vae.num_latents={config.fv_vae.num_latents}, got {odd[0]:g}"
        )
    names = ["fv_vae"]
    for length in map(int, lengths):
        if length % width == 0 and length >= 2 * width:
            names.append(f"fv_vae@num_latents={length // width - 1}")
        if length < num_training:
            names.append(f"fv_vae@compress.kind=pca:compress.num_features={length}")
        names.append(f"fv_vae@compress.kind=random_maclaurin:compress.num_features={length}")
    return tuple(names)


def _width(config: Config) -> int:
    """Return the width of the streams, which must be one."""
    streams = described_streams(config)
    widths = {name: s.width for name, s in streams.items() if s.kind != "global"}
    if len(widths) != 1:
        raise ConfigError(
            "describe.streams: expected streams of one width for this sweep, got "
            f"{widths}; sweep one of them at a time"
        )
    return next(iter(widths.values()))


def publish(job: Job, kind: str, command: str) -> list[str]:
    """Publish report/sweep-<kind>.html; return the table and the best value for a terminal."""
    points = _points(job, kind)
    best = max(points, key=lambda point: point.accuracy or 0.0)
    config = job.config
    notes = [
        f"{job.manifest.num_rows} videos, split {job.split} into {job.num_folds} fold(s); "
        f"{config.describe.backbone} {', '.join(config.describe.nodes)}, "
        f"{job.weights.description}; linear SVMs, {config.classify.words}.",
        "The paper's numbers are for UCF101, split 1, with VGG-19 pool5: other videos, classes "
        "and network. Shapes can be compared, heights cannot.",
    ]
    if job.num_folds > 1:
        notes.append(
            "Accuracy is over the tested videos of all folds; bars are its spread over folds."
        )
    sweep = Sweep(
        title=f"{config.recipe}: accuracy against {KINDS[kind]}",
        data=f"{config.recipe}, {job.manifest.num_rows} videos",
        points=tuple(points),
        notes=tuple(notes),
        command=command,
    )
    page = f"report/sweep-{kind}.html"
    job.store.publish(page, render_sweep(sweep).encode())
    return [
        *text_table(sweep),
        f"best: {best.encoder} on {best.stream}, {best.parameter} = {best.value:g}, accuracy "
        f"{best.accuracy or 0.0:.3f}",
        f"curves: {job.store.uri(page)}",
    ]


def _points(job: Job, kind: str) -> list[SweepPoint]:
    rows = job.store.read_table(job.metrics).to_pylist()
    numbers = {
        (row["encoder"], row["stream"], row["split"], row["metric"]): row["value"]
        for row in rows
        if row["class"] is None
    }
    points = []
    for name, stream in job.pairs():
        variant = job.variants[name]
        text = name.partition("@")[2]
        folds = [numbers.get((name, stream, f"fold:{fold}", "accuracy")) for fold in job.folds]
        dimension = cast(int, job.output_dim(name, stream))  # None for fusions alone
        encoder = variant.base
        if kind == "compression":
            method = variant.compress.kind
            encoder = f"{_METHODS[method]} {variant.base}"
            dimension = dimension if method == "none" else variant.compress.num_features
        points.append(
            SweepPoint(
                encoder=encoder,
                stream=stream,
                parameter=KINDS[kind],
                value=float(text.partition("=")[2] if kind == "lambda3" else dimension),
                dimension=dimension,
                accuracy=numbers[name, stream, "all", "accuracy"],
                map=numbers[name, stream, "all", "mAP"],
                fold_values=tuple(value for value in folds if value is not None),
            )
        )
    return points
