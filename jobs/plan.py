"""Say how long a run would take and what it would cost, from trials on a sample; run nothing.

The flags and the exit codes are those of `jobs/fcvid_encode.py`, of which this is `--plan`.
"""

import dataclasses
import sys
from collections.abc import Sequence

from jobs import command_line, run_flags
from jobs.run_flags import Flags


@command_line.command(__doc__)
@run_flags.add("auto")
def command(given: Flags) -> int:
    """Print the plan and return the exit code."""
    planned = dataclasses.replace(given, plan=True)
    return command_line.guarded(lambda: run_flags.run(planned, run_flags.configuration(planned)))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan and return the exit code."""
    return command_line.main(command, "python -m jobs.plan", argv)


if __name__ == "__main__":
    sys.exit(main())
