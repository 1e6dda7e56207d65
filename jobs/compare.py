"""Compare configurations: `python -m jobs.compare --out RUN [--out RUN2 ...]`.

Every configuration that a run has kept is shown: the settings that differ, the best result, its
gain over the first one with a paired interval over videos, and the time that it took. A page with a
chart is written too. Exit codes: 0 done, 1 the storage refuses, 2 something in the flags is wrong,
or there is nothing to compare.
"""

import argparse
import sys

from jobs.command_line import guarded, summary


def parser() -> argparse.ArgumentParser:
    """Return a parser of the command line."""
    out = argparse.ArgumentParser(prog="compare", description=summary(__doc__))
    out.add_argument(
        "--out",
        required=True,
        action="append",
        dest="outs",
        help="URI of a run, as it was given to the job; may be repeated",
    )
    out.add_argument(
        "--page", metavar="FILE", help="file or URI of the page (default: compare.html in the run)"
    )
    return out


def main(argv: list[str] | None = None) -> int:
    """Compare, print the table and return the exit code."""
    arguments = parser().parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    # matplotlib and Ray take seconds to load: wrong flags are reported before.
    from pipelines.index.user_tables import using
    from pipelines.storage.store import Store
    from pipelines.storage.uris import absolute_uri
    from pipelines.studies.compare import compare
    from pipelines.studies.compare_page import render

    found = compare(arguments.outs)
    page = absolute_uri(arguments.page or f"{absolute_uri(arguments.outs[0])}/compare.html")
    folder, _, name = page.rpartition("/")
    with using("--page", page, "write there"):
        Store(folder).publish(name, render(found).encode())
    print("\n".join([*found.lines(), f"page: {page}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
