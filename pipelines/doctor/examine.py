"""Checks of a finished or unfinished run: are its tables what they say, and do they agree?

Nothing is changed. `CHECKS` is the list of all checks; each is a function that yields a problem per place.
Neither Ray nor torch is needed.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from pipelines.doctor import file_checks, row_checks, score_checks
from pipelines.doctor.file_checks import Problem
from pipelines.doctor.gather import STATUSES
from pipelines.doctor.scan import Run
from pipelines.storage.store import Store

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Check:
    """One check: what holds in a sound run, and what to do where it does not.

    error: a reader gets wrong or missing rows. warning: odd, but no row is wrong. note: good to know.
    `find` looks at everything but SCORES and METRICS, which `pipelines.doctor.score_checks` reads in one pass for
    all checks.
    """

    id: str
    severity: Severity
    meaning: str
    advice: str
    find: Callable[[Run], Iterable[Problem]] | None


_AGAIN = "run the job's command again"
_BY_HAND = (
    "the job does not write this: find out who changed the files; delete the folder and run the job's command "
    "again to have it made anew"
)

CHECKS: tuple[Check, ...] = (
    Check(
        "run.record",
        "error",
        "run.json can be read",
        f"{_AGAIN}: it writes run.json anew",
        file_checks.record,
    ),
    Check(
        "run.folder",
        "error",
        "the folders of steps that are recorded as done are there",
        f"restore them, or {_AGAIN}: it makes what is missing",
        file_checks.folders,
    ),
    Check(
        "run.mark",
        "warning",
        "steps that are recorded as done have their marks and their report",
        f"{_AGAIN}: it makes what is missing of the step, and its mark",
        file_checks.marks,
    ),
    Check(
        "run.unfinished",
        "note",
        "every step is done for the settings of the last run",
        f"{_AGAIN} to finish; the counts of a step that is not done are not checked",
        file_checks.unfinished,
    ),
    Check(
        "run.lock",
        "note",
        "no run is under way",
        "where it is alive, ask again when it has ended: what it is writing may look incomplete. Where it is dead, "
        f"{_AGAIN} with --take-over",
        file_checks.lock,
    ),
    Check(
        "file.unreadable",
        "error",
        "every visible Parquet file can be read",
        _BY_HAND,
        file_checks.unreadable,
    ),
    Check(
        "file.schema",
        "error",
        "columns, types and order are the declared ones",
        _BY_HAND,
        file_checks.schemas,
    ),
    Check(
        "file.footer",
        "error",
        "footers say what made a file, and all files of a folder say the same of what names it",
        _BY_HAND,
        file_checks.footers,
    ),
    Check(
        "file.name",
        "warning",
        "the name of a file follows from the keys inside",
        "rows were copied, dropped or added after they were written, or another tool wrote the file; readers do not "
        "mind, but a task that is tried again would write its rows a second time",
        file_checks.names,
    ),
    Check(
        "file.revisions",
        "note",
        "one code revision and one configuration made all files",
        "nothing, where the run went on after a change on purpose; else delete the older files",
        file_checks.revisions,
    ),
    Check(
        "file.leftover",
        "note",
        "no hidden, temporary or empty files",
        "a killed run leaves them and readers pass over them: delete them when no run is under way",
        file_checks.leftovers,
    ),
    Check(
        "folder.older",
        "note",
        "no folders of older settings or inputs",
        "kept, so that going back to a setting is free; delete them to save room",
        file_checks.older,
    ),
    Check(
        "folder.unfinished",
        "note",
        "codebooks and samples are finished",
        f"{_AGAIN}: it makes them anew",
        file_checks.unfinished_folders,
    ),
    Check(
        "tensors.unreadable",
        "error",
        "headers of safetensors files can be read, and the files are whole",
        _BY_HAND,
        file_checks.unreadable_tensors,
    ),
    Check(
        "tensors.not_finite",
        "error",
        "codebooks, classifiers and weights hold no NaN or infinity",
        _BY_HAND,
        file_checks.tensor_values,
    ),
    Check(
        "tensors.missing",
        "error",
        "codebooks of today's encodings and classifiers of today's scores are there",
        f"restore them, or delete the marks of the steps fit and classify and {_AGAIN}",
        file_checks.missing_tensors,
    ),
    Check(
        "codebook.digest",
        "error",
        "a codebook is the one that its folder names",
        _BY_HAND,
        file_checks.codebook_digests,
    ),
    Check("keys.duplicate", "error", "a key names one row", _BY_HAND, row_checks.duplicates),
    Check(
        "orphans.rows",
        "error",
        "SEGMENTS, FAILURES, SCORES and METRICS have rows of known videos and results only",
        _BY_HAND,
        row_checks.orphans,
    ),
    Check(
        "orphans.old_source",
        "note",
        "DESCRIPTORS, ENCODINGS and ATTENTION have rows of today's files only",
        "kept on purpose, of videos that have changed or are not in this run: readers join on source",
        row_checks.old_sources,
    ),
    Check(
        "counts.segments",
        "error",
        "a video has num_segments rows in SEGMENTS",
        f"delete the folders of VIDEOS and SEGMENTS and {_AGAIN}: headers are read once more",
        row_checks.segment_counts,
    ),
    Check(
        "counts.descriptors",
        "error",
        "planned = ok + partial + failed: every planned segment has a row in DESCRIPTORS",
        f"delete the mark _done-*.json of the folder and {_AGAIN}: the missing segments are described",
        row_checks.planned_segments,
    ),
    Check(
        "counts.frames",
        "error",
        "status, frames and descriptors of a row agree",
        _BY_HAND,
        row_checks.consistent_segments,
    ),
    Check(
        "counts.failures",
        "error",
        "FAILURES are the failed and partial rows of DESCRIPTORS",
        _BY_HAND,
        row_checks.failures,
    ),
    Check(
        "counts.encodings",
        "error",
        "a video with a described segment has a row per codebook, and no other video has",
        _BY_HAND,
        row_checks.encoded_videos,
    ),
    Check(
        "counts.num_descriptors",
        "error",
        "encodings are the sum of all descriptors of their video",
        _BY_HAND,
        row_checks.descriptor_counts,
    ),
    Check(
        "counts.attention",
        "error",
        "ATTENTION has a row per encoded frame",
        _BY_HAND,
        row_checks.attention_counts,
    ),
    Check(
        "counts.scores",
        "error",
        "a tested video has a score for every class",
        _BY_HAND,
        None,
    ),
    Check("vectors.not_finite", "error", "no NaN and no infinity", _BY_HAND, row_checks.not_finite),
    Check(
        "vectors.norm",
        "error",
        "encodings have norm 1, or 0 without descriptors",
        _BY_HAND,
        row_checks.norms,
    ),
    Check(
        "vectors.zero",
        "warning",
        "encodings of described videos are not zero",
        "expected of differences where nothing moves; else look at the video: are its frames black?",
        row_checks.zero_vectors,
    ),
    Check(
        "vectors.width",
        "error",
        "vectors have the width and type that the configuration and their classifiers want",
        _BY_HAND,
        row_checks.widths,
    ),
    Check(
        "attention.sum",
        "error",
        "a frame's attention is the sum of its cells",
        _BY_HAND,
        row_checks.attention_sums,
    ),
    Check(
        "scores.truth",
        "error",
        "is_true and fold of SCORES are those of VIDEOS",
        _BY_HAND,
        None,
    ),
    Check(
        "metrics.values",
        "error",
        "METRICS are what SCORES give, to 1e-9",
        _BY_HAND,
        None,
    ),
    Check(
        "metrics.missing",
        "error",
        "METRICS have every number of every result",
        _BY_HAND,
        None,
    ),
    Check(
        "storage.answer",
        "error",
        "the storage gives every file that it lists",
        "delete nothing, nobody knows whether these files are damaged; ask again when the storage answers, or with the "
        "rights and credentials that it wants",
        file_checks.unanswered,
    ),
)


@dataclass(frozen=True)
class Finding:
    """A problem, with the check that found it."""

    check: str
    severity: Severity
    meaning: str
    where: str
    found: str
    count: int
    examples: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class Report:
    """All findings, the worst first.

    Attributes:
        segments: planned, ok, partial, failed; empty where it cannot be said.
        not_counted: folders with files that cannot be read: their counts are not checked.
    """

    out: str
    is_quick: bool
    findings: tuple[Finding, ...]
    segments: dict[str, int]
    not_counted: tuple[str, ...]
    num_files: int
    num_rows: int
    seconds: float

    def of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def has_errors(self) -> bool:
        return bool(self.of("error"))

    def to_json(self) -> dict:
        """Plain values, with the number of findings of each severity."""
        return asdict(self) | {f"num_{name}s": len(self.of(name)) for name in SEVERITIES}

    def lines(self) -> list[str]:
        """The report for people."""
        lines = []
        for finding in self.findings:
            place = f" {finding.where}" if finding.where else ""
            lines.append(f"{finding.severity.upper()} {finding.check}{place}")
            lines.append(f"    expected  {finding.meaning}")
            lines.append(f"    found     {finding.found}")
            lines += [f"              {example}" for example in finding.examples]
            if finding.count > len(finding.examples) > 0:
                lines.append(f"              and {finding.count - len(finding.examples)} more")
            lines += [f"    do        {finding.advice}", ""]
        lines += [
            f"not counted, because of files that cannot be read: {f}" for f in self.not_counted
        ]
        if self.segments:
            lines.append(
                "segments: {planned} planned = {ok} ok + {partial} partial + {failed} failed".format(
                    **self.segments
                )
            )
        bad = [name for name in ("error", "warning") if self.of(name)]
        said = ", ".join(f"{len(self.of(name))} {name}(s)" for name in bad) or "no problem found"
        how = "; vectors were not read (--quick)" if self.is_quick else ""
        lines.append(
            f"{said}: {self.num_files:,} files, {self.num_rows:,} rows checked in {self.seconds:.1f} s{how}"
        )
        return lines


def examine(store: Store, quick: bool = False) -> Report:
    """Reads a run and checks it.

    Args:
        quick: no vectors are read, and of codebooks and classifiers the headers only.

    Raises:
        ConfigError: there is no run, or it cannot be listed.
        StorageError: the storage does not answer when it is asked for what the run is.
    """
    started = time.monotonic()
    run = Run(store, quick)
    # SCORES and METRICS are read by the results; only then all unreadable files are known.
    found = [*run.all_folders()]
    found_in_scores = score_checks.problems(run)
    findings = [
        Finding(
            c.id, c.severity, c.meaning, p.where, p.found, p.count, p.examples, p.advice or c.advice
        )
        for c in CHECKS
        for p in [*(c.find(run) if c.find else ()), *found_in_scores.get(c.id, ())]
    ]
    return Report(
        out=store.root,
        is_quick=quick,
        findings=tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity))),
        segments=_ledger(run),
        not_counted=tuple(folder.name for folder in found if not folder.is_whole),
        num_files=sum(len(folder.files) for folder in found) + len(run.tensors),
        num_rows=sum(folder.num_rows for folder in found),
        seconds=time.monotonic() - started,
    )


def _ledger(run: Run) -> dict[str, int]:
    if not row_checks.has_rows(run, "segments", "descriptors"):
        return {}
    status = run.folder("descriptors")["status"][row_checks.last_attempts(run)]
    counts = np.bincount(status, minlength=len(STATUSES))
    named = {name: int(count) for name, count in zip(STATUSES, counts, strict=False)}
    return {"planned": run.folder("segments").num_rows} | named
