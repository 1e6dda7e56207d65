"""Free the space of earlier configurations of a run: `python -m jobs.clean --out RUN --keep N`.

It says how many bytes of which configurations would go, and deletes nothing without --yes. What a
configuration that stays has in common with them stays. Exit codes: 0 done, 1 the storage refuses, 2
something in the flags is wrong, or a run holds the folder.
"""

import argparse
import contextlib
import shlex
import sys

from jobs.command_line import guarded, summary


def parser() -> argparse.ArgumentParser:
    """Return a parser of the command line."""
    out = argparse.ArgumentParser(prog="clean", description=summary(__doc__))
    out.add_argument("--out", required=True, help="URI of the run, as it was given to the job")
    out.add_argument(
        "--keep",
        type=int,
        required=True,
        metavar="N",
        help="configurations that stay: the newest ones, that of run.json among them",
    )
    out.add_argument("--yes", action="store_true", help="delete")
    return out


def main(argv: list[str] | None = None) -> int:
    """Say what would go or delete it, and return the exit code."""
    arguments = parser().parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from pipelines.errors import ConfigError
    from pipelines.reading.kept import clean
    from pipelines.run.lock import RunLock
    from pipelines.run.schema import read_record
    from pipelines.storage.store import Store
    from pipelines.storage.uris import absolute_uri

    if arguments.keep < 1:
        raise ConfigError(f"--keep: expected at least 1, got {arguments.keep}")
    store = Store(absolute_uri(arguments.out))
    if read_record(store) is None:
        raise ConfigError(f"--out {arguments.out}: expected a run with its run.json, found none")
    locked = RunLock(store, shlex.join(sys.argv)) if arguments.yes else contextlib.nullcontext()
    with locked:
        for line in clean(store, arguments.keep, is_sure=arguments.yes):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
