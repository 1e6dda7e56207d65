"""Curves and numbers of a run for TensorBoard or MLflow, by one setting: `track.to`.

The driver writes them when fit and evaluate end. Nothing reads them back, and no step needs them: a
server that does not answer costs a warning.
"""

from __future__ import annotations

import importlib
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import pyarrow as pa

from pipelines.errors import ConfigError
from pipelines.run.folders import folder_name
from pipelines.run.job import Job
from pipelines.settings.config import Config
from pipelines.storage.uris import refuse_credentials

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A finished step as a tracker takes it.

    Attributes:
        run: URI of the run.
        step, digest: name it, with its inputs and settings.
        settings: {"section.field": value} of every setting, as text.
        series: {name: [(step, value)]}.
    """

    run: str
    step: str
    digest: str
    settings: dict[str, str]
    series: dict[str, list[tuple[int, float]]]


TRACKERS = {"tensorboard": "pipelines.track.tensorboard", "mlflow": "pipelines.track.mlflow"}
"""{name in track.to, and extra of pyproject.toml: a module with `write(where, finished)`}."""


def check(config: Config) -> None:
    """Refuse track.to before the run, where its package is missing.

    Raises:
        ConfigError: it is, or the URI holds credentials.
    """
    if config.track.to:
        refuse_credentials("track.to", config.track.where)
        _write_of(config.track.name)


def track(job: Job, step: str) -> None:
    """Write what a step that has just ended can show, where track.to asks for it."""
    name, where = job.config.track.name, job.config.track.where
    if not name or step not in _SERIES:
        return
    plain = job.config.to_json()
    settings = {
        f"{section}.{key}": str(value)
        for section, values in plain.items()
        if section != "recipe"
        for key, value in values.items()
    }
    settings["recipe"] = job.config.recipe
    finished = Finished(job.store.root, step, job.digest(step), settings, _SERIES[step](job))
    try:
        _write_of(name)(where, finished)
    except Exception as error:  # noqa: BLE001 - a server may fail in ways of its own
        log.warning("track.to=%s: %s is not written (%s)", job.config.track.to, step, error)
    else:
        log.debug("track.to=%s: %s is written", job.config.track.to, step)


def _write_of(name: str) -> Callable[[str, Finished], None]:
    try:
        module = importlib.import_module(TRACKERS[name])
    except ImportError as error:
        raise ConfigError(
            f"track.to: expected the package {name}, found none ({error}); "
            f"pip install 'video-fisher[{name}]', or leave track.to out"
        ) from error
    return cast("Callable[[str, Finished], None]", module.write)


def _curves(job: Job) -> dict[str, list[tuple[int, float]]]:
    """Return the CURVES of today's codebooks."""
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for book in job.codebooks:
        if not job.store.files(book.folder):
            continue
        fold = "" if book.fold < 0 else f"-fold-{book.fold}"
        for row in job.store.read_table(book.folder).to_pylist():
            name = f"{row['quantity']}/{folder_name(book.encoder, book.stream)}{fold}"
            series[name].append((row["step"], row["value"]))
    return {name: sorted(points) for name, points in series.items()}


def _metrics(job: Job) -> dict[str, list[tuple[int, float]]]:
    """Return METRICS over all tested videos, of each result."""
    rows: pa.Table = job.store.read_table(job.metrics)
    return {
        f"{row['metric']}/{_result(row)}": [(0, row["value"])]
        for row in rows.to_pylist()
        if row["split"] == "all" and row["class"] is None and row["value"] is not None
    }


def _result(row: dict) -> str:
    fusion = "" if row["fusion"] == "none" else f"-{row['fusion']}"
    return folder_name(row["encoder"], row["stream"]) + fusion


_SERIES: dict[str, Callable[[Job], dict[str, list[tuple[int, float]]]]] = {
    "fit": _curves,
    "evaluate": _metrics,
}
