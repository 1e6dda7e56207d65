"""Show what the layers of a finished run take for alike: pictures made of their nearest patches.

`python -m jobs.correspond --out URI` writes a page as VU Figures 2.3 and 2.4: some images, each
cell replaced by its nearest patches in other images, and sampled patches beside their nearest ones.
The run needs a stream of positions, such as describe.streams=dense. No cluster is needed. Exit
codes: 0 done, 1 the run's tables do not allow it, 2 something in the flags is wrong.
"""

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
    "--stream",
    "streams",
    multiple=True,
    metavar="NAME",
    help="A stream to show; may be repeated (default: all streams of positions).",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="VIDEO",
    help="A video_id to repaint; may be repeated (default: four of the run).",
)
@click.option(
    "--clusters",
    "num_clusters",
    type=click.IntRange(0, 100),
    default=12,
    metavar="N",
    help="Number of sampled patches (default: 12).",
)
def command(**chosen: Any) -> int:
    """Write the page, and return the exit code."""
    typed = command_line.typed()
    return command_line.guarded(lambda: _run(typed, **chosen))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, and return the exit code."""
    return command_line.main(command, "python -m jobs.correspond", argv)


def _run(typed: str, **chosen: Any) -> int:
    # torch takes seconds to load: wrong flags are reported before.
    from pipelines.search import correspond_page
    from pipelines.search.correspond import correspond

    run, layers = correspond(**chosen)
    print(f"page: {correspond_page.publish(run, layers, typed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
