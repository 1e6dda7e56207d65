"""Examination of a finished or unfinished run: are its tables what they say, and do they agree?

Nothing is changed but a note of what is damaged, which the next run reads. Neither Ray nor torch is
needed.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pipelines.doctor import advice, scores
from pipelines.doctor.check import (
    BY_HAND,
    CHECKS,
    EXAMPLES,
    SEVERITIES,
    Check,
    Query,
    Severity,
    sql_text,
)
from pipelines.doctor.database import Database
from pipelines.doctor.scan import Scan
from pipelines.run.versions import FORMAT_VERSION
from pipelines.storage.store import Store


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

    def lines(self) -> list[str]:
        """Return the finding for people."""
        more = self.count - len(self.examples)
        return [
            f"{self.severity.upper()} {self.check} {self.where}".rstrip(),
            f"    expected  {self.meaning}",
            f"    found     {self.found}",
            *(f"              {example}" for example in self.examples),
            *([f"              and {more} more"] if self.examples and more > 0 else []),
            f"    do        {self.advice}",
            "",
        ]


@dataclass(frozen=True)
class Examination:
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
        """Return plain values, with the number of findings of each severity."""
        return asdict(self) | {f"num_{name}s": len(self.of(name)) for name in SEVERITIES}

    def lines(self) -> list[str]:
        """Return the report for people."""
        lines = [line for finding in self.findings for line in finding.lines()]
        unread = "not counted, because of files that cannot be read"
        lines += [f"{unread}: {folder}" for folder in self.not_counted]
        if self.segments:
            text = "segments: {planned} planned = {ok} ok + {partial} partial + {failed} failed"
            lines.append(text.format(**self.segments))
        counts = {name: len(self.of(name)) for name in SEVERITIES[:2]}
        summary = ", ".join(f"{count} {name}(s)" for name, count in counts.items() if count)
        lines.append(
            f"{summary or 'no problem found'}: {self.num_files:,} files, {self.num_rows:,} rows "
            f"checked in {self.seconds:.1f} s"
            f"{'; vectors were not read (--quick)' if self.is_quick else ''}"
        )
        return lines


def examine(store: Store, quick: bool = False) -> Examination:
    """Read a run and check it.

    Args:
        quick: no vectors are read, and no codebooks and classifiers.

    Raises:
        ConfigError: there is no run, or it cannot be listed.
        StorageError: the storage does not answer when it is asked for what the run is.
    """
    started = time.monotonic()
    with Database() as database:
        run = Scan(store, database, quick)
        findings, segments = _findings(run), _segments(run)
        if not quick:
            run.write_note()
        num_files, num_rows = database.execute(
            "SELECT count(*), coalesce(sum(num_rows), 0)::BIGINT FROM files"
        ).fetchall()[0]
    return Examination(
        out=store.root,
        is_quick=quick,
        findings=tuple(findings),
        segments=segments,
        not_counted=tuple(
            folder.path
            for folder in run.folders.values()
            if not run.damaged.isdisjoint(folder.files)
        ),
        num_files=num_files + len(run.tensors),
        num_rows=num_rows,
        seconds=time.monotonic() - started,
    )


def _findings(run: Scan) -> list[Finding]:
    """Ask all queries; return what they find, the worst first."""
    findings: list[Finding] = []

    def ask(of: str) -> None:
        for check in CHECKS:
            for query in check.queries:
                if query.of == of:
                    findings.extend(_ask(run, check, query))

    run.database.execute(f"SET VARIABLE format_version = '{FORMAT_VERSION}'")
    run.database.execute(sql_text("derived.sql"))
    scores.read_results(run, lambda: ask("scores"))
    # Now all files that cannot be read are known.
    ask("")
    order = [check.id for check in CHECKS]
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), order.index(f.check)))


def _ask(run: Scan, check: Check, query: Query) -> Iterator[Finding]:
    """Yield a finding for each folder and kind of row that a query selects."""
    if query.done and not run.is_done(query.done):
        return
    if not run.is_whole(*query.whole.split()):
        return
    execute = run.database.execute
    ((num_rows,),) = execute(f"CREATE OR REPLACE TEMP TABLE odd AS {query.sql}").fetchall()
    if not num_rows:
        return
    columns = {row[0] for row in execute("DESCRIBE odd").fetchall()}
    example = "example" if "example" in columns else "file"
    order = "(file, row)" if "row" in columns else "file"
    groups = execute(
        f"""
        SELECT folder, found, count(*), arg_min({example}, {order}, {EXAMPLES}),
            list_sort(list(DISTINCT file))[:{EXAMPLES + 1}]
        FROM odd GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    for folder, found, count, examples, files in groups:
        command = advice.command(run, query.remake, folder, files)
        yield Finding(
            check=check.id,
            severity=check.severity,
            meaning=check.meaning,
            where=run.folders[folder].path if folder in run.folders else folder,
            found=found.replace("#", f"{count}"),
            count=count,
            examples=tuple(filter(None, examples)),
            advice=command or check.advice or BY_HAND,
        )


def _segments(run: Scan) -> dict[str, int]:
    if not run.is_whole("segments", "descriptors"):
        return {}
    query = "SELECT status, count(*) FROM last_attempts GROUP BY ALL"
    counts = dict(run.database.execute(query).fetchall())
    by_status = {name: counts.get(name, 0) for name in ("ok", "partial", "failed")}
    (planned,) = run.database.column("SELECT count(*) FROM segments")
    return {"planned": planned} | by_status
