"""Classify new videos by a finished run: `python -m jobs.predict --out RUN --videos NEW --to FILE`.

The run's own settings, weights, codebooks, classifiers and weights of a fusion are used, and no
labels. What is written is in docs/predict.md. Exit codes: 0 done, 1 the work cannot go on, 2
something in the flags or inputs is wrong, 3 more segments failed than run.max_failed_fraction.
"""

import argparse
import sys

from jobs.command_line import before_ray, guarded, summary
from pipelines.ray_job import refuse_relative
from pipelines.storage.uris import refuse_credentials


def parser() -> argparse.ArgumentParser:
    """Return a parser of the command line."""
    out = argparse.ArgumentParser(prog="predict", description=summary(__doc__))
    out.add_argument("--out", required=True, help="URI of the run, as it was given to the job")
    out.add_argument("--videos", required=True, help="new videos, as for the job")
    out.add_argument(
        "--to", required=True, help="a .parquet file to write, or a folder; a path or URI"
    )
    out.add_argument("--encoder", help="of the result to use, as in METRICS (default: the best)")
    out.add_argument("--stream", help="of the result to use, as in METRICS (default: the best)")
    out.add_argument("--fusion", help="of the result to use, as in METRICS (default: the best)")
    out.add_argument(
        "--fold",
        type=int,
        metavar="K",
        help="use classifiers that fold K was left out of (default: those of all videos)",
    )
    out.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="SECTION.FIELD=VALUE",
        help="a setting that changes no number, such as cluster.num_decoders; may be repeated",
    )
    out.add_argument("--address", help="Ray cluster to join (default: this machine)")
    out.add_argument(
        "--take-over", action="store_true", help="take the work folder from a process that is gone"
    )
    out.set_defaults(labels=None)
    return out


def main(argv: list[str] | None = None) -> int:
    """Predict, print what was written and return the exit code."""
    arguments = parser().parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    uris = {f"--{name}": getattr(arguments, name) for name in ("out", "videos", "to")}
    for flag, uri in uris.items():
        refuse_credentials(flag, uri)
    address, submission = before_ray(arguments)
    if submission.id:
        refuse_relative({"--to": arguments.to})
    # torch and Ray take seconds to load: wrong flags are reported before.
    from pipelines.predict.command import Request, predict

    asked = {name: getattr(arguments, name) for name in Request.__dataclass_fields__}
    done = predict(Request(**asked), address, submission)
    print("\n".join(done.lines()))
    return 3 if done.exceeds else 0


if __name__ == "__main__":
    sys.exit(main())
