"""Runs of MLflow: one for each finished step, in the experiment `video-fisher`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from pipelines.track.tracker import Finished

T = TypeVar("T")

EXPERIMENT = "video-fisher"

PARAM_CHARACTERS = 6000
"""MLflow takes no longer value of a parameter."""

AT_ONCE = 100
"""Parameters and metrics of a request; MLflow takes so many parameters."""


def write(where: str, finished: Finished) -> None:
    """Write the series and settings of a step into a new run."""
    client = MlflowClient(tracking_uri=where)
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
    tags = {"video_fisher.run": finished.run, "video_fisher.digest": finished.digest}
    name = f"{finished.step}-{finished.digest}"
    run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    params = [Param(key, value[:PARAM_CHARACTERS]) for key, value in finished.settings.items()]
    now_ms = int(time.time() * 1000)
    metrics = [
        Metric(key, value, now_ms, step)
        for key, points in finished.series.items()
        for step, value in points
    ]
    for some in _parts(params):
        client.log_batch(run_id, params=some)
    for some in _parts(metrics):
        client.log_batch(run_id, metrics=some)
    client.set_terminated(run_id)


def _parts(items: Sequence[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), AT_ONCE):
        yield list(items[start : start + AT_ONCE])
