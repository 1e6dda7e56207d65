"""Check the tables of a run for consistency and explain the findings.

`python -m jobs.doctor --out URI` reads the folder of a run, local or s3://, and changes nothing in
it; where files are damaged, it leaves a note of them, which the job's next run reads. Exit codes: 0
no errors, 1 errors found, 2 there is no run, its storage does not answer, or the flags are wrong.
What is kept of the rows and does not fit into a gigabyte is in TMPDIR meanwhile.
"""

import argparse
import json
import sys
from pathlib import Path

from jobs.command_line import summary
from pipelines.doctor import examine
from pipelines.errors import ConfigError
from pipelines.storage.retries import StorageError
from pipelines.storage.store import Store
from pipelines.storage.uris import absolute_uri


def parser() -> argparse.ArgumentParser:
    """Return a parser of the command line."""
    out = argparse.ArgumentParser(prog="doctor", description=summary(__doc__))
    out.add_argument("--out", required=True, help="URI of the run, as it was given to the job")
    out.add_argument("--json", metavar="FILE", help="write the findings into this file too")
    out.add_argument(
        "--quick",
        action="store_true",
        help="read no vectors, and no codebooks and classifiers",
    )
    return out


def main(argv: list[str] | None = None) -> int:
    """Print the report and return the exit code."""
    arguments = parser().parse_args(argv)
    try:
        report = examine.examine(Store(absolute_uri(arguments.out)), arguments.quick)
        if arguments.json:
            _write(arguments.json, report)
    except (ConfigError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in report.lines():
        print(line)
    return 1 if report.has_errors else 0


def _write(file: str, report: examine.Examination) -> None:
    try:
        Path(file).write_text(json.dumps(report.to_json(), indent=1))
    except OSError as error:
        raise ConfigError(f"--json {file}: cannot write it ({error})") from error


if __name__ == "__main__":
    sys.exit(main())
