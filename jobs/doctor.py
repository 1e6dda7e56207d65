"""Check the tables of a run for consistency and explain the findings.

`python -m jobs.doctor --out URI` reads the folder of a run, local or s3://, and changes nothing in
it; where files are damaged, it leaves a note of them, which the job's next run reads. Exit codes: 0
no errors, 1 errors found, 2 there is no run, its storage does not answer, or the flags are wrong.
What is kept of the rows and does not fit into a gigabyte is in TMPDIR meanwhile.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import rich_click as click

from jobs import command_line
from pipelines.doctor import examine
from pipelines.errors import ConfigError
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store
from pipelines.storage.uris import absolute_uri


@command_line.command(__doc__)
@click.option(
    "--out", required=True, metavar="PATH", help="URI of the run, as it was given to the job."
)
@click.option("--json", "file", metavar="FILE", help="Write the findings into this file too.")
@click.option("--quick", is_flag=True, help="Read no vectors, and no codebooks and classifiers.")
def command(out: str, file: str | None, quick: bool) -> int:
    """Print the report and return the exit code."""
    try:
        report = examine.examine(Store(absolute_uri(out)), quick)
        if file:
            _write(file, report)
    except (ConfigError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in report.lines():
        print(line)
    return 1 if report.has_errors else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report and return the exit code."""
    return command_line.main(command, "python -m jobs.doctor", argv)


def _write(file: str, report: examine.Examination) -> None:
    try:
        Path(file).write_text(json.dumps(report.to_json(), indent=1))
    except OSError as error:
        raise ConfigError(f"--json {file}: cannot write it ({error})") from error


if __name__ == "__main__":
    sys.exit(main())
