"""Free the space of earlier configurations of a run: `python -m jobs.clean --out RUN --keep N`.

It says how many bytes of which configurations would go, and deletes nothing without --yes. What a
configuration that stays has in common with them stays. Exit codes: 0 done, 1 the storage refuses, 2
something in the flags is wrong, or a run holds the folder.
"""

import contextlib
import shlex
import sys
from collections.abc import Sequence

import rich_click as click

from jobs import command_line


@command_line.command(__doc__)
@click.option(
    "--out", required=True, metavar="PATH", help="URI of the run, as it was given to the job."
)
@click.option(
    "--keep",
    type=int,
    required=True,
    metavar="N",
    help="Configurations that stay: the newest ones, that of run.json among them.",
)
@click.option("--yes", "is_sure", is_flag=True, help="Delete.")
def command(out: str, keep: int, is_sure: bool) -> int:
    """Say what would go or delete it, and return the exit code."""
    return command_line.guarded(lambda: _run(out, keep, is_sure))


def main(argv: Sequence[str] | None = None) -> int:
    """Say what would go or delete it, and return the exit code."""
    return command_line.main(command, "python -m jobs.clean", argv)


def _run(out: str, keep: int, is_sure: bool) -> int:
    from pipelines.errors import ConfigError
    from pipelines.reading.kept import clean
    from pipelines.run.lock import RunLock
    from pipelines.run.schema import read_record
    from pipelines.storage.store import Store
    from pipelines.storage.uris import absolute_uri

    if keep < 1:
        raise ConfigError(f"--keep: expected at least 1, got {keep}")
    store = Store(absolute_uri(out))
    if read_record(store) is None:
        raise ConfigError(f"--out {out}: expected a run with its run.json, found none")
    locked = RunLock(store, shlex.join(sys.argv)) if is_sure else contextlib.nullcontext()
    with locked:
        for line in clean(store, keep, is_sure=is_sure):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
