"""Run all encodings of DQ Table 2 on your videos and print the table beside the paper's.

`python -m jobs.compare_encoders --videos ... --labels ... --out ...`; the flags and the exit codes
are those of `jobs/fcvid_encode.py`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from jobs import command_line

if TYPE_CHECKING:
    from pipelines.run.job import Job


def main(argv: list[str] | None = None) -> int:
    """Run the job, print the table and return the exit code."""
    arguments = command_line.parser("compare_encoders", __doc__, "compare_encoders").parse_args(
        argv
    )
    return command_line.guarded(
        lambda: command_line.run(arguments, command_line.configuration(arguments), finish=_print)
    )


def _print(job: Job) -> None:
    from pipelines.report import papers

    for line in papers.text(job):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
