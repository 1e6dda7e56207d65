"""All encodings of DQ Table 2 on one's own videos, and the table beside the paper's.

`python -m jobs.compare_encoders --videos ... --labels ... --out ...`; flags and exit codes are those of
`jobs/fcvid_encode.py`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from jobs import fcvid_encode
from pipelines.recipes import recipe

if TYPE_CHECKING:
    from pipelines.layout import Job


def main(argv: list[str] | None = None) -> int:
    """Runs the job and prints the table; returns the exit code."""
    arguments = fcvid_encode.parser("compare_encoders", __doc__, "compare_encoders").parse_args(
        argv
    )
    return fcvid_encode.guarded(
        lambda: fcvid_encode.run(
            arguments, recipe(arguments.recipe).with_settings(arguments.settings), finish=_print
        )
    )


def _print(job: Job) -> None:
    from pipelines import comparison

    for line in comparison.text(job):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
