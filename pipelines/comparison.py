"""The results of a run beside those of DQ Table 2."""

from pipelines.layout import Job
from pipelines.papers import Compared, Comparison, comparison_table, feature_of

COMPARED = ("appearance", "positions", "global")
"""Kinds of stream that DQ Table 2 is about: single frames. Its AVE is the mean over positions."""


def comparison(job: Job) -> Comparison:
    """The run's single results, from METRICS."""
    accuracy = {
        (row["encoder"], row["stream"]): row["value"]
        for row in job.store.read_table(job.metrics).to_pylist()
        if (row["split"], row["metric"]) == ("all", "accuracy")
    }
    config = job.config
    folds = f"{job.split}, {job.num_folds} fold(s)"
    return Comparison(
        rows=tuple(
            Compared(
                encoder=name,
                stream=stream,
                feature=_feature(job, name, stream),
                dimension=job.output_dim(name, stream),
                accuracy=accuracy[name, stream],
            )
            for name, stream in job.pairs()
            if job.described[stream].kind in COMPARED
        ),
        data=f"{job.manifest.num_rows} videos, split {folds}; {config.describe.backbone}",
        differences=(
            f"other videos, classes and splits, {config.describe.backbone} "
            f"({', '.join(config.describe.nodes)}; {job.weights.description}) instead of VGG-19 pool5, "
            "codebooks of the size that this corpus carries."
        ),
    )


def _feature(job: Job, name: str, stream: str) -> str | None:
    variant = job.variants[name]
    if variant.base == "ave" and job.described[stream].kind != "positions":
        return None
    return feature_of(variant.base, variant.uses_labels)


def text(job: Job) -> list[str]:
    """The table for a terminal."""
    return comparison_table(comparison(job))
