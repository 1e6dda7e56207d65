"""Find the videos of a finished run that are most like one of them, or like a new video file.

`python -m jobs.search --out URI --query VIDEO_ID-or-FILE` prints a table and writes a page with
pictures. The first search with an encoder and stream builds their index, under search/ in the run.
No cluster is needed. Exit codes: 0 done, 1 the run's tables do not allow a search, 2 something in
the flags is wrong, or the file cannot be decoded.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import rich_click as click

from jobs import command_line


@command_line.command(__doc__)
@click.option(
    "--out", required=True, metavar="PATH", help="URI of the run, as it was given to the job."
)
@click.option(
    "--query",
    required=True,
    metavar="VIDEO",
    help="A video_id of the run, or the file or URI of another video.",
)
@click.option(
    "--encoder",
    metavar="NAME",
    help="Compare vectors of this encoder (default: that with the best mAP).",
)
@click.option(
    "--stream",
    metavar="NAME",
    help="Compare vectors of this stream (default: that with the best mAP).",
)
@click.option("--num", type=int, default=10, metavar="N", help="Number of results (default: 10).")
@click.option(
    "--page", metavar="FILE", help="File or URI to write the page to (default: in the run)."
)
@click.option("--json", "is_json", is_flag=True, help="Print JSON instead of the table.")
def command(out: str, query: str, is_json: bool, **chosen: Any) -> int:
    """Search, print the answer and return the exit code."""
    return command_line.guarded(lambda: _run(out, query, is_json, chosen))


def main(argv: Sequence[str] | None = None) -> int:
    """Search, print the answer and return the exit code."""
    return command_line.main(command, "python -m jobs.search", argv)


def _run(out: str, query: str, is_json: bool, chosen: dict[str, Any]) -> int:
    # torch takes seconds to load: wrong flags are reported before.
    from pipelines.search.nearest import search

    answer = search(out, query, **chosen)
    print(json.dumps(answer.to_json(), indent=1) if is_json else "\n".join(answer.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
