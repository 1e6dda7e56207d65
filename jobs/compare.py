"""Compare configurations: `python -m jobs.compare --out RUN [--out RUN2 ...]`.

Every configuration that a run has kept is shown: the settings that differ, the best result, its
gain over the first one with a paired interval over videos, and the time that it took. A page with a
chart is written too. Exit codes: 0 done, 1 the storage refuses, 2 something in the flags is wrong,
or there is nothing to compare.
"""

import sys
from collections.abc import Sequence

import rich_click as click

from jobs import command_line


@command_line.command(__doc__)
@click.option(
    "--out",
    "outs",
    required=True,
    multiple=True,
    metavar="PATH",
    help="URI of a run, as it was given to the job; may be repeated.",
)
@click.option(
    "--page",
    metavar="FILE",
    help="File or URI of the page (default: compare.html in the run).",
)
def command(outs: tuple[str, ...], page: str | None) -> int:
    """Compare, print the table and return the exit code."""
    return command_line.guarded(lambda: _run(outs, page))


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the table and return the exit code."""
    return command_line.main(command, "python -m jobs.compare", argv)


def _run(outs: tuple[str, ...], file: str | None) -> int:
    # matplotlib and Ray take seconds to load: wrong flags are reported before.
    from pipelines.index.user_tables import using
    from pipelines.storage.store import Store
    from pipelines.storage.uris import absolute_uri
    from pipelines.studies.compare import compare
    from pipelines.studies.compare_page import render

    found = compare(outs)
    page = absolute_uri(file or f"{absolute_uri(outs[0])}/compare.html")
    folder, _, name = page.rpartition("/")
    with using("--page", page, "write there"):
        Store(folder).publish(name, render(found).encode())
    print("\n".join([*found.lines(), f"page: {page}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
