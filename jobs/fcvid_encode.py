"""Main job: videos and labels in; descriptors, codebooks, Fisher vectors, SVMs and a report out.

Recipe `auto` takes any corpus; `--recipe fcvid` is the FCVID protocol (VU 5.4.1).
Exit codes: 0 done, 1 the run could not go on, 2 something in the inputs or settings is wrong, 3 too
many segments failed, 129, 130 and 143 it was stopped (the terminal was closed; Ctrl-C; `ray job
stop`, SIGTERM).
"""

import argparse
import sys

from jobs import command_line


def parser() -> argparse.ArgumentParser:
    """Return a parser of the command line."""
    return command_line.parser("fcvid_encode", __doc__, "auto")


def main(argv: list[str] | None = None) -> int:
    """Run the job and return the exit code."""
    arguments = parser().parse_args(argv)
    return command_line.guarded(
        lambda: command_line.run(arguments, command_line.configuration(arguments))
    )


if __name__ == "__main__":
    sys.exit(main())
