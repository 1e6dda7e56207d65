"""The doctor's checks of SCORES and METRICS: what was tested, and every number again from the scores.

Intervals are not computed again. Letters: N tested videos, K classes. Some 12 N K bytes are in memory for each stream of
an encoder, and 40 N K more for their fusions, the sum over encoders and the targets.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.stream_specs import is_local
from pipelines.doctor.file_checks import Problem, remake
from pipelines.doctor.gather import STATUSES, fingerprint, fingerprints, is_not_finite, mixed
from pipelines.doctor.row_checks import has_rows, last_attempts
from pipelines.doctor.scan import EXAMPLES, Folder, Run
from pipelines.evaluate.results import SINGLE, ScoreMatrix, gain_rows, metric_rows, results
from pipelines.settings.sections import Evaluate
from pipelines.storage.tables import METRICS

TOLERANCE = 1e-9
"""Between a value of METRICS and the same number computed again."""

Key = tuple[str, str, str, str, str, str | None]
"""Encoder, stream, fusion, split, metric and class of a row of METRICS."""


@dataclass
class Tested:
    """The tested videos: sorted fingerprints [N], their places in the columns of VIDEOS, folds [N] and targets [N, K].

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
    found = Results()
    if not (has_rows(run, "videos") and run.folders("scores")):
        return found
    tested, settings = _tested(run), _settings(run)
    # Fusions are of the same videos; where that is not so, scores are missing, which is said already.
    videos: list[list[str]] = []

    def read(encoder: str, stream: str) -> ScoreMatrix | None:
        matrix = _single(run, found, tested, encoder, stream)
        if matrix is not None:
            videos.append(matrix.video_ids)
        return matrix if matrix is not None and matrix.video_ids == videos[0] else None

    for matrix, best_part in results(run.pairs, settings, read, run.combinations):
        rows = metric_rows(matrix, settings, protocol="")
        for row in rows + gain_rows(matrix, rows, best_part, settings):
            value = math.nan if row["value"] is None else row["value"]
            found.expected[tuple(row[name] for name in METRICS.key)] = value
    return found


def _settings(run: Run) -> Evaluate:
    """The section evaluate of run.json, without intervals; defaults where other code wrote it or values are wrong."""
    known = {
        name: tuple(value) if isinstance(value, list) else value
        for name in ("top_k", "fusions", "stream_weights")
        if (value := run.setting("evaluate", name)) is not None
    }
    local = {stream for _, stream in run.pairs if is_local(stream)}
    if len(known.get("stream_weights", ())) != len(local):
        known.pop("stream_weights", None)
    try:
        return Evaluate(**known, bootstrap=0)
    except (TypeError, ValueError):
        return Evaluate(bootstrap=0)


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
        described = np.isin(ids, segments["video"][good])
    targets = np.zeros((len(ids), len(classes)), np.float32)
    for k, label in enumerate(classes):
        targets[:, k] = np.isin(mixed(ids, fingerprint(label)), videos["video_label"])
    return Tested(ids, rows, videos["fold"][rows], described, classes, targets)


def _single(
    run: Run, found: Results, tested: Tested, encoder: str, stream: str
) -> ScoreMatrix | None:
    """Reads and checks one result; its scores where they are complete and finite."""
    folder = run.folder(f"scores/{encoder}-{stream}")
    if folder is None:
        return None
    scores = _read(run, folder, tested)
    _report(run, found, tested, scores)
    complete = folder.is_whole and bool((scores.seen[_wanted(tested, scores)] == 1).all())
    there = ~np.isnan(scores.values).any(1) if scores.values.size else np.zeros(0, bool)
    if not complete or scores.not_finite.count or not there.any():
        return None
    return ScoreMatrix(
        encoder=encoder,
        stream=stream,
        # Fingerprints name videos as well as their texts do.
        video_ids=tested.ids[there].tolist(),
        folds=tested.folds[there],
        classes=tested.classes,
        scores=scores.values[there],
        targets=tested.targets[there],
        fusion=next(
            (one.stream for one in run.combinations if one.pair == (encoder, stream)), SINGLE
        ),
    )


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
        known = (column >= 0) & np.isin(words, tested.ids)
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


def _check_metrics(run: Run, results: Results) -> None:
    """Compares METRICS with what the scores give."""
    folder = run.folder("metrics")
    if folder is None or not folder.is_whole:
        return
    found: dict[Key, float] = {}
    again: list[Key] = []
    for _, table in run.row_groups(folder):
        for row in table.select([*METRICS.key, "value"]).to_pylist():
            *key, value = row.values()
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
    parts = {part for result in run.scored for part in result}
    known = {(*key[:3], key[4]) for key in expected}
    return [
        key
        for key in found
        if key not in expected
        and (
            (*key[:3], key[4]) in known
            or not all(name in parts or parts.issuperset(name.split("+")) for name in key[:2])
        )
    ]


def _equal(left: float, right: float) -> bool:
    return (math.isnan(left) and math.isnan(right)) or abs(left - right) <= TOLERANCE


def _text(key: Key, found: dict[Key, float], expected: dict[Key, float], check: str) -> str:
    name = " ".join(part for part in key if part)
    return f"{name}: {found[key]!r}, not {expected[key]!r}" if check == "metrics.values" else name
