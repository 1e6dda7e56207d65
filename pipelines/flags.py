"""Flags of the jobs as checked values: steps, the limit, and the configuration of recipe, file and
settings.

No torch and no Ray here, so that mistakes show at once.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import ConfigError, near
from pipelines.index.manifest import labels_file
from pipelines.index.user_tables import user_filesystem, using
from pipelines.plan.prices import read_prices
from pipelines.run.steps import STEPS
from pipelines.settings.config import Config, without_what_went
from pipelines.settings.recipes import RECIPES, recipe
from pipelines.storage.uris import refuse_credentials

log = logging.getLogger(__name__)


def parse_steps(text: str) -> tuple[str, ...]:
    """Return the steps of `all`, or of names joined by commas, in the order of the data flow.

    Raises:
        ConfigError: an unknown step.
    """
    names = tuple(STEPS) if text == "all" else tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        raise ConfigError(
            f"--steps {text}: expected all, or some of {','.join(STEPS)}; got {unknown}"
            f"{near(unknown[0], STEPS, '')}"
        )
    return tuple(name for name in STEPS if name in names)


def possible_steps(steps: str, videos: str, labels: str | None) -> tuple[str, ...]:
    """Return the steps that --steps names; of `all`, those that the inputs allow.

    Raises:
        ConfigError: an unknown step.
    """
    names = parse_steps(steps)
    if steps != "all" or labels_file(videos, labels) is not None:
        return names
    without = [name for name in names if STEPS[name].needs_labels]
    log.info("no --labels: steps %s are left out", " and ".join(without))
    return tuple(name for name in names if name not in without)


def check_limit(limit: int | None) -> None:
    """Refuse a number of videos below one.

    Raises:
        ConfigError: it is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit: expected at least 1, got {limit}")


def parse_splits(text: str) -> tuple[str, ...]:
    """Return the names of at least two splits, joined by commas.

    Raises:
        ConfigError: fewer than two names, or a name that is empty or comes twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or len(set(names)) < len(names) or not all(names):
        raise ConfigError(f"--splits {text}: expected two columns of the labels or more, each once")
    return names


def parse_numbers(text: str | None) -> tuple[float, ...] | None:
    """Return the numbers of --values, joined by commas; None without a text.

    Raises:
        ConfigError: a part is no number.
    """
    try:
        return tuple(float(part) for part in text.split(",")) if text else None
    except ValueError:
        raise ConfigError(f"--values: expected numbers joined by commas, got {text!r}") from None


def read_runtime_env(file: str) -> dict:
    """Return the mapping in a YAML file; an empty one without a file.

    Raises:
        ConfigError: the file cannot be read, or holds no mapping.
    """
    try:
        environment = yaml.safe_load(Path(file).read_text()) if file else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--runtime-env {file}: cannot be read ({reason})") from error
    if not isinstance(environment, dict):
        raise ConfigError(
            f"--runtime-env {file}: expected a mapping, got {type(environment).__name__}"
        )
    return environment


def configuration(
    name: str | None,
    file: str | None,
    settings: Sequence[str],
    *,
    default_recipe: str,
    first: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> Config:
    """Return the recipe, changed by the content of the file, then by the settings, then by values.

    Args:
        name: of the recipe; None: the one that the file names, or else default_recipe.
        file: YAML or JSON of {section: {field: value}}; of a run.json its `config` is taken.
        first: settings of a job's own, under the file's.
        values: {section: {field: value}}, as Python has them.

    Raises:
        ConfigError: any of them cannot be right.
    """
    plain = _plain(file) if file is not None else {}
    with _in(f"--config {file}"):
        named = plain.pop("recipe", None)
        if named is not None and str(named) not in RECIPES:
            raise ValueError(
                f"recipe: expected one of {sorted(RECIPES)}, got {named!r}"
                f"{near(named, RECIPES, '')}"
            )
        if named is not None and name not in (None, named):
            raise ValueError(f"recipe: expected {name}, as --recipe says, got {named!r}")
    config = recipe(name or named or default_recipe).with_settings(first)
    with _in(f"--config {file}"):
        config = config.with_values(plain)
    config = config.with_settings(settings)
    with _in("settings"):
        config = config.with_values(values or {})
    for section, fields in dataclasses.asdict(config).items():
        for field, value in fields.items() if isinstance(fields, dict) else ():
            refuse_credentials(f"{section}.{field}", value if isinstance(value, str) else "")
    if not config.plan.prices:
        read_prices("").gpu(config.plan.gpu)
    return config


@contextmanager
def _in(place: str) -> Iterator[None]:
    """Turn a ValueError inside into a ConfigError that says where it comes from."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from error


def _plain(file: str) -> dict[str, Any]:
    """Return the content of a file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    with using("--config", file):
        files, path = user_filesystem("--config", file)
        with files.open(path, "r", encoding="utf-8") as stream:
            text = stream.read()
    try:
        # YAML's reader is slow with a large run.json.
        content = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {file}: expected YAML or JSON, got {reason}") from error
    if isinstance(content, Mapping) and isinstance(content.get("config"), Mapping):
        content = without_what_went(content["config"])
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConfigError(
            f"--config {file}: expected sections with their fields, got {type(content).__name__}"
        )
    return dict(content)
