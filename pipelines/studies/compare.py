"""Configurations side by side: settings that differ, the best result of each, gains and times.

A configuration is a record of a run (`pipelines.reading.kept`). Gains are over the first one, on
the videos that both tested, with intervals of the same draws for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from encoders.scores.intervals import gains
from pipelines.errors import ConfigError
from pipelines.evaluate.results import (
    Estimate,
    ScoreMatrix,
    Wanted,
    added,
    headline_metric,
    wanted,
)
from pipelines.evaluate.step import read_scores, with_weights
from pipelines.reading import kept
from pipelines.run.combination import Combination
from pipelines.run.schema import read_record
from pipelines.settings.config import config_from_json
from pipelines.storage.store import Store
from pipelines.storage.uris import absolute_uri
from pipelines.text_table import aligned


@dataclass(frozen=True)
class Entry:
    """One configuration.

    Attributes:
        name: of its record, behind the folder of the run where there are several.
        settings: {section.field: value} of those that differ.
        result: the best one in words. value: its headline number.
        gain: over the first entry; without a value where no video is tested by both.
        num_common: videos that both tested.
        seconds: of all steps.
    """

    name: str
    settings: dict[str, str]
    result: str
    value: Estimate
    gain: Estimate
    num_common: int
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Entries, the first of which the others are held against, and the metric of their numbers."""

    metric: str
    entries: tuple[Entry, ...]

    def lines(self) -> list[str]:
        """Return what a terminal shows."""
        names = list(dict.fromkeys(name for entry in self.entries for name in entry.settings))
        rows = [["", *(entry.name for entry in self.entries)]]
        rows += [[name, *(entry.settings[name] for entry in self.entries)] for name in names]
        rows += [
            ["best result", *(entry.result for entry in self.entries)],
            [self.metric, *(_words(entry.value) for entry in self.entries)],
            ["gain over the first", *(_words(entry.gain, "+") for entry in self.entries)],
            ["on videos of both", *(str(entry.num_common) for entry in self.entries)],
            ["time of all steps", *(f"{entry.seconds:,.0f} s" for entry in self.entries)],
        ]
        head = [] if names else ["no setting differs"]
        return [*head, *aligned(rows, left=range(len(rows[0])))]


def compare(outs: Sequence[str]) -> Comparison:
    """Return all configurations of some runs, the oldest first.

    Raises:
        ConfigError: there is no such run, or there are fewer than two that were evaluated.
    """
    found: list[tuple[Store, dict[str, Any]]] = []
    for out in outs:
        store = Store(absolute_uri(out))
        current = read_record(store)
        if current is None:
            raise ConfigError(f"--out {out}: expected a run with its run.json, found none")
        every = kept.records(store)
        found += [(store, record) for record in reversed(every) if record["metrics"]]
    if len(found) < 2:
        raise ConfigError(
            f"--out {', '.join(outs)}: expected two evaluated configurations or more, found "
            f"{len(found)}; run the job with another setting, or name another run too"
        )
    matrices = [_best(store, record) for store, record in found]
    settings = _differing([record["config"] for _, record in found])
    metric = headline_metric(any(matrix.multi_label for _, matrix in matrices))
    has_several = len({store.root for store, _ in found}) > 1
    entries = []
    for (store, record), (result, matrix), own in zip(found, matrices, settings, strict=True):
        gain, num_common = _gain(matrix, matrices[0][1], metric, record)
        folder = f"{store.root.rpartition('/')[2]}/" if has_several else ""
        steps = record["steps"].values()
        entries.append(
            Entry(
                name=f"{folder}{record['name']}",
                settings=own,
                result=" ".join(part for part in result.key if part != "none"),
                value=_number(record, result.key, metric),
                gain=gain,
                num_common=num_common,
                seconds=sum(step.get("seconds", 0.0) for step in steps),
            )
        )
    return Comparison(metric, tuple(entries))


def _best(store: Store, record: dict[str, Any]) -> tuple[Wanted, ScoreMatrix]:
    """Return the result of a configuration with the best number, and its scores."""
    tables, config = record["tables"], config_from_json(record["config"])
    fused = [
        Combination(each["encoder"], each["stream"], tuple((e, s) for e, s in each["parts"]))
        for each in record.get("combinations", [])
    ]
    singles = [
        (encoder, stream["name"])
        for stream in record.get("streams", [])
        for encoder in config.encode.encoders
        if f"scores/{encoder}-{stream['name']}" in tables
    ]
    every = {result.key: result for result in wanted(singles, config.evaluate, fused)}
    first = read_scores(store, *singles[0], tables[f"scores/{'-'.join(singles[0])}"], "")
    metric = headline_metric(first.multi_label)
    values = {
        key: row["value"]
        for row in record["metrics"]
        if row["metric"] == metric
        and row["value"] is not None
        and (key := (row["encoder"], row["stream"], row["fusion"])) in every
    }
    if not values:
        where = store.uri(f"{kept.FOLDER}/{record['name']}.json")
        raise ConfigError(
            f"{where}: expected a number of {metric}, found none; run the job with these settings "
            "again"
        )
    result = every[max(values, key=lambda key: values[key])]
    parts = []
    for pair in result.sources:
        matrix = read_scores(store, *pair, tables[f"scores/{'-'.join(pair)}"], "")
        if folder := tables.get(f"fusions/{'-'.join(pair)}"):
            matrix = with_weights(matrix, result.fusion, folder, store)
        parts.append(matrix)
    if result.is_total:
        total = parts[0]
        for part in parts[1:]:
            total = added(total, part)
        parts = [total]
    made = result.make(parts)
    if made is None:
        raise RuntimeError(f"compare: expected a result that METRICS have, got none for {result}")
    return result, made


def _gain(
    matrix: ScoreMatrix, first: ScoreMatrix, metric: str, record: dict[str, Any]
) -> tuple[Estimate, int]:
    """Return the gain over the first, and the number of videos that both tested."""
    if matrix is first:
        return Estimate(), len(matrix.video_ids)
    place = {video: row for row, video in enumerate(first.video_ids)}
    rows = [row for row, video in enumerate(matrix.video_ids) if video in place]
    others = [place[matrix.video_ids[row]] for row in rows]
    is_alike = matrix.classes == first.classes and rows
    if not is_alike or not np.array_equal(matrix.targets[rows], first.targets[others]):
        return Estimate(), 0 if not is_alike else len(rows)
    found = gains(
        matrix.scores[rows],
        first.scores[others],
        matrix.targets[rows],
        num_draws=record["config"]["evaluate"]["bootstrap"],
        seed=record["config"]["run"]["seed"],
    )[metric]
    ends = [None if np.isnan(end) else end for end in (found.low, found.high)]
    return Estimate(found.value, *ends), len(rows)


def _number(record: dict[str, Any], key: tuple[str, str, str], metric: str) -> Estimate:
    for row in record["metrics"]:
        if (row["encoder"], row["stream"], row["fusion"]) == key and row["metric"] == metric:
            return Estimate(row["value"], row["ci_low"], row["ci_high"])
    return Estimate()


def _differing(configs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return {section.field: value} of the settings that are not the same in all."""
    flat = [
        {
            f"{section}.{name}" if name else section: _text(value)
            for section, fields in config.items()
            for name, value in (fields.items() if isinstance(fields, dict) else [("", fields)])
        }
        for config in configs
    ]
    names = dict.fromkeys(name for config in flat for name in config)
    differ = [name for name in names if len({config.get(name) for config in flat}) > 1]
    return [{name: config.get(name, "-") for name in differ} for config in flat]


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _words(number: Estimate, sign: str = "") -> str:
    if number.value is None:
        return "-"
    text = f"{number.value:{sign}.3f}"
    if number.low is None or number.high is None:
        return text
    return f"{text} [{number.low:{sign}.3f}, {number.high:{sign}.3f}]"
