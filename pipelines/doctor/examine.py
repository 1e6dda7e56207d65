"""Checks of a finished or unfinished run: are its tables what they say, and do they agree?

Nothing is changed. `CHECKS` is the list of all checks; each is a function that yields a problem per
place. Neither Ray nor torch is needed.
"""

import time
from dataclasses import asdict, dataclass

from pipelines.doctor import file_checks, row_checks, score_checks, tensor_checks, vector_checks
from pipelines.doctor.check import SEVERITIES, Check, Problem, Severity
from pipelines.doctor.gather import Rows
from pipelines.doctor.queries import prepare
from pipelines.doctor.scan import EXAMPLES, Run
from pipelines.storage.store import Store


def _unanswered(run: Run) -> list[Problem]:
    if not run.unanswered:
        return []
    count, texts = len(run.unanswered), tuple(dict.fromkeys(run.unanswered.values()))
    return [Problem("", f"{count} files were not given", count, texts[:EXAMPLES])]


CHECKS: tuple[Check, ...] = (
    *file_checks.CHECKS,
    *tensor_checks.CHECKS,
    *row_checks.CHECKS,
    *vector_checks.CHECKS,
    *score_checks.CHECKS,
    Check(
        "storage.answer",
        "error",
        "the storage gives every file that it lists",
        "delete nothing, nobody knows whether these files are damaged; ask again when the storage "
        "answers, or with the rights and credentials that it wants",
        # The last: until here files are read.
        _unanswered,
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
            text = "segments: {planned} planned = {ok} ok + {partial} partial + {failed} failed"
            lines.append(text.format(**self.segments))
        bad: list[Severity] = [name for name in SEVERITIES[:2] if self.of(name)]
        said = ", ".join(f"{len(self.of(name))} {name}(s)" for name in bad) or "no problem found"
        how = "; vectors were not read (--quick)" if self.is_quick else ""
        lines.append(
            f"{said}: {self.num_files:,} files, {self.num_rows:,} rows checked "
            f"in {self.seconds:.1f} s{how}"
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
    with Rows() as rows:
        run = Run(store, rows, quick)
        prepare(run)
        # Before the checks: only then all files that cannot be read are known.
        score_checks.read_results(run)
        findings = [
            Finding(
                c.id,
                c.severity,
                c.meaning,
                p.where,
                p.found,
                p.count,
                p.examples,
                p.advice or c.advice,
            )
            for c in CHECKS
            for p in c.find(run)
        ]
        segments = _ledger(run)
    folders = run.all_folders()
    return Report(
        out=store.root,
        is_quick=quick,
        findings=tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity))),
        segments=segments,
        not_counted=tuple(folder.name for folder in folders if not folder.is_whole),
        num_files=sum(len(folder.files) for folder in folders) + len(run.tensors),
        num_rows=sum(folder.num_rows for folder in folders),
        seconds=time.monotonic() - started,
    )


def _ledger(run: Run) -> dict[str, int]:
    if not run.has_rows("segments", "descriptors"):
        return {}
    found = run.rows.db.execute(
        "SELECT status, count(*) FROM last_attempts GROUP BY ALL"
    ).fetchall()
    counts = dict(found)
    by_status = {name: counts.get(name, 0) for name in ("ok", "partial", "failed")}
    return {"planned": run.by_key["segments"].num_rows} | by_status
