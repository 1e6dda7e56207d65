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


def variants(config: Config, kind: str, values: tuple[float, ...] | None) -> tuple[str, ...]:
    """Return the entries of encode.encoders that a sweep needs.

    Raises:
        ConfigError: the streams differ in width, or a dimension that no codebook has.
    """
    if kind == "lambda3":
        return tuple(f"fv_vae@lambda3={value:g}" for value in values or LAMBDA3)
    widths = _widths(config)
    if len(widths) != 1:
        raise ConfigError(
            "describe.streams: expected streams of one width for a sweep over dimensions, got "
            f"{widths}; sweep one of them at a time"
        )
    width = next(iter(widths.values()))
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


def _widths(config: Config) -> dict[str, int]:
    streams = described_streams(config)
    return {name: s.width for name, s in streams.items() if s.kind != "global"}


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
        title=f"{config.recipe}: accuracy against {'D' if kind == 'dimension' else 'lambda3'}",
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
        dimension = cast(int, job.output_dim(name, stream))  # None for fusions alone
        folds = [numbers.get((name, stream, f"fold:{fold}", "accuracy")) for fold in job.folds]
        points.append(
            SweepPoint(
                encoder=variant.base,
                stream=stream,
                parameter="D" if kind == "dimension" else text.partition("=")[0],
                value=float(dimension if kind == "dimension" else text.partition("=")[2]),
                dimension=dimension,
                accuracy=numbers[name, stream, "all", "accuracy"],
                map=numbers[name, stream, "all", "mAP"],
                fold_values=tuple(value for value in folds if value is not None),
            )
        )
    return points
