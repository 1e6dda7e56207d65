"""Classify new videos by a finished run: `python -m jobs.predict --out RUN --videos NEW --to FILE`.

The run's own settings, weights, codebooks, classifiers and weights of a fusion are used, and no
labels. What is written is in docs/predict.md. Exit codes: 0 done, 1 the work cannot go on, 2
something in the flags or inputs is wrong, 3 more segments failed than run.max_failed_fraction.
"""

import sys
from collections.abc import Sequence
from typing import Any

import rich_click as click

from jobs import command_line
from pipelines import launch
from pipelines.storage.uris import refuse_credentials


@command_line.command(__doc__)
@click.option(
    "--out", required=True, metavar="PATH", help="URI of the run, as it was given to the job."
)
@click.option("--videos", required=True, metavar="PATH", help="New videos, as for the job.")
@click.option(
    "--to",
    required=True,
    metavar="FILE",
    help="A .parquet file to write, or a folder; a path or URI.",
)
@click.option(
    "--encoder",
    metavar="NAME",
    help="Of the result to use, as in METRICS (default: the best).",
)
@click.option(
    "--stream", metavar="NAME", help="Of the result to use, as in METRICS (default: the best)."
)
@click.option(
    "--fusion", metavar="NAME", help="Of the result to use, as in METRICS (default: the best)."
)
@click.option(
    "--fold",
    type=int,
    metavar="K",
    help="Use classifiers that fold K was left out of (default: those of all videos).",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="A setting that changes no number, such as cluster.num_decoders; may be repeated.",
)
@click.option("--address", metavar="ADDRESS", help="Ray cluster to join (default: this machine).")
@click.option(
    "--take-over",
    is_flag=True,
    help="Take the work folder from a process that is gone.",
)
def command(address: str | None, **asked: Any) -> int:
    """Predict, print what was written and return the exit code."""
    return command_line.guarded(lambda: _run(address, asked))


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, print what was written and return the exit code."""
    return command_line.main(command, "python -m jobs.predict", argv)


def _run(address: str | None, asked: dict[str, Any]) -> int:
    uris = {f"--{name}": asked[name] for name in ("out", "videos", "to")}
    for flag, uri in uris.items():
        refuse_credentials(flag, uri)
    address, submission = launch.before_ray(address, uris)
    # torch and Ray take seconds to load: wrong flags are reported before.
    from pipelines.predict.command import Request, predict

    done = predict(Request(**asked), address, submission)
    print("\n".join(done.lines()))
    return 3 if done.exceeds else 0


if __name__ == "__main__":
    sys.exit(main())
