"""Run the pipeline: videos and labels in; descriptors, codebooks, vectors, SVMs and a report out.

Recipe `auto` takes any corpus; `--recipe fcvid` is the FCVID protocol (VU 5.4.1).
Exit codes: 0 done, 1 the run could not go on, 2 something in the inputs or settings is wrong, 3 too
many segments failed, 129, 130 and 143 it was stopped (the terminal was closed; Ctrl-C; `ray job
stop`, SIGTERM).
"""

import sys
from collections.abc import Sequence

from jobs import command_line, run_flags
from jobs.run_flags import Flags


@command_line.command(__doc__)
@run_flags.add("auto")
def command(given: Flags) -> int:
    """Run the job and return the exit code."""
    return command_line.guarded(lambda: run_flags.run(given, run_flags.configuration(given)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return the exit code."""
    return command_line.main(command, "python -m jobs.fcvid_encode", argv)


if __name__ == "__main__":
    sys.exit(main())
