"""Show where a picture has a class: `python -m jobs.confidence --out RUN --image F --to MAP.png`.

Every position of the picture's maps is classified by itself, by the classifiers and codebook of the
run (FK 4.5; docs/images.md). Needs a run with describe.streams=dense; no cluster. Exit codes: 0
done, 1 the run's files cannot be read, 2 something in the flags is wrong, or the file cannot be
decoded.
"""

import sys
from collections.abc import Sequence
from typing import Any

import rich_click as click

from jobs import command_line
from pipelines.storage.uris import refuse_credentials


@command_line.command(__doc__)
@click.option(
    "--out", required=True, metavar="PATH", help="URI of the run, as it was given to the job."
)
@click.option(
    "--image", required=True, metavar="FILE", help="The picture, or a film's first frame."
)
@click.option(
    "--to",
    required=True,
    metavar="FILE",
    help="A .png file to write; the table CONFIDENCE is written beside it.",
)
@click.option("--class", "label", metavar="NAME", help="The class (default: the likeliest one).")
@click.option(
    "--encoder", metavar="NAME", help="Of the result to use, as in METRICS (default: the best)."
)
@click.option(
    "--stream", metavar="NAME", help="Of the result to use, as in METRICS (default: the best)."
)
@click.option(
    "--fold",
    type=int,
    metavar="K",
    help="Use the classifier that fold K was left out of (default: that of all videos).",
)
def command(out: str, image: str, to: str, **asked: Any) -> int:
    """Write the map, print where, and return the exit code."""
    return command_line.guarded(lambda: _run(out, image, to, asked))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the map, print where, and return the exit code."""
    return command_line.main(command, "python -m jobs.confidence", argv)


def _run(out: str, image: str, to: str, asked: dict[str, Any]) -> int:
    for flag, uri in (("--out", out), ("--image", image), ("--to", to)):
        refuse_credentials(flag, uri)
    # torch takes seconds to load: wrong flags are reported before.
    from pipelines.predict.confidence import Request, confidence

    found = confidence(Request(out, image, to, **asked))
    print(f"{found.label}: {found.score:.3f}\npicture: {found.picture}\ntable: {found.table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
