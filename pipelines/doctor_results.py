"""The doctor's checks of SCORES and METRICS: what was tested, and every number again from the scores.

Letters: N tested videos, K classes. Some 40 N K bytes are in memory: the scores of one encoder and stream, their sum over
streams, that over encoders, and the targets.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders import metrics
from pipelines.doctor_files import EXAMPLES, Problem, remake
from pipelines.doctor_gather import STATUSES, fingerprint, fingerprints, is_not_finite, mixed
from pipelines.doctor_scan import Folder, Run
from pipelines.doctor_tables import has_rows, is_in, last_attempts

TOLERANCE = 1e-9
"""Between a value of METRICS and the same number computed again."""

Key = tuple[str, str, str, str, str | None]
"""Encoder, stream, split, metric and class of a row of METRICS."""


@dataclass
class Tested:
    """Who is tested, from VIDEOS: sorted fingerprints [N], their places in the columns, and folds [N].

    Attributes:
        described: [N], whether a segment of the video is in DESCRIPTORS and has not failed; None where
            DESCRIPTORS cannot be read.
    """

    ids: np.ndarray
    rows: np.ndarray
    folds: np.ndarray
    described: np.ndarray | None
    classes: list[str]
    targets: np.ndarray


@dataclass
class Odd:
    """Rows that should not be, counted, with the first ones as examples."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, table: pa.Table, mask: np.ndarray) -> None:
        rows = np.flatnonzero(mask)
        self.count += len(rows)
        for row in rows[: EXAMPLES - len(self.examples)]:
            values = table.select(["video_id", "label"]).slice(row, 1).to_pylist()[0].values()
            self.examples.append(", ".join(values))


@dataclass
class Scores:
    """What one pass over the scores of an encoder and stream found.

    Attributes:
        values: [N, K], NaN where there is no score. seen: [N, K], how many.
    """

    folder: Folder
    values: np.ndarray
    seen: np.ndarray
    strangers: Odd = field(default_factory=Odd)
    again: Odd = field(default_factory=Odd)
    untrue: Odd = field(default_factory=Odd)
    not_finite: Odd = field(default_factory=Odd)


@dataclass
class Results:
    """Problems by id of check, and METRICS computed again by key."""

    problems: dict[str, list[Problem]] = field(default_factory=dict)
    expected: dict[Key, float] = field(default_factory=dict)

    def add(self, check: str, problem: Problem) -> None:
        self.problems.setdefault(check, []).append(problem)


def problems(run: Run) -> dict[str, list[Problem]]:
    """What is wrong with SCORES and METRICS, by id of the check."""
    results = _read_results(run)
    _check_metrics(run, results)
    return results.problems


def _read_results(run: Run) -> Results:
    """One pass over SCORES. METRICS are computed of results whose scores are all there and finite."""
    results = Results()
    if not (has_rows(run, "videos") and run.folders("scores")):
        return results
    tested = _tested(run)
    local = [s for s in _streams(run) if s.endswith(("_appearance", "_difference"))]
    weights = run.setting("evaluate", "stream_weights", ()) or [1.0] * len(local)
    everything = _Sum()
    scored = list(dict.fromkeys(encoder for encoder, _ in run.pairs))
    asked = run.setting("encode", "encoders", ())
    encoders = sorted(scored, key=lambda e: asked.index(e) if e in asked else len(asked))
    fused_encoders = []
    for encoder in encoders:
        one = _Sum()
        for stream in dict.fromkeys(s for e, s in run.pairs if e == encoder):
            values = _single(run, results, tested, encoder, stream)
            if stream in local:
                one.add(values, weights[local.index(stream)])
                everything.add(values, 1.0)
        if one.count:
            fused_encoders.append(encoder)
        if one.count > 1:
            _compute(run, results, tested, one.mean(), (encoder, "+".join(local)))
    if len(fused_encoders) > 1:
        key = ("+".join(fused_encoders), "+".join(local))
        _compute(run, results, tested, everything.mean(), key)
    return results


class _Sum:
    """A weighted mean of score matrices, added up one by one (encoders.fusion.fuse, which needs torch)."""

    def __init__(self) -> None:
        self.count, self.weight, self.total, self.is_lost = 0, 0.0, None, False

    def add(self, values: np.ndarray | None, weight: float) -> None:
        self.count += 1
        self.is_lost |= values is None
        if not self.is_lost:
            self.weight += weight
            self.total = values * weight if self.total is None else self.total + values * weight

    def mean(self) -> np.ndarray | None:
        return None if self.is_lost or not self.weight else self.total / self.weight


def _streams(run: Run) -> list[str]:
    return list(dict.fromkeys(stream for _, stream in run.pairs))


def _tested(run: Run) -> Tested:
    videos = run.folder("videos")
    classes = sorted(set(videos["classes"].tolist()))
    rows = np.flatnonzero((videos["num_labels"] > 0) & (videos["fold"] >= 0))
    ids, first = np.unique(videos["id"][rows], return_index=True)
    rows = rows[first]
    described = None
    if has_rows(run, "segments", "descriptors"):
        segments = run.folder("descriptors")
        last = last_attempts(run)
        good = last[segments["status"][last] != STATUSES.index("failed")]
        described = is_in(ids, segments["video"][good])
    targets = np.zeros((len(ids), len(classes)), np.float32)
    for k, label in enumerate(classes):
        targets[:, k] = is_in(mixed(ids, fingerprint(label)), videos["video_label"])
    return Tested(ids, rows, videos["fold"][rows], described, classes, targets)


def _single(
    run: Run, results: Results, tested: Tested, encoder: str, stream: str
) -> np.ndarray | None:
    """Reads, checks and computes one result; its scores where they can be fused."""
    folder = run.folder(f"scores/{encoder}-{stream}")
    if folder is None:
        return None
    scores = _read(run, folder, tested)
    _report(run, results, tested, scores)
    complete = folder.is_whole and bool((scores.seen[_wanted(tested, scores)] == 1).all())
    if not complete or scores.not_finite.count:
        return None
    _compute(run, results, tested, scores.values, (encoder, stream))
    return scores.values


def _wanted(tested: Tested, scores: Scores) -> np.ndarray:
    """[N]: the videos that must have scores; where that is not known, those that have some."""
    return scores.seen.any(1) if tested.described is None else tested.described


def _read(run: Run, folder: Folder, tested: Tested) -> Scores:
    shape = (len(tested.ids), len(tested.classes))
    scores = Scores(folder, np.full(shape, np.nan), np.zeros(shape, np.uint8))
    place = {name: k for k, name in enumerate(tested.classes)}
    encoder, _, stream = folder.key.partition("/")[2].rpartition("-")
    for _, table in run.row_groups(folder):
        if not tested.targets.size:
            scores.strangers.add(table, np.ones(table.num_rows, bool))
            continue
        words = fingerprints(table["video_id"])
        row = np.minimum(np.searchsorted(tested.ids, words), max(0, len(tested.ids) - 1))
        labels = table["label"].combine_chunks().dictionary_encode()
        column = np.array([place.get(name, -1) for name in labels.dictionary.to_pylist()], np.int64)
        column = column[labels.indices.to_numpy()]
        known = (column >= 0) & (is_in(words, tested.ids))
        for name, value in (("encoder", encoder), ("stream", stream)):
            known &= pc.equal(table[name], value).to_numpy()
        scores.strangers.add(table, ~known)
        value = table["score"].to_numpy()
        scores.not_finite.add(table, is_not_finite(value))
        truth = table["is_true"].to_numpy() == (tested.targets[row, column] > 0)
        scores.untrue.add(table, known & ~(truth & (table["fold"].to_numpy() == tested.folds[row])))
        row, column, kept = row[known], column[known], table.filter(pa.array(known))
        code = row * shape[1] + column
        _, first = np.unique(code, return_index=True)
        again = np.ones(len(code), bool)
        again[first] = False
        again |= scores.seen[row, column] > 0
        scores.again.add(kept, again)
        np.add.at(scores.seen, (row, column), 1)
        scores.values[row, column] = value[known]
    return scores


def _report(run: Run, results: Results, tested: Tested, scores: Scores) -> None:
    folder = scores.folder
    names = [file.name for file in folder.files]
    for check, odd, text in (
        (
            "orphans.rows",
            scores.strangers,
            "rows of no tested video, or of another result or class",
        ),
        ("keys.duplicate", scores.again, "rows have the key of another one"),
        ("vectors.not_finite", scores.not_finite, "scores are NaN or infinite"),
        ("scores.truth", scores.untrue, "rows whose is_true or fold is not that of VIDEOS"),
    ):
        if odd.count:
            advice = remake(run, folder, names)
            found = f"{odd.count} {text}"
            results.add(check, Problem(folder.name, found, odd.count, tuple(odd.examples), advice))
    if run.is_done("classify") and folder.is_whole:
        wanted = _wanted(tested, scores)
        missing = np.flatnonzero((scores.seen == 0).any(1) & wanted)
        if len(missing):
            videos = run.folder("videos")
            examples = run.examples(videos, videos["row"][tested.rows[missing]])
            found = f"{len(missing)} of {int(wanted.sum())} tested videos lack scores"
            advice = remake(run, folder, names)
            results.add(
                "counts.scores", Problem(folder.name, found, len(missing), examples, advice)
            )


def _compute(
    run: Run, results: Results, tested: Tested, values: np.ndarray | None, name: tuple[str, str]
) -> None:
    """METRICS of a result, as `pipelines.evaluate`, which cannot be imported without torch, has them."""
    if values is None:
        return
    there = ~np.isnan(values).any(1) if values.size else np.zeros(len(values), bool)
    folds = np.unique(tested.folds[there])
    splits = {"all": there}
    if len(folds) > 1:
        splits |= {f"fold:{fold}": there & (tested.folds == fold) for fold in folds}
    k = min(int(run.setting("evaluate", "top_k", 1)), len(tested.classes))
    one_label = bool((tested.targets[there].sum(1) <= 1).all())
    for split, rows in splits.items():
        scores, targets = values[rows], tested.targets[rows]
        if not len(scores):
            continue
        precision = metrics.average_precision(scores, targets)
        known = precision[~np.isnan(precision)]
        numbers: dict[tuple[str, str | None], float] = {
            ("num_videos", None): len(scores),
            ("accuracy", None): metrics.accuracy(scores, targets),
            (f"top_{k}", None): metrics.top_k_accuracy(scores, targets, k),
            ("mAP", None): float(known.mean()) if len(known) else math.nan,
        }
        for label, value in zip(tested.classes, precision, strict=True):
            numbers["AP", label] = value
        if one_label:
            numbers["balanced_accuracy", None] = metrics.balanced_accuracy(scores, targets)
        for (metric, label), value in numbers.items():
            results.expected[*name, split, metric, label] = float(value)


def _check_metrics(run: Run, results: Results) -> None:
    """Compares METRICS with what the scores give."""
    folder = run.folder("metrics")
    if folder is None or not folder.is_whole:
        return
    found: dict[Key, float] = {}
    again: list[Key] = []
    names = ("encoder", "stream", "split", "metric", "class", "value")
    for _, table in run.row_groups(folder):
        for row in table.to_pylist():
            *key, value = (row[name] for name in names)
            if tuple(key) in found:
                again.append(tuple(key))
            found[tuple(key)] = math.nan if value is None else value
    if not folder.is_whole:
        return
    expected = results.expected
    lists: dict[str, tuple[str, list[Key]]] = {
        "keys.duplicate": ("rows have the key of another one", again),
        "metrics.values": (
            "values are not what the scores give",
            [k for k in found if k in expected and not _equal(found[k], expected[k])],
        ),
        "orphans.rows": (
            "rows of no result",
            _strangers(run, found, expected),
        ),
    }
    if run.is_done("evaluate"):
        missing = [key for key in expected if key not in found]
        lists["metrics.missing"] = ("numbers of results are missing", missing)
    for check, (text, keys) in lists.items():
        if keys:
            examples = [_text(key, found, expected, check) for key in keys[:EXAMPLES]]
            advice = remake(run, folder, [file.name for file in folder.files])
            problem = Problem(
                folder.name, f"{len(keys)} {text}", len(keys), tuple(examples), advice
            )
            results.add(check, problem)


def _strangers(run: Run, found: dict[Key, float], expected: dict[Key, float]) -> list[Key]:
    """Rows of no result, or of a split or class that their result has not. Names may hold a +."""
    parts = {part for result in run.pairs for part in result}
    known = {(*key[:2], key[3]) for key in expected}
    return [
        key
        for key in found
        if key not in expected
        and (
            (*key[:2], key[3]) in known
            or not all(name in parts or parts.issuperset(name.split("+")) for name in key[:2])
        )
    ]


def _equal(left: float, right: float) -> bool:
    return (math.isnan(left) and math.isnan(right)) or abs(left - right) <= TOLERANCE


def _text(key: Key, found: dict[Key, float], expected: dict[Key, float], check: str) -> str:
    name = " ".join(part for part in key if part)
    return f"{name}: {found[key]!r}, not {expected[key]!r}" if check == "metrics.values" else name
