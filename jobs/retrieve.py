"""Measure a finished run as an image search: mAP by the right answers of queries.

`python -m jobs.retrieve --out URI --truth FILE` prints the mAP of every encoder and stream, with
whole vectors and after PCA with whitening, and writes a page with the curve over the layers beside
the paper's numbers (VU 2.4). No cluster is needed. Exit codes: 0 done, 1 the run's tables do not
allow a search, 2 something in the flags or the truth is wrong.
"""

import sys
from collections.abc import Sequence
from typing import Any

import rich_click as click

from jobs import command_line
from pipelines.errors import ConfigError


@command_line.command(__doc__)
@click.option(
    "--out",
    "outs",
    required=True,
    multiple=True,
    metavar="PATH",
    help="URI of the run, as it was given to the job; may be repeated, for runs of the same images "
    "at several sizes. The page is written into the first.",
)
@click.option(
    "--truth",
    metavar="FILE",
    help="CSV or Parquet: query,path,judgement (good, ok or junk), a row for each answer; or the "
    "folder of text files that Oxford and Paris are published with (docs/retrieval.md).",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="Protocol: holidays (the numbers of the images are the truth, no file is needed), oxford "
    "or paris (a query is one of its own right answers). Without: a query is left out of its "
    "own ranking.",
)
@click.option("--encoder", metavar="NAME", help="Measure this encoder alone (default: all).")
@click.option("--stream", metavar="NAME", help="Measure this stream alone (default: all).")
def command(outs: tuple[str, ...], **chosen: Any) -> int:
    """Measure, print the numbers and return the exit code."""
    typed = command_line.typed()
    return command_line.guarded(lambda: _run(outs, typed, **chosen))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the numbers and return the exit code."""
    return command_line.main(command, "python -m jobs.retrieve", argv)


def _run(
    outs: tuple[str, ...], typed: str, truth: str | None, preset: str | None, **of: Any
) -> int:
    if truth is None and preset is None:
        raise ConfigError("--truth: expected a file with the right answers, or --preset holidays")
    # torch takes seconds to load: wrong flags are reported before.
    from pipelines.search import retrieval_page
    from pipelines.search.retrieve import retrieve

    runs, found = retrieve(outs, truth, preset, **of)
    print("\n".join(retrieval_page.lines(found)))
    print(f"page: {retrieval_page.publish(runs, found, typed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
