"""Write a run for other tools: `python -m jobs.export --out RUN --to FORMAT --folder FOLDER`.

Ids, labels, vectors of one result and its scores, of every current video that has a vector.
FORMAT is huggingface, lance or webdataset; docs/python.md says how each is read. Exit codes: 0
done, 1 the storage refuses, 2 something in the flags is wrong, or a package is missing.
"""

import sys
from collections.abc import Sequence

import rich_click as click

from jobs import command_line

FORMATS = ("huggingface", "lance", "webdataset")
"""As in `pipelines.export.registry`, which takes long to load."""


@command_line.command(__doc__)
@click.option(
    "--out", required=True, metavar="PATH", help="URI of the run, as it was given to the job."
)
@click.option("--to", required=True, type=click.Choice(FORMATS), help="Format to write.")
@click.option("--folder", required=True, metavar="FOLDER", help="Folder to write, absent or empty.")
@click.option("--encoder", metavar="NAME", help="Of the vectors (default: of the best result).")
@click.option("--stream", metavar="NAME", help="Of the vectors (default: of the best result).")
def command(out: str, to: str, folder: str, encoder: str | None, stream: str | None) -> int:
    """Write the run and return the exit code."""
    return command_line.guarded(lambda: _run(out, to, folder, encoder, stream))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the run and return the exit code."""
    return command_line.main(command, "python -m jobs.export", argv)


def _run(out: str, to: str, folder: str, encoder: str | None, stream: str | None) -> int:
    from pipelines.export.registry import export

    print(f"vectors of {export(out, to, folder, encoder, stream)}: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
