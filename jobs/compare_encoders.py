"""Run all encodings of DQ Table 2 on your videos and print the table beside the paper's.

`python -m jobs.compare_encoders --videos ... --labels ... --out ...`; the flags and the exit codes
are those of `jobs/fcvid_encode.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import command_line, run_flags
from jobs.run_flags import Flags

if TYPE_CHECKING:
    from pipelines.run.job import Job


@command_line.command(__doc__)
@run_flags.add("compare_encoders")
def command(given: Flags) -> int:
    """Run the job, print the table and return the exit code."""
    return command_line.guarded(
        lambda: run_flags.run(given, run_flags.configuration(given), finish=_print)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job, print the table and return the exit code."""
    return command_line.main(command, "python -m jobs.compare_encoders", argv)


def _print(job: Job) -> None:
    from pipelines.report.papers import tables as papers

    for line in papers.text(job):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
