"""The mean over the splits of a benchmark: UCF101 and HMDB51 have three, and report mean
accuracies.

A video has one fold in a run, and the same video is tested by several splits, so each split is a
run of its own in the same output (`split.name`): descriptors are shared, what is fitted on training
videos is not. Each leaves its METRICS; here they are put side by side.
"""

from pipelines.evaluate.results import SINGLE, mean_rows
from pipelines.evaluate.step import with_interval
from pipelines.run.job import Job
from pipelines.storage.tables import METRICS

FOLDER = "split_metrics"
"""Folder of the METRICS of all splits and their means, under the name of the splits."""


def publish(jobs: list[Job]) -> list[str]:
    """Publish METRICS rows of each split (split = its name) and of their means; return lines for a
    terminal.

    Args:
        jobs: finished runs that differ in `split.name` alone.
    """
    rows = []
    for job in jobs:
        metric_rows = job.store.read_table(job.metrics).to_pylist()
        rows += [
            {"parts": None} | row | {"split": job.config.split.name}
            for row in metric_rows
            if row["split"] == "all"
        ]
    names = [job.config.split.name for job in jobs]
    protocol = f"mean of {', '.join(names)}"
    means = [
        row | {"protocol": protocol, "ci_low": None, "ci_high": None} for row in mean_rows(rows)
    ]
    store = jobs[-1].store
    name = f"{FOLDER}/{'+'.join(names)}.parquet"
    store.publish_table(name, METRICS.build(rows + means), jobs[-1].footer("evaluate"))
    return [*_lines(rows, means, names), f"all numbers: {store.uri(name)}"]


def _lines(rows: list[dict], means: list[dict], names: list[str]) -> list[str]:
    def key(row: dict) -> tuple:
        return tuple(row[name] for name in ("encoder", "stream", "fusion", "metric"))

    values = {(key(row), row["split"]): row for row in rows if row["class"] is None}
    lines = []
    for mean in means:
        if mean["metric"] not in ("accuracy", "mAP") or mean["value"] is None:
            continue
        fusion = "" if mean["fusion"] == SINGLE else f" ({mean['fusion']})"
        numbers = ", ".join(f"{n} {with_interval(values[key(mean), n])}" for n in names)
        spread = "" if mean["sd"] is None else f" +- {mean['sd']:.3f}"
        lines.append(
            f"{mean['encoder']} on {mean['stream']}{fusion}: {mean['metric']} "
            f"{mean['value']:.3f}{spread} ({numbers})"
        )
    return lines
